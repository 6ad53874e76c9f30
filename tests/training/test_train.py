"""A run goes on after a kill as if nothing had happened, and refuses what is not its own."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from training.checkpoint import checkpoints
from training.model import ModelConfig
from training.optimizer import OptimizerConfig
from training.train import BUNDLED, Progress, Settings, main, schedule, snapshot_due, window_length

from training import bundle

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--d-model", "16", "--n-heads", "2", "--n-layers", "1", "--n-ctx", "32"),
    *("--batch-tokens", "256", "--no-compile", "--threads", "1", "--warmup-steps", "2"),
    *("--log-every", "2", "--checkpoint-every", "2"),
]
MakeCorpus = Callable[..., Path]


def arguments(corpus: Path, run: Path, *more: str, tokens: int = 2048) -> list[str]:
    return ["--corpus", str(corpus), "--run", str(run), *TINY, "--tokens", str(tokens), *more]


def test_a_run_leaves_a_model_a_log_and_snapshots(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(arguments(make_corpus(), run)) == 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["tokens"] == 2048
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"tokens_per_s", "seconds", "scale"} <= {*lines[-1]}
    assert len(checkpoints(run)) == 2
    assert [p.name for p in sorted((run / "snapshots").iterdir())] == [
        "tokens-0000000000.safetensors",
        "tokens-0000002048.safetensors",
    ]
    with safe_open(run / "final" / "model.safetensors", framework="pt") as file:
        assert file.get_slice("transformer.wte.weight").get_dtype() == "F16"
    assert json.loads((run / "final" / "config.json").read_text())["n_embd"] == 16


def test_a_killed_run_ends_in_the_same_weights(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus, whole, killed = make_corpus(), tmp_path / "whole", tmp_path / "killed"
    assert main(arguments(corpus, whole, tokens=8192)) == 0
    command = [sys.executable, "-m", "training.train", *arguments(corpus, killed, tokens=8192)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not checkpoints(killed) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints(killed)
    assert not (killed / "final").exists()
    assert main(arguments(corpus, killed, tokens=8192)) == 0
    files = [run / "final" / "model.safetensors" for run in (whole, killed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_length_may_change_before_the_decay(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus, run = make_corpus(), tmp_path / "run"
    assert main(arguments(corpus, run, "--decay-fraction", "0", tokens=1024)) == 0
    assert main(arguments(corpus, run, "--decay-fraction", "0", tokens=2048)) == 0
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["tokens"] == 2048


def test_a_finished_run_can_be_made_longer_from_its_plateau(
    make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    corpus, short, long = make_corpus(), tmp_path / "short", tmp_path / "long"
    assert main(arguments(corpus, short, tokens=2048)) == 0
    (plateau,) = checkpoints(short / "plateau")
    long.mkdir()
    shutil.copy(plateau, long)
    assert main(arguments(corpus, long, tokens=4096)) == 0
    whole = tmp_path / "whole"
    assert main(arguments(corpus, whole, tokens=4096)) == 0
    files = [run / "final" / "model.safetensors" for run in (whole, long)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_another_configuration_is_refused_by_name(
    make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, run = make_corpus(), tmp_path / "run"
    assert main(arguments(corpus, run, tokens=512)) == 0
    before = {path: path.read_bytes() for path in checkpoints(run)}
    assert main(arguments(corpus, run, "--n-layers", "2", "--seed", "5")) == 2
    message = capsys.readouterr().err
    assert "n_layers is 1 there and 2 here" in message
    assert "seed is 0 there and 5 here" in message
    assert {path: path.read_bytes() for path in checkpoints(run)} == before


def test_another_corpus_is_another_configuration(
    make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, run = make_corpus(), tmp_path / "run"
    assert main(arguments(corpus, run, tokens=512)) == 0
    with open(corpus / "one.txt", "a", encoding="utf-8") as file:
        file.write("One more sentence.\n")
    assert main(arguments(corpus, run, tokens=512)) == 2
    assert "corpus is" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused(
    make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, run = make_corpus(), tmp_path / "run"
    assert main(arguments(corpus, run, tokens=512)) == 0
    (last,) = checkpoints(run)[-1:]
    last.write_bytes(last.read_bytes()[:1000])
    assert main(arguments(corpus, run)) == 2
    assert "is not a checkpoint of this script" in capsys.readouterr().err


def test_a_full_disk_costs_the_new_checkpoint_only(
    make_corpus: MakeCorpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, run = make_corpus(), tmp_path / "run"
    assert main(arguments(corpus, run, "--decay-fraction", "0", tokens=1024)) == 0
    before = {path: path.read_bytes() for path in checkpoints(run)}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    # Where more steps follow a failed checkpoint only warns; the last one must be kept.
    assert main(arguments(corpus, run, "--decay-fraction", "0", tokens=2048)) == 2
    message = capsys.readouterr().err
    assert "Training goes on without it" in message
    assert "No space left on device" in message
    assert {path: path.read_bytes() for path in checkpoints(run)} == before
    assert not list(run.rglob("*.partial"))
    monkeypatch.undo()
    assert main(arguments(corpus, run, "--decay-fraction", "0", tokens=2048)) == 0


def test_the_schedule_warms_up_holds_and_decays() -> None:
    settings = Settings(
        model=ModelConfig(),
        optimizer=OptimizerConfig(),
        seed=0,
        batch_tokens=10,
        warmup_steps=4,
        decay_fraction=0.5,
        tokenizer="",
        corpus="",
    )
    progress = Progress()
    scales = []
    for step in range(16):
        progress.step, progress.tokens = step, step * 10
        scales.append(schedule(progress, 160, settings))
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4:9] == [1.0] * 5
    assert progress.decay_from == 80
    assert scales[12] == pytest.approx(0.5)


def test_windows_grow_and_short_ones_remain() -> None:
    assert {window_length(step, 0, 256) for step in range(8)} == {64}
    assert {window_length(step, 5_000_000, 256) for step in range(8)} == {64, 128}
    assert {window_length(step, 50_000_000, 256) for step in range(8)} == {64, 256}


def test_snapshots_are_due_at_powers_of_two() -> None:
    counts = range(8192, 1_100_000, 8192)
    due = [after for after in counts if snapshot_due(after - 8192, after)]
    assert due == [1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20]


def test_a_finished_run_is_bundled_with_curve_and_checksums(
    make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, run, out = make_corpus(), tmp_path / "run", tmp_path / "out"
    shutil.copytree(BUNDLED, out)
    assert bundle.main(["--run", str(run), "--out", str(out)]) == 2
    assert "the run is not finished" in capsys.readouterr().err
    assert main(arguments(corpus, run)) == 0
    assert bundle.main(["--run", str(run), "--out", str(out)]) == 0
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (run / "final" / "model.safetensors").read_bytes()
    recorded = (out / "SHA256SUMS").read_text(encoding="utf-8")
    assert f"{hashlib.sha256(weights).hexdigest()}  model.safetensors\n" in recorded
    assert "Training loss" in (out / "loss.svg").read_text(encoding="utf-8")
