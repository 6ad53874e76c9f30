"""How does a measurement look in Python?

`heatmap`, `line` and `scatter` draw plotly figures from arrays, torch tensors or grids: diverging
colours centred at zero, labels on hover. `plot_grid` is what `Grid.plot()` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.errors import MeasureError
from casestudy.results.result import Array, Axis, Grid, Table
from casestudy.show.distribution import MOST_DOTS
from casestudy.show.notebook import attention_heads as attention_heads
from casestudy.show.text import token_or_text

BLUE, PAPER, ORANGE = "#1f5fa8", "#f7f6f2", "#c4501b"
DIVERGING = [[0.0, ORANGE], [0.5, PAPER], [1.0, BLUE]]
"""Orange below zero, blue above: told apart under every common colour blindness, and in grey by
neither being the paper's colour."""

LINES = ("#1f5fa8", "#c4501b", "#1d7f63", "#8a5a9e", "#8f6b00", "#4c5763")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_CURVES = ("depth", "proportion", "checkpoint")
"""Last axes along which each row of a grid is a line."""
_ORDERED = (*_CURVES, "layer", "position", "pos", "query_pos", "key_pos")


def as_array(values: Any) -> Array:
    """Numbers from a grid, an array, a list, or a tensor of any device and type."""
    if isinstance(values, Grid):
        return values.values
    if hasattr(values, "detach"):  # a torch tensor: known by its methods, so that torch stays out
        values = values.detach().cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values
    return np.asarray(values, dtype=float)


def heatmap(
    values: Any,
    *,
    rows: Sequence[object] | None = None,
    cols: Sequence[object] | None = None,
    yaxis: str = "",
    xaxis: str = "",
    unit: str = "",
    title: str = "",
    limit: float | None = None,
) -> Any:
    """Cells coloured by value, zero the colour of paper.

    Args:
        values: two-dimensional; a grid brings its labels, axis names and unit.
        rows, cols: labels; places are counted where there are none.
        yaxis, xaxis: what rows and columns are.
        unit: of the values.
        title: of the figure.
        limit: the value of full colour; by default the largest magnitude.

    Raises: MeasureError where the values have another number of dimensions.
    """
    import plotly.graph_objects as go

    grid = values if isinstance(values, Grid) else None
    if grid is not None and len(grid.axes) == 2:
        rows, cols = rows or grid.axes[0].labels, cols or grid.axes[1].labels
        yaxis, xaxis = yaxis or grid.axes[0].name, xaxis or grid.axes[1].name
        unit, title = unit or grid.unit, title or grid.name
    array = as_array(values)
    if array.ndim != 2:
        raise MeasureError(
            f"a heatmap of {array.ndim} dimensions {array.shape}",
            allowed="two; fix the others first, for instance grid.select(contrast='lowercase')",
        )
    known = np.abs(array[np.isfinite(array)])
    limit = limit or (float(known.max()) if known.size else 0.0) or 1.0
    ys = _labels(rows, array.shape[0], "rows")
    xs = _labels(cols, array.shape[1], "cols")
    figure = go.Figure(
        go.Heatmap(
            z=array,
            zmin=-limit,
            zmax=limit,
            colorscale=DIVERGING,
            colorbar={"title": {"text": unit}, "thickness": 12, "outlinewidth": 0},
            hoverongaps=False,
            customdata=_pairs(ys, xs, array.shape),
            hovertemplate=(
                f"{yaxis or 'row'} %{{customdata[0]}}<br>{xaxis or 'column'} %{{customdata[1]}}"
                f"<br>%{{z:.4g}} {unit}<extra></extra>"
            ),
        )
    )
    figure.update_xaxes(tickvals=_some(len(xs)), ticktext=[xs[i] for i in _some(len(xs))])
    figure.update_yaxes(tickvals=_some(len(ys)), ticktext=[ys[i] for i in _some(len(ys))])
    figure.update_yaxes(autorange="reversed")
    return _finish(figure, title, xaxis, yaxis)


