"""How sure is an AUROC?

The area under the receiver operating characteristic (`stats.auroc`) with a 95 % bootstrap interval
that resamples whole units (documents, or windows of text), since positions of one text are not
independent. Cost: two products of (resamples, unit) with (unit, bin) counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from casestudy.results.result import Array
from casestudy.results.stats import BOOTSTRAP_FROM, RESAMPLES, auroc

BINS = 1024
"""Of the scores in a resample: more distinct scores than so many are put into as many bins of like
size, within which a tie counts half. The area itself is of the scores as they are."""


def auroc_interval(
    scores: Array, true: NDArray[np.bool_], unit: NDArray[np.int64], *, seed: int = 0
) -> tuple[float, float, float, int]:
    """An AUROC, the ends of its 95 % interval, and how many units were resampled.

    Args:
        scores: a number each.
        true: of which kind each is.
        unit: which unit of resampling each is in, from 0.
        seed: of the bootstrap.

    The interval is NaN where fewer than `BOOTSTRAP_FROM` units have either kind.
    Raises: MeasureError as `auroc`.
    """
    area = auroc(scores, true)
    _, unit = np.unique(unit, return_inverse=True)
    units = int(unit.max()) + 1
    fewest = min(len(np.unique(unit[true])), len(np.unique(unit[~true])))
    if fewest < BOOTSTRAP_FROM:
        return area, float("nan"), float("nan"), units
    place, bins = _bins(scores)
    counts = [np.zeros((units, bins)) for _ in range(2)]
    for side, chosen in zip(counts, (true, ~true), strict=True):
        np.add.at(side, (unit[chosen], place[chosen]), 1.0)
    draws = np.random.default_rng(seed).multinomial(
        units, np.full(units, 1 / units), size=RESAMPLES
    )
    above, below = (draws.astype(np.float64) @ side for side in counts)
    # of what is false: all in lower bins, and half of those in the same
    beaten = np.cumsum(below, 1) - below / 2
    pairs = above.sum(1) * below.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas = (above * beaten).sum(1) / pairs
    lower, upper = np.nanquantile(areas, (0.025, 0.975))
    return area, float(lower), float(upper), units


def _bins(scores: Array) -> tuple[NDArray[np.int64], int]:
    """Each score's bin, and how many there are; in the order of the scores."""
    values, place = np.unique(scores, return_inverse=True)
    if len(values) <= BINS:
        return place.astype(np.int64), len(values)
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right").astype(np.int64), len(edges) + 1
