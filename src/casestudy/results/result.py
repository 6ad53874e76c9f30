"""What does a measurement return?

A `Grid`: numbers with named, labelled axes, a unit, the number of prompts of each value, an
interval if one was computed, the largest error of its own check, and its source. A cell that was
not measured is NaN, never zero. Without torch: a report is made from grids and tables alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from casestudy.drawing import WIDTH, cut, described, draw, some
from casestudy.errors import MeasureError, unknown

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Array = NDArray[Any]


def measured(value: Any) -> float | None:
    """A number for a table: None if it was not measured."""
    return None if value is None or np.isnan(value) else float(value)


MOST_SHOWN = 12
"""Cells of a grid, or rows of a table, that `print` shows."""


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: its name ("prompt", "layer", "component", …) and its labels."""

    name: str
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def count(cls, name: str, n: int) -> Axis:
        """An axis labelled 0 to n - 1."""
        return cls(name, tuple(map(str, range(n))))


@dataclass(frozen=True)
class Grid:
    """A measured array with axes, unit, n and interval.

    Attributes:
        name: the measurement's name, also its file name in a study ("ledger", "lens.resid_pre").
        values: floats; NaN if not measured.
        axes: one per dimension of `values`.
        unit: "logits", "probability", "share", …
        lower, upper: ends of a 95 % interval, same shape as values, if computed.
        n: the number of prompts of each value, same shape; None if each value is of one prompt.
        error: the result of the measurement's own check, as {"gap": 3e-6, "bound": 1e-4}.
        about: one sentence: the measurement, what was frozen, the source.
    """

    name: str
    values: Array
    axes: tuple[Axis, ...]
    unit: str
    lower: Array | None = None
    upper: Array | None = None
    n: Array | None = None
    error: Mapping[str, float] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        shape = tuple(len(axis) for axis in self.axes)
        if self.values.shape != shape:
            names = " ".join(axis.name for axis in self.axes)
            raise MeasureError(f"{self.name}: values {self.values.shape} on axes {names} {shape}")

    def __repr__(self) -> str:
        facts = {axis.name: some(axis.labels) for axis in self.axes}
        check = " ".join(f"{name} {value:.1e}" for name, value in self.error.items())
        facts |= {"unit": self.unit, "check": check, "about": self.about}
        dims = " × ".join(f"{axis.name} {len(axis)}" for axis in self.axes)
        return described(f"Grid {self.name}: {dims}", facts, self._cells())

    def _cells(self) -> Iterator[str]:
        """The first cells, a line each."""
        for place in islice(np.ndindex(self.values.shape), MOST_SHOWN):
            where = " ".join(axis.labels[i] for axis, i in zip(self.axes, place, strict=True))
            value = f"{self.values[place]:+.4g}"
            if self.lower is not None and self.upper is not None:
                value += f"  {self.lower[place]:.4g} to {self.upper[place]:.4g}"
            if self.n is not None:
                value += f"  n = {self.n[place]:g}"
            yield f"  {cut(where, 36):<36}  {value}"
        if self.values.size > MOST_SHOWN:
            yield f"  … {self.values.size - MOST_SHOWN:,} more cells: .to_polars()"

    def axis(self, name: str) -> Axis:
        """The axis of this name.

        Raises: MeasureError listing the existing axes.
        """
        return self.axes[self.dim(name)]

    def dim(self, name: str) -> int:
        """The position of the axis of this name."""
        names = [axis.name for axis in self.axes]
        if name not in names:
            raise unknown(MeasureError, f"{self.name} has no axis {name!r}", name, names)
        return names.index(name)

    def select(self, **where: str) -> Grid:
        """Fix axes at a label: `grid.select(prompt="3")`; those axes disappear."""
        grid = self
        for name, label in where.items():
            grid = grid._drop(name, label)
        return grid

    def _drop(self, name: str, label: str) -> Grid:
        dim, labels = self.dim(name), self.axis(name).labels
        if label not in labels:
            came, first = f"{self.name}: no {name} {label!r}", ", ".join(labels[:20])
            raise unknown(MeasureError, came, label, labels, described=first)
        i = labels.index(label)
        return self._map(lambda a: np.take(a, i, dim), self.axes[:dim] + self.axes[dim + 1 :])

    def take(self, axis: str, labels: Sequence[str]) -> Grid:
        """The given labels of one axis, in the given order."""
        dim, known = self.dim(axis), self.axis(axis).labels
        place = {label: i for i, label in enumerate(known)}
        index = [place[label] for label in labels]
        axes = (*self.axes[:dim], Axis(axis, tuple(labels)), *self.axes[dim + 1 :])
        return self._map(lambda a: np.take(a, index, dim), axes)

    def _map(self, function: Callable[[Array], Array], axes: tuple[Axis, ...]) -> Grid:
        def maybe(a: Array | None) -> Array | None:
            # numpy returns a scalar when the last axis is removed
            return None if a is None else np.asarray(function(a))

        return replace(
            self,
            values=np.asarray(function(self.values)),
            lower=maybe(self.lower),
            upper=maybe(self.upper),
            n=maybe(self.n),
            axes=axes,
        )

    def to_polars(self) -> pl.DataFrame:
        """Long form: one row per measured cell, a column per axis, then value, lower, upper, n."""
        import polars as pl

        where = np.nonzero(~np.isnan(self.values))
        columns: dict[str, Any] = {
            axis.name: np.array(axis.labels, dtype=object)[index].astype(str)
            for axis, index in zip(self.axes, where, strict=True)
        }
        columns["value"] = self.values[where]
        for name in ("lower", "upper", "n"):
            extra = getattr(self, name)
            if extra is not None:
                columns[name] = extra[where]
        return pl.DataFrame(columns).with_columns(pl.lit(self.unit).alias("unit"))

    def to_pandas(self) -> pd.DataFrame:
        """As `to_polars`, for pandas (which has to be installed)."""
        return self.to_polars().to_pandas()

    def plot(self, **options: Any) -> Any:
        """A plotly figure of this grid."""
        return draw("grid.plot", self, **options)

    def _repr_html_(self) -> str:
        return str(draw("grid.html", self))


