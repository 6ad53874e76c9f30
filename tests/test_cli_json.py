"""`--json`: one object per command, with schema and version, and no key that is undocumented."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from casestudy import cli
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.cli.run import headline
from casestudy.cli.schema import EXIT_CODES, KEYS, VERSION
from casestudy.show.sections.summary import plain
from casestudy.study.study import study
from tests.helpers import call
from tests.measure.worlds import decoder

pytestmark = pytest.mark.slow

QUESTION = ("It was late. She went home.", "--answer", " He", "--counterpart", " he")


@pytest.fixture
def model(toy_folder: Callable[..., Path]) -> str:
    return str(toy_folder(n_positions=256))


def no_json(word: str) -> None:
    """JSON has no NaN and no infinity, though Python reads both."""
    raise ValueError(f"{word} is not JSON")


def documented(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """What a command prints, if it is as its schema says."""
    status, out, err = call(capsys, *arguments, "--json")
    assert status in EXIT_CODES, err
    found = json.loads(out, parse_constant=no_json)
    assert list(found)[:2] == ["schema", "version"]
    assert found.pop("schema") == f"casestudy.{arguments[0]}"
    assert found.pop("version") == VERSION
    assert set(found) <= set(KEYS[arguments[0]]), "a key that is not documented"
    assert isinstance(found, dict)
    return found


def test_every_command_takes_json_and_has_a_schema() -> None:
    names = {command.__name__ for command in cli.COMMANDS}
    assert names == set(KEYS)
    for command in cli.COMMANDS:
        assert "as_json" in command.__annotations__, command.__name__


def test_what_needs_no_study(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    on = ("--model", model)
    assert documented(capsys, "models")["models"]
    named = documented(capsys, "presets")["presets"]
    assert all(row["question"] for row in named)  # type: ignore[attr-defined]
    for name in ("predict", "explain", "new", "patch", "generate"):
        arguments = {
            "predict": ("Go.", "-a", " It"),
            "explain": QUESTION,
            "generate": ("Go.", "-n", "3", "--out", str(tmp_path / "written")),
            "new": (*QUESTION, "--out", str(tmp_path / "new.toml")),
            "patch": ("It was late.", "it was late.", "-a", " He", "-c", " he"),
        }[name]
        whole = {"steps", "page"} if name == "explain" else set()
        assert set(documented(capsys, name, *arguments, *on)) == set(KEYS[name]) - whole


def test_answers_of_several_tokens(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    on = ("-a", " He slept.", "-c", " he", "--model", model)
    page = tmp_path / "answers.html"
    found = documented(capsys, "explain", "It was late.", *on, "--out", str(page))
    assert set(found) == set(KEYS["explain"])
    assert page.is_file()
    contrast: dict[str, Any] = found["contrast"]  # type: ignore[assignment]
    sides = contrast["answer"], contrast["counterpart"]
    assert sides[0]["log_prob"] - np.log(sides[1]["prob"]) == pytest.approx(
        contrast["logit_difference"], abs=1e-4
    )
    steps: list[dict[str, Any]] = found["steps"]  # type: ignore[assignment]
    assert sum(step["value"] for step in steps) == pytest.approx(contrast["logit_difference"])
    for step in steps:
        terms = sum(term["value"] for term in step["ledger"])
        assert terms == pytest.approx(step["value"], abs=1e-4)
    patched = documented(capsys, "patch", "It was late.", "it was late.", *on)
    assert set(patched) == set(KEYS["patch"])
    assert patched["clean"] == pytest.approx(contrast["logit_difference"], abs=1e-4)
    assert patched["unit"] == "nats"
    mean = documented(capsys, "explain", "It was late.", *on, "--scoring", "mean")
    assert mean["contrast"]["scoring"] == "mean"  # type: ignore[index]
    status, _, err = call(capsys, "explain", "It was late.", *on, "--scoring", "product")
    assert status == 2
    assert "mean" in err


def test_a_circuit_of_neurons(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    texts = ("It was late.", "She went home.", "He is here.")
    rows = [
        {"text": text, "answer": " He", "counterpart": " he", "corrupted": text.lower()}
        for text in texts
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("circuit", str(tmp_path / "own.jsonl"), "--grain", "neuron", "--family", "given")
    command = (*command, "--model", model, "--out", str(tmp_path / "c"), "--top-k", "5")
    found = documented(capsys, *command)
    assert set(found) == set(KEYS["circuit"]) - {"importances", "report"}
    assert len(found["circuit"]) == 5  # type: ignore[arg-type]
    assert {"figure", "value", "lower", "upper", "n", "about"} == set(found["figures"][0])  # type: ignore[index]
    stored = json.loads(Path(str(found["card"])).read_text("utf-8"))
    assert stored["circuit"] == found["circuit"]
    status, out, _ = call(capsys, *command)
    assert status == 0
    assert "its first nodes" in out
    for wrong, said in (
        (("--top-k", "0"), "keeps none of"),
        (("--grain", "nuron"), "Did you mean 'neuron'?"),
        (("--heads", "rankd"), "Did you mean 'ranked'?"),
        (("--grain", "edge"), "--top-k with --grain edge"),
        (("--grain", "edge", "--heads", "all"), "with --grain edge"),
    ):
        status, out, err = call(capsys, *command, *wrong)
        assert (status, out) == (2, "")
        assert said in " ".join(err.split())


def test_a_direction(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    texts = ("It was late.", "She went home.", "He is here.", "They sat down.")
    rows = [
        {"text": text, "answer": " He", "counterpart": " he", "corrupted": text[:-1] + ","}
        for text in texts
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "other.txt").write_text("A text that is about something else. " * 3)
    command = ("direction", str(tmp_path / "own.jsonl"), "--family", "given", "--steps", "2")
    command = (*command, "--random", "2", "--coefficients=-1,1", "--model", model)
    command = (*command, "--out", str(tmp_path / "d"))
    bare = documented(capsys, *command)
    assert set(bare) == set(KEYS["direction"]) - {"cost"}
    found = documented(capsys, *command, "--text", str(tmp_path / "other.txt"))
    assert set(found) == set(KEYS["direction"])
    assert len(found["cost"]) == 3 * 3  # type: ignore[arg-type]
    assert (found["n_found_on"], found["n_judged_on"]) == (2, 2)
    for file in (found["card"], *found["directions"]):  # type: ignore[misc]
        assert Path(str(file)).exists()
    status, out, _ = call(capsys, *command)
    assert status == 0
    assert "steered: logit difference" in out
    for wrong, said in (
        (("--rank", "9"), "rank 9"),
        (("--layer", "70"), "layer 70"),
        (("--role", "subjekt"), "no prompt has 'subjekt'"),
        (("--coefficients", "1,x"), "numbers between commas"),
        (("--metric", "kl"), "no sign to steer towards"),
        (("--site", "z"), "a direction at z"),
        (("--text", str(tmp_path / "none.txt")), "there is no"),
    ):
        status, out, err = call(capsys, *command, *wrong)
        assert (status, out) == (2, "")
        assert said in " ".join(err.split())


def test_half_precision_promises_no_bound_in_text_and_json(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    on = ("--model", model, "--dtype", "bfloat16")
    checks = documented(capsys, "explain", *QUESTION, *on)["checks"]
    assert {(row["bound"], row["holds"]) for row in checks} == {(None, None)}  # type: ignore[attr-defined]
    _, out, _ = call(capsys, "explain", *QUESTION, *on)
    assert "no bound is guaranteed" in out
    assert "inf" not in out
    wrote = tmp_path / "b.jsonl"
    wrote.write_text('{"text": "It was late.", "answer": " He", "counterpart": " he"}\n')
    run = ("run", str(wrote), "--only", "predictions,ledger", "--out", str(tmp_path / "s"))
    found = documented(capsys, *run, *on)
    assert found["largest_gap"] is not None
    assert found["bound"] is None
    text = (tmp_path / "s" / "report.html").read_text()
    assert "none promised" in text
    assert "checks hold" not in text


def test_what_is_about_studies(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    on = ("--model", model)
    (tmp_path / "own.csv").write_text("text,answer,counterpart\nGo., It, it\nIt is., He, he\n")
    measured = ("--only", "predictions,ledger")
    for folder in ("a", "b"):
        whole = ("run", str(tmp_path / "own.csv"), "--out", str(tmp_path / folder))
        found = documented(capsys, *whole, *on, *measured)
        assert set(found) == set(KEYS["run"])
        page = Path(str(found["report"])).read_text("utf-8")
        said = [plain(Markup(p)) for p in re.findall(r'<p class="lead">(.*?)</p>', page, re.S)]
        assert said
        assert found["summary"] == said, "what the report's first paragraphs say"
    documented(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert set(documented(capsys, "report", str(tmp_path / "a"))) == {"report"}
    finding = '[[finding]]\nclaim = "c"\nmeasure = "logit_difference"\nat_least = -99\n'
    (tmp_path / "claims.toml").write_text(f'behaviour = "own.csv"\n{finding}')
    assert documented(capsys, "check", str(tmp_path / "claims.toml"), *on)["holds"] is True
    (tmp_path / "text.txt").write_text("It was late. She went home. He did not. " * 3)
    out = ("--out", str(tmp_path / "mined.jsonl"), "--min-tokens", "2")
    documented(capsys, "mine", str(tmp_path / "text.txt"), *out, *on)


def test_the_mean_without_b_U_is_given_where_the_final_norm_has_a_bias(tmp_path: Path) -> None:
    for variant, has in (("gpt2", True), ("llama", False)):
        prompts = tuple(Prompt(text, " w3", " w4") for text in (" w1 w2", " w2 w5"))
        behaviour = Behaviour("pairs", "Why?", prompts, answers="given")
        only = ["predictions", "ledger"]
        done = study(decoder(variant), behaviour, out=tmp_path / variant, only=only)
        assert ("without_b_U" in headline(done)) == has, variant
        assert "largest_gap" in headline(done)


def test_a_study_without_predictions_ends_well(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "s")
    run = ("run", "full-stop-capitals", "--model", model, "--only", "attention", "--out", out)
    assert "n" not in documented(capsys, *run)
