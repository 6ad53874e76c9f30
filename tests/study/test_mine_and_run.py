"""The two commands of docs/scaling.md, one after the other, and the second again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import call

pytestmark = pytest.mark.slow


def test_mine_then_run_then_resume(
    capsys: pytest.CaptureFixture[str], toy_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = str(toy_folder(n_layer=1, n_head=2, n_embd=16, n_positions=256))
    for i in range(3):
        lines = [f"Mr. Brown came on day {j} of week {i}. It was late." for j in range(8)]
        (tmp_path / f"{i}.txt").write_text("\n".join(lines))
    texts = [str(tmp_path / f"{i}.txt") for i in range(3)]
    file, folder = tmp_path / "prompts.jsonl", tmp_path / "study"
    options = ("--model", model, "--json")
    status, out, err = call(capsys, "mine", *texts, "--n", "12", "--out", str(file), *options)
    assert status == 0, err
    counts = json.loads(out)
    # "Mr." is two tokens with BOS, and repeats: too short and not taken
    assert counts["found"]["abbreviation"] == counts["found"]["end of paragraph"] == 24
    assert counts["taken"]["sentence end"] == counts["taken"]["end of paragraph"] == 6
    assert counts["documents"] == 3

    status, out, err = call(capsys, "run", str(file), "--out", str(folder), *options)
    assert status == 0, err
    first = json.loads(out)
    assert {group["group"]: group["n"] for group in first["groups"]}.keys() == {
        "sentence end",
        "end of paragraph",
    }
    status, out, _ = call(capsys, "run", str(file), "--out", str(folder), *options)
    assert status == 0
    assert json.loads(out) == first

    file.write_text(file.read_text().replace("Mr. Brown came on day 0", "Mr. Green came on day 0"))
    status, _, err = call(capsys, "run", str(file), "--out", str(folder), *options)
    assert status == 2
    assert "behaviour.hash: stored" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mine", "nowhere.txt"), "there is no nowhere.txt"),
        (("mine", __file__, "--out", "a.txt"), "a name that ends in .jsonl"),
        (("mine", __file__, "--sampling", "odd"), "Allowed: balanced, natural"),
        (("mine", __file__, "--shard", "3"), "Allowed: 1/k to k/k"),
        (("run", "--executor", "abacus"), "executor 'abacus'. Allowed: local, ray"),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str],
    toy_folder: Callable[..., Path],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    model = str(toy_folder(n_positions=256))
    status, out, err = call(capsys, *arguments, "--model", model)
    assert (status, out) == (2, "")
    assert says in " ".join(err.split())
    assert "Traceback" not in err
