"""Which activations carry the difference between two runs, or between a run and none?

Activation patching, exactly: run one prompt of a pair, put in an activation of the other, read the
contrast at the last token. Denoising runs the corrupted prompts and puts clean activations in (is
this enough to restore the behaviour?); noising runs the clean ones and puts corrupted activations
in (is this needed?). An ablation puts in zero, a mean or another prompt's activation instead.

A grid has one axis per thing patched and one per prompt. Its raw values are the contrast itself;
normalised ones are ratios of means, (mean patched - mean unpatched) / (mean other - mean
unpatched), so that a prompt whose own difference is near zero cannot blow them up. Prompts of equal
length can be patched position by position, others by role or at the last token.

Assumes a causal decoder. Cost: see `sweep`.
Sources: Meng et al. 2022 (causal tracing); Wang et al. 2022 (IOI); Heimersheim and Nanda 2024, "How
to use and interpret activation patching", whose denoising and noising these are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.behaviour.answers import choose_answers
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import Counterfactual, Score, propose
from casestudy.behaviour.prompts import AnswerRule, Prompt, Role
from casestudy.behaviour.roles import roles_of
from casestudy.engine.cells import Cell, Place, Values
from casestudy.engine.packing import DEFAULT_MEMORY
from casestudy.engine.plan import Plan
from casestudy.engine.readout import Metric
from casestudy.engine.sweep import Progress, Sweep, sweep
from casestudy.errors import BehaviourError, MeasureError, SiteError
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site, check_layer
from casestudy.model.tokens import Tokens
from casestudy.results.result import Array, Axis, Grid, Shown, Table
from casestudy.results.stats import mean_interval, ratio_in_parts

Roles = Sequence[Mapping[str, Sequence[int]]]
"""One mapping per prompt, from a role's name to its positions."""

By = Literal["position", "role", "all", "last"]
Direction = Literal["denoising", "noising"]
Ablation = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class Effort:
    """How a sweep is run: never what it finds, beyond float rounding.

    Attributes: see `sweep`; `watch` is shown the grid instead, as far as it is known.
    """

    memory: int = DEFAULT_MEMORY
    check: int = 8
    seed: int = 0
    rows: int | None = None
    progress: Progress | None = None
    watch: Callable[[Patched], None] | None = None


DEFAULT_EFFORT = Effort()


