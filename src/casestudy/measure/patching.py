"""Which activations carry the difference between two runs, and which are necessary?

Exact activation patching: run one prompt of a pair, replace an activation by that of the other
prompt, and compute the contrast at the last token. Denoising runs the corrupted prompts with clean
activations (is the activation sufficient to restore the behaviour?). Noising runs the clean prompts
with corrupted activations (is it necessary?). An ablation uses zero, a mean or another prompt's
activation instead.

A grid has axes for the patched activation and one for the prompts. Its raw values are the contrast
itself; normalised values are ratios of means, (mean patched - mean unpatched) / (mean other - mean
unpatched), so a prompt whose own difference is near zero has little weight. Prompts of equal length
can be patched by position, others by role or at the last token.

Assumes a causal decoder. Cost: see `sweep`.
Sources: Meng et al. 2022 (causal tracing); Wang et al. 2022 (IOI); Heimersheim and Nanda 2024, "How
to use and interpret activation patching", whose denoising and noising these are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.engine.cells import Cell, Place, Values
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.readout import Metric, Tails
from casestudy.engine.sweep import Sweep, sweep, sweeps
from casestudy.errors import MeasureError, SiteError, one_of
from casestudy.measure.attribution_patching import attribute_nodes
from casestudy.measure.means import mean_values
from casestudy.measure.pairs import (
    Direction,
    Pairs,
    Roles,
    Sides,
    Texts,
    counterfactual_table,
    equal_lengths,
    one_reading,
    pairs_of,
)
from casestudy.measure.patched import Patched, patched
from casestudy.model.config import ModelConfig
from casestudy.model.model import Model
from casestudy.model.sites import Site, check_layers
from casestudy.model.tokens import Tokens
from casestudy.results import names
from casestudy.results.result import Axis

__all__ = [
    "Ablation",
    "By",
    "Direction",
    "Pairs",
    "Patched",
    "Roles",
    "Sides",
    "ablate",
    "counterfactual_table",
    "donors",
    "neurons",
    "neurons_by_gradient",
    "pairs_of",
    "patch",
    "patch_sites",
    "read_by",
    "read_direction",
    "role_place",
    "subspace",
]

By = Literal["position", "role", "all", "last"]
Ablation = Literal["zero", "mean", "resample"]
"""The replacement of an activation in `ablate`; for edges see `circuits.ablated.EdgeAblation`."""


Watch = Callable[[Patched], None]
"""Called with the grid so far, NaN in cells not yet computed; an exception ends the sweep."""


def patch(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    site: Site | str,
    *,
    by: By | None = None,
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
    watch: Watch | None = None,
) -> Patched:
    """Patch one site in every layer, at every place.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts; of pairs with `texts`, the prompts of the grid are the
            texts, and the last token is the prompt's.
        contrast: a contrast, or a function of the last token's logits and each row's prompt.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out: one cell per layer and place.
            z, q, k, v, pattern: one per layer, head (of k and v, key/value head) and place.
        by: at each "position", at each "role", at "all" positions together, or at the "last" token
            only; by default "all" for heads and "position" for the others.
        direction: "denoising" runs the corrupted prompts (unpatched) with activations from the
            clean run; "noising" runs the clean prompts with activations from the corrupted run.
        layers: indices; all by default.
        budget: memory, checks.
        progress, watch: called after each batch of cells.

    Shape:  raw (layer, pos, prompt), (layer, head, pos, prompt), … with `role` for `pos`; without
            it for by="all" and by="last".
    Unit:   logits, for a contrast.
    Error:  `raw.error` has the largest gap to full forward passes in a sample.
    Raises: MeasureError, SiteError as `sweep` does; MeasureError for pairs of unequal length by
            position.
    """
    site = Site(site)
    sides = pairs.sides(direction)
    by = _by(site, by)
    cells, axes = _cells(model.config, site, layers, *_places(by, sides, pairs.texts))
    job = _of_site(site, by, direction, sides, axes, _labels(pairs))
    on = (model, sides.base, sides.source, cells, contrast)
    return job.run(*on, budget, progress, watch, pairs.tails)


def patch_sites(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    sites: Sequence[Site | str],
    *,
    by: By,
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> dict[str, Patched | MeasureError]:
    """Patch several sites of the same pairs in one sweep, which shares the unpatched runs.

    Args:
        sites: as `patch` takes one; each is a grid with a check of its own.
        progress: called with the progress over all grids together.
        model, pairs, contrast, by, direction, layers, budget: as in `patch`.

    Returns: by site, what `patch` gives up to rounding; the error if its check failed.
    Raises: as `patch`, for what is wrong before anything is computed.
    """
    sides = pairs.sides(direction)
    axis, places = _places(by, sides, pairs.texts)
    jobs, parts = {}, []
    for site in map(Site, sites):
        cells, axes = _cells(model.config, site, layers, axis, places)
        jobs[site.value] = _of_site(site, by, direction, sides, axes, _labels(pairs))
        parts.append(cells)
    on = (model, sides.base, sides.source, parts, contrast)
    found = sweeps(*on, tails=pairs.tails, budget=budget, progress=progress)
    return {
        site: one if isinstance(one, MeasureError) else job.laid_out(one, contrast)
        for (site, job), one in zip(jobs.items(), found, strict=True)
    }


def _labels(pairs: Pairs) -> tuple[str, ...] | None:
    """The names of a grid's prompts; texts have none of their own."""
    return pairs.labels if pairs.texts is None else None


