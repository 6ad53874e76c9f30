"""Bounds know what they sum: rounding is measured in float64, and a fault is not rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.by_edges import ByEdges
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import attribute_edges
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.graph import Circuit, Graph
from casestudy.circuits.paths import LOGITS, path_patch
from casestudy.engine import rounding
from casestudy.engine import sweep as engine
from casestudy.engine.cells import Cell, Place
from casestudy.engine.packing import Budget
from casestudy.engine.sweep import sweep
from casestudy.errors import MeasureError
from casestudy.measure.head_scores import head_profile
from casestudy.measure.lens import logit_lens
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from tests.circuits.test_edge_scores import pair_of
from tests.measure.worlds import contrast as any_contrast
from tests.measure.worlds import decoder, pairs


def coarse() -> Model:
    """A float32 model whose logits are large and alike, so that a difference is mostly rounding."""
    model = decoder(dtype=torch.float32)
    shared = 1e5 * torch.ones(model.config.d_model, 1)
    weights = replace(model.weights, W_U=model.weights.W_U + shared)
    # a norm whose bias is not centred lets the shared direction through
    norm = replace(weights.final_norm, bias=torch.ones(model.config.d_model))  # type: ignore[type-var]
    return replace(model, weights=replace(weights, final_norm=norm))


def contrast(n: int) -> Contrast:
    """A difference: its weights sum to zero, so that what all logits share cancels."""
    found = any_contrast(n)
    return replace(found, weights=found.weights - found.weights.mean(1, keepdim=True))


def circuits(model: Model) -> list[Circuit]:
    graph = Graph(model.config)
    rng = np.random.default_rng(0)
    return [Circuit(graph, graph.real & (rng.random(graph.real.shape) < p)) for p in (0.2, 0.6)]


def test_rounding_is_not_a_fault_of_a_circuit() -> None:
    model = coarse()
    found = evaluate_circuit(
        model, pair_of(), contrast(3), circuits(model), budget=Budget(check=12)
    )
    assert found.error["gap"] > 1e-3  # what used to end the evaluation
    assert found.error["float64"] < 1e-9 * 1e5
    assert found.error["rounding"] > 1e-3
    assert found.error["gap"] <= found.error.get("bound", np.inf)


def test_rounding_is_not_a_fault_of_a_sweep() -> None:
    model = coarse()
    clean, corrupted = pairs([5, 7], first=[0, 0])
    cells = [Cell(site, 1, Place.everywhere(corrupted)) for site in (Site.Z, Site.MLP_OUT)]
    found = sweep(model, corrupted, clean, cells, contrast(2), budget=Budget(check=100))
    assert found.error["gap"] > 1e-3
    assert found.error["float64"] < 1e-9 * 1e5
    values = torch.randn(2, 7, model.config.d_model)
    mine = [Cell(Site.MLP_OUT, 1, Place.everywhere(corrupted), values=values)]
    assert sweep(model, corrupted, None, mine, contrast(2)).error["float64"] < 1e-4
    zero = sweep(
        model, corrupted, lambda *_: torch.zeros(1, 1), [replace(mine[0], values=None)], contrast(2)
    )
    assert zero.error["float64"] < 1e-4


def test_a_fault_stays_one_however_large_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = coarse()
    clean, corrupted = pairs([5, 7], first=[0, 0])
    cells = [Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))]
    right, circuit = engine.Climb.climb, ByEdges.metric
    monkeypatch.setattr(engine.Climb, "climb", lambda self: right(self) + 0.01)
    with pytest.raises(MeasureError, match="in float64 the sweep differs"):
        sweep(model, corrupted, clean, cells, contrast(2))
    monkeypatch.setattr(ByEdges, "metric", lambda self, x: circuit(self, x) + 0.01)
    with pytest.raises(MeasureError, match="in float64 a circuit's value differs"):
        evaluate_circuit(model, pair_of(), contrast(3), circuits(model), budget=Budget(check=12))


def test_what_cannot_be_promised_has_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model = coarse()
    monkeypatch.setattr(rounding, "_in_float64", lambda _: None)
    found = evaluate_circuit(
        model, pair_of(), contrast(3), circuits(model), budget=Budget(check=12)
    )
    assert "bound" not in found.error
    assert found.error["gap"] > 1e-3


def test_the_worst_gap_is_the_one_nearest_its_bound_or_else_the_largest() -> None:
    nan, inf = float("nan"), float("inf")
    gaps = torch.tensor([2.0, 3.0, nan])
    assert rounding.worst_gap(gaps, torch.tensor([2.0, 6.0, 1.0])) == {"gap": 2.0, "bound": 2.0}
    assert rounding.worst_gap(gaps, torch.full((3,), inf)) == {"gap": 3.0}
    assert rounding.worst_gap(gaps * nan, torch.ones(3)) == {}


def test_what_is_not_finite_is_named_with_the_layer_where_it_begins() -> None:
    model = decoder(dtype=torch.float16)
    blocks = list(model.weights.blocks)
    wide = replace(
        blocks[1].mlp, W_out=blocks[1].mlp.W_out * 100, b_out=torch.full((8,), 6e4).half()
    )
    blocks[1] = replace(blocks[1], mlp=replace(wide, W_in=wide.W_in * 100))
    loud = replace(model, weights=replace(model.weights, blocks=tuple(blocks)))
    prompts = pair_of().clean
    run(model, prompts, logits="last")
    for logits in ("last", "all"):
        with pytest.raises(MeasureError, match=r"float16: not finite from layer 1 on.*float32"):
            run(loud, prompts, logits=logits)  # type: ignore[arg-type]
    run(loud.to(dtype=torch.float32), prompts, logits="last")
    on = loud, pair_of(), contrast(3)
    doors: tuple[Callable[[], object], ...] = (
        lambda: sweep(
            loud, on[1].corrupted, prompts, [Cell(Site.Z, 0, Place.everywhere(prompts))], on[2]
        ),
        lambda: evaluate_circuit(*on, circuits(loud)),
        lambda: attribute_edges(*on),
        lambda: patch_edges(*on, ["head 0.1->logits"]),
        lambda: path_patch(*on, LOGITS),
        lambda: head_profile(loud),
        lambda: logit_lens(loud, "a"),
    )
    for door in doors:
        with pytest.raises(MeasureError, match="not finite from layer 1 on"):
            door()
