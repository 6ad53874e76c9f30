"""How sure is a mean?

Means over prompts with 95 % intervals: a percentile bootstrap from 10 prompts on (over documents
where they are known, since prompts of one book are not independent), a t interval from 2 to 9, none
for one. The bootstrap is seeded, so that a resumed study gives the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from casestudy.measure.result import Array, Grid

BOOTSTRAP_FROM = 10
RESAMPLES = 1000
# 97.5 % quantiles of Student's t for 1 to 8 degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)


def mean_over_prompts(grid: Grid, *, documents: Sequence[str] | None = None, seed: int = 0) -> Grid:
    """The mean over a grid's prompt axis, with n and a 95 % interval.

    Args:
        grid: has an axis "prompt"; NaN cells were not measured and are left out.
        documents: per prompt, where it came from; resampled instead of prompts where given.
        seed: of the bootstrap.

    Shape:  the grid's without its prompt axis, named `NAME.mean`; NaN where n is 0, and intervals
            NaN where n is 1.
    """
    dim = grid.dim("prompt")
    values = np.moveaxis(grid.values, dim, 0)
    shape = values.shape[1:]
    flat = values.reshape(values.shape[0], -1).astype(np.float64)
    mean, lower, upper, n = mean_interval(flat, documents=documents, seed=seed)
    return replace(
        grid,
        name=f"{grid.name}.mean",
        values=mean.reshape(shape),
        lower=lower.reshape(shape),
        upper=upper.reshape(shape),
        n=n.reshape(shape),
        axes=grid.axes[:dim] + grid.axes[dim + 1 :],
    )


def mean_interval(
    values: Array, *, documents: Sequence[str] | None = None, seed: int = 0
) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Column means of (prompt, cell) values, with the interval's ends and the count of numbers."""
    present = ~np.isnan(values)
    n = present.sum(0)
    filled = np.where(present, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / n
        spread = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(0) / (n - 1))
        t = np.array([np.nan, np.nan, *_T])[np.clip(n, 0, len(_T) + 1)]
        half = t * spread / np.sqrt(n)
    lower, upper = np.where(n > 1, mean - half, np.nan), np.where(n > 1, mean + half, np.nan)
    many = n >= BOOTSTRAP_FROM
    if many.any():
        low, high = _bootstrap(filled[:, many], present[:, many], documents, seed)
        lower[many], upper[many] = low, high
    return mean, lower, upper, n


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


def _bootstrap(
    filled: Array, present: NDArray[np.bool_], documents: Sequence[str] | None, seed: int
) -> tuple[Array, Array]:
    """2.5 % and 97.5 % quantiles of resampled means, resampling whole documents."""
    if documents is None or len(set(documents)) < 2:
        sums, counts = filled, present.astype(np.float64)
    else:
        _, group = np.unique(np.asarray(documents), return_inverse=True)
        sums = np.zeros((group.max() + 1, filled.shape[1]))
        counts = np.zeros_like(sums)
        np.add.at(sums, group, filled)
        np.add.at(counts, group, present)
    units = len(sums)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (draws @ sums) / (draws @ counts)
    low, high = np.nanquantile(means, (0.025, 0.975), axis=0)
    return low, high
