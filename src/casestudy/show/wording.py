"""How do sentences state a mean?

With its n and its interval, or not at all. A mean whose interval includes zero is undecided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from casestudy.results.result import Array, Grid
from casestudy.results.stats import mean_interval
from casestudy.show.text import clean, interval


def spoken(name: str) -> str:
    """A contrast's name as a label: "lowercase no space"."""
    return clean(name).replace("_", " ")


def figure_name(name: object) -> str:
    """The name of a figure of a circuit's evidence, in words."""
    return clean(name).replace("where it was looked for", "on the pairs of the search")


CLASS_WORDS = {
    "space+Capital": "a space and a capital",
    "space+lower": "a space and a lower-case letter",
    "space+digit": "a space and a digit",
    "Capital": "a capital",
    "lower": "a lower-case letter",
    "digit": "a digit",
}
"""How the tokens of a standard class begin."""


def class_words(name: str) -> str:
    """A class of tokens within a sentence: "tokens that begin with a space and a capital"."""
    if name == "other":
        return "all other tokens"
    if name in CLASS_WORDS:
        return f"tokens that begin with {CLASS_WORDS[name]}"
    return f"tokens of the class “{spoken(name)}”"


@dataclass(frozen=True)
class Mean:
    """A mean with its interval and n."""

    value: float
    lower: float
    upper: float
    n: int

    @classmethod
    def of(cls, grid: Grid, **where: str) -> Mean:
        """One cell of a grid of means."""
        cell = grid.select(**where) if where else grid

        def one(array: Any) -> float:
            return float("nan") if array is None else float(np.asarray(array).ravel()[0])

        n = one(cell.n)
        value = one(cell.values)
        return cls(value, one(cell.lower), one(cell.upper), 0 if np.isnan(n) else int(n))

    @classmethod
    def over(cls, values: Any) -> Mean:
        """The mean of some prompts' values; those not measured (NaN) are left out."""
        mean, lower, upper, n = mean_interval(np.asarray(values, dtype=float)[:, None])
        return cls(float(mean[0]), float(lower[0]), float(upper[0]), int(n[0]))

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.lower > 0 or self.upper < 0

    @property
    def bracket(self) -> str:
        """ "95 % interval 3.2 to 4.9, n = 17"."""
        if np.isnan(self.lower) or np.isnan(self.upper):
            return f"n\u00a0=\u00a0{self.n}, no interval"
        return f"95\u00a0% interval {interval(self.lower, self.upper)}, n\u00a0=\u00a0{self.n:,}"


NOTHING = Mean(float("nan"), float("nan"), float("nan"), 0)
"""The mean of no values."""


@dataclass(frozen=True)
class Spread:
    """A distribution in five numbers and its n.

    Attributes:
        n: measured values.
        low, first, median, third, high: the 5th, 25th, 50th, 75th and 95th percentile.
        positive: share of values above zero.
    """

    n: int
    low: float
    first: float
    median: float
    third: float
    high: float
    positive: float

    @classmethod
    def of(cls, values: Array) -> Spread | None:
        """Of the measured values; None where there are none."""
        measured = known(values)
        if not measured.size:
            return None
        ends = np.quantile(measured, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
        low, first, median, third, high = map(float, ends)
        positive = float((measured > 0).mean())
        return cls(measured.size, low, first, median, third, high, positive)


def known(values: Array) -> Array:
    """The values that were measured."""
    return values[np.isfinite(values)]
