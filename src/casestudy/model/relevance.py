"""How is relevance propagated backwards through a decoder?

Layer-wise relevance propagation as gradients of a changed model: each rule replaces one nonlinear
step of the forward pass by a linear one that has the same value in this run. So one backward pass
gives propagation coefficients instead of gradients, and coefficient times activation is a
relevance. RelP multiplies the coefficient by a difference of activations, as attribution patching
does with the gradient. The rules, by the names of Jafari et al.'s code (`LRP_rules`):

- LN-rule (Ali et al. 2022): a norm's scale is a constant;
- Identity-rule (Jafari et al. 2024): an activation function is its secant, x · (act(x) / x), with
  the ratio constant; for relu this is the gradient;
- Half-rule (Arras et al. 2019): each factor of a gated MLP's product gets half of the relevance;
- AH-rule (Ali et al. 2022): attention patterns are constants. Without it they are differentiated.

Their code's default, and `RELP` here, is the first three: with AH-rule no relevance reaches queries
and keys (`RELP_AH`). With all four the changed model is linear in the stream and the biases, so the
relevances of a complete cut of a layer, and those of the biases above it, sum to a linear metric.
Norms of queries and keys are differentiated.

Assumes a run with a gradient. Cost: one more product per neuron than a plain backward pass.
Source: Jafari et al. 2025, "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching",
arXiv 2508.21258, where the rules are tabled by layer; their code at github.com/FarnoushRJ/RelP.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.errors import MeasureError, one_of
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import activate, norm_scale
from casestudy.model.edits import Edit
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.weights import Block

Rule = Literal["LN-rule", "Identity-rule", "Half-rule", "AH-rule"]
RELP: tuple[Rule, ...] = ("LN-rule", "Identity-rule", "Half-rule")
RELP_AH: tuple[Rule, ...] = (*RELP, "AH-rule")

_TINY = 1e-6
"""Below this an activation function's secant is taken here: 0 / 0 has no value."""


def relevance_edits(model: Model, rules: Collection[Rule] = RELP) -> list[Edit]:
    """The edits that make a run's gradients propagation coefficients; no activation changes, beyond
    rounding.

    The final norm is not among them: see `final_norm`.
    Raises: MeasureError for a rule that is none of the four.
    """
    for rule in rules:
        one_of("rule", rule, get_args(Rule), MeasureError)
    edits = []
    for layer, block in enumerate(model.weights.blocks):
        if "LN-rule" in rules:
            edits += [Edit(site, layer, Tensor.detach) for site in _scales(block)]
        if "AH-rule" in rules:
            edits += [Edit(site, layer, Tensor.detach) for site in (Site.ROT_Q, Site.ROT_K)]
        edits += _of_mlp(model, layer, rules)
    return edits


def _scales(block: Block) -> list[Site]:
    """The sites of the norm scales that a layer has."""
    norms = {
        Site.ATTN_SCALE: block.attn_norm,
        Site.ATTN_POST_SCALE: block.attn_post_norm,
        Site.MLP_SCALE: block.mlp_norm,
        Site.MLP_POST_SCALE: block.mlp_post_norm,
    }
    return [site for site, norm in norms.items() if norm is not None]


def _of_mlp(model: Model, layer: int, rules: Collection[Rule]) -> list[Edit]:
    """Note a layer's pre-activations, and write its neurons as linear in them."""
    gated = model.weights.gated
    if "Identity-rule" not in rules and not (gated and "Half-rule" in rules):
        return []
    noted: dict[Site, Tensor] = {}

    def note(site: Site, x: Tensor) -> Tensor:
        noted[site] = x
        return x

    def post(_: Tensor) -> Tensor:
        pre = noted.pop(Site.MLP_PRE)
        return neurons_as_linear(model.config, pre, noted.pop(Site.MLP_GATE, None), rules)

    sites = [Site.MLP_PRE, Site.MLP_GATE] if gated else [Site.MLP_PRE]
    notes = [Edit(site, layer, partial(note, site)) for site in sites]
    return [*notes, Edit(Site.MLP_POST, layer, post)]


def neurons_as_linear(
    config: ModelConfig,
    pre: Float[Tensor, "*rows d_mlp"],
    gate: Float[Tensor, "*rows d_mlp"] | None,
    rules: Collection[Rule],
) -> Float[Tensor, "*rows d_mlp"]:
    """The neurons' activations, with the gradients of the Identity-rule and the Half-rule."""

    def activated(x: Tensor) -> Tensor:
        return x * secant(config, x) if "Identity-rule" in rules else activate(config, x)

    if gate is None:
        return activated(pre)
    if "Half-rule" not in rules:
        return activated(gate) * pre
    acts = activated(gate)
    return acts * (pre.detach() / 2) + (acts.detach() / 2) * pre


def secant(config: ModelConfig, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """act(x) / x, a constant; at zero its limit."""
    x = x.detach()
    x = torch.where(x.abs() < _TINY, torch.full_like(x, _TINY), x)
    return activate(config, x) / x


def final_norm(
    model: Model, x: Float[Tensor, "*rows d_model"], rules: Collection[Rule] = RELP
) -> Float[Tensor, "*rows d_model"]:
    """The final norm of a residual stream, at a constant scale (LN-rule)."""
    norm = model.weights.final_norm
    if norm is None:
        return x
    scale = norm_scale(model.config, x)
    scale = scale.detach() if "LN-rule" in rules else scale
    out = norm_at_scale(model.config, norm, x, scale)
    return (out if norm.bias is None else out + norm.bias).to(x.dtype)