@dataclass(frozen=True)
class Sides:
    """Which prompts are run and which are patched from, with the roles of both."""

    base: Tokens
    source: Tokens
    base_roles: Roles | None
    source_roles: Roles | None
    about: tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts, pair by pair.

    Attributes:
        clean, corrupted: as many prompts of each.
        roles: each clean prompt's positions by role, for patching by role.
        corrupted_roles: the corrupted prompts'; the clean ones' by default, which needs pairs of
            equal length. A pair that has a role on one side only, or with another number of
            tokens, has no value there.
        labels: the prompts' names; their indices by default.
    """

    clean: Tokens
    corrupted: Tokens
    roles: Roles | None = None
    corrupted_roles: Roles | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupted):
            raise MeasureError(
                f"{len(self.clean)} clean prompts and {len(self.corrupted)} corrupted ones",
                allowed="one of each per pair",
            )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: list[int]) -> Pairs:
        """Some of the pairs."""
        roles, theirs = self.roles, self.corrupted_roles
        return Pairs(
            self.clean[rows],
            self.corrupted[rows],
            None if roles is None else [roles[i] for i in rows],
            None if theirs is None else [theirs[i] for i in rows],
            None if self.labels is None else tuple(self.labels[i] for i in rows),
        )

    def sides(self, direction: Direction) -> Sides:
        """Denoising runs the corrupted prompts, noising the clean ones."""
        theirs = self.corrupted_roles
        if theirs is None and self.roles is not None:
            equal_lengths(self.clean, self.corrupted, "sharing one side's roles")
            theirs = self.roles
        if direction == "denoising":
            return Sides(self.corrupted, self.clean, theirs, self.roles, ("corrupted", "clean"))
        return Sides(self.clean, self.corrupted, self.roles, theirs, ("clean", "corrupted"))


_RUN_AT_ONCE = 16
"""Reference prompts per run while their mean is taken."""


@dataclass(frozen=True)
class Patched(Shown):
    """One grid of patches, with what is needed to read it.

    Attributes:
        raw: the contrast with each activation replaced; the last axis is `prompt`. NaN where a
            prompt has no such position or role.
        baselines: the same prompts' contrast without a patch, axes `run` ("unpatched", and "other"
            for a pair) and `prompt`.
        known: 1 where a raw value is the unpatched one by construction, 0 where it was computed;
            axes as `raw`.
        plan: how the work was cut up; the same plan gives the same numbers.
    """

    raw: Grid
    baselines: Grid
    known: Grid
    plan: Plan

    @property
    def normalised(self) -> Grid:
        """Ratios of means over prompts, with n and a 95 % interval; no `prompt` axis.

        1 is the other run, 0 the unpatched one, NaN where those two do not differ. The interval is
        that of the ratio linearised (`ratio_in_parts`).

        Raises: MeasureError for an ablation, which has no other run.
        """
        if "other" not in self.baselines.axis("run").labels:
            raise MeasureError(
                f"{self.raw.name} is an ablation: there is no other run to be a share of",
                hint="Use `effect`, the change in logits",
            )
        parts = ratio_in_parts(self.raw.values, *self.baselines.values)
        return replace(
            _averaged(self.raw, parts),
            name=self.raw.name.removesuffix(".raw"),
            unit="share of the difference between the runs",
            about=f"{self.raw.about} Normalised as a ratio of means: 0 is the unpatched run, 1 "
            "the other.",
        )

    @property
    def effect(self) -> Grid:
        """Mean change of the contrast, patched minus unpatched, with n and a 95 % interval."""
        grid = _averaged(self.raw, self.raw.values - self.baselines.values[0])
        return replace(
            grid,
            name=f"{self.raw.name.removesuffix('.raw')}.effect",
            about=f"{self.raw.about} Mean over prompts of patched minus unpatched.",
        )

    @property
    def shown(self) -> Grid:
        """The first of `summary`."""
        return self.summary[0]

    @property
    def summary(self) -> tuple[Grid, ...]:
        """`normalised`, where there is another run to be a share of, and `effect`."""
        if "other" in self.baselines.axis("run").labels:
            return self.normalised, self.effect
        return (self.effect,)

    def grids(self) -> tuple[Grid, ...]:
        """All there is to keep of it."""
        return (*self.summary, self.raw, self.baselines, self.known)


def _averaged(grid: Grid, values: Array) -> Grid:
    """A grid's prompt axis, its last, replaced by mean, interval and n."""
    flat = np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
    mean, lower, upper, n = mean_interval(flat)
    shape = values.shape[:-1]
    return replace(
        grid,
        values=mean.reshape(shape),
        lower=lower.reshape(shape),
        upper=upper.reshape(shape),
        n=n.reshape(shape),
        axes=grid.axes[:-1],
    )


def pairs_of(
    model: Model,
    counterfactuals: Sequence[Counterfactual],
    *,
    roles: Iterable[Role] = (),
    labels: Sequence[str] | None = None,
    prepend_bos: bool | None = None,
) -> Pairs:
    """Counterfactuals as pairs of tokens, with the roles of both sides.

    A partner of as many tokens has its prompt's roles; another's are found in its own text.

    Args:
        counterfactuals: of one family, as `Score.pairs` has them.
        roles: to find besides the standard ones.
        labels: of the prompts; their indices in the behaviour by default.
        prepend_bos: as for `propose`.
    """
    roles = tuple(roles)
    tokenizer = model.tokenizer
    rows, found = [], []
    for pair in counterfactuals:
        clean, corrupted = (
            tokenizer.tokenize(prompt.text, prepend_bos=prepend_bos).rows()[0]
            for prompt in (pair.clean, pair.corrupted)
        )
        rows.append((clean, corrupted))
        here = roles_of(tokenizer, pair.clean, clean, roles)
        there = here
        if pair.aligned == "role":
            there = roles_of(tokenizer, pair.corrupted, corrupted, roles)
        found.append((here, there))
    names = [str(pair.index) for pair in counterfactuals] if labels is None else labels
    return Pairs(
        Tokens.of([clean for clean, _ in rows]),
        Tokens.of([corrupted for _, corrupted in rows]),
        [here for here, _ in found],
        [there for _, there in found],
        tuple(names),
    )