def _of_site(
    site: Site,
    by: By,
    direction: Direction,
    sides: Sides,
    axes: tuple[Axis, ...],
    labels: tuple[str, ...] | None,
) -> _Job:
    """The name and the axes of the grid of a site between the two runs of pairs."""
    about = f"{direction.capitalize()}: the {sides.about[0]} run with {site.value} of the "
    about += f"{sides.about[1]} one put in."
    return _Job(names.patching(site.value, by, direction), about, axes, labels)


def read_by(text: str | None) -> By | None:
    """The option `by`, from the command line.

    Raises: MeasureError listing them.
    """
    return None if text is None else one_of("by", text, get_args(By), MeasureError)


def read_direction(text: str) -> Direction:
    """A direction of patching, from the command line.

    Raises: MeasureError listing them.
    """
    return one_of("direction", text, get_args(Direction), MeasureError)


def neurons(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    chosen: Sequence[tuple[int, int]],
    *,
    by: By = "all",
    direction: Direction = "denoising",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
    watch: Watch | None = None,
) -> Patched:
    """Patch single MLP neurons, (layer, neuron) each; `neurons_by_gradient` chooses some.

    Shape:  raw (neuron, prompt), or (neuron, pos, prompt); a neuron's label is "layer.index".
            Everything else as `patch`.
    """
    sides = pairs.sides(direction)
    axis, places = _places(by, sides, pairs.texts)
    cells = [
        Cell(Site.MLP_POST, layer, place, neuron=neuron)
        for layer, neuron in chosen
        for place in places
    ]
    which = Axis("neuron", tuple(f"{layer}.{neuron}" for layer, neuron in chosen))
    axes = (which,) if axis is None else (which, axis)
    about = f"{direction.capitalize()}: single MLP neurons' outputs exchanged between the runs."
    job = _Job(names.patching("neurons", by, direction), about, axes, _labels(pairs))
    on = (model, sides.base, sides.source, cells, contrast)
    return job.run(*on, budget, progress, watch, pairs.tails)


def subspace(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    directions: Float[Tensor, "d_model k"],
    *,
    site: Site | str = Site.RESID_PRE,
    by: By = "position",
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
    watch: Watch | None = None,
) -> Patched:
    """Patch only the component of the residual stream along some directions (columns, which are
    made orthonormal).

    Shape and everything else as `patch`.
    Raises: MeasureError if the columns are dependent or zero, and for pairs with `texts`.
    """
    one_reading(pairs, "patches of a subspace")
    site = Site(site)
    q, r = torch.linalg.qr(directions.double())
    if directions.shape[1] == 0 or bool((r.diagonal().abs() <= 1e-9 * r.abs().max()).any()):
        raise MeasureError("the directions are dependent or zero", allowed="independent columns")
    basis = q.to(model.device, model.dtype)
    sides = pairs.sides(direction)
    axis, places = _places(by, sides)
    cells, axes = _cells(model.config, site, layers, axis, places)
    cells = [replace(cell, subspace=basis) for cell in cells]
    about = f"{direction.capitalize()}: {site.value} exchanged between the runs along "
    about += f"{basis.shape[1]} of {basis.shape[0]} directions."
    name = names.patching(f"subspace.{site.value}", by, direction)
    job = _Job(name, about, axes, pairs.labels)
    return job.run(model, sides.base, sides.source, cells, contrast, budget, progress, watch)


