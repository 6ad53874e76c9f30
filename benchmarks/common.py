"""How is a race against another tool run fairly?

Both sides load the same random checkpoint (arithmetic does not care what the weights are; by
default GPT-2's shape with 124 M parameters, see `SHAPES`), each in a process and an environment of
its own, with the same number of threads. They take turns within one run, so that a busy minute
slows both. A side's time is the median of its turns; a ratio is the median of the ratios of paired
turns, with the smallest and the largest of them. Both are given by the clock and by CPU seconds,
which other work on the machine distorts less. The outputs are compared, and each side's memory is
the largest its process ever was, loading included.

A benchmark is a script with two functions, `ours(folder, case)` and `theirs(folder, case)`: each
loads its model and returns a function without arguments that does the work and returns arrays. It
ends with `main(__file__, ours, theirs, cases, out)`. Arrays whose names start with "_" are notes,
not outputs. `_operations`, how many floating-point operations the work cannot do without, becomes
`rate_share`: their number / time / the machine's own rate of float32 matrix multiplication, taken
after each turn, both in CPU seconds (the median over turns). `_work`, which share of the whole a
turn was, scales a side's time up where a whole turn would take hours.

Where the yardstick is casestudy itself, a case is named in `own`: `theirs` then runs in our
environment too. What both sides must be given alike, `shared(folder, case)` makes beforehand, and
`given()` reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
THREADS = 2
ROUNDS = 7
FULL_SIZE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-124m": ("gpt2", FULL_SIZE),
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3-270m": (
        "gemma3_text",
        {
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
}
"""Shapes of published checkpoints, by a case's first part: the kind of model, and its config."""

Work = Callable[[], Mapping[str, np.ndarray]]
Side = Callable[[Path, str], Work]
Shared = Callable[[Path, str], Mapping[str, np.ndarray]]


def main(
    script: str,
    ours: Side,
    theirs: Side,
    cases: Sequence[str],
    out: Path,
    own: Sequence[str] = (),
    shared: Shared | None = None,
) -> None:
    """Race in every case and write the results; in a worker process, be one side."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--case", choices=cases, action="append", help="only this case")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns per side")
    parser.add_argument("--threads", type=int, default=THREADS, help="of each side")
    parser.add_argument("--model", type=Path, help="a GPT-2 checkpoint instead of a random one")
    parser.add_argument("--out", type=Path, default=out, help="where results go, as JSON")
    parser.add_argument("--worker", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        side = {"ours": ours, "theirs": theirs}[arguments.worker]
        work(side(arguments.model, arguments.case[0]), arguments.threads)
        return
    rows = []
    for case in arguments.case or cases:
        folder = arguments.model or random_checkpoint(shape_of(case))
        arrays = {} if shared is None else shared(folder, case)
        rows.append(
            race(script, folder, case, arguments.rounds, arguments.threads, case in own, arrays)
        )
    print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.case and arguments.out.is_file():  # the other cases' rows stay
        kept = {row["case"]: row for row in json.loads(arguments.out.read_text("utf-8"))}
        kept |= {row["case"]: row for row in rows}
        rows = [kept[case] for case in cases if case in kept]
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def shape_of(case: str) -> str:
    """The shape that a case names first; GPT-2's by default."""
    first = case.split("/")[0]
    return first if first in SHAPES else "gpt2-124m"