def counterfactual_table(scores: Sequence[Score]) -> Table:
    """The families' scores, a row each, with 95 % intervals of the means."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "family",
            "n",
            "mean_clean",
            "mean_clean_lower",
            "mean_clean_upper",
            "mean_corrupted",
            "mean_corrupted_lower",
            "mean_corrupted_upper",
            "flip_share",
            "half_share",
            "differ_before_last",
            "excluded",
            "why",
        )
    }
    for score in scores:
        row: dict[str, Any] = {
            "family": score.family,
            "n": score.n,
            "flip_share": score.flip_share if score.n else None,
            "half_share": score.half_share if score.n else None,
            "differ_before_last": score.before_last.n,
            "excluded": len(score.excluded),
            "why": score.why,
        }
        for side, values in (("mean_clean", score.clean), ("mean_corrupted", score.corrupted)):
            ends: list[float | None] = [None, None, None]
            if score.n:
                ends = [
                    None if np.isnan(end[0]) else float(end[0])
                    for end in mean_interval(values[:, None])[:3]
                ]
            row |= dict(zip((side, f"{side}_lower", f"{side}_upper"), ends, strict=True))
        for name, column in columns.items():
            column.append(row[name])
    return Table(
        "counterfactuals",
        columns,
        about="A row per family of edits: the contrast of the clean prompts and of the edited "
        "ones, for the clean prompts' tokens.",
    )


def patch(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    site: Site | str,
    *,
    by: By | None = None,
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    effort: Effort = DEFAULT_EFFORT,
) -> Patched:
    """Patch one site in every layer, everywhere it can be.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts.
        contrast: what is read, or a function of the last token's logits and each row's prompt.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out: one cell per layer and place.
            z, q, k, v, pattern: one per layer, head (of k and v, key/value head) and place.
        by: at every "position" on its own, at every "role", over "all" positions together, or at
            the "last" token only; by default "all" for heads and "position" for the others.
        direction: "denoising" changes the corrupted run, "noising" the clean one.
        layers: which; all by default.
        effort: memory, checking, progress.

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
    axis, places = _places(by, sides)
    cells, axes = _cells(model.config, site, layers, axis, places)
    about = f"{direction.capitalize()}: the {sides.about[0]} run with {site.value} of the "
    about += f"{sides.about[1]} one put in."
    job = _Job(_name(direction, f"{site.value}.{by}"), about, axes, pairs.labels, effort)
    return job.run(model, sides.base, sides.source, cells, contrast)


