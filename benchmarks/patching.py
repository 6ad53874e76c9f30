"""Activation patching: casestudy against TransformerLens 4.3.

    make bench-patching

Theirs is the function behind every `patching.get_act_patch_*`, with `reduce="none"`, which keeps
each prompt's value as ours does; ours is `measure.patching.patch` with its two unpatched runs and
its self-check. Pairs of 8 prompts x 15 tokens differ everywhere, from position 10 on (as in
indirect-object prompts), or in the last token only. Each of their cells is one full forward pass,
whichever it is: a turn of theirs is 12 cells, one in every layer, scaled to the whole grid (without
the clean run that fills its cache), and those cells are compared. A turn of ours is the whole grid;
in the `long` case, 64 prompts x 64 tokens under a budget of 2 GB, it is every sixteenth position,
scaled likewise. The last rows are of other published shapes (grouped queries, RMSNorm, gated MLPs,
large vocabularies), with 4 prompts and 4 of their cells.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from common import ROOT, SHAPES, Work, main, shape_of

CASES = [
    "differ-everywhere/resid_pre",
    "differ-everywhere/attn_out",
    "differ-everywhere/mlp_out",
    "differ-everywhere/z",
    "differ-from-10/resid_pre",
    "differ-from-10/attn_out",
    "differ-last/attn_out",
    "differ-last/mlp_out",
    "differ-last/z",
    "long/attn_out",
    "smollm2-135m/differ-everywhere/resid_pre",
    "smollm2-135m/differ-from-10/attn_out",
    "smollm2-135m/differ-last/z",
    "gemma3-270m/differ-everywhere/resid_pre",
    "gemma3-270m/differ-from-10/attn_out",
    "gemma3-270m/differ-last/z",
]
FIRST = {"differ-everywhere": 0, "differ-from-10": 10, "differ-last": 14, "long": 0}
LONG_POSITIONS = range(7, 64, 16)  # their mean is that of all positions, to half a position
BUDGET = 2 << 30
DEVICE = os.environ.get("CASESTUDY_RACE_DEVICE", "cpu")
"""Of both sides; `gpu.py` runs the same rows on a card."""


def sizes(case: str) -> tuple[int, int, int]:
    """The vocabulary, the layers and the heads of a case's model."""
    options = SHAPES[shape_of(case)][1]
    keys = ("vocab_size", "n_layer", "n_head")
    if "n_layer" not in options:
        keys = ("vocab_size", "num_hidden_layers", "num_attention_heads")
    d_vocab, layers, heads = (int(options[key]) for key in keys)
    return d_vocab, layers, heads


def inputs(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random clean and corrupted prompts that first differ where the case says, and answers."""
    rng = np.random.default_rng(0)
    (*shape, kind, _), (d_vocab, _, _) = case.split("/"), sizes(case)
    n, length = (64, 64) if kind == "long" else (4 if shape else 8, 15)
    clean = rng.integers(d_vocab, size=(n, length))
    corrupted = clean.copy()
    first = FIRST[kind]
    corrupted[:, first:] = (clean[:, first:] + 1 + rng.integers(d_vocab - 1)) % d_vocab
    answers = np.stack([rng.choice(d_vocab, 2, replace=False) for _ in range(n)])
    return clean, corrupted, answers


def compared(case: str) -> list[tuple[int, int]]:
    """Theirs: one (layer, position) or (layer, head) in every layer; fewer where a pass is long."""
    (*shape, kind, site), (_, layers, heads) = case.split("/"), sizes(case)
    if kind == "long":
        return [(0, 7), (5, 23), (11, 55)]
    width, first = (heads, 0) if site == "z" else (15, FIRST[kind])
    some = range(layers) if not shape else range(1, layers, layers // 4)[:4]
    return [(layer, first + (5 * layer + 4) % (width - first)) for layer in some]


def ours(folder: Path, case: str) -> Work:
    """One grid, through the incremental engine."""
    import torch

    import casestudy as cs
    from casestudy.behaviour.contrast import Contrast
    from casestudy.engine.cells import Cell, Place
    from casestudy.engine.packing import Budget
    from casestudy.engine.sweep import sweep
    from casestudy.measure.patching import Pairs, patch
    from casestudy.model.sites import Site
    from casestudy.model.tokens import Tokens

    model = cs.load(folder, device=DEVICE)
    clean, corrupted, answers = inputs(case)
    n = len(clean)
    pairs = Pairs(Tokens.of(clean.tolist()), Tokens.of(corrupted.tolist()))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(n, 2)
    names = tuple(map(str, range(n)))
    zero = torch.zeros(n, dtype=torch.float64)
    contrast = Contrast("pairs", torch.tensor(answers), signs, zero, names, names)
    site, layers = case.split("/")[-1], sizes(case)[1]
    held = Budget(memory=BUDGET)

    def work() -> dict[str, np.ndarray]:
        found = patch(model, pairs, contrast, site, budget=held)
        values = np.stack([found.raw.values[cell] for cell in compared(case)])
        return {"grid": values, "_operations": np.array(found.plan.operations)}

    def long() -> dict[str, np.ndarray]:
        places = {p: Place.at(p, pairs.corrupted) for p in LONG_POSITIONS}
        every = [(layer, p) for layer in range(layers) for p in places]
        cells = [Cell(Site(site), layer, places[p]) for layer, p in every]
        found = sweep(model, pairs.corrupted, pairs.clean, cells, contrast, budget=held)
        values = dict(zip(every, found.values, strict=True))
        return {
            "grid": np.stack([values[cell] for cell in compared(case)]),
            "_operations": np.array(found.plan.operations),
            "_work": np.array(len(places) / clean.shape[1]),
        }

    return long if case.startswith("long") else work


def theirs(folder: Path, case: str) -> Work:
    """Some cells of the same grid, one full forward pass each."""
    import pandas as pd
    import torch
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    patching.tqdm = lambda rows: rows  # its progress bars write over the report
    model = TransformerBridge.boot_transformers(str(folder), device=DEVICE)
    model.enable_compatibility_mode(disable_warnings=True)
    clean, corrupted, answers = (torch.tensor(x, device=DEVICE) for x in inputs(case))
    site, (_, layers, heads) = case.split("/")[-1], sizes(case)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, answers[:, :1]) - last.gather(1, answers[:, 1:]))[:, 0]

    hook = "hook_z" if site == "z" else f"hook_{site}"
    cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith(hook))[1]
    setter = patching.layer_pos_patch_setter
    columns, n_cells = ["layer", "pos"], layers * clean.shape[1]
    if site == "z":
        setter = patching.layer_head_vector_patch_setter
        columns, n_cells = ["layer", "head"], layers * heads
    cells = compared(case)

    def work() -> dict[str, np.ndarray]:
        found = patching.generic_activation_patch(
            model,
            corrupted,
            cache,
            metric,
            setter,
            site,
            index_df=pd.DataFrame(cells, columns=columns),
            reduce="none",
        )
        return {"grid": found.values.cpu().numpy(), "_work": np.array(len(cells) / n_cells)}

    return work


if __name__ == "__main__":
    main(__file__, ours, theirs, CASES, ROOT / "benchmarks" / "results" / "patching.json")
