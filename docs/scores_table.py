"""Write the tables of docs/circuits.md that compare estimates with exact patching.

    python -m docs.scores_table

On `tiny` and SmolLM2 (`make smollm2`), for three behaviours: every method's scores of the residual
stream, attention and MLP outputs (by position), heads and neurons, against exact denoising of the
same activations, means over prompts. Neurons are patched exactly where any method ranks them among
its first, and at random. What is measured is kept in docs/scores.json; without it a few minutes for
`tiny`, and half an hour for SmolLM2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from docs.markers import put, table

from casestudy.behaviour.counterfactual import GIVEN
from casestudy.behaviour.presets import preset
from casestudy.engine.packing import Budget
from casestudy.errors import MeasureError
from casestudy.measure.attribution_patching import NODE_METHODS, NodeMethod, attribute_nodes
from casestudy.measure.halves import Half
from casestudy.measure.patching import neurons, patch
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.results.result import Array
from casestudy.results.stats import midranks
from casestudy.study.behaviour_pairs import behaviour_half
from casestudy.study.circuit import MOST_PAIRS

PAGE = Path(__file__).with_name("circuits.md")
KEPT = Path(__file__).with_name("scores.json")
MODELS = ("tiny", "smollm2")
BEHAVIOURS = ("full-stop-capitals", "ioi", "agreement")
SITES = {
    "residual stream": "resid_post",
    "attention": "attn_out",
    "MLP": "mlp_out",
    "head": "z",
    "neuron": "mlp_post",
}
NAMES: dict[NodeMethod, str] = {
    "atp": "AtP",
    "ig-activations": "IG",
    "ig-inputs": "EAP-IG",
    "relp": "RelP",
    "relp-ah": "RelP-AH",
}
DEEP = 20
"""Models of more layers leave out IG: it runs each layer's points anew."""
MOST = {"tiny": MOST_PAIRS, "smollm2": 12}
"""Pairs per behaviour."""
FIRST, RANDOM = 20, 200
"""Neurons that are patched exactly: each method's first, and as many at random."""


def correlations(estimate: Array, exact: Array) -> tuple[float, float]:
    """Pearson's and Spearman's correlation over the cells that both have."""
    there = ~np.isnan(estimate) & ~np.isnan(exact)
    a, b = estimate[there], exact[there]
    ranked = np.corrcoef(midranks(a), midranks(b))[0, 1]
    return float(np.corrcoef(a, b)[0, 1]), float(ranked)


def half_of_behaviour(model: Model, behaviour: str, most: int = MOST_PAIRS) -> Half:
    """The pairs on which a circuit of the behaviour is looked for, with their contrast."""
    try:
        return behaviour_half(model, preset(behaviour), most=most)[1]
    except MeasureError:  # no edit clearly undoes what the model hardly does: measured all the same
        return behaviour_half(model, preset(behaviour), most=most, family=GIVEN)[1]


def rounded(value: Any) -> Any:
    """Four digits after the point: more than the page shows."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def measured(model: Model, behaviour: str, most: int) -> Iterator[dict[str, Any]]:
    """A row per kind of node: the correlations and the seconds of each method."""
    half = half_of_behaviour(model, behaviour, most)
    pairs, contrast = half.pairs, half.metric
    budget = Budget(check=2)
    for kind, site in SITES.items():
        row: dict[str, Any] = {"behaviour": behaviour, "node": kind, "pairs": len(pairs)}
        estimates = {}
        for method in NODE_METHODS:
            if method == "ig-activations" and model.config.n_layers > DEEP:
                continue
            start = perf_counter()
            found = attribute_nodes(model, pairs, contrast, site, method=method)
            row[f"{method} seconds"] = perf_counter() - start
            # by position, over the prompts that have it
            estimates[method] = np.nanmean(found.values, -1)
        start = perf_counter()
        if site == "mlp_post":
            chosen = some_neurons(list(estimates.values()))
            exact = neurons(model, pairs, contrast, chosen, budget=budget)
            at = tuple(np.array(chosen).T)
            estimates = {method: values[at] for method, values in estimates.items()}
        else:
            exact = patch(model, pairs, contrast, site, budget=budget)
        row["exact seconds"] = perf_counter() - start
        effect = np.nanmean(exact.raw.values - exact.baselines.values[0], -1)
        effect[np.nanmin(exact.known.values, -1) == 1] = (
            np.nan
        )  # zero by construction: before the edit
        row["cells"] = int((~np.isnan(effect)).sum())
        for method, values in estimates.items():
            row[method] = correlations(values, effect)
            if kind == "neuron":
                row[f"{method} at random"] = correlations(values[-RANDOM:], effect[-RANDOM:])
        yield row


def some_neurons(estimates: list[Array]) -> list[tuple[int, int]]:
    """The first neurons of each method, and last the random ones."""
    shape = estimates[0].shape
    first = {int(i) for values in estimates for i in np.argsort(-np.abs(values), None)[:FIRST]}
    drawn = np.random.default_rng(0).choice(estimates[0].size, RANDOM, replace=False).tolist()
    order = [*sorted(first - set(drawn)), *drawn]
    return [(int(layer), int(n)) for layer, n in (np.unravel_index(i, shape) for i in order)]


def made(kept: dict[str, list[dict[str, Any]]]) -> str:
    """Pearson / Spearman of each method, by model, behaviour and node."""
    body = []
    for model, rows in kept.items():
        for row in rows:
            where = [model, row["behaviour"], row["node"]]
            body.append([*where, str(row["cells"]), *_cells(row, "")])
            if row["node"] == "neuron":
                where[-1] = "neuron, at random"
                body.append([*where, str(RANDOM), *_cells(row, " at random")])
    return table(["model", "behaviour", "node", "cells", *NAMES.values()], body, named=3)


def _cells(row: dict[str, Any], of: str) -> list[str]:
    return [
        " / ".join(f"{value:.2f}" for value in row[f"{method}{of}"]) if method in row else "–"
        for method in NAMES
    ]


def main() -> None:
    """Measure what is not kept yet, and put the table into the page."""
    kept: dict[str, list[dict[str, Any]]] = {}
    if KEPT.exists():
        kept = json.loads(KEPT.read_text("utf-8"))
    for name in MODELS:
        rows = kept.setdefault(name, [])
        left = [b for b in BEHAVIOURS if b not in {row["behaviour"] for row in rows}]
        model = load(name) if left else None
        for behaviour in left:
            assert model is not None
            rows += rounded(list(measured(model, behaviour, MOST[name])))
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    put(PAGE, "correlations", made(kept))


if __name__ == "__main__":
    main()