def concatenate(grids: Sequence[Grid], axis: str = "prompt") -> Grid:
    """Join chunks of one measurement along an axis.

    Other axes may differ in length if the labels of the shorter are the first of the longer
    (positions). The shorter are filled with NaN, which means "not measured".

    Raises: MeasureError if their labels disagree.
    """
    first = grids[0]
    dim = first.dim(axis)
    axes = list(first.axes)
    for grid in grids[1:]:
        for i, other in enumerate(grid.axes):
            if i == dim:
                continue
            short, long = sorted((axes[i], other), key=len)
            if short.name != long.name or long.labels[: len(short)] != short.labels:
                raise MeasureError(f"chunks of {first.name} disagree on axis {axes[i].name}")
            axes[i] = long
    labels = tuple(label for grid in grids for label in grid.axes[dim].labels)
    axes[dim] = Axis(axis, labels)

    def widen(array: Array) -> Array:
        pad = [(0, 0 if i == dim else len(axes[i]) - size) for i, size in enumerate(array.shape)]
        return np.pad(array, pad, constant_values=np.nan) if any(p[1] for p in pad) else array

    values = np.concatenate([widen(grid.values) for grid in grids], dim)
    error = worst_error([grid.error for grid in grids])
    return replace(first, values=values, axes=tuple(axes), error=error)


def worst_error(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The worst of several checks: the one with the largest gap in units of its own bound.

    Checks without gap and bound give the largest value of each entry.
    """
    checked = [error for error in errors if {"gap", "bound"} <= error.keys()]
    worst = max(checked, key=lambda error: error["gap"] / error["bound"], default={})
    keys = sorted({key for error in errors for key in error})
    largest = {key: max(error[key] for error in errors if key in error) for key in keys}
    return largest | dict(worst)


@dataclass(frozen=True)
class Table:
    """Measured rows that do not form an array: predictions, exclusions, scores.

    Attributes:
        name: also the file name in a study ("predictions").
        columns: equally long lists, by column name.
        about: one sentence: what a row is.
    """

    name: str
    columns: Mapping[str, list[Any]]
    about: str = ""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise MeasureError(f"{self.name}: columns of unequal length {lengths}")

    def __repr__(self) -> str:
        n = len(next(iter(self.columns.values()), []))
        title = f"Table {self.name}: {n:,} rows × {len(self.columns)} columns"
        facts = {"columns": some(list(self.columns), 12), "about": self.about}
        return described(title, facts, self._head(n))

    def _head(self, n: int) -> Iterator[str]:
        """The first rows under their columns' names, as many columns as fit."""
        columns = []
        left = WIDTH - 2
        for name, values in self.columns.items():
            cells = [cut(_cell(value), 24) for value in (name, *values[:MOST_SHOWN])]
            width = max(map(len, cells))
            left -= width + 2
            if left < 0:
                break
            columns.append([f"{cell:<{width}}" for cell in cells])
        yield from ("  " + "  ".join(row) for row in zip(*columns, strict=True))
        if n > MOST_SHOWN:
            yield f"  … {n - MOST_SHOWN:,} more rows: .to_polars()"

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per row."""
        names = list(self.columns)
        return [
            dict(zip(names, row, strict=True)) for row in zip(*self.columns.values(), strict=True)
        ]

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars frame."""
        import polars as pl

        return pl.DataFrame(dict(self.columns), strict=False)

    def to_pandas(self) -> pd.DataFrame:
        """The table as a pandas frame (pandas has to be installed)."""
        return self.to_polars().to_pandas()

    def plot(self, **options: Any) -> Any:
        """A plotly figure of this table: one bar per row."""
        return draw("table.plot", self, **options)

    def _repr_html_(self) -> str:
        return str(draw("table.html", self))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


Result = Grid | Table


class Shown(ABC):
    """An object with several results, which is shown by the main one."""

    @property
    @abstractmethod
    def shown(self) -> Result:
        """The grid or table to show."""

    def plot(self, **options: Any) -> Any:
        """A plotly figure of `shown`."""
        return self.shown.plot(**options)

    def _repr_html_(self) -> str:
        return self.shown._repr_html_()


def concatenate_tables(tables: Sequence[Table]) -> Table:
    """Join chunks of one table, row after row."""
    first = tables[0]
    columns = {name: [v for t in tables for v in t.columns[name]] for name in first.columns}
    return replace(first, columns=columns)
