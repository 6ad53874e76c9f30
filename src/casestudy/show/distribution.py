"""How are the values of one quantity distributed over prompts, in each of several rows?

Few prompts are drawn as dots. More than `MOST_DOTS` in a row would overlap, and the page would grow
with the study. Then the row is a histogram over a box of the quartiles, which has the same size for
any number of prompts. Rows share one scale and
one set of bins, and zero is always the edge of a bin, so that no bin holds both signs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from casestudy.results.result import Array
from casestudy.show import marks
from casestudy.show.svg import round_step
from casestudy.show.text import MINUS
from casestudy.show.wording import Mean, Spread, known

MOST_DOTS = 100
"""Prompts in a row that are drawn one by one."""

MOST_BINS = 60
"""Bins over the whole scale: about as many as are visible on a phone."""


@dataclass(frozen=True)
class Rows:
    """A drawn distribution, row by row.

    Attributes:
        mark: dots, or histograms over boxes.
        data: behind its marks.
        reading: how to read it, for the caption.
    """

    mark: marks.Strip | marks.Histograms
    data: marks.Data
    reading: str


def rows(
    axis: str,
    labels: Sequence[str],
    values: Sequence[Array],
    means: Sequence[Mean | None],
    *,
    unit: str,
    dots: marks.Data,
    row: marks.Real = 46,
) -> Rows:
    """Every row's prompts as dots, or, where any row has too many, all rows as histograms.

    Args:
        axis: what a row is ("group", "contrast").
        labels: one per row.
        values: each row's prompts; NaN where not measured.
        means: each row's mean, with its interval.
        unit: of the values, for the scale.
        dots: the data behind the dots, in the rows' order.
        row: height of a row of dots in pixels.
    """
    if max((len(known(line)) for line in values), default=0) <= MOST_DOTS:
        mark = marks.Strip(
            labels,
            [marks.numbers(line) for line in values],
            unit=unit,
            mean=[None if m is None else marks.finite(m.value) for m in means],
            lower=[None if m is None else marks.finite(m.lower) for m in means],
            upper=[None if m is None else marks.finite(m.upper) for m in means],
            row=row,
        )
        return Rows(
            mark,
            dots,
            "One dot per prompt, blue above zero and orange below. Under the dots: the mean and "
            "its 95\u00a0% interval.",
        )
    edges = bins(np.concatenate([known(line) for line in values]))
    # clipped, since a quotient that was rounded up would leave the smallest value outside
    ends = float(edges[0]), float(edges[-1])
    counts = np.stack([np.histogram(np.clip(known(line), *ends), edges)[0] for line in values])
    spreads = [Spread.of(line) for line in values]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    data = marks.Data(
        [(axis, labels), ("from", [between(a, b) for a, b in pairwise(edges.tolist())])],
        {"value": marks.numbers(counts), "share of the row": marks.numbers(shares)},
        "prompts",
        dots.source,
    )
    return Rows(
        marks.Histograms(labels, edges.tolist(), counts, spreads, means, unit=unit),
        data,
        "Each row counts its prompts in bins; the fullest bin of a row has the row’s height, so "
        "heights compare within a row only. Under it: a box from the first to the third quartile "
        "with the median, lines to the 5th and 95th percentile, and the mean with its "
        "95\u00a0% interval.",
    )


def bins(values: Array) -> Array:
    """Edges of at most about `MOST_BINS` bins of a round width that hold all values."""
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    # values that differ by their rounding are one value: it has no narrower bins
    spread = high - low if high - low > 1e-9 * size else size
    step = round_step(spread or 1.0, MOST_BINS)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return np.arange(first, last + 1) * step


def between(low: marks.Real, high: marks.Real) -> str:
    """A bin in words: "0.5 to 1"."""
    return f"{low:.6g} to {high:.6g}".replace("-", MINUS)
