"""Does a study keep its pace and its memory from a hundred prompts to ten thousand?

    python benchmarks/scale.py --text FOLDER --model gpt2 --out benchmarks/results/scale.json

Contexts are mined from the text; each size runs in a process of its own, which reports prompts per
second (and the processor time behind it, which a busy machine does not stretch), its peak of
resident memory, how many of the computed tokens were no padding, and how much of the time went into
storing and joining; then the same call again measures what resuming costs when nothing is left to
do. `--ray N` adds two Ray workers of one thread each at the size N. `--random TOKENIZER_FOLDER`
uses random weights in GPT-2 small's shape instead.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    report = {"machine": machine(), "mining": mining, "runs": runs}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(arguments.out)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", help="files or folders to mine")
    parser.add_argument("--prompts", type=Path, help="a file mined before, instead of --text")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--random", metavar="TOKENIZER_FOLDER")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--only", nargs="+", default=["predictions", "ledger", "attribution"])
    parser.add_argument("--classes", action="store_true", help="with the class contrast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ray", type=int, metavar="N", help="this size with two Ray workers too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--worker", nargs=4, metavar=("PROMPTS", "N", "FOLDER", "EXECUTOR"))
    return parser.parse_args()


def mined(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Write the behaviour file that every size takes its first prompts from."""
    from casestudy.behaviour.files import write_behaviour
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
    return result


def worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one study, then the same call again, and say what both took."""
    import torch

    from casestudy.behaviour.files import load_behaviour
    from casestudy.model.loading import load
    from casestudy.study.study import study

    path, n, folder, executor = arguments.worker
    torch.set_num_threads(arguments.threads)
    behaviour = load_behaviour(path)
    behaviour = replace(behaviour, prompts=behaviour.prompts[: int(n)])
    if not arguments.classes:
        behaviour = replace(behaviour, class_contrast=None)
    model = load(arguments.model)
    warm = replace(behaviour, prompts=behaviour.prompts[:8])
    study(warm, model, only=arguments.only)
    options: dict[str, Any] = {} if executor == "local" else {"executor": "ray", "workers": 2}
    start, used = time.perf_counter(), time.process_time()
    done = study(behaviour, model, out=folder, only=arguments.only, **options)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    highest = peak()
    start = time.perf_counter()
    study(behaviour, model, out=folder, only=arguments.only)
    again = time.perf_counter() - start
    chunks = done.tables["chunks"].columns
    measuring = sum(chunks["seconds"])
    return {
        "executor": executor,
        "prompts": len(behaviour),
        "tokens": sum(chunks["tokens"]),
        "chunks": len(chunks["seconds"]),
        "seconds": seconds,
        "prompts_per_second": len(behaviour) / seconds,
        "tokens_per_second": sum(chunks["tokens"]) / seconds,
        "processor_seconds": used,
        "useful_tokens": sum(chunks["tokens"]) / sum(chunks["computed_tokens"]),
        "peak_bytes": highest,
        "measuring_seconds": measuring,
        "storing_and_joining": 1 - measuring / seconds if executor == "local" else None,
        "resuming_with_nothing_left": again / seconds,
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
