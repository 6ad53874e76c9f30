"""The content of figures as values, independent of the renderer.

A mark has a figure's labels, numbers, intervals and units. `mark_of` turns a grid into the mark for
its axes, `alternative` into the alternative text. `svg` draws marks for reports, the explorer and
notebooks; `plotly_figures` draws them with plotly. `Data` are the
cells behind a mark, for values on hover, the keyboard and CSV.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from casestudy.results.result import Array, Grid
from casestudy.show.text import clean, digits, number, signed
from casestudy.show.wording import Mean, Spread

Real = float | int
Number = float | int | None


@dataclass(frozen=True)
class Data:
    """What a figure shows, cell by cell in the order of its axes.

    Attributes:
        axes: (name, labels) of each dimension.
        columns: for each quantity its cells, flat, the last axis fastest.
        unit: of the first quantity.
        source: the file in the study's folder that has all of the data.
    """

    axes: Sequence[tuple[str, Sequence[str]]]
    columns: Mapping[str, Sequence[Number]]
    unit: str
    source: str = ""

    @classmethod
    def of(cls, grid: Grid) -> Data:
        """A grid's values, and its interval and n where it has them."""
        columns = {"value": numbers(grid.values)}
        for name in ("lower", "upper", "n"):
            array = getattr(grid, name)
            if array is not None:
                columns[name] = numbers(array)
        axes = [(axis.name, axis.labels) for axis in grid.axes]
        return cls(axes, columns, grid.unit, f"arrays/{grid.name}.safetensors")

    def titles(self) -> list[str]:
        """The text of each cell: its labels, value, interval and n."""
        found = [""]
        for name, labels in self.axes:
            found = [f"{f}, {name} {x}".removeprefix(", ") for f in found for x in labels]
        value = self.columns["value"]
        places = digits(value)
        lower, upper, n = (self.columns.get(name) for name in ("lower", "upper", "n"))
        for i, where in enumerate(found):
            said = f"{where}: {number(value[i], places)}"
            said += f" {self.unit}" if value[i] is not None else ""
            low, high = (None if ends is None else ends[i] for ends in (lower, upper))
            if low is not None and high is not None:
                said += f" [{number(low, places)} to {number(high, places)}]"
            count = n[i] if n is not None else None
            found[i] = said + (f", n = {count:,.0f}" if count is not None else "")
        return found

    def to_json(self) -> dict[str, object]:
        """For the page: seven significant digits, as many as float32 has."""
        return {
            "axes": [[name, list(labels)] for name, labels in self.axes],
            "columns": {name: [_short(v) for v in cells] for name, cells in self.columns.items()},
            "unit": self.unit,
            "source": self.source,
        }


def numbers(array: Array) -> list[Number]:
    """A flat list, None if not measured."""
    return [finite(v) for v in np.asarray(array, dtype=float).ravel().tolist()]


def finite(value: Real) -> Number:
    """The value, None if it was not measured."""
    return value if math.isfinite(value) else None


def _short(value: Number) -> Number:
    if value is None or value == int(value):
        return None if value is None else int(value)
    return float(f"{value:.7g}")


@dataclass(frozen=True)
class Waterfall:
    """Each term as a bar that starts where the one above ended; the last bar is the total from 0.

    The last term's bar ends at the sum of the terms, the total's bar at the total: the reader
    can see that the two are equal.

    Attributes:
        terms: from the input up.
        values: their contributions; NaN is drawn as "not measured".
        total: the logit difference itself, measured apart from the terms.
        unit: of all of them.
        lower, upper: a 95 % interval of each term, drawn around its bar's end.
        marked: terms drawn with an outline (b_U).
        total_label: what the last bar is called.
        row: height of a row in pixels.
    """

    terms: Sequence[str]
    values: Sequence[float]
    total: Real
    unit: str = "logits"
    lower: Sequence[Number] | None = None
    upper: Sequence[Number] | None = None
    marked: Sequence[str] = ()
    total_label: str = "logit difference"
    row: Real = 19


@dataclass(frozen=True)
class Bars:
    """One bar from zero per label, with its interval as a line and its value at the right.

    Attributes:
        labels: one per row.
        values: None if not measured.
        unit: of the values.
        lower, upper: ends of a 95 % interval.
        shown: texts of the values; the numbers themselves by default.
        row: height of a row in pixels.
        axis: what the labels are.
    """

    labels: Sequence[str]
    values: Sequence[Number]
    unit: str
    lower: Sequence[Number] | None = None
    upper: Sequence[Number] | None = None
    shown: Sequence[str] | None = None
    row: Real = 22
    tokens: bool = False
    axis: str = ""


@dataclass(frozen=True)
class Strip:
    """Every prompt as a dot, a row per label, with the mean and its interval below the dots.

    Attributes:
        labels: one per row.
        values: each row's prompts; None where not measured.
        unit: of the values.
        mean, lower, upper: of each row, with its 95 % interval.
        row: height of a row in pixels.
        places: a label for each of a row's values.
        axis: what the rows are.
    """

    labels: Sequence[str]
    values: Sequence[Sequence[Number]]
    unit: str
    mean: Sequence[Number] | None = None
    lower: Sequence[Number] | None = None
    upper: Sequence[Number] | None = None
    row: Real = 54
    places: Sequence[str] = ()
    axis: str = ""


