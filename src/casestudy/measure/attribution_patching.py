"""Which activations matter, by estimates that cost a few passes for all of them?

The score of an activation is its change between the runs, clean minus corrupted, times a
coefficient. The methods differ in the coefficient:

- `atp` (Nanda 2023, "Attribution patching"): the metric's gradient at the unpatched run;
- `relp` (Jafari et al. 2025, arXiv 2508.21258, "RelP"): the propagation coefficient at the
  unpatched run, by LN-rule, Identity-rule and Half-rule; `relp-ah` also holds attention patterns
  constant (AH-rule). See `model/relevance`;
- `ig-inputs` (Hanna et al. 2024, section 3): the mean gradient over runs whose embeddings lie
  between the two runs', at the midpoints of equal steps;
- `ig-activations` (Marks et al. 2024): the mean gradient over unpatched runs in which the site of
  one layer lies between the two runs'. One layer's scores sum to the effect of its whole site.

A score estimates m(clean) - m(clean with the corrupted activation) for noising, and m(corrupted
with the clean activation) - m(corrupted) for denoising: positive scores support the metric. `patch`
and `neurons` give the exact values.

Assumes pairs of equal length. Cost: two forward passes and one backward pass; for `ig-inputs` one
more forward and backward pass per step, for `ig-activations` per step and layer. Prompts are taken
in chunks that fit the budget, and only a number per cell and prompt is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.checks import check_different, check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell, pack
from casestudy.engine.readout import Metric, Readout, Tails
from casestudy.errors import MeasureError, SiteError, one_of
from casestudy.measure.metrics import name_and_unit, rows_of
from casestudy.measure.pairs import Direction, Pairs, equal_lengths, one_reading
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.relevance import RELP, RELP_AH, Rule, final_norm, relevance_edits
from casestudy.model.sites import Keep, Site, check_layers
from casestudy.model.trace import Trace
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid

NodeMethod = Literal["atp", "ig-inputs", "ig-activations", "relp", "relp-ah"]
NODE_METHODS: tuple[NodeMethod, ...] = get_args(NodeMethod)
RULES: dict[str, tuple[Rule, ...]] = {"relp": RELP, "relp-ah": RELP_AH}
"""The rules of each method that propagates relevance; the others take gradients."""
STEPS = 5
MOST_STEPS = 1000
"""Points of an integral; hundreds change no score, and each costs a gradient of every pair."""


def check_steps(steps: int) -> None:
    """Raises: MeasureError for fewer steps than one, or more than `MOST_STEPS`."""
    if not 1 <= steps <= MOST_STEPS:
        hint = None if steps < 1 else f"The default is {STEPS}; each step costs as much again"
        raise MeasureError(f"{steps:,} steps", allowed=f"1 to {MOST_STEPS:,}", hint=hint)


_SITES = (
    *(Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST, Site.ATTN_OUT, Site.MLP_OUT),
    *(Site.Z, Site.MLP_POST),
)
NodeBy = Literal["position", "all", "last"]


def attribute_nodes(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    site: Site | str,
    *,
    method: NodeMethod = "relp",
    by: NodeBy | None = None,
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    steps: int = STEPS,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Grid:
    """Score one site in every layer: the residual stream, layers' outputs, heads or neurons.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length; of pairs with `texts`, the scores are
            summed over each pair's texts.
        contrast: a contrast, or a function of the last token's logits with a gradient.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out; z for heads, mlp_post for
            neurons.
        method: see above.
        by: at each "position", summed over "all", or at the "last" token only; by default "all" for
            heads and neurons and "position" for the others.
        direction: the unpatched run, in which the coefficient is taken: the corrupted one for
            "denoising", the clean one for "noising". `ig-inputs` does not depend on it.
        layers: indices; all by default.
        steps: number of points of the integrals.
        budget: memory of a chunk of prompts.
        progress: called with the number of finished prompts.

    Shape:  (layer, pos, prompt), (layer, head, prompt), (layer, neuron, prompt); with by="all" or
            "last" without `pos`, heads and neurons by position with it. NaN past a prompt's end.
    Unit:   the metric's.
    Error:  none of its own: an estimate. Compare with `patch` or `measure.patching.neurons`.
    Raises: MeasureError for pairs that are identical or of unequal length, a metric without a
            gradient, an unknown method; SiteError for another site.
    """
    one_of("method", method, NODE_METHODS, MeasureError)
    site = Site(site)
    if site not in _SITES:
        allowed = ", ".join(s.value for s in _SITES)
        raise SiteError(f"scores of {site.value}", allowed=allowed)
    check_steps(steps)
    whole: NodeBy = "all" if site in (Site.Z, Site.MLP_POST) else "position"
    by = whole if by is None else one_of("by", by, get_args(NodeBy), MeasureError)
    equal_lengths(pairs.clean, pairs.corrupted, "a score by position")
    check_different(pairs.clean, pairs.corrupted)
    chosen = check_layers(layers, model.config.n_layers)
    if by == "last":
        one_reading(pairs, "scores at the last token")
    n, longest, tails = len(pairs.clean), int(pairs.clean.lengths.max()), pairs.tails
    parts: dict[int, Array] = {}
    for some in _chunks(model, pairs, budget.memory):
        work = _Chunk(model, pairs, rows_of(contrast, tails.of(some)), some, site, chosen)
        found = _placed(work.scores(method, steps, direction), by, pairs, some)
        if by == "position":
            past = longest - found.shape[-1]
            found = np.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, past)], constant_values=np.nan)
        parts |= dict(zip(some, found, strict=True))
        if progress is not None:
            progress(Progress("node scores", len(parts), n))
    out = np.stack([parts[i] for i in range(n)], -1)
    sides = [pairs.clean, pairs.corrupted]
    check_finite([out.reshape(-1, n)[0]], model=model, of=sides)
    if pairs.texts is not None:
        known = ~np.isnan(out)
        out = np.where(pairs.of_pairs(known) > 0, pairs.of_pairs(np.nan_to_num(out)), np.nan)
    n = len(pairs)
    prompts = Axis.count("prompt", n) if pairs.labels is None else Axis("prompt", pairs.labels)
    return Grid(
        names.attribution_patching(site.value, by, method, direction),
        out,
        (*_axes(model, site, chosen), *_positions(by, longest), prompts),
        name_and_unit(contrast)[1],
        about=f"{site.value}: clean minus corrupted activation, times the coefficient of {method}; "
        f"an estimate of the effect of {direction}.",
    )


def _axes(model: Model, site: Site, layers: Sequence[int]) -> list[Axis]:
    axes = [Axis("layer", tuple(map(str, layers)))]
    if site is Site.Z:
        axes.append(Axis.count("head", model.config.n_heads))
    if site is Site.MLP_POST:
        axes.append(Axis.count("neuron", model.config.d_mlp))
    return axes


def _positions(by: NodeBy, longest: int) -> list[Axis]:
    return [Axis.count("pos", longest)] if by == "position" else []


def _chunks(model: Model, pairs: Pairs, memory: int) -> list[list[int]]:
    """Batches of prompts of similar length whose passes fit into memory."""
    config = model.config
    # a pass with its gradients, and both runs' values at the site
    per_token = config.n_layers * (14 * config.d_model + 8 * config.d_mlp)
    size = model.weights.W_E.element_size()

    def fits(n: int, length: int, _: int) -> bool:
        return n * length * per_token * size <= memory

    return [sorted(batch) for batch in pack(pairs.clean.lengths.tolist(), fits=fits)]


def _placed(
    scores: Float[Tensor, "batch layer pos *part"], by: NodeBy, pairs: Pairs, some: Sequence[int]
) -> Array:
    """(batch, layer, *part) or, by position, (batch, layer, *part, pos), in float64."""
    lengths = pairs.clean.lengths[list(some)].to(scores.device)
    past = torch.arange(scores.shape[2], device=scores.device)[None] >= lengths[:, None]
    mask = past[:, None].view(len(scores), 1, -1, *[1] * (scores.ndim - 3))
    if by == "position":
        out = scores.masked_fill(mask, float("nan")).movedim(2, -1)
    elif by == "last":
        out = scores[torch.arange(len(scores), device=scores.device), :, lengths - 1]
    else:
        out = scores.masked_fill(mask, 0.0).sum(2)
    return np.asarray(out.double().cpu().numpy())


class _Chunk:
    """Some pairs, and the layers of one site."""

    def __init__(
        self,
        model: Model,
        pairs: Pairs,
        metric: Contrast | Metric,
        some: list[int],
        site: Site,
        layers: Sequence[int],
    ) -> None:
        self.model, self.site, self.layers = model, site, layers
        self.tokens = {
            "clean": pairs.clean[some].to(model.device),
            "corrupted": pairs.corrupted[some].to(model.device),
        }
        self.tails = pairs.tails.some(some)
        self.readout = Readout(model, metric, len(self.tails.weights))

    def scores(
        self, method: NodeMethod, steps: int, direction: Direction
    ) -> Float[Tensor, "batch layer pos *part"]:
        """Change times coefficient; summed over what is no axis of the grid."""
        base, other = ("clean", "corrupted") if direction == "noising" else ("corrupted", "clean")
        single = method == "atp" or method in RULES
        ours = self.trace(base, method, grad=single)
        theirs = self.trace(other, method)
        sign = 1.0 if base == "corrupted" else -1.0
        delta = {
            layer: sign * (theirs[self.site, layer] - ours[self.site, layer].detach())
            for layer in self.layers
        }
        if single:
            slopes = self.coefficients(ours, RULES.get(method, ()))
            return self.products(delta, dict(zip(self.layers, slopes, strict=True)))
        sums = {layer: torch.zeros_like(x) for layer, x in delta.items()}
        for step in range(steps):
            point = (step + 0.5) / steps  # from the base run to the other
            if method == "ig-inputs":
                edit = self.between(ours, theirs, Site.RESID_PRE, 0, point)
                found = self.coefficients(self.trace(base, method, grad=True, edits=[edit]))
                for layer, slope in zip(self.layers, found, strict=True):
                    sums[layer] += slope / steps
                continue
            for layer in self.layers:
                edit = self.between(ours, theirs, self.site, layer, point)
                moved = self.trace(base, method, grad=True, edits=[edit])
                sums[layer] += self.coefficients(moved, layers=[layer])[0] / steps
        return self.products(delta, sums)

    def between(self, ours: Trace, theirs: Trace, site: Site, layer: int, point: float) -> Edit:
        """An edit that puts a site between the two runs' values."""
        a, b = (trace[site, layer].detach() for trace in (ours, theirs))
        return Edit.replace(site, layer, a + point * (b - a))

    def trace(
        self, side: str, method: NodeMethod, *, grad: bool = False, edits: Sequence[Edit] = ()
    ) -> Trace:
        keep: list[Keep | Site] = [self.site.at(list(self.layers))]
        keep.append(Site.FINAL_RESID.at(last=self.tails.single))
        if method == "ig-inputs" and not grad:
            keep.append(Site.RESID_PRE.at(0))
        if grad and method in RULES:
            edits = [*edits, *relevance_edits(self.model, RULES[method])]
        return run(self.model, self.tokens[side], keep=keep, edit=edits, grad=grad)

    def coefficients(
        self, trace: Trace, rules: Collection[Rule] = (), layers: Sequence[int] | None = None
    ) -> Sequence[Tensor]:
        """The metric's gradient at the site of each layer, or what the rules make of it."""
        value = read_last(self.readout, self.model, trace, rules, tails=self.tails)
        wanted = [trace[self.site, layer] for layer in (self.layers if layers is None else layers)]
        return gradients(value, wanted)

    def products(
        self, delta: dict[int, Tensor], slopes: dict[int, Tensor]
    ) -> Float[Tensor, "batch layer pos *part"]:
        """Change times coefficient in every layer."""
        keep_last_axis = self.site is Site.MLP_POST
        found = []
        for layer in self.layers:
            product = delta[layer] * slopes[layer]
            found.append(product if keep_last_axis else product.sum(-1))
        return torch.stack(found, 1)


