"""Does a study keep its pace and its memory from a hundred prompts to ten thousand?

Contexts are mined from the text. Each size runs in a process of its own, which reports prompts per
second (and the processor time behind it, of itself and what it started, which a busy machine does
not stretch), its peak of resident memory, how many of the computed tokens were no padding, and how
much of the time went into storing and joining (patching, of 64 prompts whatever the size, is timed
apart). Then the same call again says what resuming costs when nothing is left to do.

With --ray N, the size N runs on two Ray workers too, each with half of --threads: the same cores.
Ray's start is timed apart from its pace, and its results are held against the local ones.

On a GPT-2 of 124 M with random weights, with the tokenizer files of any GPT-2 checkpoint:

  everything, up to ten thousand prompts (about an hour of two quiet cores; a run that is stopped
  starts again from nothing):
    python benchmarks/scale.py --text BOOKS --random TOKENIZER --only all --classes

  what docs/scaling.md tabulates, without the measurements that read the vocabulary per depth:
    python benchmarks/scale.py --text BOOKS --random TOKENIZER --max-tokens 10 --threads 1

  Ray against one process, on two cores:
    python benchmarks/scale.py --text BOOKS --random TOKENIZER --sizes 1000 --ray 1000

BOOKS is a folder of plain text, TOKENIZER a folder with tokenizer.json. Leave --random out for the
bundled model, or give --model NAME.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from casestudy.results import names

SIZES = (100, 1_000, 10_000)


def main() -> None:
    """Mine, run each size in its own process, and write what they said."""
    arguments = parsed()
    if arguments.worker:
        print(json.dumps(worker(arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        folder = Path(scratch)
        if arguments.random:
            arguments.model = str(random_gpt2(folder / "gpt2-random", Path(arguments.random)))
        prompts = folder / "prompts.jsonl"
        if arguments.prompts:
            prompts, mining = arguments.prompts, {}
        else:
            mining = mined(arguments, prompts)
        print(f"mined: {mining}", file=sys.stderr)
        runs = []
        for n in arguments.sizes:
            # a first run's caches and lazy imports would count against the smallest size
            for executor in ("local", *(["ray"] if arguments.ray and n == arguments.ray else [])):
                runs.append(run(arguments, prompts, n, folder / f"{executor}-{n}", executor))
                print(json.dumps(runs[-1]), file=sys.stderr)
        beside = compared(folder, arguments.ray, runs) if arguments.ray else None
    report = {"machine": machine(), "mining": mining, "runs": runs}
    if beside is not None:
        report["ray_against_local"] = beside
        print(json.dumps(beside), file=sys.stderr)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(arguments.out)


def parsed() -> argparse.Namespace:
    """The command line."""
    summary, _, rest = str(__doc__).partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", nargs="+", metavar="PATH", help="files or folders to mine")
    parser.add_argument("--prompts", type=Path, help="a file mined before, instead of --text")
    parser.add_argument("--model", default="tiny", help="as for casestudy run (default: tiny)")
    parser.add_argument(
        "--random",
        metavar="TOKENIZER",
        help="random weights in GPT-2 small's shape, with this folder's tokenizer",
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        metavar="N",
        default=list(SIZES),
        help="default: 100 1000 10000",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=32, metavar="N", help="longest context (default: 32)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=["predictions", "ledger", "attribution"],
        help="measurements, or all, patching included (default: predictions ledger attribution)",
    )
    parser.add_argument("--classes", action="store_true", help="with the class contrast")
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="of the local run (default: 2)"
    )
    parser.add_argument(
        "--ray", type=int, metavar="N", help="this size on two Ray workers too; one of --sizes"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument(
        "--worker",
        nargs=4,
        metavar=("PROMPTS", "N", "FOLDER", "EXECUTOR"),
        help=argparse.SUPPRESS,
    )
    arguments = parser.parse_args()
    if not (arguments.worker or arguments.text or arguments.prompts):
        parser.error("nothing to measure on: give --text or --prompts")
    if arguments.ray and (arguments.ray not in arguments.sizes or arguments.threads % 2):
        parser.error("--ray needs one of --sizes, and an even number of --threads to share")
    return arguments


def mined(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Write the behaviour file that every size takes its first prompts from."""
    from casestudy.behaviour.files_written import write_behaviour
    from casestudy.behaviour.mining import mine
    from casestudy.model.loading import load

    start = time.perf_counter()
    found = mine(
        arguments.text,
        load(arguments.model).tokenizer,
        n=max(arguments.sizes),
        sampling="natural",
        max_tokens=arguments.max_tokens,
    )
    seconds = time.perf_counter() - start
    # documents in order would make the small sizes one author's: take every k-th
    n = len(found.behaviour)
    order = sorted(range(n), key=lambda i: i * 7919 % n)
    prompts = tuple(found.behaviour.prompts[i] for i in order)
    write_behaviour(replace(found.behaviour, prompts=prompts), path)
    return {
        "contexts": n,
        "bytes": found.bytes,
        "seconds": round(seconds, 1),
        "found": found.found,
        "peak_bytes": peak(),
    }


