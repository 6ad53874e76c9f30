"""Scores of nodes: the formula, where they are exact, and that edges add up to them."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from casestudy.circuits.edge_scores import attribute_edges
from casestudy.engine.packing import Budget
from casestudy.errors import MeasureError, SiteError
from casestudy.measure.attribution_patching import NODE_METHODS, attribute_nodes
from casestudy.measure.patching import Pairs, neurons, neurons_by_gradient, patch
from casestudy.model.sites import Site
from tests.measure.worlds import contrast, decoder, pairs

LENGTHS = [6, 4, 7]
SITES = (Site.RESID_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.Z, Site.MLP_POST)


def pair_of(lengths: list[int] = LENGTHS) -> Pairs:
    return Pairs(*pairs(lengths))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_every_method_is_exact_where_the_model_is_linear(direction: str) -> None:
    """Constant attention, no norm, no activation function: each score is the effect of the patch,
    at heads, neurons, layers and the stream."""
    model = decoder("linear")
    flat = tuple(
        replace(b, attn=replace(b.attn, W_Q=b.attn.W_Q * 0, b_Q=None)) for b in model.weights.blocks
    )
    model = replace(model, weights=replace(model.weights, blocks=flat))
    both, values = pair_of(), contrast(3)
    for site in SITES:
        chosen = [(layer, n) for layer in range(3) for n in range(model.config.d_mlp)]
        if site is Site.MLP_POST:
            exact = neurons(model, both, values, chosen, direction=direction)  # type: ignore[arg-type]
        else:
            exact = patch(model, both, values, site, direction=direction)  # type: ignore[arg-type]
        sign = -1.0 if direction == "noising" else 1.0
        effect = sign * (exact.raw.values - exact.baselines.values[0])
        for method in NODE_METHODS:
            found = attribute_nodes(
                model,
                both,
                values,
                site,
                method=method,
                direction=direction,
                steps=1,  # type: ignore[arg-type]
            )
            shape = found.values.shape
            np.testing.assert_allclose(found.values, effect.reshape(shape), atol=1e-9)


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("method", ["atp", "relp"])
def test_a_heads_and_an_mlps_score_is_the_sum_over_its_edges(variant: str, method: str) -> None:
    model, both, values = decoder(variant), pair_of(), contrast(3)
    edges = attribute_edges(
        model, both, values, "eap" if method == "atp" else "relp", direction="noising"
    )
    of_node = dict(zip((str(s) for s in edges.graph.senders), edges.nodes, strict=True))
    for site, kind in ((Site.Z, "head {}.{}"), (Site.MLP_OUT, "mlp {}")):
        found = attribute_nodes(
            model,
            both,
            values,
            site,
            method=method,
            by="all",
            direction="noising",  # type: ignore[arg-type]
        ).values.mean(-1)
        for place, score in np.ndenumerate(found):
            assert score == pytest.approx(of_node[kind.format(*place)], abs=1e-9)


@pytest.mark.parametrize("method", NODE_METHODS)
def test_positions_sum_to_all_and_end_with_the_last(method: str) -> None:
    model, both, values = decoder("llama"), pair_of(), contrast(3)
    by = {
        how: attribute_nodes(model, both, values, "z", method=method, by=how, steps=2).values  # type: ignore[arg-type]
        for how in ("position", "all", "last")
    }
    np.testing.assert_allclose(np.nansum(by["position"], -2), by["all"], atol=1e-12)
    last = by["position"][..., both.clean.last.numpy(), np.arange(3)]
    np.testing.assert_allclose(last, by["last"], atol=1e-12)
    past = np.isnan(by["position"][0, 0])  # pos prompt
    assert past.sum(0).tolist() == [1, 3, 0]


def test_ig_activations_shares_the_effect_of_a_whole_site() -> None:
    """The integral over one layer's neurons is the effect of exchanging them all."""
    model, both, values = decoder("llama", n_layers=2), pair_of(), contrast(3)
    found = attribute_nodes(model, both, values, "mlp_post", method="ig-activations", steps=24)
    exact = patch(model, both, values, "mlp_out", by="all")
    effect = exact.raw.values - exact.baselines.values[0]
    np.testing.assert_allclose(found.values.sum(1), effect, atol=5e-3)


def test_scores_do_not_depend_on_chunks_or_on_switched_off_gradients() -> None:
    model, both, values = decoder("gpt2"), pair_of([6, 4, 7, 5]), contrast(4)
    for site in ("mlp_post", "resid_post"):
        whole = attribute_nodes(model, both, values, site)
        with torch.no_grad():
            small = attribute_nodes(model, both, values, site, budget=Budget(memory=1))
        np.testing.assert_allclose(small.values, whole.values, atol=1e-12)


def test_neurons_by_gradient_are_the_first_by_attribution_patching() -> None:
    model, both, values = decoder("gpt2"), pair_of(), contrast(3)
    scores = np.abs(attribute_nodes(model, both, values, "mlp_post", method="atp").values.mean(-1))
    first = neurons_by_gradient(model, both, values, 4)
    assert [scores[place] for place in first] == sorted(scores.ravel(), reverse=True)[:4]


def test_bad_input_is_named() -> None:
    model, values = decoder("gpt2"), contrast(3)
    clean, _ = pairs(LENGTHS)
    unchecked = inspect.unwrap(attribute_nodes)  # as users run it, without the suite's checker
    with pytest.raises(MeasureError, match="relp-ah"):
        unchecked(model, pair_of(), values, "z", method="relpp")
    with pytest.raises(SiteError, match="mlp_post"):
        attribute_nodes(model, pair_of(), values, "pattern")
    with pytest.raises(MeasureError, match="identical"):
        attribute_nodes(model, Pairs(clean, clean), values, "z")
    with pytest.raises(MeasureError, match="no gradient"):
        attribute_nodes(model, pair_of(), lambda logits, rows: logits.detach()[:, 0], "z")
    with pytest.raises(MeasureError, match="0 steps"):
        attribute_nodes(model, pair_of(), values, "z", method="ig-inputs", steps=0)
    with pytest.raises(MeasureError, match="position"):
        unchecked(model, pair_of(), values, "z", by="role")