def ablate(
    model: Model,
    tokens: Tokens | str | Sequence[str],
    contrast: Contrast | Metric,
    site: Site | str,
    *,
    kind: Ablation = "mean",
    by: By | None = None,
    layers: Sequence[int] | None = None,
    roles: Roles | None = None,
    reference: Tokens | None = None,
    reference_roles: Roles | None = None,
    partners: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    tails: Tails | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
    watch: Watch | None = None,
) -> Patched:
    """Ablate one site in every layer, at every place.

    Args:
        model: the decoder.
        tokens: the prompts, as tokens or texts.
        contrast, site, by, layers: as in `patch`.
        kind: the replacement: "zero"; the "mean" over the reference prompts at the same role, or at
            the same position if a token has no role; or "resample", another prompt's activation.
        roles: each prompt's positions by role.
        reference: the prompts that a mean is over; `tokens` by default.
        reference_roles: their roles; those of `tokens` by default.
        partners: for "resample", each prompt's donor; by default random (the budget's seed), never
            the prompt itself.
        labels: of the prompts.
        tails: as in `patch`.

    Shape, unit, error: as `patch`, but there is no other run, so no normalised values.
    Raises: as `patch`; MeasureError if a role or position occurs in no reference prompt.
    """
    tokens = tokens if isinstance(tokens, Tokens) else model.tokenize(tokens)
    site = Site(site)
    by = _by(site, by)
    name = names.ablation(kind, site.value, by)
    source: Values | Tokens
    sides = Sides(tokens, tokens, roles, roles, ("", ""))
    if kind == "resample":
        order = list(donors(len(tokens), budget.seed) if partners is None else partners)
        source = tokens[order]
        donor_roles = None if roles is None else [roles[i] for i in order]
        sides = Sides(tokens, source, roles, donor_roles, ("", ""))
        about = f"{site.value} of another prompt put in."
    elif kind == "zero":
        source = _zero(model)
        about = f"{site.value} set to zero."
    else:
        reference = tokens if reference is None else reference
        reference_roles = roles if reference is tokens else reference_roles
        wanted = check_layers(layers, model.config.n_layers)
        source = mean_values(model, site, wanted, tokens, roles, reference, reference_roles)
        about = f"{site.value} set to its mean over {len(reference)} prompts, by role or position."
    axis, places = _places(by, sides)
    cells, axes = _cells(model.config, site, layers, axis, places)
    job = _Job(name, about, axes, None if labels is None else tuple(labels), of_pairs=False)
    on = (model, tokens, source, cells, contrast)
    return job.run(*on, budget, progress, watch, tails)


def neurons_by_gradient(
    model: Model, pairs: Pairs, contrast: Contrast | Metric, k: int
) -> list[tuple[int, int]]:
    """The k neurons with the largest scores by attribution patching, largest first.

    Score: |mean over prompts of Σ_pos (clean - corrupted activation) · gradient at the corrupted
    run|, a first-order estimate that only chooses which neurons to patch exactly.
    Cost: two forward passes and one backward pass (`attribute_nodes`).
    Source: Nanda 2023, "Attribution patching".
    """
    if k < 1:
        raise MeasureError(f"the top {k} neurons", allowed="at least 1")
    found = attribute_nodes(model, pairs, contrast, Site.MLP_POST, method="atp")
    scores = np.abs(found.values.mean(-1)).ravel()
    best = np.argsort(-scores, kind="stable")[:k]
    return [divmod(int(i), model.config.d_mlp) for i in best]


def _zero(model: Model) -> Values:
    zero = torch.zeros((), dtype=model.dtype, device=model.device)
    return lambda site, layer, prompts, positions: zero


def donors(n: int, seed: int) -> list[int]:
    """Each prompt's donor: the next one in a random cycle, so never the prompt itself.

    Raises: MeasureError for a single prompt.
    """
    if n < 2:
        raise MeasureError("one prompt has no other to resample from", allowed="two or more")
    order = list(range(n))
    random.Random(seed).shuffle(order)
    following = {order[i]: order[(i + 1) % n] for i in range(n)}
    return [following[i] for i in range(n)]


def _by(site: Site, by: By | None) -> By:
    if by is not None:
        return by
    return "all" if {"head", "kv_head"} & set(site.axes) else "position"