def run(
    arguments: argparse.Namespace, prompts: Path, n: int, folder: Path, executor: str
) -> dict[str, Any]:
    """One size in a process of its own."""
    command = [sys.executable, __file__, "--model", arguments.model]
    command += ["--threads", str(arguments.threads), "--only", *arguments.only]
    command += ["--classes"] if arguments.classes else []
    command += ["--worker", str(prompts), str(n), str(folder), executor]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"size": n, **result}


def worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one study, then the same call again, and say what both took."""
    import torch

    from casestudy.behaviour.files import load_behaviour
    from casestudy.model.loading import load
    from casestudy.study.settings import Execution
    from casestudy.study.study import study

    path, n, folder, executor = arguments.worker
    only = None if arguments.only == ["all"] else arguments.only
    torch.set_num_threads(arguments.threads)
    behaviour = load_behaviour(path)
    behaviour = replace(behaviour, prompts=behaviour.prompts[: int(n)])
    if not arguments.classes:
        behaviour = replace(behaviour, class_contrast=None)
    model = load(arguments.model)
    warm = replace(behaviour, prompts=behaviour.prompts[:8])
    study(model, warm, only=only)
    execution = Execution() if executor == "local" else Execution(executor="ray", workers=2)
    with Clock() as clock:
        done = study(model, behaviour, out=folder, only=only, execution=execution, progress=clock)
    seconds = clock.seconds
    highest = peak()
    start = time.perf_counter()
    study(model, behaviour, out=folder, only=only)
    again = time.perf_counter() - start
    chunks = done.tables[names.CHUNKS].columns
    measuring, patching = sum(chunks["seconds"]), clock.took("patching")
    return {
        "executor": executor,
        "prompts": len(behaviour),
        "tokens": sum(chunks["tokens"]),
        "chunks": len(chunks["seconds"]),
        "seconds": seconds,
        "prompts_per_second": len(behaviour) / seconds,
        "first_chunk_seconds": clock.chunks[0][0],
        "prompts_per_second_once_started": clock.pace,
        "tokens_per_second": sum(chunks["tokens"]) / seconds,
        "processor_seconds": clock.processor_seconds,
        "useful_tokens": sum(chunks["tokens"]) / sum(chunks["computed_tokens"]),
        "peak_bytes": highest,
        "measuring_seconds": measuring,
        "patching_seconds": patching,
        "storing_and_joining": 1 - (measuring + patching) / seconds
        if executor == "local"
        else None,
        "resuming_with_nothing_left": again / seconds,
    }


class Clock:
    """When a study's chunks came, and the processor time of this process and all it started.

    Processes are looked at five times a second while the clock runs, since Ray's are gone before
    the study returns.
    """

    def __enter__(self) -> Clock:
        self.start = time.perf_counter()
        self.chunks: list[tuple[float, int]] = []
        self.stages: list[tuple[str, float]] = []
        self.before, self.used = seconds_by_process(), dict[int, float]()
        self.stop = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.stop.set()
        self.watch.join()
        self.used |= seconds_by_process()

    def _look(self) -> None:
        while not self.stop.wait(0.2):
            self.used |= seconds_by_process()

    def __call__(self, progress: Any) -> None:
        """Told by the study at the start, after each chunk, within the stages and after each."""
        now = time.perf_counter() - self.start
        if progress.stage == "measuring" and progress.done:
            self.chunks.append((now, progress.done))
        elif progress.stage == "study":
            self.stages.append((progress.note, now))

    def took(self, stage: str) -> float:
        """Seconds from the end of the stage before; 0 where there was no such stage."""
        ends = zip(self.stages, self.stages[1:], strict=False)
        return sum(end - begin for (_, begin), (name, end) in ends if name == stage)

    @property
    def processor_seconds(self) -> float:
        """Of every process that was seen."""
        return sum(self.used.values()) - sum(self.before.values())

    @property
    def pace(self) -> float | None:
        """Prompts per second from the first chunk to the last; None of one chunk."""
        (start, before), (end, after) = self.chunks[0], self.chunks[-1]
        return (after - before) / (end - start) if end > start else None


def seconds_by_process() -> dict[int, float]:
    """Processor seconds of this process and of all that descend from it, by process id."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name, in brackets, may hold anything
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    inside = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in inside} - inside:
        inside |= more
    return {pid: ticks.get(pid, 0) / os.sysconf("SC_CLK_TCK") for pid in inside}


