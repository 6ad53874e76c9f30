"""`casestudy new`: a behaviour file that runs, with corrupted prompts that keep the length."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from casestudy.behaviour.files import load_behaviour
from casestudy.measure.whole_answers import whole_answers
from casestudy.model.loading import load
from tests.helpers import call

PROMPT = 'She said "It was late."'


@pytest.fixture
def model(toy_folder: Callable[..., Path]) -> str:
    return str(toy_folder(n_positions=256))


def new(capsys: pytest.CaptureFixture[str], model: str, path: Path) -> tuple[int, str, str]:
    options = ("--model", model, "--out", str(path), "--json")
    return call(capsys, "new", PROMPT, "--answer", " He", "--counterpart", " he", *options)


def test_the_file_is_a_behaviour_of_the_prompt_and_its_best_partner(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    status, out, err = new(capsys, model, tmp_path / "late.toml")
    assert status == 0, err
    found = json.loads(out)
    behaviour = load_behaviour(found["file"])
    (prompt,) = behaviour.prompts
    assert (prompt.text, prompt.answer, prompt.counterpart) == (PROMPT, " He", " he")
    assert found["command"][:2] == ["casestudy", "run"]
    best = found["partners"][0]
    undone = best["share_left"] <= 0.5
    assert prompt.corrupted == (best["text"] if undone else None)
    tokenizer = load(model).tokenizer
    lengths = {len(tokenizer.tokenize(p["text"]).rows()[0]) for p in found["partners"]}
    assert lengths == {len(tokenizer.tokenize(PROMPT).rows()[0])}


def test_answers_of_several_tokens_make_a_file_that_runs(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    path = tmp_path / "several.toml"
    asked = ("new", PROMPT, "-a", " He slept", "-c", " it", "--model", model, "--out", str(path))
    status, out, err = call(capsys, *asked, "--json")
    assert status == 0, err
    found = json.loads(out)
    (prompt,) = load_behaviour(path).prompts
    assert (prompt.answer, prompt.counterpart) == (" He slept", " it")
    (value,) = whole_answers(load(model), [prompt]).value.values
    assert (found["unit"], found["logit_difference"]) == ("nats", pytest.approx(value, abs=1e-4))
    assert len(found["answer"]["ids"]) > 1
    assert found["counterpart"]["rank"] > 0
    best = found["partners"][0]
    assert best["share_left"] == pytest.approx(best["logit_difference"] / value, abs=1e-3)
    assert "nats" in path.read_text("utf-8")
    path.unlink()
    status, out, _ = call(capsys, *asked)
    assert status == 0
    assert "·He·slept" in out


def test_an_existing_file_is_never_overwritten(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine", "utf-8")
    status, out, err = new(capsys, model, path)
    assert (status, out) == (2, "")
    assert "not overwritten" in " ".join(err.split())
    assert path.read_text("utf-8") == "mine"
    assert new(capsys, model, tmp_path / "mine.csv")[0] == 2


def test_white_space_at_a_prompts_end_is_visible(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    options = ("-a", "He", "-c", "he", "--model", model, "--out", str(tmp_path / "x.toml"))
    status, out, err = call(capsys, "new", "It was late. ", *options)
    assert status == 0, err
    assert "after “It was late.·”" in out
    assert "it was late.·" in out
