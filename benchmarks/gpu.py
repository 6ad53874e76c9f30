"""On a GPU: do the laws hold, how fast is it, and does a model of 8 B parameters fit?

    make bench-gpu

Nothing else depends on this. On a CUDA card it checks the laws of every architecture's ledger and
sweeps in float32 (without TF32) and in bfloat16, takes turns with TransformerLens 4.3 at the rows
of `patching.py`, and puts a random Llama of 8 B parameters in bfloat16 through the ledger, the
attribution of its heads and one grid of resid_pre, with the peak of the card's memory. Without a
card it says so and ends.

The laws and the large model take a device and a size, so they run anywhere: a test runs both on the
CPU with tiny models.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.measure.worlds import VARIANTS, contrast, decoder, pairs  # noqa: E402

import casestudy as cs  # noqa: E402
from casestudy.behaviour.contrast import Contrast  # noqa: E402
from casestudy.engine.packing import Budget  # noqa: E402
from casestudy.measure.attribution import (  # noqa: E402
    final_directions,
    head_shares,
    keep_for_heads,
)
from casestudy.measure.ledger import keep_for_ledger, ledger_terms  # noqa: E402
from casestudy.measure.patching import Pairs, patch_sites  # noqa: E402
from casestudy.model.from_transformers import from_module  # noqa: E402
from casestudy.model.model import Model  # noqa: E402
from casestudy.model.tokens import Tokens  # noqa: E402

SITES = ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v")
ROWS = ("differ-everywhere/resid_pre", "differ-from-10/attn_out", "differ-last/z")
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
GIB = 2**30


def laws(device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Of every architecture: the gap of the ledger, and the largest of sweeps of all sites, each
    cell of which is computed again in full. A bound is absent where none is promised.

    Raises: MeasureError if a sweep differs by more than its bound allows.
    """
    rows = []
    for variant in VARIANTS:
        model = decoder(variant, dtype=dtype).to(device=device)
        clean, corrupted = pairs([5, 7, 6], first=[1, 3, 0])
        asked = contrast(3)
        keep = keep_for_ledger(model)
        trace = cs.run(model, clean, keep=keep, logits="last")
        assert trace.logits is not None
        _, terms = ledger_terms(model, trace, asked)
        left = terms.sum(0).cpu() - asked.value(trace.logits.cpu())
        found = patch_sites(
            model,
            Pairs(clean, corrupted),
            asked,
            SITES,
            by="position",
            budget=Budget(check=1000),
        )
        errors = [one.raw.error for one in found.values() if not isinstance(one, Exception)]
        failed = {site: str(one) for site, one in found.items() if isinstance(one, Exception)}
        rows.append(
            {
                "variant": variant,
                "dtype": str(dtype).removeprefix("torch."),
                "ledger_gap": float(left.abs().max()),
                "sweep_gap": max((error["gap"] for error in errors), default=None),
                "sweep_bound": max((e["bound"] for e in errors if "bound" in e), default=None),
                "cells_checked": sum(int(error["checked"]) for error in errors),
                "failed": failed,
            }
        )
    return rows


def random_llama(device: torch.device, dtype: torch.dtype, **shape: Any) -> Model:
    """A random Llama, made where it will run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with device:
            module = LlamaForCausalLM(LlamaConfig(**shape))
    finally:
        torch.set_default_dtype(before)
    module.requires_grad_(False)
    return from_module(module, cs.load("tiny", device="cpu").tokenizer)


def large(model: Model, *, n: int = 8, length: int = 32) -> dict[str, Any]:
    """A model through the ledger, head attribution and one grid: seconds, gaps and memory."""
    device, config = model.device, model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.d_vocab, (n, length), generator=generator)
    other = ids.clone()
    other[:, length // 2 :] = torch.randint(
        config.d_vocab, (n, length - length // 2), generator=generator
    )
    answers = torch.stack([torch.randperm(config.d_vocab, generator=generator)[:2] for _ in ids])
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(n, 2)
    names = tuple(map(str, range(n)))
    zero = torch.zeros(n, dtype=torch.float64)
    asked = Contrast("random", answers, signs, zero, names, names)
    clean, corrupted = Tokens.of(ids.tolist()), Tokens.of(other.tolist())
    row: dict[str, Any] = {
        "parameters": sum(tensor.numel() for _, tensor in model.weights.named()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": n,
        "tokens": length,
    }

    def ledger_and_heads() -> None:
        trace = cs.run(model, clean, keep=keep_for_heads(model), logits="last")
        assert trace.logits is not None
        direction = asked.directions(model.weights)
        _, terms = ledger_terms(model, trace, asked, directions=direction)
        row["ledger_gap"] = float(
            (terms.sum(0).cpu() - asked.value(trace.logits.float().cpu())).abs().max()
        )
        u = final_directions(model, trace, [direction])
        shares = [head_shares(model, trace, layer, u) for layer in range(config.n_layers)]
        row["head_shares"] = sum(share.shape[1] - 1 for share in shares)

    def grid() -> None:
        found = patch_sites(model, Pairs(clean, corrupted), asked, ["resid_pre"], by="position")
        one = found["resid_pre"]
        if isinstance(one, Exception):
            raise one
        row["cells"] = int(one.raw.values.size)
        row["sweep_gap"] = float(one.raw.error["gap"])

    row["ledger_and_heads_s"], row["resid_pre_s"] = (
        timed(device, do) for do in (ledger_and_heads, grid)
    )
    if device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 2)
    return row


def timed(device: torch.device, do: Callable[[], None]) -> float:
    """Seconds by the clock, until the device is done."""
    start = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return round(time.perf_counter() - start, 3)


def raced(out: Path) -> list[dict[str, Any]]:
    """The rows of `patching.py` on the card, in turns with TransformerLens."""
    cases = [part for case in ROWS for part in ("--case", case)]
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "patching.py"), *cases, "--out", str(out)],
        check=True,
        env={**os.environ, "CASESTUDY_RACE_DEVICE": "cuda"},
    )
    rows: list[dict[str, Any]] = json.loads(out.read_text("utf-8"))
    return rows


def main() -> None:
    """Everything, on the first CUDA device; a plain sentence where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=results / "gpu.json")
    parser.add_argument("--no-race", action="store_true", help="without TransformerLens")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "laws": [row for dtype in (torch.float32, torch.bfloat16) for row in laws(device, dtype)],
    }
    failed = [row for row in report["laws"] if row["failed"]]
    if not arguments.no_race:
        report["race"] = raced(arguments.out.with_name("patching-gpu.json"))
    torch.cuda.reset_peak_memory_stats(device)
    report["large"] = large(random_llama(device, torch.bfloat16, **LLAMA_8B))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    if failed:
        raise SystemExit(f"laws broken on {report['device']}: {failed}")


if __name__ == "__main__":
    main()