def compared(folder: Path, size: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Ray beside the local run of the same size: pace, cost, and how far results are apart."""
    import numpy as np

    from casestudy.study.study import open_study

    local, ray = (
        next(run for run in runs if run["executor"] == executor and run["size"] == size)
        for executor in ("local", "ray")
    )
    studies = [open_study(folder / f"{executor}-{size}") for executor in ("local", "ray")]
    apart = 0.0
    for name in studies[0].grids:
        if name != names.LEDGER_CHECK:  # which holds rounding errors themselves
            one, other = (study.grids[name].values for study in studies)
            size = float(np.nanmax(np.abs(one), initial=0.0)) or 1.0
            apart = max(apart, float(np.nanmax(np.abs(one - other), initial=0.0)) / size)

    def ratio(key: str) -> float | None:
        return ray[key] / local[key] if ray[key] and local[key] else None

    return {
        "prompts": ray["prompts"],
        "pace": ratio("prompts_per_second"),
        "pace_once_started": ratio("prompts_per_second_once_started"),
        "processor_seconds": ratio("processor_seconds"),
        "ray_start_seconds": ray["first_chunk_seconds"] - local["first_chunk_seconds"],
        "largest_relative_difference": apart,
    }


def peak() -> int:
    """Most resident memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """What it ran on."""
    import platform

    import torch

    return {
        "cores": os.cpu_count(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def random_gpt2(folder: Path, tokenizer: Path) -> Path:
    """A checkpoint in GPT-2 small's shape with random weights, beside a tokenizer's files."""
    import shutil

    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for path in tokenizer.iterdir():
        if path.suffix == ".json" and path.name != "config.json":
            shutil.copy(path, folder / path.name)
    d, layers, d_vocab, n_ctx = 768, 12, 50257, 1024
    config = {"model_type": "gpt2", "n_layer": layers, "n_head": 12, "n_embd": d}
    config |= {"n_positions": n_ctx, "vocab_size": d_vocab, "layer_norm_epsilon": 1e-5}
    config |= {"activation_function": "gelu_new"}
    (folder / "config.json").write_text(json.dumps(config))
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng) * 0.02

    tensors = {"wte.weight": normal(d_vocab, d), "wpe.weight": normal(n_ctx, d)}
    for name in [f"h.{i}.{norm}" for i in range(layers) for norm in ("ln_1", "ln_2")] + ["ln_f"]:
        tensors |= {f"{name}.weight": 1 + normal(d), f"{name}.bias": normal(d)}
    for i in range(layers):
        for name, m, n in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d),
            ("mlp.c_proj", 4 * d, d),
        ):
            tensors |= {f"h.{i}.{name}.weight": normal(m, n), f"h.{i}.{name}.bias": normal(n)}
    save_file(tensors, folder / "model.safetensors")
    return folder


if __name__ == "__main__":
    main()
