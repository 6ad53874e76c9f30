"""Relevance: rules change no activation, and a complete cut's relevances sum to the metric."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from casestudy.errors import MeasureError
from casestudy.model.decoder import activate, run
from casestudy.model.model import Model
from casestudy.model.relevance import (
    RELP,
    RELP_AH,
    final_norm,
    neurons_as_linear,
    relevance_edits,
    secant,
)
from casestudy.model.sites import Site
from casestudy.model.trace import Trace
from tests.measure.worlds import VARIANTS, decoder, pairs

_BIASES = ("bias", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_gate", "b_out")


def with_gradients(weights: Any, found: list[Tensor]) -> Any:
    """The weights with their biases as leaves that have gradients, which `found` lists."""
    if not is_dataclass(weights):
        return weights
    changes: dict[str, Any] = {}
    for field in fields(weights):
        value = getattr(weights, field.name)
        if field.name in _BIASES and isinstance(value, Tensor):
            changes[field.name] = value.clone().requires_grad_()
            found.append(changes[field.name])
        elif is_dataclass(value):
            changes[field.name] = with_gradients(value, found)
    return replace(weights, **changes)  # type: ignore[type-var]


def relevance_run(model: Model, keep: list[Site], rules: Any = RELP_AH) -> tuple[Trace, Tensor]:
    """A run under the rules, and a linear metric of its last position."""
    tokens = pairs([6, 6])[0]
    edits = relevance_edits(model, rules)
    trace = run(model, tokens, keep=[*keep, Site.FINAL_RESID], edit=edits, grad=True)
    last = trace[Site.FINAL_RESID][:, -1]
    direction = torch.linspace(-1, 1, model.config.d_model, dtype=torch.float64)
    return trace, (final_norm(model, last, rules) @ direction).sum()


def times_slope(value: Tensor, of: list[Tensor]) -> list[float]:
    """Σ activation · coefficient of each tensor."""
    slopes = torch.autograd.grad(value, of, retain_graph=True, materialize_grads=True)
    return [float((x.detach() * g).sum()) for x, g in zip(of, slopes, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_under_the_rules_computes_the_same(variant: str) -> None:
    model = decoder(variant)
    trace, _ = relevance_run(model, [Site.MLP_OUT, Site.Z])
    plain = run(model, pairs([6, 6])[0], keep=[Site.MLP_OUT, Site.Z, Site.FINAL_NORMED])
    for address, x in trace.values.items():
        if address[0] is not Site.FINAL_RESID:
            torch.testing.assert_close(x.detach(), plain.values[address])
    out = final_norm(model, trace[Site.FINAL_RESID]).detach()
    torch.testing.assert_close(out, plain[Site.FINAL_NORMED])


@pytest.mark.parametrize("variant", VARIANTS)
def test_relevances_of_a_cut_and_of_the_biases_above_it_sum_to_the_metric(variant: str) -> None:
    model = decoder(variant)
    weights, final = model.weights, []  # type: ignore[var-annotated]
    by_layer: list[list[Tensor]] = [[] for _ in weights.blocks]
    blocks = tuple(
        with_gradients(block, own) for block, own in zip(weights.blocks, by_layer, strict=True)
    )
    norm = with_gradients(weights.final_norm, final)
    model = replace(model, weights=replace(weights, blocks=blocks, final_norm=norm))
    trace, value = relevance_run(model, [Site.RESID_PRE])
    for layer in range(model.config.n_layers):
        above = [leaf for own in by_layer[layer:] for leaf in own] + final
        total = sum(times_slope(value, [trace[Site.RESID_PRE, layer], *above]))
        assert total == pytest.approx(value.item(), abs=1e-9)
    # without the biases the sum is another one: they take relevance
    alone = times_slope(value, [trace[Site.RESID_PRE, 0]])[0]
    assert abs(alone - value.item()) > 1e-3


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gemma2"])
def test_neurons_have_the_relevance_of_their_pre_activations(variant: str) -> None:
    model = decoder(variant)
    sites = [Site.MLP_PRE, Site.MLP_POST]
    sites += [Site.MLP_GATE] if model.weights.gated else []
    trace, value = relevance_run(model, sites)
    for layer in range(model.config.n_layers):
        pre, post, *gate = times_slope(value, [trace[site, layer] for site in sites])
        assert pre + sum(gate) == pytest.approx(post, abs=1e-10)
        for half in gate:  # each factor has as much, neuron by neuron
            assert half == pytest.approx(pre, abs=1e-10)


def test_without_ah_rule_relevance_reaches_the_queries() -> None:
    for rules, reaches in ((RELP, True), (RELP_AH, False)):
        trace, value = relevance_run(decoder("gpt2"), [Site.Q], rules)
        (slope,) = torch.autograd.grad(value, [trace[Site.Q, 0]], materialize_grads=True)
        assert bool(slope.abs().max() > 0) == reaches


@pytest.mark.parametrize("kind", ["gelu_new", "gelu", "silu", "relu", "identity"])
def test_a_secant_is_a_ratio_with_a_limit_at_zero(kind: str) -> None:
    config = replace(decoder("gpt2").config, activation=kind)  # type: ignore[arg-type]
    x = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 0.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(x * secant(config, x), activate(config, x), atol=1e-9, rtol=0)
    assert bool(secant(config, x).isfinite().all())
    if kind == "relu":  # its secant is its gradient
        x = x[[0, 4, 5]].requires_grad_()
        (slope,) = torch.autograd.grad(activate(config, x).sum(), x)
        torch.testing.assert_close(slope, secant(config, x))


def test_without_the_rules_neurons_keep_their_gradient() -> None:
    config = decoder("llama").config
    generator = torch.Generator().manual_seed(0)
    pre, gate = (
        torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    plain = torch.autograd.grad((activate(config, gate) * pre).square().sum(), [pre, gate])
    for rules, same in (((), True), (RELP, False)):
        out = neurons_as_linear(config, pre, gate, rules)  # type: ignore[arg-type]
        found = torch.autograd.grad(out.square().sum(), [pre, gate])
        assert all(torch.allclose(a, b) for a, b in zip(plain, found, strict=True)) == same


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(MeasureError, match="LN-rule"):
        inspect.unwrap(relevance_edits)(decoder("gpt2"), ["ln"])