def line(
    values: Any,
    *,
    x: Sequence[object] | None = None,
    names: Sequence[str] | None = None,
    xaxis: str = "",
    unit: str = "",
    title: str = "",
) -> Any:
    """Values along an ordered axis, with a band where a grid brings an interval.

    Args:
        values: one dimension, or two with a line per row; a grid brings labels and intervals.
        x: labels along the axis.
        names: of the lines.
        xaxis: what the axis is.
        unit: of the values.
        title: of the figure.

    Raises: MeasureError where the values have another number of dimensions.
    """
    import plotly.graph_objects as go

    grid = values if isinstance(values, Grid) else None
    if grid is not None and 1 <= len(grid.axes) <= 2:
        x, xaxis = x or grid.axes[-1].labels, xaxis or grid.axes[-1].name
        unit, title = unit or grid.unit, title or grid.name
        names = names or (grid.axes[0].labels if len(grid.axes) == 2 else (grid.name,))
    array = np.atleast_2d(as_array(values))
    if array.ndim != 2:
        raise MeasureError(f"lines of {array.ndim} dimensions {array.shape}", allowed="one or two")
    places = list(range(array.shape[1]))
    texts = _labels(x, array.shape[1], "x")
    titles = _labels(names, array.shape[0], "names")
    figure = go.Figure()
    for k, row in enumerate(array):
        colour = LINES[k % len(LINES)]
        if grid is not None and grid.lower is not None and grid.upper is not None:
            low, high = np.atleast_2d(grid.lower)[k], np.atleast_2d(grid.upper)[k]
            figure.add_trace(_band(places, low, high, colour))
        figure.add_trace(
            go.Scatter(
                x=places,
                y=row,
                mode="lines+markers",
                name=titles[k],
                line={"color": colour, "width": 2, "dash": DASHES[k % len(DASHES)]},
                customdata=texts,
                hovertemplate=(
                    f"{xaxis} %{{customdata}}<br>%{{y:.4g}} {unit}<extra>%{{fullData.name}}</extra>"
                ),
            )
        )
    some = _some(len(places), 26)
    figure.update_xaxes(tickvals=some, ticktext=[texts[i] for i in some])
    figure.update_layout(showlegend=len(array) > 1)
    return _finish(figure, title, xaxis, unit)