def _places(by: By, sides: Sides, texts: Texts | None = None) -> tuple[Axis | None, list[Place]]:
    """The axis that names the places, and the places.

    Args:
        texts: of the pairs; their last token is the prompt's, which is a role.
    """
    base, source = sides.base, sides.source
    if by == "last" and texts is not None and sides.base_roles and sides.source_roles:
        return None, [role_place(names.LAST_TOKEN, sides.base_roles, sides.source_roles)]
    if by == "last":
        return None, [Place.last(base, source)]
    if by == "role":
        if sides.base_roles is None or sides.source_roles is None:
            raise MeasureError("by role, but no roles came", hint="Give each prompt's roles")
        # in the order of the prompts' text, which does not depend on the order of the prompts
        roles = _in_text_order(sides.base_roles)
        places = [role_place(name, sides.base_roles, sides.source_roles) for name in roles]
        return Axis("role", roles), places
    equal_lengths(base, source, f"patching by {by}", sides.about)
    if by == "all":
        return None, [Place.everywhere(base)]
    longest = int(base.lengths.max())
    return Axis.count("pos", longest), [Place.at(p, base) for p in range(longest)]


def _in_text_order(roles: Roles) -> tuple[str, ...]:
    """Every role's name, ordered by its mean position in the prompts."""
    far: dict[str, list[float]] = {}
    for row in roles:
        end = 1 + max((max(places) for places in row.values() if places), default=0)
        for name, places in row.items():
            if places:
                far.setdefault(name, []).append(sum(places) / len(places) / end)
    return tuple(sorted(far, key=lambda name: (sum(far[name]) / len(far[name]), name)))


def role_place(name: str, base_roles: Roles, source_roles: Roles) -> Place:
    """The positions of a role on both sides; none in a pair of which one side has more of them."""
    here = [tuple(sorted(row.get(name, ()))) for row in base_roles]
    there = [tuple(sorted(row.get(name, ()))) for row in source_roles]
    both = [len(a) == len(b) for a, b in zip(here, there, strict=True)]
    return Place(
        name,
        tuple(a if same else () for a, same in zip(here, both, strict=True)),
        tuple(b if same else () for b, same in zip(there, both, strict=True)),
    )


def _cells(
    config: ModelConfig,
    site: Site,
    layers: Sequence[int] | None,
    place_axis: Axis | None,
    places: Sequence[Place],
) -> tuple[list[Cell], tuple[Axis, ...]]:
    """The cells of a site's grid in the order of its axes."""
    if site.layered:
        chosen: Sequence[int | None] = check_layers(layers, config.n_layers)
        axes = [Axis("layer", tuple(map(str, chosen)))]
    elif layers is not None:
        raise SiteError(f"{site.value} has no layers")
    else:
        chosen, axes = [None], []
    heads: Sequence[int | None] = [None]
    if "head" in site.axes:
        heads = range(config.n_heads)
        axes.append(Axis.count("head", config.n_heads))
    elif "kv_head" in site.axes:
        heads = range(config.n_kv_heads)
        axes.append(Axis.count("kv_head", config.n_kv_heads))
    if place_axis is not None:
        axes.append(place_axis)
    cells = [
        Cell(site, layer, place, head=head)
        for layer in chosen
        for head in heads
        for place in places
    ]
    return cells, tuple(axes)


@dataclass(frozen=True)
class _Job:
    """The name and the axes of a grid.

    Attributes:
        of_pairs: whether the source is the other prompt of the pair, so that a patch restores its
            contrast; the contrast of a donor is about another prompt's answer.
    """

    name: str
    about: str
    axes: tuple[Axis, ...]
    labels: tuple[str, ...] | None
    of_pairs: bool = True

    def run(
        self,
        model: Model,
        base: Tokens,
        source: Tokens | Values,
        cells: Sequence[Cell],
        contrast: Contrast | Metric,
        budget: Budget,
        progress: Tell | None,
        watch: Watch | None,
        tails: Tails | None = None,
    ) -> Patched:
        """Sweep the cells, and arrange the values along the axes."""

        found = sweep(
            model,
            base,
            source,
            cells,
            contrast,
            tails=tails,
            budget=budget,
            progress=progress,
            watch=None if watch is None else lambda found: watch(self.laid_out(found, contrast)),
        )
        return self.laid_out(found, contrast)

    def laid_out(self, found: Sweep, contrast: Contrast | Metric) -> Patched:
        """A sweep's values along the axes."""
        found = found if self.of_pairs else replace(found, other=None)
        return patched(found, self.name, self.about, self.axes, self.labels, contrast)