def patch_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    site: Site | str,
    *,
    by: By | None = None,
    direction: Direction = "denoising",
    prepend_bos: bool | None = None,
    effort: Effort = DEFAULT_EFFORT,
) -> Patched:
    """Patch one site between prompts and the corrupted partners they bring.

    Answers are the prompts' own or the model's, against their lower case (see `choose_answers`).
    For a single pair of one length, positions are labelled with the clean prompt's tokens.

    Shape, unit, error: as `patch`.
    Raises: as `patch`; BehaviourError for a prompt without a partner, a pair whose tokens do not
        correspond, and a prompt without an answer.
    """
    proposals = propose(model, prompts, (), prepend_bos=prepend_bos)
    if not proposals.pairs or proposals.excluded:
        why = "; ".join(f"prompt {e.index}: {e.why}" for e in proposals.excluded)
        raise BehaviourError(why or "no prompt", allowed="prompts with a corrupted partner")
    pairs = pairs_of(model, proposals.pairs, prepend_bos=prepend_bos)
    logits = run(model, pairs.clean, logits="last").logits
    assert logits is not None
    rule: AnswerRule = (
        "given" if all(p.answer and p.counterpart for p in prompts) else ("space-capital")
    )
    answers = choose_answers(model, prompts, logits, rule=rule)
    if answers.errors:
        raise BehaviourError("; ".join(f"prompt {i}: {w}" for i, w in answers.errors.items()))
    contrast = answers.contrast(model, "counterpart" if rule == "given" else "lowercase")
    found = patch(model, pairs, contrast, site, by=by, direction=direction, effort=effort)
    if len(prompts) > 1:
        return found
    tokens = model.tokenizer.strings(pairs.clean.rows()[0])
    return replace(
        found, raw=_with_tokens(found.raw, tokens), known=_with_tokens(found.known, tokens)
    )


def _with_tokens(grid: Grid, tokens: Sequence[str]) -> Grid:
    """A grid's positions labelled "index:token"."""
    labels = tuple(f"{i}:{token}" for i, token in enumerate(tokens))
    axes = tuple(
        Axis("pos", labels) if axis.name == "pos" and len(axis) == len(labels) else axis
        for axis in grid.axes
    )
    return replace(grid, axes=axes)


def read_by(text: str | None) -> By | None:
    """A way to cut a prompt into places, from the command line.

    Raises: MeasureError listing them.
    """
    if text is not None and text not in get_args(By):
        raise MeasureError(f"by {text!r}", allowed=", ".join(get_args(By)))
    return cast(By | None, text)


def read_direction(text: str) -> Direction:
    """A direction of patching, from the command line.

    Raises: MeasureError listing them.
    """
    if text not in get_args(Direction):
        raise MeasureError(f"direction {text!r}", allowed=", ".join(get_args(Direction)))
    return cast(Direction, text)


def neurons(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    chosen: Sequence[tuple[int, int]],
    *,
    by: By = "all",
    direction: Direction = "denoising",
    effort: Effort = DEFAULT_EFFORT,
) -> Patched:
    """Patch single MLP neurons, (layer, neuron) each; `top_neurons` chooses some.

    Shape:  raw (neuron, prompt), or (neuron, pos, prompt); a neuron's label is "layer.index".
            All else as `patch`.
    """
    sides = pairs.sides(direction)
    axis, places = _places(by, sides)
    cells = [
        Cell(Site.MLP_POST, layer, place, neuron=neuron)
        for layer, neuron in chosen
        for place in places
    ]
    names = Axis("neuron", tuple(f"{layer}.{neuron}" for layer, neuron in chosen))
    axes = (names,) if axis is None else (names, axis)
    about = f"{direction.capitalize()}: single MLP neurons' outputs exchanged between the runs."
    job = _Job(_name(direction, f"neurons.{by}"), about, axes, pairs.labels, effort)
    return job.run(model, sides.base, sides.source, cells, contrast)


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
    effort: Effort = DEFAULT_EFFORT,
) -> Patched:
    """Patch only the part of the stream along some directions: columns, made orthonormal here.

    Shape and all else as `patch`.
    Raises: MeasureError where the columns are dependent or zero.
    """
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
    name = _name(direction, f"subspace.{site.value}.{by}")
    job = _Job(name, about, axes, pairs.labels, effort)
    return job.run(model, sides.base, sides.source, cells, contrast)


