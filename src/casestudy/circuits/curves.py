"""How does a circuit's faithfulness rise with its size, and which is the smallest faithful one?

The circuits are the highest-ranked edges, at ten shares of the graph's edges, without edges that
lead nowhere (pruned). CPR is the area under the curve, CMD the area between the curve and 1, both
by linear trapezoids over the shares, as in Mueller et al. 2025, "MIB".

Assumes pairs of equal length that differ. Cost: an evaluation of ten circuits for a curve, and of
about forty circuits for the smallest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.evaluate import CIRCUIT_BUDGET, EdgeAblation, Evaluation, Evaluator
from casestudy.circuits.graph import Circuit, Graph, Rank, Scores
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError
from casestudy.measure.patching import Pairs
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Axis, Grid, Shown
from casestudy.results.stats import (
    FAITHFULNESS,
    RATIOS_FROM,
    RESAMPLES,
    mean_interval,
    ratio_in_parts,
    units_of,
)

PROPORTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's shares of a graph's edges."""

FIRST_SIZES, NEXT_SIZES, ROUNDS = 20, 11, 3
"""How many circuits `smallest` tries in its first round and in each later one, and its rounds."""


@dataclass(frozen=True)
class Curve(Shown):
    """Faithfulness by size.

    Attributes:
        proportions: the shares of the graph's edges, before pruning.
        evaluation: of the pruned circuits, one per share.
    """

    proportions: tuple[float, ...]
    evaluation: Evaluation

    @property
    def shown(self) -> Grid:
        """Faithfulness by share of edges, with its interval over prompts."""
        mean, lower, upper = self.evaluation.interval()
        return Grid(
            names.CIRCUIT_CURVE,
            mean,
            (Axis("proportion", tuple(f"{p:g}" for p in self.proportions)),),
            "share of the difference",
            lower,
            upper,
            np.full(len(mean), self.evaluation.values.shape[1]),
            error=self.evaluation.error,
            about=f"Faithfulness by share of edges, the others {self.evaluation.ablation}.",
        )

    @property
    def cpr(self) -> float:
        """The area under the curve, from the smallest share to the largest: MIB's CPR."""
        return _area(self.proportions, self.evaluation.faithfulness)

    @property
    def cmd(self) -> float:
        """The area between the curve and 1: MIB's CMD, which does not reward overshooting."""
        return _area(self.proportions, np.abs(1 - self.evaluation.faithfulness))

    def intervals(self, documents: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
        """95 % intervals of both areas over prompts; NaN below `RATIOS_FROM` prompts or documents.

        CPR's is linearised at the means. CMD is an area of absolute values: a linear interval would
        go below zero, which no CMD can, so its ends are quantiles of resampled curves' CMD (or CMD
        itself, where every resampled curve is further from 1).
        """
        evaluation = self.evaluation
        faithfulness = ratio_in_parts(evaluation.values, evaluation.empty, evaluation.full)
        area = np.asarray(np.trapezoid(faithfulness, self.proportions, axis=0))
        _, lower, upper, _ = mean_interval(area[:, None], unit=FAITHFULNESS, documents=documents)
        return {"cpr": (float(lower[0]), float(upper[0])), "cmd": self._resampled_cmd(documents)}

    def _resampled_cmd(self, documents: Sequence[str] | None) -> tuple[float, float]:
        """2.5 % and 97.5 % quantiles of CMD over resampled prompts, whole documents at a time."""
        found = self.evaluation
        unit = units_of(len(found.full), documents)
        units = int(unit.max(initial=-1)) + 1
        if units < RATIOS_FROM:
            return float("nan"), float("nan")
        rng = np.random.default_rng(0)
        draws = rng.multinomial(units, np.full(units, 1 / units), RESAMPLES)
        weights = draws[:, unit].astype(np.float64)  # draw prompt
        change = weights @ (found.values - found.empty).T  # draw circuit
        whole = (weights @ (found.full - found.empty))[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            away = np.abs(1 - change / whole)
        areas = np.trapezoid(away, self.proportions, axis=1)
        areas = areas[np.isfinite(areas)]
        if not areas.size:
            return float("nan"), float("nan")
        low, high = np.quantile(areas, (0.025, 0.975))
        return min(float(low), self.cmd), max(float(high), self.cmd)


def _area(proportions: Sequence[float], values: NDArray[np.float64]) -> float:
    return float(np.trapezoid(values, proportions))


def curve_circuits(
    graph: Graph,
    scores: Scores,
    *,
    rank: Rank = "absolute",
    proportions: Sequence[float] = PROPORTIONS,
) -> list[Circuit]:
    """For each share, the circuit of the highest-ranked edges, pruned."""
    sizes = [round(p * graph.n_edges) for p in proportions]
    return [graph.top(scores, n, rank).pruned() for n in sizes]


def curve(
    model: Model,
    pairs: Pairs,
    metric: Contrast | Metric,
    scores: EdgeScores,
    *,
    rank: Rank = "absolute",
    proportions: Sequence[float] = PROPORTIONS,
    ablation: EdgeAblation = "corrupted",
    budget: Budget = CIRCUIT_BUDGET,
    progress: Tell | None = None,
) -> Curve:
    """Faithfulness of the highest-ranked edges by these scores, at each share of all edges.

    Raises: as `evaluate_circuit`.
    """
    found = Evaluator(model, scores.graph, pairs, metric, ablation, budget.memory)
    (one,) = curves(
        found, scores, [rank], proportions=proportions, budget=budget, progress=progress
    )
    return one


def curves(
    evaluator: Evaluator,
    scores: EdgeScores,
    ranks: Sequence[Rank],
    *,
    proportions: Sequence[float] = PROPORTIONS,
    budget: Budget = CIRCUIT_BUDGET,
    progress: Tell | None = None,
) -> list[Curve]:
    """A curve for each rank, in one evaluation; `budget.check` values of each are computed again
    in full.

    Raises: as `evaluate_circuit`.
    """
    circuits = [
        circuit
        for rank in ranks
        for circuit in curve_circuits(
            scores.graph, scores.ranked, rank=rank, proportions=proportions
        )
    ]
    checked = replace(budget, check=budget.check * len(ranks))
    whole = evaluator.evaluate(circuits, checked, progress)
    n = len(proportions)
    return [
        Curve(tuple(proportions), whole.part(slice(i * n, (i + 1) * n))) for i in range(len(ranks))
    ]


def smallest(
    model: Model,
    pairs: Pairs,
    metric: Contrast | Metric,
    scores: EdgeScores,
    *,
    faithful: float = 0.85,
    rank: Rank = "absolute",
    ablation: EdgeAblation = "corrupted",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Circuit:
    """The smallest circuit of highest-ranked edges whose faithfulness is at least `faithful`.

    The first round tries `FIRST_SIZES` sizes with constant ratios. Later rounds try sizes between
    the smallest faithful one and the next smaller one. Each round is one evaluation. If
    faithfulness does not rise with size, a smaller faithful circuit may exist between the sizes
    tried.

    Raises: MeasureError if not even the whole graph is faithful enough (a metric that ablation
    does not change).
    """
    found = Evaluator(model, scores.graph, pairs, metric, ablation, budget.memory)
    return smallest_by(found, scores, faithful, rank=rank, budget=budget, progress=progress)


def smallest_by(
    evaluator: Evaluator,
    scores: EdgeScores,
    faithful: float,
    *,
    rank: Rank = "absolute",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Circuit:
    """As `smallest`, on the evaluator's pairs."""
    graph = scores.graph

    def circuit(n: int) -> Circuit:
        return graph.top(scores.ranked, n, rank).pruned()

    def faithfulness(sizes: Sequence[int]) -> NDArray[np.float64]:
        circuits = [circuit(n) for n in sizes]
        return evaluator.evaluate(circuits, budget.checking(0), progress).faithfulness

    n_edges = len(graph.order(scores.ranked, rank))
    return circuit(smallest_size(n_edges, faithfulness, faithful, "edges"))


def smallest_size(
    largest: int,
    faithfulness: Callable[[Sequence[int]], NDArray[np.float64]],
    faithful: float,
    what: str,
) -> int:
    """The smallest size tried whose faithfulness is at least `faithful`; see `smallest`.

    Args:
        largest: the largest size.
        faithfulness: of the circuits of some sizes.
        faithful: the least that will do.
        what: a circuit is made of, for the error.

    Raises: MeasureError if none is faithful enough.
    """
    known: dict[int, float] = {}

    def try_sizes(sizes: Sequence[int]) -> None:
        known.update(zip(sizes, map(float, faithfulness(sizes)), strict=True))

    try_sizes(sorted({round(n) for n in np.geomspace(1, largest, FIRST_SIZES)}))
    for _ in range(ROUNDS - 1):
        fits = [n for n, f in sorted(known.items()) if f >= faithful]
        if not fits:
            raise MeasureError(
                f"no circuit of these {what} reaches a faithfulness of {faithful}",
                hint=f"The largest found is {max(known.values()):.2f}",
            )
        below = max((n for n in known if n < fits[0]), default=0)
        between = sorted(
            {round(n) for n in np.linspace(below, fits[0], NEXT_SIZES + 1)} - known.keys() - {0}
        )
        if not between:
            break
        try_sizes(between)
    return min(n for n, f in known.items() if f >= faithful)
