"""Which parts of the model wrote a logit difference? The terms sum to it exactly.

The residual stream before the final norm is the sum of the embedding, the positions, and every
attention and MLP layer's output. With the final norm's scale frozen at its traced value, the norm
and the unembedding are linear, so each of these parts has a direct contribution to the contrast. A
projection of the residual stream leaves out the norm's own bias: through the unembedding it gives
every token a constant, b_U, and between " He" and " he" it does not cancel. It is a term like the
others.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; folding as in
TransformerLens, but without rewriting any weight. Cost: one projection per part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Prompts
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.engine.rounding import worst_gap
from casestudy.model.linear import pull_back
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.trace import Trace
from casestudy.results import names
from casestudy.results.components import attn, mlp
from casestudy.results.names import B_U, ENTROPY
from casestudy.results.result import Axis, Grid, Result


def final_direction(
    model: Model,
    directions: Float[Tensor, "batch d_model"],
    scale: Float[Tensor, "batch one"] | None,
) -> Float[Tensor, "batch d_model"]:
    """The direction whose dot product with a part is its contribution to a contrast, in float64.

    The norm's weight and (for LayerNorm) mean subtraction are folded into Σₜ weightₜ W_U[:, t],
    divided by the frozen scale.

    Args:
        model: has the norm and the unembedding.
        directions: of the contrast, before the norm is folded in (`Contrast.directions`).
        scale: the final norm's scale at each prompt's last position; None leaves it out.
    """
    return pull_back(model.config, model.weights.final_norm, directions, scale)


def keep_for_ledger(model: Model) -> Sequence[Keep]:
    """The sites a ledger reads, at the last positions only."""
    sites = [Site.EMBED, Site.ATTN_OUT, Site.MLP_OUT, Site.FINAL_NORMED]
    if model.weights.W_pos is not None:
        sites.append(Site.POS_EMBED)
    if model.weights.final_norm is not None:
        sites.append(Site.FINAL_SCALE)
    return [site.at(last=True) for site in sites]


def ledger_terms(
    model: Model,
    trace: Trace,
    contrast: Contrast,
    *,
    directions: Float[Tensor, "batch d_model"] | None = None,
) -> tuple[tuple[str, ...], Float[Tensor, "term batch"]]:
    """The terms of a contrast, by name.

    Args:
        model: which was run.
        trace: the run.
        contrast: one row per prompt of the run.
        directions: of the contrast, if already computed (`Batch.directions`).

    Shape:  (term, batch), at each prompt's last position, in float64.
    Unit:   logits; the final norm's scale is frozen at its traced value.
    Raises: SiteNotKept when the trace was made without `keep_for_ledger`.
    """
    config, weights = model.config, model.weights
    u = contrast.directions(weights) if directions is None else directions
    scale = trace.last(Site.FINAL_SCALE) if weights.final_norm is not None else None
    direction = final_direction(model, u, scale)

    def share(key: Site | tuple[Site, int]) -> Tensor:
        return (trace.last(key).double() * direction).sum(1)

    terms = {names.EMBED: share(Site.EMBED)}
    if weights.W_pos is not None:
        terms[names.POS_EMBED] = share(Site.POS_EMBED)
    for layer in range(config.n_layers):
        terms[attn(layer)] = share((Site.ATTN_OUT, layer))
        terms[mlp(layer)] = share((Site.MLP_OUT, layer))
    if weights.final_norm is not None and weights.final_norm.bias is not None:
        terms[B_U] = u @ weights.final_norm.bias.double()
    if weights.b_U is not None:
        terms[names.UNEMBEDDING_BIAS] = contrast.weigh(weights.b_U.expand(len(contrast), -1))
    if config.final_softcap is not None:
        terms[names.SOFT_CAP] = _soft_cap(model, trace, contrast)
    if not contrast.linear or bool((contrast.constant != 0).any()):
        terms[ENTROPY] = contrast.constant.to(direction.device)
    return tuple(terms), torch.stack(list(terms.values()))


def _soft_cap(model: Model, trace: Trace, contrast: Contrast) -> Float[Tensor, " batch"]:
    """The change of the contrast from the soft-cap of the logits."""
    cap = model.config.final_softcap
    assert cap is not None
    raw = contrast.project(trace.last(Site.FINAL_NORMED), model.weights)
    if model.weights.b_U is not None:
        raw = raw + model.weights.b_U[contrast.ids.to(model.device)].double()
    change = cap * torch.tanh(raw / cap) - raw
    return (change * contrast.weights.to(model.device)).sum(1)


def gap_bound(dtype: torch.dtype, terms: Float[Tensor, "term batch"]) -> Float[Tensor, " batch"]:
    """The allowed gap between the sum of the terms and the logit difference: law 1.

    max(1e-4, 1e-6 Σ|terms|) in float32, 1e-9 in float64 (scaled likewise); infinite in bfloat16,
    where the gap is shown without a guarantee.
    """
    size = terms.abs().sum(0)
    if dtype == torch.float64:
        return (1e-15 * size).clamp(min=1e-9)
    if dtype == torch.float32:
        return (1e-6 * size).clamp(min=1e-4)
    return torch.full_like(size, float("inf"))


def measure_ledger(batch: Batch) -> list[Result]:
    """The ledger of every contrast, and its check."""
    accounts, checks = [], []
    for contrast, u in zip(batch.contrasts, batch.directions, strict=True):
        labels, terms = ledger_terms(batch.model, batch.trace, contrast, directions=u)
        value = contrast.value(batch.logits)
        total = terms.sum(0)
        without = total - terms[labels.index(B_U)] if B_U in labels else total
        gap, bound = (total - value).abs(), gap_bound(batch.model.dtype, terms)
        accounts.append(dict(zip(labels, terms, strict=True)))
        checks.append(torch.stack([value, total, gap, bound, without]))
    check = torch.stack(checks).cpu().numpy()
    gaps, bounds = torch.stack(checks)[:, 2], torch.stack(checks)[:, 3]
    error = worst_gap(gaps.flatten(), bounds.flatten())
    # One axis for all contrasts: a term that a contrast does not have is absent there.
    every = tuple(dict.fromkeys(name for account in accounts for name in account))
    absent = torch.full_like(checks[0][0], float("nan"))
    stacked = torch.stack([torch.stack([a.get(n, absent) for n in every]) for a in accounts])
    quantities = ("logit difference", "sum of terms", "gap", "bound", "without b_U")
    return [
        Grid(
            names.LEDGER,
            stacked.cpu().numpy(),
            (batch.contrast_axis, Axis("term", every), batch.prompt_axis),
            "logits",
            error=error,
            about="Each part's share of the logit difference, the final norm's scale frozen at its "
            "traced value; the terms sum to the logit difference. A class contrast's weights are "
            "frozen at the prompt's own probabilities; its entropy term is a term of its own.",
        ),
        Grid(
            names.LEDGER_CHECK,
            check,
            (batch.contrast_axis, Axis("quantity", quantities), batch.prompt_axis),
            "logits",
            about="The ledger's sum beside the logits' own difference, and without b_U.",
        ),
    ]


LEDGER = Measurement("ledger", keep_for_ledger, measure_ledger)


def ledger(model: Model, behaviour: Prompts) -> Grid:
    """Split every contrast of a behaviour into the direct contributions of the model's parts.

    Shape:  (contrast, term, prompt), at each prompt's last position.
    Unit:   logits.
    Error:  `error["gap"]` is the largest difference between the sum of the terms and the logit
            difference, `error["bound"]` what law 1 allows there (absent in half precision).
    """
    batch = run_whole(model, behaviour, [LEDGER])
    grid = measure_ledger(batch)[0]
    assert isinstance(grid, Grid)
    return grid