def ablate(
    model: Model,
    tokens: Tokens,
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
    effort: Effort = DEFAULT_EFFORT,
) -> Patched:
    """Take one site's activations away, everywhere it can be done.

    Args:
        model: the decoder.
        tokens: the prompts.
        contrast, site, by, layers: as in `patch`.
        kind: put in "zero"; the "mean" over the reference prompts at the same role, or at the same
            position where a token has no role; or "resample", another prompt's activation.
        roles: each prompt's positions by role.
        reference: the prompts a mean is taken over; `tokens` by default.
        reference_roles: their roles; those of `tokens` by default.
        partners: for "resample", each prompt's donor; by default drawn by the effort's seed, none
            its own.
        labels: of the prompts.

    Shape, unit, error: as `patch`, but without another run there is nothing to normalise by.
    Raises: as `patch`; MeasureError where a role or position occurs in no reference prompt.
    """
    site = Site(site)
    by = _by(site, by)
    name = f"ablation.{kind}.{site.value}.{by}"
    source: Values | Tokens
    sides = Sides(tokens, tokens, roles, roles, ("", ""))
    if kind == "resample":
        order = list(_partners(len(tokens), effort.seed) if partners is None else partners)
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
        every = range(model.config.n_layers) if layers is None else layers
        wanted = [check_layer(layer, model.config.n_layers) for layer in every]
        source = mean_values(model, site, wanted, tokens, roles, reference, reference_roles)
        about = f"{site.value} set to its mean over {len(reference)} prompts, by role or position."
    axis, places = _places(by, sides)
    cells, axes = _cells(model.config, site, layers, axis, places)
    job = _Job(name, about, axes, None if labels is None else tuple(labels), effort)
    return job.run(model, tokens, source, cells, contrast, of_pairs=False)


def top_neurons(model: Model, pairs: Pairs, contrast: Contrast, k: int) -> list[tuple[int, int]]:
    """The k neurons whose patch promises most, by attribution patching; largest first.

    Score: |mean over prompts of Σ_pos (clean - corrupted activation) · gradient at the corrupted
    run|, a first-order estimate that only chooses which neurons to patch exactly.
    Cost: two forward passes and one backward pass.
    Source: Nanda 2023, "Attribution patching".
    """
    clean, corrupted = pairs.clean, pairs.corrupted
    equal_lengths(clean, corrupted, "attribution by position")
    if k < 1:
        raise MeasureError(f"the top {k} neurons", allowed="at least 1")
    theirs = run(model, clean, keep=[Site.MLP_POST])
    ours = run(model, corrupted, keep=[Site.MLP_POST], logits="last", grad=True)
    assert ours.logits is not None
    layers = range(model.config.n_layers)
    activations = [ours[Site.MLP_POST, layer] for layer in layers]
    with torch.enable_grad():  # whatever the caller has switched off
        value = contrast.value(ours.logits).sum()
    gradients = torch.autograd.grad(value, activations)
    mask = corrupted.to(model.device).mask[..., None]
    scores = torch.stack(
        [
            (((theirs[Site.MLP_POST, layer] - x.detach()) * g) * mask).sum((0, 1)).abs()
            for layer, x, g in zip(layers, activations, gradients, strict=True)
        ]
    )
    best = scores.flatten().topk(min(k, scores.numel())).indices.tolist()
    return [divmod(int(i), model.config.d_mlp) for i in best]


def mean_values(
    model: Model,
    site: Site,
    layers: Sequence[int],
    tokens: Tokens,
    roles: Roles | None,
    reference: Tokens,
    reference_roles: Roles | None,
) -> Values:
    """A site's mean over reference prompts at a token's role, as a source of replacements.

    A token that plays several roles counts for the first; one that plays none is averaged with the
    tokens at its position that play none either.

    Raises: MeasureError where a role or position of `tokens` occurs in no reference prompt.
    """
    if site is Site.PATTERN:
        raise MeasureError("a pattern has no mean over prompts of other lengths", allowed="zero")
    wanted, known, n_classes = token_classes(tokens, roles, reference, reference_roles)
    sums: dict[int, Tensor] = {}
    for start in range(0, len(reference), _RUN_AT_ONCE):
        some = list(range(start, min(start + _RUN_AT_ONCE, len(reference))))
        part = reference[some]
        trace = run(model, part, keep=[site.at(layers)])
        which = known[some][:, : part.ids.shape[1]].to(model.device)
        for layer in layers:
            rows = trace[site, layer][which >= 0].double()
            if layer not in sums:
                sums[layer] = rows.new_zeros(n_classes, *rows.shape[1:])
            sums[layer].index_add_(0, which[which >= 0], rows)
    counts = known[known >= 0].bincount(minlength=n_classes).clamp(min=1).to(model.device)
    means = {
        layer: (total / counts.view(-1, *[1] * (total.ndim - 1))).to(model.dtype)
        for layer, total in sums.items()
    }
    table = wanted.to(model.device)

    def values(_: Site, layer: int | None, prompts: Tensor, positions: Tensor) -> Tensor:
        assert layer is not None
        return means[layer][table[prompts, positions]]

    return values


