"""`casestudy part`: what it prints and writes, and what it says of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from casestudy.cli.schema import KEYS
from casestudy.results.part_card import PartCard
from tests.helpers import call
from tests.test_cli_json import documented

TEXT = "It was late, so she left. Then Mr. Fox came in, and it ended.\n" * 12


@pytest.fixture
def model(toy_folder: Callable[..., Path]) -> str:
    return str(toy_folder())


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "own.csv").write_text("text,answer,counterpart\nGo., It, it\nIt is., He, he\n")
    return str(tmp_path / "text.txt")


def options(tmp_path: Path, text: str) -> tuple[str, ...]:
    small = ("--window", "16", "-k", "3", "--loss-windows", "2")
    return ("--corpus", text, "--behaviour", str(tmp_path / "own.csv"), *small)


def test_json_has_every_key_and_the_stored_card_is_the_same(
    capsys: pytest.CaptureFixture[str], model: str, text: str, tmp_path: Path
) -> None:
    out = tmp_path / "card"
    more = (*options(tmp_path, text), "--out", str(out))
    found = documented(capsys, "part", model, "mlp 1 neuron 7", *more)
    assert set(found) == set(KEYS["part"])
    assert found["part"] == "neuron 1.7"
    files = {key: found.pop(key) for key in ("card", "page")}
    assert PartCard.read(out).as_dict() == found
    assert all(Path(str(file)).is_file() for file in files.values())


@pytest.mark.parametrize("part", ["head 1.2", "neuron 1.7"])
def test_the_terminal_has_the_main_figures(
    capsys: pytest.CaptureFixture[str], model: str, text: str, tmp_path: Path, part: str
) -> None:
    status, out, err = call(capsys, "part", model, part, *options(tmp_path, text))
    assert status == 0, err
    for words in (
        *(f"{part} of", "strongest contexts", "direct contribution", "what it reads, at the last"),
        *("replaced: change of the logit difference", "replaced: change of the next-token loss"),
    ):
        assert words in out
    _, out, err = call(capsys, "part", model, part)
    assert "Where it is active: not measured, no corpus was given" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("head 9.9",), "Did you mean 'head 1.3'?"),
        (("nueron 1.2",), "is no part of a model"),
        (("head 0.1", "--corpus", "absent.txt"), "there is no absent.txt"),
        (("head 0.1", "--window", "65"), None),
    ],
)
def test_bad_input_ends_with_2_and_an_empty_stdout(
    capsys: pytest.CaptureFixture[str], model: str, arguments: tuple[str, ...], said: str | None
) -> None:
    status, out, err = call(capsys, "part", model, *arguments)
    if said is None:
        assert status == 0, "a window is of a corpus, and none is read"
        return
    assert (status, out) == (2, "")
    assert said in " ".join(err.split())


def test_a_small_corpus_names_the_option(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("Go on.")
    more = ("--corpus", str(tmp_path / "a.txt"), "--window", "16")
    status, _, err = call(capsys, "part", model, "head 0.1", *more)
    assert status == 2
    assert "smaller --k" in " ".join(err.split())


def test_parts_makes_the_cards_of_a_study(
    capsys: pytest.CaptureFixture[str], model: str, text: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "s")
    only = ("--only", "predictions,ledger,attribution")
    call(capsys, "run", str(tmp_path / "own.csv"), "--model", model, *only, "--out", out)
    file = ("--behaviour", str(tmp_path / "own.csv"), "--model", model)
    small = ("--heads", "1", "--neurons", "1", "-k", "3", "--loss-windows", "2")
    found = documented(capsys, "parts", out, *file, *small)
    assert set(found) == set(KEYS["parts"])
    cards = found["cards"]
    assert isinstance(cards, list)
    assert [card["part"].split()[0] for card in cards] == ["head", "neuron"]
    page = Path(str(found["report"])).read_text("utf-8")
    for card in cards:
        assert Path(card["page"]).is_file()
        assert Path(card["page"]).relative_to(out).as_posix() in page
    named = ("--part", "head 1.2", "--corpus", text)
    status, said, err = call(capsys, "parts", out, *file, *named, *small)
    assert status == 0, err
    assert "head 1.2" in said
    assert "named" in said
    assert "parts/head-1.2/card.html" in said, "a page's path is on one line"
    status, said, err = call(capsys, "parts", out, *named)
    assert (status, said) == (2, "")
    assert "a study of 'own', which is no preset" in " ".join(err.split())
    assert "--behaviour FILE" in err
