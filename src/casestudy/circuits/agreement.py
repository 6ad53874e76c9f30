"""What is every edge's score, how certain is it, and do two scoring methods agree?

`EdgeScores` is the result of gradient scores and of exact patching. Positive scores support the
metric; signed ranks count support for the difference between clean and corrupted prompts.
Cost: a table of senders by receivers, and one more per bootstrap replicate; needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from casestudy.circuits.graph import Graph, Rank, Scores
from casestudy.errors import MeasureError
from casestudy.results import names
from casestudy.results.result import Shown, Table
from casestudy.results.stats import midranks


@dataclass(frozen=True)
class EdgeScores(Shown):
    """A score per edge.

    Attributes:
        graph: of the edges.
        method: the scoring method ("eap-ig-inputs", "exact noising").
        values: (sender, receiver) means over the prompts; NaN if there is no edge, or if it was
            not measured. Unit: the metric's.
        n: prompts.
        clean, corrupted: (prompt,) the metric of either run.
        replicates: (replicate, sender, receiver) the means under Poisson bootstrap weights.
        flipped: (control, sender, receiver) the means with the signs of some prompts reversed.
        error: for exact scores, the check of the sweeps.
    """

    graph: Graph
    method: str
    values: Scores
    n: int
    clean: NDArray[np.float64]
    corrupted: NDArray[np.float64]
    replicates: NDArray[np.float32] | None = None
    flipped: NDArray[np.float32] | None = None
    error: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        measured = int((~np.isnan(self.values)).sum())
        return f"EdgeScores({self.method}, {measured} of {self.graph.n_edges} edges, n = {self.n})"

    @property
    def shown(self) -> Table:
        """The highest-ranked edges (see `table`)."""
        return self.table()

    @property
    def nodes(self) -> NDArray[np.float64]:
        """(sender,) the sum over the sender's outgoing edges: attribution patching of the node."""
        return np.asarray(np.nansum(self.values, 1))

    @property
    def towards(self) -> float:
        """1 if the mean clean metric is larger than the corrupted one, -1 if it is smaller (KL, or
        answer and counterpart exchanged). A score times this supports the difference."""
        return -1.0 if self.clean.mean() < self.corrupted.mean() else 1.0

    @property
    def ranked(self) -> Scores:
        """(sender, receiver) scores, positive if they support the difference of the pairs, so that
        the signed rank does not depend on the metric's sign."""
        return self.towards * self.values

    def __getitem__(self, edge: str) -> float:
        """An edge's score by its name.

        Raises: SiteError for an edge the model does not have.
        """
        return float(self.values[self.graph.edge(edge)])

    def interval(self) -> tuple[Scores, Scores]:
        """95 % Poisson-bootstrap intervals of the scores, lower and upper ends.

        Raises: MeasureError where no replicates were kept.
        """
        if self.replicates is None:
            raise MeasureError("scores without replicates", hint="Ask for replicates=")
        low, high = np.quantile(self.replicates, (0.025, 0.975), axis=0)
        return (
            np.where(self.graph.real, low, np.nan),
            np.where(self.graph.real, high, np.nan),
        )

    def stability(self, n: int, rank: Rank = "absolute") -> tuple[float, float, float]:
        """How stable the first n edges are when prompts are resampled: the mean Jaccard overlap of
        each replicate's first n edges with these, and its 2.5 % and 97.5 % quantiles.

        Raises: MeasureError where no replicates were kept.
        """
        if self.replicates is None:
            raise MeasureError("scores without replicates", hint="Ask for replicates=")
        own = self.graph.top(self.ranked, n, rank)
        shared = [
            own.overlap(self.graph.top(self.towards * replicate.astype(np.float64), n, rank))
            for replicate in self.replicates
        ]
        low, high = np.quantile(shared, (0.025, 0.975))
        return float(np.mean(shared)), float(low), float(high)

    def table(self, n: int = 30, rank: Rank = "absolute", name: str = names.CIRCUIT_EDGES) -> Table:
        """The first n edges, with intervals if replicates were kept."""
        places = [
            divmod(int(i), len(self.graph.receivers)) for i in self.graph.order(self.ranked, rank)
        ]
        places = places[:n]
        columns: dict[str, list[object]] = {
            "source": [str(self.graph.senders[s]) for s, _ in places],
            "target": [str(self.graph.receivers[r]) for _, r in places],
            "score": [float(self.values[place]) for place in places],
        }
        if self.replicates is not None:
            low, high = self.interval()
            columns["lower"] = [float(low[place]) for place in places]
            columns["upper"] = [float(high[place]) for place in places]
        columns["n"] = [self.n] * len(places)
        return Table(
            name,
            columns,
            f"The edges with the largest scores by {self.method} ({rank} rank): what the metric "
            "loses, by estimate, when the edge carries the corrupted activation.",
        )


def agreement(a: Scores, b: Scores) -> tuple[float, int]:
    """Spearman's rank correlation over the edges that both have (ties at their mean rank), and the
    number of these edges; NaN for fewer than three, or if all scores of one side are equal."""
    both = ~np.isnan(a) & ~np.isnan(b)
    n = int(both.sum())
    if n < 3:
        return float("nan"), n
    x, y = (midranks(side[both]) for side in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return (float(x @ y / size) if size > 0 else float("nan")), n