def token_classes(
    tokens: Tokens, roles: Roles | None, reference: Tokens, reference_roles: Roles | None
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "reference reference_pos"], int]:
    """Which tokens are averaged together: each token's class, the reference tokens', how many.

    A token's class is its first role's, else its position's; padding is -1.

    Raises: MeasureError where a role or position of `tokens` occurs in no reference prompt.
    """
    names = {name for row in (*(roles or ()), *(reference_roles or ())) for name in row}
    classes = {name: i for i, name in enumerate(sorted(names))}
    wanted = _classes(tokens, roles, classes)
    known = _classes(reference, reference_roles, classes)
    n_classes = 1 + max(int(wanted.max()), int(known.max()))
    missing = set(wanted[wanted >= 0].tolist()) - set(known[known >= 0].tolist())
    if missing:
        first = min(missing)
        place = sorted(names)[first] if first < len(names) else f"position {first - len(names)}"
        raise MeasureError(
            f"{place} occurs in no reference prompt, so it has no mean",
            hint="Give a larger reference, or roles that every prompt has",
        )
    return wanted, known, n_classes


def _classes(
    tokens: Tokens, roles: Roles | None, classes: Mapping[str, int]
) -> Int[Tensor, "batch pos"]:
    """Each token's class: its first role's, else its position's after all the roles; -1 padding."""
    width = tokens.ids.shape[1]
    found = torch.arange(width).repeat(len(tokens), 1) + len(classes)
    found[~tokens.mask.cpu()] = -1
    for b, row in enumerate(roles or ()):
        taken: set[int] = set()
        for name, positions in row.items():
            for p in positions:
                if p not in taken:
                    found[b, p] = classes[name]
                    taken.add(p)
    return found


def _zero(model: Model) -> Values:
    zero = torch.zeros((), dtype=model.dtype, device=model.device)
    return lambda site, layer, prompts, positions: zero


def _partners(n: int, seed: int) -> list[int]:
    """Each prompt's donor: the next one around a shuffled circle, so that none is its own."""
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


def _name(direction: Direction, what: str) -> str:
    return f"patching.{what}" if direction == "denoising" else f"patching.noising.{what}"


def _places(by: By, sides: Sides) -> tuple[Axis | None, list[Place]]:
    """The axis that names the places, and the places."""
    base, source = sides.base, sides.source
    if by == "last":
        return None, [Place.last(base, source)]
    if by == "role":
        if sides.base_roles is None or sides.source_roles is None:
            raise MeasureError("by role, but no roles came", hint="Give each prompt's roles")
        # in the order of the prompts' own text, which does not hang on which prompt comes first
        names = _in_text_order(sides.base_roles)
        places = [_role(name, sides.base_roles, sides.source_roles) for name in names]
        return Axis("role", names), places
    equal_lengths(base, source, f"patching by {by}")
    if by == "all":
        return None, [Place.everywhere(base)]
    longest = int(base.lengths.max())
    return Axis.count("pos", longest), [Place.at(p, base) for p in range(longest)]


