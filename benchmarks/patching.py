"""Activation patching: casestudy against TransformerLens 4.3.

    make bench-patching

Theirs is the function behind every `patching.get_act_patch_*`, with `reduce="none"`, which keeps
each prompt's value as ours does; ours is `measure.patching.patch` with its two unpatched runs and
its self-check. Pairs of 8 prompts x 15 tokens differ everywhere, from position 10 on (as in
indirect-object prompts), or in the last token only. Each of their cells is one full forward pass,
whichever it is: a turn of theirs is 12 cells, one in every layer, scaled to the whole grid (without
the clean run that fills its cache), and those cells are compared. A turn of ours is the whole grid;
in the `long` case, 64 prompts x 64 tokens under a budget of 2 GB, it is every sixteenth position,
scaled likewise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common import ROOT, Work, main

D_VOCAB, LAYERS, HEADS = 50257, 12, 12
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
]
FIRST = {"differ-everywhere": 0, "differ-from-10": 10, "differ-last": 14, "long": 0}
LONG_POSITIONS = range(7, 64, 16)  # their mean is that of all positions, to half a position
BUDGET = 2 << 30


def inputs(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random clean and corrupted prompts that first differ where the case says, and answers."""
    rng = np.random.default_rng(0)
    kind = case.split("/")[0]
    n, length = (64, 64) if kind == "long" else (8, 15)
    clean = rng.integers(D_VOCAB, size=(n, length))
    corrupted = clean.copy()
    first = FIRST[kind]
    corrupted[:, first:] = (clean[:, first:] + 1 + rng.integers(D_VOCAB - 1)) % D_VOCAB
    answers = np.stack([rng.choice(D_VOCAB, 2, replace=False) for _ in range(n)])
    return clean, corrupted, answers


def compared(case: str) -> list[tuple[int, int]]:
    """Theirs: one (layer, position) or (layer, head) in every layer; three where a pass is long."""
    kind, site = case.split("/")
    if kind == "long":
        return [(0, 7), (5, 23), (11, 55)]
    width, first = (HEADS, 0) if site == "z" else (15, FIRST[kind])
    return [(layer, first + (5 * layer + 4) % (width - first)) for layer in range(LAYERS)]


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

    model = cs.load(folder, device="cpu")
    clean, corrupted, answers = inputs(case)
    n = len(clean)
    pairs = Pairs(Tokens.of(clean.tolist()), Tokens.of(corrupted.tolist()))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(n, 2)
    names = tuple(map(str, range(n)))
    zero = torch.zeros(n, dtype=torch.float64)
    contrast = Contrast("pairs", torch.tensor(answers), signs, zero, names, names)
    site = case.split("/")[1]
    held = Budget(memory=BUDGET)

    def work() -> dict[str, np.ndarray]:
        found = patch(model, pairs, contrast, site, budget=held)
        values = np.stack([found.raw.values[cell] for cell in compared(case)])
        return {"grid": values, "_operations": np.array(found.plan.operations)}

    def long() -> dict[str, np.ndarray]:
        places = {p: Place.at(p, pairs.corrupted) for p in LONG_POSITIONS}
        every = [(layer, p) for layer in range(LAYERS) for p in places]
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
    model = TransformerBridge.boot_transformers(str(folder), device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    clean, corrupted, answers = (torch.tensor(x) for x in inputs(case))
    site = case.split("/")[1]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, answers[:, :1]) - last.gather(1, answers[:, 1:]))[:, 0]

    hook = "hook_z" if site == "z" else f"hook_{site}"
    cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith(hook))[1]
    setter = patching.layer_pos_patch_setter
    columns, n_cells = ["layer", "pos"], LAYERS * clean.shape[1]
    if site == "z":
        setter = patching.layer_head_vector_patch_setter
        columns, n_cells = ["layer", "head"], LAYERS * HEADS
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
        return {"grid": found.values.numpy(), "_work": np.array(len(cells) / n_cells)}

    return work


if __name__ == "__main__":
    main(__file__, ours, theirs, CASES, ROOT / "benchmarks" / "results" / "patching.json")
