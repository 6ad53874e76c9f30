"""Is a behaviour a direction of a site, and what does the model do when it is pushed along it?

On half of the pairs two candidates are found at a spot (a site, a layer and a role): the direction
of the difference of means, and trained directions (see `alignment_search`). They are judged on the
other half:

- by exact interchange in both ways (see `subspaces`): the share of the difference between the runs
  that follows the exchanged component, beside random directions of the same rank and the whole
  spot;
- by steering (see `steering`): the metric as a function of the coefficient, and the next-token loss
  of other text. Coefficient 1 adds the mean difference of the search pairs along the directions; a
  random direction of the length of the whole mean difference is the control.

Where pairs are mirrored (a singular subject corrupted to a plural one, and the reverse), they are
turned first, so that all clean prompts are on one side; the metric changes its sign with a pair.
A share above the whole spot's is possible: the rest of the spot may work against the directions.
Assumes pairs with the spot's role. Cost: the training, and some thirty exact patches of the pairs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError
from casestudy.measure.alignment_search import BOTH, Training, train_directions
from casestudy.measure.halves import Half, split
from casestudy.measure.metrics import name_and_unit
from casestudy.measure.pairs import Direction, Pairs, one_reading
from casestudy.measure.steering import at_coefficients, steered, steered_loss, windows_of
from casestudy.measure.subspaces import (
    Spot,
    Subspace,
    check_rank,
    differences,
    interchange,
    orthonormal,
    random_directions,
)
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.files import finite_only, write_atomically
from casestudy.results.result import Array, Axis, Grid, Result, Shown, Table, measured
from casestudy.results.stats import FAITHFULNESS, mean_interval, ratio_in_parts

CARD = 1
"""Version of the card's format."""
FEWEST = 4
"""Pairs: two to find a direction on, two to judge it."""
MEANS, TRAINED, RANDOM, WHOLE = "difference of means", "trained", "random", "whole site"
HELD, FOUND = "held out", "found on"


@dataclass(frozen=True)
class DirectionChoices:
    """How a behaviour's direction is found and judged.

    Attributes:
        spot: where.
        rank: of the trained directions, 1 to 8.
        training: see `Training`.
        random_sets: random subspaces of each rank.
        coefficients: of steering; 0 is always among them.
        windows: the most windows of other text.
        seed: of the split and the random directions.
    """

    spot: Spot
    rank: int = 1
    training: Training = field(default_factory=Training)
    random_sets: int = 10
    coefficients: tuple[float, ...] = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
    windows: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("random_sets", self.random_sets), ("windows", self.windows)):
            if value < 1:
                raise MeasureError(f"{name}={value}", allowed="1 or more")
        at_coefficients([], self.coefficients)
        ordered = tuple(sorted({0.0, *map(float, self.coefficients)}))
        object.__setattr__(self, "coefficients", ordered)


@dataclass(frozen=True)
class DirectionCard(Shown):
    """The directions of a behaviour at a spot, with their evidence.

    Attributes:
        subspaces: "difference of means" and "trained"; each can be saved.
        results: `direction.summary`, `direction.steering`, and `direction.cost` where there was
            other text.
        about: the model, the metric and the settings.
    """

    subspaces: Mapping[str, Subspace]
    results: tuple[Result, ...]
    about: dict[str, Any]

    @property
    def shown(self) -> Result:
        """The shares that follow an exchange."""
        return self.results[0]

    def __getitem__(self, name: str) -> Result:
        """A grid or table by name.

        Raises: KeyError.
        """
        return {result.name: result for result in self.results}[name]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the directions themselves, as plain data."""
        found = dict(self.about)
        for result in self.results:
            rows = result.rows() if isinstance(result, Table) else _rows(result)
            found["shares" if result is self.shown else result.name.split(".")[-1]] = rows
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the evidence as JSON, completely or not at all.

        Raises: StudyError when the disk is full or the folder cannot be written.
        """
        data = finite_only({"card": CARD, **self.as_dict()})
        text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        write_atomically(Path(path), text.encode("utf-8"))