def _band(places: Sequence[int], low: Array, high: Array, colour: str) -> Any:
    import plotly.graph_objects as go

    known = [i for i in places if np.isfinite(low[i]) and np.isfinite(high[i])]
    return go.Scatter(
        x=[*known, *reversed(known)],
        y=[*(high[i] for i in known), *(low[i] for i in reversed(known))],
        fill="toself",
        fillcolor=colour,
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def scatter(
    x: Any,
    y: Any,
    *,
    labels: Sequence[object] | None = None,
    xaxis: str = "",
    yaxis: str = "",
    title: str = "",
) -> Any:
    """One point per pair of values, its label on hover.

    Args:
        x, y: equally many values; grids of the same axes bring their labels.
        labels: of the points.
        xaxis, yaxis: what the values are.
        title: of the figure.

    Raises: MeasureError where x and y differ in number.
    """
    import plotly.graph_objects as go

    xs, ys = as_array(x), as_array(y)
    if xs.size != ys.size:
        raise MeasureError(f"{xs.size} values of x and {ys.size} of y", allowed="equally many")
    if isinstance(x, Grid):
        xaxis = xaxis or f"{x.name}, {x.unit}"
        labels = labels or _places(x.axes)
    if isinstance(y, Grid):
        yaxis = yaxis or f"{y.name}, {y.unit}"
        labels = labels or _places(y.axes)
    texts = _labels(labels, xs.size, "labels")
    figure = go.Figure(
        go.Scatter(
            x=xs.ravel(),
            y=ys.ravel(),
            mode="markers",
            marker={"color": BLUE, "size": 8, "opacity": 0.75},
            text=texts,
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(zeroline=True)
    return _finish(figure, title, xaxis, yaxis)


def waterfall(
    terms: Grid | Mapping[str, float], *, total: float | None = None, title: str = ""
) -> Any:
    """A ledger: each term starts where the one before ended, and the last bar is the total.

    Args:
        terms: a grid with the one axis "term", or values by name.
        total: the logit difference; the sum of the terms by default.
        title: of the figure.

    Raises: MeasureError where the grid has other axes.
    """
    import plotly.graph_objects as go

    unit = "logits"
    if isinstance(terms, Grid):
        if [axis.name for axis in terms.axes] != ["term"]:
            names = ", ".join(axis.name for axis in terms.axes)
            raise MeasureError(
                f"a waterfall of a grid with the axes {names}",
                allowed="term alone; fix the others with grid.select(contrast=…, prompt=…)",
            )
        title, unit = title or terms.name, terms.unit
        terms = dict(zip(terms.axes[0].labels, terms.values.tolist(), strict=True))
    values = list(terms.values())
    total = float(np.nansum(values)) if total is None else total
    figure = go.Figure(
        go.Waterfall(
            x=[*(_html(t) for t in terms), "logit difference"],
            y=[*values, total],
            # "absolute": the total is a measurement of its own, not the sum drawn once more.
            measure=["relative"] * len(values) + ["absolute"],
            increasing={"marker": {"color": BLUE}},
            decreasing={"marker": {"color": ORANGE}},
            totals={"marker": {"color": "#3b3a38"}},
            connector={"line": {"color": "#8d8a83", "width": 1}},
            customdata=[*values, total],
            hovertemplate=f"%{{x}}<br>%{{customdata:.4g}} {unit}<extra></extra>",
        )
    )
    return _finish(figure, title, "", unit)


def plot_grid(grid: Grid, **where: Any) -> Any:
    """A plotly figure of a grid.

    A ledger becomes a waterfall, an ordered axis a line, two axes a heatmap. Axes beyond two are
    fixed at their first label unless given, and the title says at which.

    Args:
        grid: any measurement.
        where: a label per axis to fix (`contrast="lowercase"`), and `title`.

    Raises: MeasureError for an axis or a label that the grid does not have.
    """
    title = str(where.pop("title", grid.name))
    fixed = {name: str(label) for name, label in where.items()}
    cut = grid.select(**fixed)
    keep = 1 if any(axis.name == "term" for axis in cut.axes) else 2
    while len(cut.axes) > keep:
        axis = next(a for a in cut.axes if a.name != "term")
        fixed[axis.name] = axis.labels[0]
        cut = cut.select(**{axis.name: axis.labels[0]})
    if fixed:
        title += " (" + ", ".join(f"{name} {label}" for name, label in fixed.items()) + ")"
    names = [axis.name for axis in cut.axes]
    if names == ["term"]:
        return waterfall(cut, title=title)
    if not names:
        return line(cut.values.reshape(1), x=[cut.name], unit=cut.unit, title=title)
    if names[-1] == "prompt":
        return _spread(cut, title)
    if len(names) == 1 or names[-1] in _CURVES:
        return line(cut, title=title) if names[-1] in _ORDERED else _bars(cut, title)
    return heatmap(cut, title=title)


def _spread(grid: Grid, title: str) -> Any:
    """One value per prompt: a box per row, with every prompt beside it where they are few."""
    import plotly.graph_objects as go

    rows = grid.axes[0].labels if len(grid.axes) == 2 else (grid.name,)
    texts = [_html(label) for label in grid.axes[-1].labels]
    figure = go.Figure(
        [
            go.Box(
                x=line,
                name=_html(name),
                text=texts,
                boxpoints="all" if len(texts) <= MOST_DOTS else "outliers",
                pointpos=0,
                jitter=0.5,
                marker={"color": BLUE, "size": 5, "opacity": 0.6},
                line={"color": "#4c5763", "width": 1},
                hovertemplate=f"prompt %{{text}}<br>%{{x:.4g}} {grid.unit}<extra>%{{y}}</extra>",
            )
            for name, line in zip(rows, np.atleast_2d(grid.values), strict=True)
        ]
    )
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(showlegend=False)
    return _finish(figure, title, grid.unit, grid.axes[0].name if len(grid.axes) == 2 else "")


def _bars(grid: Grid, title: str) -> Any:
    (axis,) = grid.axes
    ends = None if grid.lower is None or grid.upper is None else (grid.lower, grid.upper)
    return bars(axis.labels, grid.values, ends=ends, xaxis=axis.name, unit=grid.unit, title=title)


def bars(
    labels: Sequence[object],
    values: Any,
    *,
    ends: tuple[Any, Any] | None = None,
    xaxis: str = "",
    unit: str = "",
    title: str = "",
) -> Any:
    """A bar from zero per label, with its interval where the ends are given.

    Args:
        labels: one per bar.
        values: as many numbers.
        ends: lower and upper ends of an interval around each.
        xaxis: what the labels are.
        unit: of the values.
        title: of the figure.
    """
    import plotly.graph_objects as go

    y = as_array(values)
    error = None
    if ends is not None:
        low, high = map(as_array, ends)
        error = {
            "type": "data",
            "symmetric": False,
            "array": high - y,
            "arrayminus": y - low,
            "thickness": 1,
        }
    figure = go.Figure(
        go.Bar(
            x=_labels(labels, y.size, "labels"),
            y=y,
            error_y=error,
            marker={"color": [BLUE if v >= 0 else ORANGE for v in y.tolist()]},
            hovertemplate=f"{xaxis} %{{x}}<br>%{{y:.4g}} {unit}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    return _finish(figure, title, xaxis, unit)


_MEASURED = ("mean", "value", "score", "difference", "flip_share", "prob", "seconds")
"""Columns of a table that a reader wants drawn, the first that is there."""

_NO_LABEL = ("n", "id", "rank", "unit", "a_n", "b_n")


def plot_table(table: Table, *, value: str = "", most: int = 40, **where: Any) -> Any:
    """A bar per row of a table.

    Args:
        table: any.
        value: the column drawn; by default a mean, score, probability or the like.
        most: so many rows at most, the first ones; the title says how many there are.
        where: rows to keep (`prompt=3`), and `title`.

    Raises: MeasureError where no column holds numbers, or a named column is not there.
    """
    title = str(where.pop("title", table.name))
    for name in (*where, *filter(None, [value])):
        if name not in table.columns:
            raise MeasureError(
                f"{table.name} has no column {name!r}", allowed=", ".join(table.columns)
            )
    rows = [r for r in table.rows() if all(str(r[k]) == str(v) for k, v in where.items())]
    floats = [n for n, cells in table.columns.items() if any(isinstance(c, float) for c in cells)]
    value = value or next((name for name in _MEASURED if name in floats), next(iter(floats), ""))
    if not value:
        raise MeasureError(f"no column of {table.name} holds measured numbers", hint="value='…'")
    named = [
        name
        for name in list(table.columns)[: list(table.columns).index(value)]
        if name not in (*floats, *_NO_LABEL, *where)
    ]
    shown = rows[:most]
    labels = [
        ", ".join(token_or_text(row[name]) for name in named) or str(i)
        for i, row in enumerate(shown)
    ]
    lower, upper = (
        next((n for n in names if n in floats), "")
        for names in (("lower", f"{value}_lower"), ("upper", f"{value}_upper"))
    )
    ends = ([r[lower] for r in shown], [r[upper] for r in shown]) if lower and upper else None
    if where:
        title += " (" + ", ".join(f"{name} {label}" for name, label in where.items()) + ")"
    if len(rows) > len(shown):
        title += f", the first {len(shown)} of {len(rows):,} rows"
    return bars(
        labels,
        [r[value] for r in shown],
        ends=ends,
        xaxis=", ".join(named),
        unit=value,
        title=title,
    )


def plot_activation(
    values: Any,
    name: str,
    axes: Sequence[str],
    tokens: Sequence[str] | None = None,
    **where: Any,
) -> Any:
    """One prompt's activation as `plot_grid` draws it.

    Args:
        values: an array or tensor.
        name: of the site.
        axes: names of its dimensions.
        tokens: the prompt's tokens, as labels of the positions.
        where: as `plot_grid` takes it.
    """
    array = as_array(values)
    found = []
    for axis, size in zip(axes, array.shape, strict=True):
        at = axis in ("pos", "query_pos", "key_pos") and tokens is not None
        labels = [f"{i}:{token}" for i, token in enumerate(tokens or ())]
        if at and len(labels) != size:
            raise MeasureError(f"{len(labels)} tokens for {size} positions", allowed="as many")
        found.append(Axis(axis, tuple(labels)) if at else Axis.count(axis, size))
    return plot_grid(
        Grid(name, array, tuple(found), "share" if name.startswith("pattern") else ""), **where
    )


def _finish(figure: Any, title: str, xaxis: str, yaxis: str) -> Any:
    figure.update_layout(
        title={"text": _html(title), "font": {"size": 15}},
        xaxis_title=_html(xaxis),
        yaxis_title=_html(yaxis),
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        font={"size": 12},
    )
    return figure


def _html(text: object) -> str:
    # plotly reads a small HTML in its texts; a label is never markup
    return str(Markup.escape(token_or_text(text)))


def _labels(labels: Sequence[object] | None, n: int, name: str) -> list[str]:
    if labels is None:
        return [str(i) for i in range(n)]
    if len(labels) != n:
        raise MeasureError(f"{len(labels)} {name} for {n} values", allowed="one label per value")
    return [_html(label) for label in labels]


def _places(axes: Sequence[Axis]) -> list[str]:
    found = [""]
    for axis in axes:
        found = [f"{f}, {axis.name} {x}".removeprefix(", ") for f in found for x in axis.labels]
    return found


def _pairs(ys: Sequence[str], xs: Sequence[str], shape: tuple[int, ...]) -> Array:
    pairs = np.empty((*shape, 2), dtype=object)
    pairs[..., 0] = np.array(ys, dtype=object)[:, None]
    pairs[..., 1] = np.array(xs, dtype=object)[None, :]
    return pairs


def _some(n: int, most: int = 40) -> list[int]:
    return list(range(0, n, max(1, -(-n // most))))