def _in_text_order(roles: Roles) -> tuple[str, ...]:
    """Every role's name, by how far along a prompt it stands on average."""
    far: dict[str, list[float]] = {}
    for row in roles:
        end = 1 + max((max(places) for places in row.values() if places), default=0)
        for name, places in row.items():
            if places:
                far.setdefault(name, []).append(sum(places) / len(places) / end)
    return tuple(sorted(far, key=lambda name: (sum(far[name]) / len(far[name]), name)))


def _role(name: str, base_roles: Roles, source_roles: Roles) -> Place:
    here = [tuple(sorted(row.get(name, ()))) for row in base_roles]
    there = [tuple(sorted(row.get(name, ()))) for row in source_roles]
    both = [len(a) == len(b) for a, b in zip(here, there, strict=True)]
    return Place(
        name,
        tuple(a if same else () for a, same in zip(here, both, strict=True)),
        tuple(b if same else () for b, same in zip(there, both, strict=True)),
    )


def equal_lengths(a: Tokens, b: Tokens, what: str) -> None:
    """Raise MeasureError, naming the pairs, where two sides differ in length and `what` cares."""
    unequal = [
        i
        for i, (m, n) in enumerate(zip(a.lengths.tolist(), b.lengths.tolist(), strict=True))
        if m != n
    ]
    if unequal:
        raise MeasureError(
            f"the pairs {unequal} are of unequal length, which {what} needs",
            allowed="pairs of as many tokens, or by role with the roles of both sides",
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
        chosen: Sequence[int | None] = (
            range(config.n_layers)
            if layers is None
            else [check_layer(layer, config.n_layers) for layer in layers]
        )
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
    """What a grid will be called, and how it is computed."""

    name: str
    about: str
    axes: tuple[Axis, ...]
    labels: tuple[str, ...] | None
    effort: Effort

    def run(
        self,
        model: Model,
        base: Tokens,
        source: Tokens | Values,
        cells: Sequence[Cell],
        contrast: Contrast | Metric,
        *,
        of_pairs: bool = True,
    ) -> Patched:
        """The cells, swept and laid out along the axes.

        Args:
            of_pairs: whether the source is the base's other side, so that its own contrast is what
                a patch restores; a donor's is about another prompt's answer.
        """
        effort, watch = self.effort, self.effort.watch

        def laid_out(found: Sweep) -> Patched:
            found = found if of_pairs else replace(found, other=None)
            return patched(found, self.name, self.about, self.axes, self.labels, contrast)

        found = sweep(
            model,
            base,
            source,
            cells,
            contrast,
            memory=effort.memory,
            check=effort.check,
            seed=effort.seed,
            rows=effort.rows,
            progress=effort.progress,
            watch=None if watch is None else lambda found: watch(laid_out(found)),
        )
        return laid_out(found)


def patched(
    found: Sweep,
    name: str,
    about: str,
    axes: tuple[Axis, ...],
    labels: tuple[str, ...] | None,
    contrast: Contrast | Metric,
) -> Patched:
    """A sweep's values laid out along named axes, with its baselines."""
    n = len(found.base)
    prompts = Axis.count("prompt", n) if labels is None else Axis("prompt", labels)
    unit = "logits" if isinstance(contrast, Contrast) else "metric"
    axes = (*axes, prompts)
    shape = tuple(map(len, axes))
    runs, rows = ["unpatched"], [found.base]
    if found.other is not None:
        runs.append("other")
        rows.append(found.other)
    values, known = found.values.reshape(shape), found.known.reshape(shape)
    return Patched(
        Grid(f"{name}.raw", values, axes, unit, error=found.error, about=about),
        Grid(
            f"{name}.baselines.raw",
            np.stack(rows),
            (Axis("run", tuple(runs)), prompts),
            unit,
            about="Each prompt's contrast in the unpatched run, and in the one patched from.",
        ),
        Grid(
            f"{name}.known.raw",
            known.astype(np.float64),
            axes,
            "yes or no",
            about="1 where a patch changes nothing by construction and was not computed.",
        ),
        found.plan,
    )