Ends = tuple[float, float, float]


class HeldOutShare(NamedTuple):
    """A row of the summary; rank is None for the whole site."""

    directions: str
    rank: int | None
    pairs: str
    way: str
    value: float | None
    lower: float | None
    upper: float | None
    n: int

    @classmethod
    def of(
        cls, directions: str, rank: int | None, pairs: str, way: str, ends: Ends, n: int
    ) -> HeldOutShare:
        """With a mean and the ends of its interval."""
        value, lower, upper = map(measured, ends)
        return cls(directions, rank, pairs, way, value, lower, upper, n)


def _rows(grid: Result) -> list[dict[str, Any]]:
    """A row per cell."""
    assert isinstance(grid, Grid)
    assert grid.lower is not None
    assert grid.upper is not None
    assert grid.n is not None
    rows = []
    for place in np.ndindex(grid.values.shape):
        row: dict[str, Any] = {
            axis.name: axis.labels[i] for axis, i in zip(grid.axes, place, strict=True)
        }
        row["coefficient"] = float(row["coefficient"])
        ends = {"value": grid.values, "lower": grid.lower, "upper": grid.upper}
        rows.append(
            row | {key: float(x[place]) for key, x in ends.items()} | {"n": int(grid.n[place])}
        )
    return rows


def find_direction(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    choices: DirectionChoices,
    *,
    documents: Sequence[str] | None = None,
    other_text: Iterable[tuple[str, str]] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> DirectionCard:
    """Find the directions that carry a behaviour at a spot, and judge them on held-out pairs.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts.
        contrast: a contrast, or a function of the last token's logits with a gradient.
        choices: the spot and the settings.
        documents: per pair, its document; the pairs of one document are on one side of the split.
        other_text: (document, text) each, for the cost of steering; not measured without it.
        budget: memory, checks of the exchanges.
        progress: called after every step of the training.

    Unit:   shares of the difference between the runs; the metric's; nats.
    Error:  none of its own: every value is from exact runs with an edit.
    Raises: MeasureError for fewer than four pairs that have the role, a rank out of range, a spot
        where the runs do not differ, a metric without a gradient or the same in both runs;
        SiteError for a spot that the model lacks.
    """
    one_reading(pairs, "directions")
    choices.spot.check(model)
    check_rank(model, choices.rank)
    half = Half(pairs, contrast, None if documents is None else tuple(documents))
    search, judge, n_turned = _aligned(model, *_halves(half, choices), choices.spot, budget.memory)
    means = differences(model, search.pairs, choices.spot, budget.memory).mean(0)
    trained = train_directions(
        model,
        search.pairs,
        search.metric,
        choices.spot,
        rank=choices.rank,
        training=choices.training,
        budget=budget,
        progress=progress,
    )
    bases = {MEANS: orthonormal(means[:, None]), TRAINED: trained}
    work = _Judging(model, choices, search, judge, budget)
    results: list[Result] = [work.shares(bases), work.steering(bases, means)]
    if other_text is not None:
        results.append(work.cost(bases, means, other_text))
    subspaces = {
        name: Subspace(u, choices.spot, name, model.name, model.weight_hash)
        for name, u in bases.items()
    }
    inside = float((trained.T @ bases[MEANS]).norm())
    about = _about(model, choices, search, judge) | {
        "length": float(means.norm()),
        "means_inside_trained": inside,
        "n_turned": n_turned,
    }
    return DirectionCard(subspaces, tuple(results), about)


def _halves(half: Half, choices: DirectionChoices) -> tuple[Half, Half]:
    """The pairs that have the role, for the search and for the evaluation.

    Raises: MeasureError for too few.
    """
    place = choices.spot.place(half.pairs.sides("noising"))
    there = [i for i, where in enumerate(place.base) if where]
    documents = half.documents and [half.documents[i] for i in there]
    search, judge = split(len(there), documents, choices.seed, fewest=FEWEST)
    if len(there) < FEWEST or min(len(search), len(judge)) < 2:
        what = f"{len(there)} pairs with as many tokens of {choices.spot.role!r} on both sides"
        halves = f", in halves of {len(search)} and {len(judge)}" if search != judge else ""
        raise MeasureError(
            what + halves,
            allowed=f"{FEWEST} or more, two to find a direction on and two to judge it; pairs of "
            "one document are never divided",
        )
    search, judge = ([there[i] for i in some] for some in (search, judge))
    return half[search], half[judge]


def _aligned(
    model: Model, search: Half, judge: Half, spot: Spot, memory: int
) -> tuple[Half, Half, int]:
    """Both halves, with mirrored pairs turned to one side, and how many were turned.

    Where a pair has its mirror among the pairs, clean and corrupted prompts are of both kinds, and
    the differences cancel. Then all are turned to agree with the first principal component of the
    search pairs' differences.
    """
    if not search.mirrored and not judge.mirrored:
        return search, judge, 0
    ours, theirs = (differences(model, half.pairs, spot, memory) for half in (search, judge))
    main = torch.linalg.svd(ours, full_matrices=False).Vh[0]
    if float((ours @ main).sign().sum()) < 0:
        main = -main
    against = [(each @ main < 0).nonzero()[:, 0].tolist() for each in (ours, theirs)]
    n_turned = sum(map(len, against))
    return search.turned(set(against[0])), judge.turned(set(against[1])), n_turned


def _about(model: Model, choices: DirectionChoices, search: Half, judge: Half) -> dict[str, Any]:
    metric, unit = name_and_unit(judge.metric)
    spot, training = choices.spot, choices.training
    return {
        "model": model.name,
        "weight_hash": model.weight_hash,
        "site": spot.site.value,
        "layer": spot.layer,
        "role": spot.role,
        "rank": choices.rank,
        "metric_name": metric,
        "unit": unit,
        "n_found_on": len(search),
        "n_judged_on": len(judge),
        "settings": {**training.__dict__, "random_sets": choices.random_sets},
    }


class _Judging:
    """The two halves, and what is measured on them."""

    def __init__(
        self, model: Model, choices: DirectionChoices, search: Half, judge: Half, budget: Budget
    ) -> None:
        self.model, self.choices, self.budget = model, choices, budget
        self.search, self.judge = search, judge
        generator = torch.Generator().manual_seed(choices.seed)
        width = model.config.d_model
        self.drawn = {
            rank: [random_directions(width, rank, generator) for _ in range(choices.random_sets)]
            for rank in sorted({1, choices.rank})
        }

    def shares(self, bases: Mapping[str, Tensor]) -> Table:
        """A row per kind of directions, way of exchange, and half of the pairs."""
        rows = [
            row
            for on, half in ((HELD, self.judge), (FOUND, self.search))
            for way in BOTH
            for row in self.exchanged(bases, on, half, way)
        ]
        about = "The share of the difference between the runs that follows when what the site "
        about += "holds along the directions is exchanged, with its 95 % interval over pairs; of "
        about += f"random directions the mean of {self.choices.random_sets} and the extremes."
        columns = {name: [getattr(row, name) for row in rows] for name in HeldOutShare._fields}
        return Table(names.DIRECTION_SUMMARY, columns, about)

    def exchanged(
        self, bases: Mapping[str, Tensor], on: str, half: Half, way: Direction
    ) -> list[HeldOutShare]:
        """The shares that follow, on some pairs in one way."""
        drawn = [u for some in self.drawn.values() for u in some]
        found = interchange(
            self.model,
            half.pairs,
            half.metric,
            [None, *bases.values(), *drawn],
            self.choices.spot,
            direction=way,
            budget=self.budget,
        )
        parts = ratio_in_parts(found.raw.values, *found.baselines.values)
        mean, lower, upper, _ = mean_interval(parts.T, unit=FAITHFULNESS, documents=half.documents)
        ranks = {WHOLE: None, **{name: u.shape[1] for name, u in bases.items()}}
        rows = [
            HeldOutShare.of(name, rank, on, way, (mean[i], lower[i], upper[i]), len(half))
            for i, (name, rank) in enumerate(ranks.items())
        ]
        first = len(ranks)
        for rank, some in self.drawn.items():
            one = mean[first : first + len(some)]
            ends = one.mean(), one.min(), one.max()
            rows.append(HeldOutShare.of(RANDOM, rank, on, way, ends, len(half)))
            first += len(some)
        return rows

    def vectors(self, bases: Mapping[str, Tensor], means: Tensor) -> dict[str, Tensor]:
        """What coefficient 1 adds."""
        found = {name: u @ (u.T @ means) for name, u in bases.items()}
        return found | {RANDOM: self.drawn[1][0][:, 0] * means.norm()}

    def steering(self, bases: Mapping[str, Tensor], means: Tensor) -> Grid:
        """The mean metric of the held-out prompts by method, run and coefficient."""
        vectors = self.vectors(bases, means)
        half, spot = self.judge, self.choices.spot
        several = at_coefficients(list(vectors.values()), self.choices.coefficients)
        runs = {"clean": half.pairs.clean, "corrupted": half.pairs.corrupted}
        found = [
            steered(
                *(self.model, tokens, half.metric, spot.site, spot.layer, several),
                budget=self.budget,
            )
            for tokens in runs.values()
        ]
        values = np.stack(found).reshape(len(runs), len(vectors), -1, len(half)).swapaxes(0, 1)
        unit = name_and_unit(half.metric)[1]
        about = "The metric of held-out prompts with coefficient times a vector added to "
        about += f"{spot.site.value} of layer {spot.layer} at every position, 1 being the mean "
        about += "difference of the runs along the directions."
        axes = (Axis("method", tuple(vectors)), Axis("run", tuple(runs)))
        return self.averaged(
            Grid(names.DIRECTION_STEERING, values[..., 0], (*axes, self.axis), unit, about=about),
            values,
            half.documents,
        )

    def cost(
        self, bases: Mapping[str, Tensor], means: Tensor, texts: Iterable[tuple[str, str]]
    ) -> Grid:
        """The next-token loss of other text by method and coefficient, minus that without."""
        vectors, spot = self.vectors(bases, means), self.choices.spot
        windows, documents = windows_of(self.model, texts, self.choices.windows)
        several = at_coefficients(list(vectors.values()), self.choices.coefficients)
        found = steered_loss(
            *(self.model, windows, spot.site, spot.layer, several), budget=self.budget
        )
        values = found.reshape(len(vectors), -1, len(windows))
        without = values[:, [self.choices.coefficients.index(0.0)]]
        tokens = int((windows.lengths - 1).sum())
        about = f"What the vectors add to the next-token loss of {tokens:,} tokens of other text, "
        about += f"which is {without.mean():.3f} nats without them."
        grid = Grid(
            names.DIRECTION_COST,
            values[..., 0],
            (Axis("method", tuple(vectors)), self.axis),
            "nats",
            about=about,
        )
        of_documents = documents if len(set(documents)) > 1 else None
        return self.averaged(grid, values - without, of_documents)

    @property
    def axis(self) -> Axis:
        """The coefficients."""
        return Axis("coefficient", tuple(f"{c:g}" for c in self.choices.coefficients))

    @staticmethod
    def averaged(grid: Grid, values: Array, documents: Sequence[str] | None) -> Grid:
        """The grid with the means over the last axis of values, and their intervals."""
        flat = values.reshape(-1, values.shape[-1]).T
        ends = mean_interval(flat, unit=grid.unit, documents=documents)
        mean, lower, upper, n = (x.reshape(values.shape[:-1]) for x in ends)
        return replace(grid, values=mean, lower=lower, upper=upper, n=n)