def gradients(value: Float[Tensor, " batch"], wanted: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of each prompt's value at what was kept of its run; zero if it has none."""
    with torch.enable_grad():
        total = value.sum()  # given a tensor of ones instead, torch loads sympy
    return torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)


def read_last(
    readout: Readout,
    model: Model,
    trace: Trace,
    rules: Collection[Rule] = (),
    *,
    tails: Tails | None = None,
) -> Float[Tensor, " batch"]:
    """The metric at the last tokens, with gradients to the trace if it has any.

    Args:
        readout: of the trace's prompts.
        model: which was run.
        trace: which kept `final_resid`: at the last tokens, or everywhere for several readings.
        rules: of the relevance that its gradients shall be; none for gradients.
        tails: where prompts are read at several of their last positions.

    Raises: MeasureError for a metric without a gradient.
    """
    if tails is None or tails.single:
        last = trace.lasts[Site.FINAL_RESID, None]
    else:
        last = trace.values[Site.FINAL_RESID, None][tails.places(trace.tokens.last + 1)]
    rows = torch.arange(len(last), device=last.device)
    with torch.set_grad_enabled(last.requires_grad):
        if rules:
            value = readout.of_normed(final_norm(model, last, rules), rows)
        else:
            value = readout(last, rows)
        value = value if tails is None else tails.added(value)
    if last.requires_grad and not value.requires_grad:
        raise MeasureError(
            "the metric has no gradient",
            allowed="a function of the logits made of differentiable operations",
            hint="Take a logit difference, a probability or KL, or patch exactly",
        )
    return value
