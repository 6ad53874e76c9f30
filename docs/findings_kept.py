"""How are the figures of docs/findings.json kept?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from docs.findings_tables import Found
from numpy.typing import NDArray

from casestudy.results.stats import Sums, difference_interval, mean_interval, units_named


def mean(values: NDArray[np.float64], units: Sequence[str] | None = None) -> Found:
    """A mean with its interval; paragraphs are resampled where they are known."""
    middle, low, high, n = mean_interval(np.asarray(values, float)[:, None], documents=units)
    return {"mean": number(middle[0]), "low": number(low[0]), "high": number(high[0]),
            "n": int(n[0])}  # fmt: skip


def number(value: float) -> float | None:
    """As it is kept: digits enough for the page, too few to differ between machines."""
    return None if np.isnan(value) else round(float(value), 4)


def difference(
    a: NDArray[np.float64], b: NDArray[np.float64], units: tuple[Sequence[str], Sequence[str]]
) -> Found:
    """The second mean minus the first with its interval."""
    place = units_named([*units[0], *units[1]])
    sides = []
    for values, unit in ((a, place[: len(a)]), (b, place[len(a) :])):
        sums = Sums(int(place.max()) + 1, 1)
        sums.add(np.asarray(values, float)[:, None], unit)
        sides.append(sums)
    found = difference_interval(*sides)
    return dict(zip(("mean", "low", "high"), (number(float(x[0])) for x in found), strict=True))
