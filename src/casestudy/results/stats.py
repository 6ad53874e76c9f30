"""How sure is a mean?

Means over prompts with 95 % intervals. What is resampled are documents where they are known, since
prompts of one book are not independent, and prompts otherwise: a percentile bootstrap from 10 of
them on, a t interval from 2 to 9, none for one. More than `UNITS` of them are first put into that
many random piles, which are as independent as what is in them; so sums per pile are all that has to
be kept, whatever the number of prompts, at the price of an interval whose own width is known to
about 1/sqrt(2 UNITS), 3 %. An interval of what is bounded (a probability, a share of attention)
ends at its bounds, and a ratio of means has an interval from `RATIOS_FROM` units on: see
`possible_ends`. Everything random is seeded: a resumed study gives the same interval.

Between groups, a permutation test clustered in the same way: within documents that have both groups
the sign of their difference is turned at random; where no document has both, whole documents change
sides. Prompts are never paired with each other: only counterfactuals are pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from casestudy.errors import MeasureError
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid, Table

BOOTSTRAP_FROM = 10
RESAMPLES = 1000
PERMUTATIONS = 5000
UNITS = 512
RATIOS_FROM = 3
"""Units from which a ratio of means has an interval. Student's t of two is 12.7 standard errors on
either side, too wide for the ratio's linear approximation: the mean and n say all there is."""
FAITHFULNESS = "faithfulness"
_BOUNDS = {
    "probability": (0.0, 1.0),
    "share": (0.0, 1.0),
    "share of prompts": (0.0, 1.0),
    "share of pairs": (0.0, 1.0),
    "rank (1 is the first)": (1.0, np.inf),
}
"""Between what all values of a unit are, and so their means."""
_CELLS_AT_ONCE = 512
_ENDS = (0.025, 0.975)
# 97.5 % quantiles of Student's t for 1 to 8 degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)


# What is possible?


def possible_ends(
    unit: str, lower: Array, upper: Array, units: NDArray[np.int64], *, difference: bool = False
) -> tuple[Array, Array]:
    """An interval's ends, as far as its unit allows: cut off at the bounds of what is bounded; none
    (NaN) for a ratio of means over fewer than `RATIOS_FROM` units.

    Args:
        unit: of the values.
        lower, upper: per cell.
        units: how many prompts or documents each cell's interval is from.
        difference: whether it is of a difference of two such means.
    """
    if unit == FAITHFULNESS or unit.startswith("share of the "):
        few = units < RATIOS_FROM
        return np.where(few, np.nan, lower), np.where(few, np.nan, upper)
    low, high = _BOUNDS.get(unit, (-np.inf, np.inf))
    if difference:
        low, high = low - high, high - low
    return np.clip(lower, low, high), np.clip(upper, low, high)


# What is independent?


def units_of(n: int, documents: Sequence[str] | None = None, *, seed: int = 0) -> NDArray[np.int64]:
    """Which unit of resampling each of n prompts is in.

    Args:
        n: how many prompts.
        documents: per prompt, where it came from; "" is a document of its own.
        seed: of the piles that more than `UNITS` units are put into.
    """
    if documents is None or len(set(documents)) < 2:
        unit = np.arange(n)
    else:
        return units_named([name or f"\0{i}" for i, name in enumerate(documents)], seed=seed)
    return _piled(unit, seed)


def units_named(names: Sequence[str], *, seed: int = 0) -> NDArray[np.int64]:
    """Which unit of resampling each prompt is in, by the units' names."""
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return _piled(np.array([place[name] for name in names], dtype=np.int64), seed)