def random_checkpoint(shape: str = "gpt2-124m") -> Path:
    """A random checkpoint of a shape, made once and kept in the temporary directory."""
    folder = Path(tempfile.gettempdir()) / "casestudy-benchmarks" / shape
    if not (folder / "config.json").is_file():
        kind, options = SHAPES[shape]
        with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as scratch:
            made = Path(scratch) / shape
            sys.path.insert(0, str(ROOT))
            from tests.helpers import copy_tokenizer, write_gpt2

            if kind == "gpt2":
                write_gpt2(made, **options)
            else:
                import torch
                from transformers import AutoConfig, AutoModelForCausalLM

                torch.manual_seed(0)
                config = AutoConfig.for_model(kind, **options)
                AutoModelForCausalLM.from_config(config).save_pretrained(made)
                copy_tokenizer(made)
            os.replace(made, folder)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def race(
    script: str,
    folder: Path,
    case: str,
    rounds: int,
    threads: int = THREADS,
    own: bool = False,
    shared: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Let both sides take turns at one case, and compare what they found."""
    peers = Path(os.environ.get("CASESTUDY_PEERS", ROOT / ".venv-peers" / "bin" / "python"))
    if own:
        peers = Path(sys.executable)
    if not peers.exists():
        raise SystemExit(f"no {peers}: run `make .venv-peers/.installed`, or set CASESTUDY_PEERS")
    pythons = {"theirs": str(peers), "ours": sys.executable}
    with tempfile.TemporaryDirectory(prefix="race-") as scratch:
        handed = Path(scratch) / "shared.npz"
        np.savez(handed, **(shared or {}))
        on = ["--case", case, "--threads", str(threads), "--model", str(folder)]
        workers = {
            side: started(python, script, side, on, handed) for side, python in pythons.items()
        }
        for worker in workers.values():
            ask(worker, "")  # until it has loaded
        seconds: dict[str, list[float]] = {side: [] for side in workers}
        cpu: dict[str, list[float]] = {side: [] for side in workers}
        rates: dict[str, list[float]] = {side: [] for side in workers}
        for number in range(rounds + 1):
            for side, worker in workers.items():
                turn = ask(worker, "turn")
                if number:  # the first turn warms up
                    rates[side].append(turn["rate"])
                    seconds[side].append(turn["seconds"])
                    cpu[side].append(turn["cpu"])
            print(f"{case}: {number}/{rounds}", {s: t[-1:] for s, t in seconds.items()}, file=TALK)
        found, peak = {}, {}
        for side, worker in workers.items():
            path = Path(scratch) / f"{side}.npz"
            peak[side] = ask(worker, str(path))["peak_mb"]
            worker.communicate()
            with np.load(path) as arrays:
                found[side] = dict(arrays)
    work = {side: float(found[side].get("_work", 1.0)) for side in workers}
    for times in (seconds, cpu):
        for side in workers:
            times[side] = [t / work[side] for t in times[side]]
    row = {
        "case": case,
        **compared("s", "ratio", seconds),
        **compared("cpu_s", "cpu_ratio", cpu),
        "max_gap": gap(found["ours"], found["theirs"]),
        "ours_peak_mb": round(peak["ours"]),
        "theirs_peak_mb": round(peak["theirs"]),
        "turns": rounds,
        "threads": threads,
    }
    operations = found["ours"].get("_operations")
    if operations is not None:
        turns = [t * work["ours"] for t in cpu["ours"]]
        pairs = zip(turns, rates["ours"], strict=True)
        shares = [float(operations) / t / rate for t, rate in pairs]
        row["rate_share"] = round(float(np.median(shares)), 3)
        row["matmul_gflops"] = round(float(np.median(rates["ours"])) / 1e9)
    return row


def started(
    python: str, script: str, side: str, on: Sequence[str], handed: Path
) -> subprocess.Popen[str]:
    """A side's process, which reads lines and answers them."""
    return subprocess.Popen(
        [python, script, "--worker", side, *on],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT / "benchmarks"),
            HANDED: str(handed),
        },
    )


def compared(unit: str, ratio: str, times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each side's median time, and the median of the paired turns' ratios with their ends."""
    ratios = np.array(times["theirs"]) / np.array(times["ours"])
    row: dict[str, Any] = {
        f"{side}_{unit}": round(float(np.median(times[side])), 4) for side in ("ours", "theirs")
    }
    ends = [round(float(end), 2) for end in (ratios.min(), ratios.max())]
    return {**row, ratio: round(float(np.median(ratios)), 2), f"{ratio}_ends": ends}


TALK = sys.stderr
HANDED = "CASESTUDY_RACE_SHARED"


def given() -> dict[str, np.ndarray]:
    """What the race's `shared` made for both sides."""
    with np.load(os.environ[HANDED]) as arrays:
        return dict(arrays)


def ask(worker: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """Send a line to a worker (nothing at first) and wait for its answer."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if line:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    for answer in worker.stdout:
        if answer.startswith("{"):  # whatever else a library prints is talk
            reply: dict[str, Any] = json.loads(answer)
            return reply
    raise SystemExit(f"a worker ended with {worker.wait()}; its messages are above")


def work(do: Work, threads: int = THREADS) -> None:
    """Be a worker: take a turn for every line "turn", then write the arrays to the path given."""
    import torch

    torch.set_num_threads(threads)
    print(json.dumps({"loaded": True}), flush=True)
    arrays: Mapping[str, np.ndarray] = {}
    for line in sys.stdin:
        if line.strip() == "turn":
            start, cpu_start = time.perf_counter(), time.process_time()
            with torch.no_grad():
                arrays = do()
            took = {
                "seconds": time.perf_counter() - start,
                "cpu": time.process_time() - cpu_start,
                "rate": matmul_rate(),
            }
            print(json.dumps(took), flush=True)
        else:
            np.savez(line.strip(), **arrays)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
            print(json.dumps({"peak_mb": peak / unit}), flush=True)


def matmul_rate(size: int = 2048) -> float:
    """Operations per CPU second of this machine's float32 matrix multiplication, best of five."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    fastest = float("inf")
    for _ in range(5):
        start = time.process_time()
        a @ b
        fastest = min(fastest, time.process_time() - start)
    return 2 * size**3 / fastest


def gap(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest difference between the sides' arrays of the same names."""
    names = {name for name in ours if not name.startswith("_")}
    if names != {name for name in theirs if not name.startswith("_")}:
        raise SystemExit(f"ours gave {sorted(ours)}, theirs {sorted(theirs)}")
    return float(max(np.nanmax(np.abs(ours[name] - theirs[name])) for name in names))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results for a person to read."""
    columns = list(rows[0])
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells
    )