@dataclass(frozen=True)
class Histograms:
    """A histogram per label, with its quartiles in a box and its mean below.

    Attributes:
        labels: one per row.
        edges: of the bins, the same for every row.
        counts: (row, bin).
        spreads: each row's quantiles; None where it has no values.
        means: each row's mean with its interval; None where it has none.
        unit: of the edges.
        row: height of a row in pixels.
    """

    labels: Sequence[str]
    edges: Sequence[Real]
    counts: Array
    spreads: Sequence[Spread | None]
    means: Sequence[Mean | None]
    unit: str
    row: Real = 64


@dataclass(frozen=True)
class Heatmap:
    """Cells coloured by value, zero always the colour of the page, both signs on one scale.

    Attributes:
        values: (rows, cols); NaN is drawn grey, "not measured".
        rows, cols: their labels.
        unit: of the values, for the legend.
        row_name, col_name: what the axes are.
        limit: the value of full colour; by default the largest magnitude.
        tokens: column labels are tokens (white space visible, slanted).
        slanted: whether column labels are too long to be horizontal.
        heads: a click opens a head's attention pattern: a "cell" of (layer, head), or every cell of
            a "row" that is called "layer.head".
    """

    values: Array
    rows: Sequence[str]
    cols: Sequence[str]
    unit: str
    row_name: str = ""
    col_name: str = ""
    limit: Real | None = None
    tokens: bool = False
    slanted: bool = False
    heads: Literal["cell", "row"] | None = None

    @property
    def full(self) -> float:
        """The value of full colour."""
        known = np.abs(self.values[np.isfinite(self.values)])
        return self.limit or (float(known.max()) if known.size else 0.0) or 1.0


@dataclass(frozen=True)
class Series:
    """One line: its name, its values (None breaks it), and its interval's ends."""

    name: str
    values: Sequence[Number]
    lower: Sequence[Number] | None = None
    upper: Sequence[Number] | None = None

    @classmethod
    def of(cls, name: str, values: Array, lower: Array | None, upper: Array | None) -> Series:
        """From arrays, NaN where nothing was measured."""
        ends = (None if a is None else numbers(a) for a in (lower, upper))
        return cls(name, numbers(values), *ends)


@dataclass(frozen=True)
class Lines:
    """Values along an ordered axis, one line per series, with bands where intervals are known.

    Attributes:
        labels: the places along the axis, in order.
        series: the lines.
        unit: of the values.
        axis: what the axis is.
        final: a value drawn as a dashed line (the end value of the curve).
        height: of the plot in pixels.
    """

    labels: Sequence[str]
    series: Sequence[Series]
    unit: str
    axis: str = ""
    final: Number = None
    height: Real = 240


@dataclass(frozen=True)
class Layered:
    """A circuit: nodes in rows by depth with the input below; the width of an edge is its score.

    Attributes:
        nodes: by name, (depth, order within the row).
        edges: (source, target, score); the sign is the colour.
    """

    nodes: Mapping[str, tuple[int, int]]
    edges: Sequence[tuple[str, str, float]]


Mark = Waterfall | Bars | Strip | Histograms | Heatmap | Lines | Layered


def mean_bars(means: Grid, labels: Sequence[str] = ()) -> Bars:
    """A one-dimensional grid of means as bars with their intervals."""
    (axis,) = means.axes
    lower, upper = (None if a is None else numbers(a) for a in (means.lower, means.upper))
    values, labels = numbers(means.values), labels or [clean(label) for label in axis.labels]
    return Bars(labels, values, means.unit, lower, upper, axis=axis.name)


def grid_heatmap(
    grid: Grid, *, slanted: bool = False, heads: Literal["cell", "row"] | None = None
) -> Heatmap:
    """A two-dimensional grid as a heatmap."""
    rows, cols = ([clean(label) for label in axis.labels] for axis in grid.axes)
    names = (grid.axes[0].name, grid.axes[1].name)
    values = np.asarray(grid.values, dtype=float)
    return Heatmap(values, rows, cols, grid.unit, *names, slanted=slanted, heads=heads)


def sum_of_terms(ledger: Grid) -> Waterfall:
    """A ledger without a total of its own; the total is the sum of its terms."""
    bars = mean_bars(ledger)
    values = np.asarray(ledger.values, dtype=float)
    total = float(np.nansum(values))
    return Waterfall(
        *(bars.labels, values.tolist(), total, ledger.unit, bars.lower, bars.upper),
        total_label="sum of terms",
    )


def mark_of(grid: Grid) -> Waterfall | Bars | Heatmap:
    """A waterfall for a ledger, bars for another grid of one axis, a heatmap for two axes."""
    if len(grid.axes) == 2:
        return grid_heatmap(grid)
    return sum_of_terms(grid) if grid.axes[0].name == "term" else mean_bars(grid)


def alternative(grid: Grid) -> str:
    """A grid's alternative text: where its largest absolute value is."""
    values = np.asarray(grid.values, dtype=float)
    where = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
    at = ", ".join(f"{a.name} {clean(a.labels[i])}" for a, i in zip(grid.axes, where, strict=True))
    largest = signed(float(values[where]))
    return f"{clean(grid.name)}: largest magnitude {largest} {grid.unit} at {at}."