def _piled(unit: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    count = int(unit.max(initial=-1)) + 1
    if count > UNITS:
        pile = np.random.default_rng(seed).permutation(count) % UNITS
        unit = pile[unit]
    return unit.astype(np.int64)


class Sums:
    """Sums and counts per unit: all that a mean, its interval and a test need of the prompts.

    Attributes:
        sums, counts: (unit, cell).
    """

    def __init__(self, units: int, cells: int) -> None:
        self.sums = np.zeros((units, cells))
        self.counts = np.zeros((units, cells))

    def add(self, values: Array, unit: NDArray[np.int64]) -> None:
        """Take in some prompts.

        Args:
            values: (prompt, cell); NaN was not measured and does not count.
            unit: each prompt's unit.
        """
        present = ~np.isnan(values)
        filled = np.where(present, values, 0.0)
        # prompt by prompt in order: the same bits however the rows were grouped
        np.add.at(self.sums, unit, filled)
        np.add.at(self.counts, unit, present)

    def interval(
        self, *, unit: str = "", seed: int = 0
    ) -> tuple[Array, Array, Array, NDArray[np.int64]]:
        """Means per cell, the ends of their 95 % intervals, and how many prompts there were.

        Args:
            unit: of the values, where it says what ends are possible (see `possible_ends`).
            seed: of the bootstrap.
        """
        used = self.counts.any(1)
        sums, counts = self.sums[used], self.counts[used]
        n = counts.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums.sum(0) / n
        ends = _interval((sums, counts), seed=seed)
        lower, upper = possible_ends(unit, *ends, (counts > 0).sum(0))
        return mean, lower, upper, n.astype(np.int64)


def _interval(*sides: Side, seed: int) -> tuple[Array, Array]:
    """A t interval, or a bootstrap's where there are units enough."""
    lower, upper = _cluster_t(*sides)
    units = np.min([(counts > 0).sum(0) for _, counts in sides], 0)
    many = units >= BOOTSTRAP_FROM
    if many.any():
        some = [(sums[:, many], counts[:, many]) for sums, counts in sides]
        lower[many], upper[many] = _bootstrap(*some, seed=seed)
    return lower, upper


Side = tuple[Array, Array]
"""Sums and counts, (unit, cell) each."""


def _cluster_t(*sides: Side) -> tuple[Array, Array]:
    """The t interval of one side's mean over units, or of the second side's minus the first's.

    With one prompt per unit it is Student's own, paired where the sides have their units in common.
    """
    units = np.min([(counts > 0).sum(0) for _, counts in sides], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [sums.sum(0) / counts.sum(0) for sums, counts in sides]
        parts = [_shares_of_error(*side, mean) for side, mean in zip(sides, means, strict=True)]
        error = np.sqrt((_last_minus_first(parts) ** 2).sum(0))
        t = np.array([np.nan, np.nan, *_T])[np.clip(units, 0, len(_T) + 1)]
        mean = _last_minus_first(means)
        return mean - t * error, mean + t * error


def _shares_of_error(sums: Array, counts: Array, mean: Array) -> Array:
    """What each unit adds to the error of a mean; their squares sum to its square."""
    units = (counts > 0).sum(0)
    spread = np.where(counts > 0, sums - counts * mean, 0.0)
    return np.asarray(np.sqrt(units / (units - 1)) * spread / counts.sum(0))


def _last_minus_first(sides: Sequence[Array]) -> Array:
    return sides[0] if len(sides) == 1 else np.asarray(sides[1] - sides[0])


@lru_cache(maxsize=4)  # at most 4 MB each, and a study has many means over the same prompts
def _draws(units: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(np.float64)


def _bootstrap(*sides: Side, seed: int) -> tuple[Array, Array]:
    """2.5 % and 97.5 % quantiles of resampled means, or of their difference, some cells a time."""
    units, cells = sides[0][0].shape
    draws = _draws(units, seed)
    low, high = np.empty(cells), np.empty(cells)
    for start in range(0, cells, _CELLS_AT_ONCE):
        part = slice(start, start + _CELLS_AT_ONCE)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = [(draws @ sums[:, part]) / (draws @ counts[:, part]) for sums, counts in sides]
        drawn = _last_minus_first(means)
        low[part], high[part] = _ends(drawn)
    return low, high


def _ends(drawn: Array) -> Array:
    """2.5 % and 97.5 % quantiles of each column, NaN left out.

    As `np.nanquantile`, which takes column by column; those without NaN are taken together here.
    """
    ends = np.empty((2, drawn.shape[1]))
    whole = ~np.isnan(drawn).any(0)
    if whole.any():
        columns = np.ascontiguousarray(drawn[:, whole].T)
        ends[:, whole] = np.quantile(columns, _ENDS, axis=1, overwrite_input=True)
    if not whole.all():
        ends[:, ~whole] = np.nanquantile(drawn[:, ~whole], _ENDS, axis=0)
    return ends


# Means


def mean_over_prompts(grid: Grid, *, documents: Sequence[str] | None = None, seed: int = 0) -> Grid:
    """The mean over a grid's prompt axis, with n and a 95 % interval.

    Args:
        grid: has an axis "prompt"; NaN cells were not measured and are left out.
        documents: per prompt, where it came from; resampled instead of prompts where given.
        seed: of the bootstrap.

    Shape:  the grid's without its prompt axis, named `NAME.mean`; NaN where n is 0, and intervals
            NaN where n is 1.
    """
    values = np.moveaxis(grid.values, grid.dim("prompt"), 0)
    flat = values.reshape(values.shape[0], -1).astype(np.float64)
    return mean_grid(grid, mean_interval(flat, unit=grid.unit, documents=documents, seed=seed))


def mean_grid(grid: Grid, interval: tuple[Array, Array, Array, NDArray[np.int64]]) -> Grid:
    """What `Sums.interval` gave of a grid's cells, as `NAME.mean` on its other axes."""
    dim = grid.dim("prompt")
    axes = grid.axes[:dim] + grid.axes[dim + 1 :]
    shape = tuple(len(axis) for axis in axes)
    mean, lower, upper, n = (part.reshape(shape) for part in interval)
    return replace(
        grid, name=names.mean(grid.name), values=mean, lower=lower, upper=upper, n=n, axes=axes
    )


def mean_interval(
    values: Array, *, unit: str = "", documents: Sequence[str] | None = None, seed: int = 0
) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Column means of (prompt, cell) values, with the interval's ends and the count of numbers;
    `unit` as in `possible_ends`."""
    of = units_of(len(values), documents, seed=seed)
    sums = Sums(int(of.max(initial=-1)) + 1, values.shape[1])
    sums.add(values, of)
    return sums.interval(unit=unit, seed=seed)


def share_ends(mean: float, lower: float, upper: float, units: int) -> tuple[float, float]:
    """The ends of a share's interval: a share of none or of all has no spread to resample.

    There it is Wilson's (1927), which from units alike leaves z² / (units + z²) of doubt.

    Args:
        mean, lower, upper: of values that are 0 or 1.
        units: how many prompts or documents they are from.
    """
    z2 = 1.959964**2
    if mean == 0:
        return 0.0, z2 / (units + z2)
    if mean == 1:
        return units / (units + z2), 1.0
    return lower, upper


def t_interval(total: Array, squares: Array, n: int) -> tuple[Array, Array, Array]:
    """Means and 95 % t intervals from sums and sums of squares over n values taken as independent.

    For what is too much to keep one by one; the interval is NaN where n is 1.
    """
    mean = total / n
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    # rounding can leave a difference of nearly equal numbers below zero
    variance = np.maximum(squares - n * mean**2, 0) / (n - 1)
    half = _t_quantile(n - 1) * np.sqrt(variance / n)
    return mean, mean - half, mean + half


def _t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: tabled, then Fisher's expansion about the normal's."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + first + second + third  # within 0.001 from 9 degrees of freedom on


# Ratios


def ratio_of_means(
    values: NDArray[np.float64], base: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(mean values - mean base) / (mean other - mean base) over the last axis, NaN left out.

    NaN where `other` and `base` do not differ.
    """
    there = ~np.isnan(values)
    n = there.sum(-1)
    change = np.where(there, values - base, 0.0).sum(-1)
    whole = np.where(there, other - base, 0.0).sum(-1)
    size = np.where(there, np.abs(base), 0.0).sum(-1)
    # below this two equal values differ by float32's rounding alone
    defined = (n > 0) & (np.abs(whole) > 1e-6 * np.maximum(n, size))
    return np.where(defined, change / np.where(defined, whole, 1.0), np.nan)


def ratio_in_parts(
    values: NDArray[np.float64], base: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A ratio of means as one number per prompt: R + (change - R · difference) / mean difference.

    Their mean is the ratio R itself, and to first order they vary as it does (the delta method), so
    that what serves for means serves for ratios, intervals and pairing included.

    Shape: as `values`; NaN where they are, and where the ratio is not defined.
    """
    ratio = ratio_of_means(values, base, other)[..., None]
    there = ~np.isnan(values)
    whole = np.where(there, other - base, np.nan)
    n = np.maximum(there.sum(-1, keepdims=True), 1)
    mean_whole = np.where(there, whole, 0.0).sum(-1, keepdims=True) / n
    scale = np.where(np.isnan(ratio), np.nan, mean_whole)
    return np.asarray(ratio + (values - base - ratio * whole) / scale)


# Comparisons


def difference_interval(
    a: Sums, b: Sums, *, unit: str = "", seed: int = 0
) -> tuple[Array, Array, Array]:
    """Two means' difference per cell, b's minus a's, and the ends of its 95 % interval.

    Both sums are over the same units, which are resampled together. So a prompt (or document) that
    is on both sides is paired with itself, and sides with nothing in common are two samples. Below
    `BOOTSTRAP_FROM` units on either side the interval is the paired t interval in the one case and
    Welch's, with the smaller side's degrees of freedom, in the other.

    Shape: (cell,) each; NaN where a side has no value, intervals NaN where it has one unit.
    """
    used = a.counts.any(1) | b.counts.any(1)
    sides = [(side.sums[used], side.counts[used]) for side in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (sums.sum(0) / counts.sum(0) for sums, counts in sides)
    units = np.min([(counts > 0).sum(0) for _, counts in sides], 0)
    ends = _interval(*sides, seed=seed)
    return second - first, *possible_ends(unit, *ends, units, difference=True)


@dataclass(frozen=True)
class Test:
    """Whether two groups differ.

    Attributes:
        difference: the first group's mean minus the second's, weighted by document where the test
            is within documents.
        p: how often a permutation gives one as large, two-sided, itself counted.
        units: how many documents (or prompts, or piles of them) were permuted.
        within: whether the test is within documents.
    """

    __test__ = False  # no test of pytest's

    difference: float
    p: float
    units: int
    within: bool


def permutation_test(
    a: tuple[Array, Array],
    b: tuple[Array, Array],
    *,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Test | None:
    """Compare two groups' means, permuting whole units.

    Args:
        a, b: each group's (sums, counts) per unit.
        seed: of the permutations.
        permutations: how many.

    Returns None where there are fewer than two units to permute.
    """
    (sum_a, n_a), (sum_b, n_b) = a, b
    rng = np.random.default_rng(seed)
    both = (n_a > 0) & (n_b > 0)
    if both.sum() >= 2:
        own = sum_a[both] / n_a[both] - sum_b[both] / n_b[both]
        weight = n_a[both] * n_b[both] / (n_a[both] + n_b[both])
        weight /= weight.sum()
        signs = rng.choice((-1.0, 1.0), size=(permutations, int(both.sum())))
        observed = float(weight @ own)
        drawn = signs @ (weight * own)
    else:
        one = (n_a > 0) ^ (n_b > 0)
        in_a = n_a[one] > 0
        if in_a.sum() < 1 or (~in_a).sum() < 1 or len(in_a) < 3:
            return None
        sums, counts = (sum_a + sum_b)[one], (n_a + n_b)[one]

        def difference(side: NDArray[np.bool_]) -> Array:
            left = side.astype(np.float64)
            first = (left @ sums) / (left @ counts)
            return np.asarray(first - ((1 - left) @ sums) / ((1 - left) @ counts))

        observed = float(difference(in_a))
        sides = rng.permuted(np.broadcast_to(in_a, (permutations, len(in_a))), axis=1)
        drawn = difference(sides)
    # rounding must not make an equal permutation smaller
    extreme = (np.abs(drawn) >= abs(observed) * (1 - 1e-12)).sum()
    within = bool(both.sum() >= 2)
    units = int(both.sum() if within else one.sum())
    return Test(observed, float((extreme + 1) / (permutations + 1)), units, within)


def compare_groups(
    sums: Mapping[str, Sums], overlapping: set[frozenset[str]], cell: int, contrast: str
) -> Table:
    """Every pair of groups' difference in one cell, with a clustered permutation test.

    Args:
        sums: by group.
        overlapping: pairs that share prompts, which are not compared.
        cell: which of the cells.
        contrast: what the cell is called.

    Rows:   one per pair, with Holm's correction over all of them.
    """
    rows: list[tuple[str, str, Test]] = []
    for first, second in combinations(sums, 2):
        if frozenset((first, second)) in overlapping:
            continue
        a, b = sums[first], sums[second]
        test = permutation_test(
            (a.sums[:, cell], a.counts[:, cell]), (b.sums[:, cell], b.counts[:, cell])
        )
        if test is not None:
            rows.append((first, second, test))
    p = _holm([test.p for _, _, test in rows])
    return Table(
        names.GROUP_TESTS,
        {
            "contrast": [contrast] * len(rows),
            "group": [first for first, _, _ in rows],
            "other": [second for _, second, _ in rows],
            "difference": [test.difference for _, _, test in rows],
            "p": [test.p for _, _, test in rows],
            "p_holm": p,
            "units": [test.units for _, _, test in rows],
            "within_documents": [test.within for _, _, test in rows],
        },
        "Do two groups' mean logit differences differ? Permutation tests that move whole documents "
        "(prompts, where no documents are known); p_holm is corrected for all pairs.",
    )


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m times m - k, never falling."""
    corrected = [0.0] * len(p)
    largest = 0.0
    for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, p[i] * (len(p) - k)))
        corrected[i] = largest
    return corrected


def ranking(grid: Grid, sums: Sums, *, contrast: str, top: int = 10, seed: int = 0) -> Table:
    """How stable is the order of the heads by their mean share?

    Args:
        grid: any chunk of the measurement, for its axes; has "contrast", "layer" and "head".
        sums: over all prompts, of its cells.
        contrast: which contrast.
        top: the first how many are asked about.
        seed: of the bootstrap.

    Rows:   one per head, by the size of its mean: how often it is among the first `top` when
            documents are resampled, and the 95 % interval of its rank (0 is the first).
    """
    axes = [axis for axis in grid.axes if axis.name != "prompt"]
    shape = tuple(len(axis) for axis in axes)
    index = np.arange(int(np.prod(shape))).reshape(shape)
    index = np.take(
        index, _labels(axes, "contrast").index(contrast), _names(axes).index("contrast")
    )
    rest = [axis for axis in axes if axis.name != "contrast"]
    heads = [i for i, label in enumerate(_labels(rest, "head")) if label.isdigit()]
    index = np.take(index, heads, _names(rest).index("head"))
    if _names(rest) == ["head", "layer"]:
        index = index.T
    layers = _labels(rest, "layer")
    at = [(layer, _labels(rest, "head")[head]) for layer in layers for head in heads]
    cells = index.reshape(-1)
    used = sums.counts[:, cells].any(1)
    total, counts = sums.sums[np.ix_(used, cells)], sums.counts[np.ix_(used, cells)]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total.sum(0) / counts.sum(0)
    order = np.argsort(-np.abs(np.nan_to_num(mean)), kind="stable")
    columns: dict[str, list[object]] = {"layer": [], "head": [], "mean": [], "rank": []}
    columns |= {f"in_top_{top}": [], "rank_lower": [], "rank_upper": [], "n": []}
    if len(total) >= BOOTSTRAP_FROM:
        places = _places_by_size(total, counts, seed)
        low, high = np.quantile(places, (0.025, 0.975), axis=0, method="nearest")
        for rank, i in enumerate(order.tolist()):
            row = (*at[i], float(mean[i]), rank, float((places[:, i] < top).mean()))
            row += (int(low[i]), int(high[i]), int(counts[:, i].sum()))
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return Table(
        names.ranking(grid.name),
        columns,
        f"Heads by the size of their mean share ({contrast}): how often each is among the first "
        f"{top} when documents (or prompts) are resampled, and the 95 % interval of its rank. "
        f"Empty below {BOOTSTRAP_FROM} of them.",
    )


# Rankings held against each other, or against the truth


def midranks(values: Array) -> Array:
    """Ranks from 1, smallest first; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def auroc(scores: Array, true: NDArray[np.bool_]) -> float:
    """The chance that something true has a larger score than something false; a tie counts half.

    1 is a perfect ranking, 0.5 what chance gives: the area under the receiver operating
    characteristic, as the rank sum of Mann and Whitney.

    Raises: MeasureError where a score is NaN, or all are true, or none is.
    """
    if np.isnan(scores).any():
        raise MeasureError("scores with NaN", allowed="a number each")
    n_true, n_false = int(true.sum()), int((~true).sum())
    if not n_true or not n_false:
        raise MeasureError(f"{n_true} true and {n_false} false", allowed="at least one of each")
    above = midranks(scores)[true].sum() - n_true * (n_true + 1) / 2
    return float(above / (n_true * n_false))


def _places_by_size(total: Array, counts: Array, seed: int) -> Array:
    """(draw, cell): every cell's place by the size of its mean, 0 the largest, when resampled."""
    draws = _draws(len(total), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nan_to_num((draws @ total) / (draws @ counts))
    return np.asarray(np.argsort(np.argsort(-np.abs(means), axis=1, kind="stable"), axis=1))


def place_interval(sums: Sums, cell: int, *, seed: int = 0) -> tuple[int, int, int] | None:
    """A cell's place by the size of its mean, 0 the largest, and its 95 % interval when resampled.

    None below `BOOTSTRAP_FROM` units.
    """
    used = sums.counts.any(1)
    total, counts = sums.sums[used], sums.counts[used]
    if len(total) < BOOTSTRAP_FROM:
        return None
    places = _places_by_size(total, counts, seed)[:, cell]
    low, high = np.quantile(places, (0.025, 0.975), method="nearest")
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.nan_to_num(np.abs(total.sum(0) / counts.sum(0)))
    return int((size > size[cell]).sum()), int(low), int(high)


def _names(axes: Sequence[Axis]) -> list[str]:
    return [axis.name for axis in axes]


def _labels(axes: Sequence[Axis], name: str) -> tuple[str, ...]:
    return axes[_names(axes).index(name)].labels
