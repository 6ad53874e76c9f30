"""How are measurements drawn with plotly?

`heatmap`, `line` and `waterfall` turn arrays, torch tensors or grids into marks, and `figure_of`
draws marks with plotly: diverging colours centred at zero, labels on hover. `plot_grid` is what
`Grid.plot()` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.errors import MeasureError
from casestudy.results.result import Array, Axis, Grid, Table
from casestudy.show import marks
from casestudy.show.distribution import MOST_DOTS
from casestudy.show.marks import Mark
from casestudy.show.notebook import attention_heads as attention_heads
from casestudy.show.text import token_or_text

BLUE, PAPER, ORANGE = "#1f5fa8", "#f7f6f2", "#c4501b"
DIVERGING = [[0.0, ORANGE], [0.5, PAPER], [1.0, BLUE]]
"""Orange below zero, blue above: distinguishable with every common colour blindness."""

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
    """Cells coloured by value; zero has the background colour.

    Args:
        values: two-dimensional; a grid has its own labels, axis names and unit.
        rows, cols: labels; by default indices.
        yaxis, xaxis: what rows and columns are.
        unit: of the values.
        title: of the figure.
        limit: the value of full colour; by default the largest magnitude.

    Raises: MeasureError where the values have another number of dimensions.
    """
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
    ys, xs = _labels(rows, array.shape[0], "rows"), _labels(cols, array.shape[1], "cols")
    return figure_of(marks.Heatmap(array, ys, xs, unit, yaxis, xaxis, limit), title)


def _heatmap(mark: marks.Heatmap) -> Any:
    import plotly.graph_objects as go

    ys, xs = list(map(_html, mark.rows)), list(map(_html, mark.cols))
    figure = go.Figure(
        go.Heatmap(
            z=mark.values,
            zmin=-mark.full,
            zmax=mark.full,
            colorscale=DIVERGING,
            colorbar={"title": {"text": mark.unit}, "thickness": 12, "outlinewidth": 0},
            hoverongaps=False,
            customdata=_pairs(ys, xs, mark.values.shape),
            hovertemplate=(
                f"{mark.row_name or 'row'} %{{customdata[0]}}<br>"
                f"{mark.col_name or 'column'} %{{customdata[1]}}"
                f"<br>%{{z:.4g}} {mark.unit}<extra></extra>"
            ),
        )
    )
    figure.update_xaxes(tickvals=_some(len(xs)), ticktext=[xs[i] for i in _some(len(xs))])
    figure.update_yaxes(tickvals=_some(len(ys)), ticktext=[ys[i] for i in _some(len(ys))])
    figure.update_yaxes(autorange="reversed")
    return _axes(figure, mark.col_name, mark.row_name)


def line(
    values: Any,
    *,
    x: Sequence[object] | None = None,
    names: Sequence[str] | None = None,
    xaxis: str = "",
    unit: str = "",
    title: str = "",
) -> Any:
    """Values along an ordered axis, with a band for a grid's interval.

    Args:
        values: one dimension, or two with a line per row; a grid has labels and intervals.
        x: labels along the axis.
        names: of the lines.
        xaxis: what the axis is.
        unit: of the values.
        title: of the figure.

    Raises: MeasureError where the values have another number of dimensions.
    """
    grid = values if isinstance(values, Grid) else None
    if grid is not None and 1 <= len(grid.axes) <= 2:
        x, xaxis = x or grid.axes[-1].labels, xaxis or grid.axes[-1].name
        unit, title = unit or grid.unit, title or grid.name
        names = names or (grid.axes[0].labels if len(grid.axes) == 2 else (grid.name,))
    array = np.atleast_2d(as_array(values))
    if array.ndim != 2:
        raise MeasureError(f"lines of {array.ndim} dimensions {array.shape}", allowed="one or two")
    places, titles = _labels(x, array.shape[1], "x"), _labels(names, array.shape[0], "names")
    none = [None] * len(array)
    ends = (None, None) if grid is None else (grid.lower, grid.upper)
    lower, upper = (none if a is None else list(np.atleast_2d(a)) for a in ends)
    rows = zip(titles, array, lower, upper, strict=True)
    series = [marks.Series.of(*row) for row in rows]
    return figure_of(marks.Lines(places, series, unit, xaxis), title)


def _lines(mark: marks.Lines) -> Any:
    import plotly.graph_objects as go

    places, texts = list(range(len(mark.labels))), list(map(_html, mark.labels))
    figure = go.Figure()
    for k, one in enumerate(mark.series):
        colour = LINES[k % len(LINES)]
        if one.lower is not None and one.upper is not None:
            figure.add_trace(_band(one.lower, one.upper, colour))
        figure.add_trace(
            go.Scatter(
                x=places,
                y=one.values,
                mode="lines+markers",
                name=_html(one.name),
                line={"color": colour, "width": 2, "dash": DASHES[k % len(DASHES)]},
                customdata=texts,
                hovertemplate=(
                    f"{mark.axis} %{{customdata}}<br>%{{y:.4g}} {mark.unit}"
                    "<extra>%{fullData.name}</extra>"
                ),
            )
        )
    if mark.final is not None:
        figure.add_hline(mark.final, line={"dash": "dash", "color": "#4c5763", "width": 1})
    some = _some(len(places), 26)
    figure.update_xaxes(tickvals=some, ticktext=[texts[i] for i in some])
    figure.update_layout(showlegend=len(mark.series) > 1)
    return _axes(figure, mark.axis, mark.unit)


def _band(lower: Sequence[marks.Number], upper: Sequence[marks.Number], colour: str) -> Any:
    import plotly.graph_objects as go

    ends = [(i, a, b) for i, (a, b) in enumerate(zip(lower, upper, strict=True))]
    known = [(i, a, b) for i, a, b in ends if a is not None and b is not None]
    return go.Scatter(
        x=[*(i for i, _, _ in known), *(i for i, _, _ in reversed(known))],
        y=[*(high for _, _, high in known), *(low for _, low, _ in reversed(known))],
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
        x, y: the same number of values; grids of the same axes have labels.
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
            text=list(map(_html, texts)),
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(zeroline=True)
    return _titled(_axes(figure, xaxis, yaxis), title)


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
    return figure_of(marks.Waterfall(list(terms), values, total, unit), title)


def _waterfall(mark: marks.Waterfall) -> Any:
    import plotly.graph_objects as go

    cells = [*mark.values, mark.total]
    figure = go.Figure(
        go.Waterfall(
            x=[*map(_html, mark.terms), _html(mark.total_label)],
            y=cells,
            # "absolute": the total is a measurement of its own, not the sum drawn once more.
            measure=["relative"] * len(mark.values) + ["absolute"],
            increasing={"marker": {"color": BLUE}},
            decreasing={"marker": {"color": ORANGE}},
            totals={"marker": {"color": "#3b3a38"}},
            connector={"line": {"color": "#8d8a83", "width": 1}},
            customdata=cells,
            hovertemplate=f"%{{x}}<br>%{{customdata:.4g}} {mark.unit}<extra></extra>",
        )
    )
    return _axes(figure, "", mark.unit)


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
        return figure_of(_prompts(cut), title)
    if names[-1] in _CURVES or (len(names) == 1 and names[0] in _ORDERED):
        return line(cut, title=title)
    return figure_of(marks.mark_of(cut), title)


def _prompts(grid: Grid) -> marks.Strip:
    """One value per prompt, in a row per label of the other axis."""
    rows = grid.axes[0].labels if len(grid.axes) == 2 else (grid.name,)
    axis = grid.axes[0].name if len(grid.axes) == 2 else ""
    values = [marks.numbers(row) for row in np.atleast_2d(grid.values)]
    return marks.Strip(rows, values, grid.unit, places=grid.axes[-1].labels, axis=axis)


def _strip(mark: marks.Strip) -> Any:
    """A box per row, with every prompt beside it where they are few."""
    import plotly.graph_objects as go

    texts = list(map(_html, mark.places))
    figure = go.Figure(
        [
            go.Box(
                x=row,
                name=_html(name),
                text=texts,
                boxpoints="all" if len(row) <= MOST_DOTS else "outliers",
                pointpos=0,
                jitter=0.5,
                marker={"color": BLUE, "size": 5, "opacity": 0.6},
                line={"color": "#4c5763", "width": 1},
                hovertemplate=f"prompt %{{text}}<br>%{{x:.4g}} {mark.unit}<extra>%{{y}}</extra>",
            )
            for name, row in zip(mark.labels, mark.values, strict=True)
        ]
    )
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(showlegend=False)
    return _axes(figure, mark.unit, mark.axis)


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
    numbers = marks.numbers(as_array(values))
    lower, upper = (None, None) if ends is None else (marks.numbers(as_array(e)) for e in ends)
    names = _labels(labels, len(numbers), "labels")
    return figure_of(marks.Bars(names, numbers, unit, lower, upper, axis=xaxis), title)


def _bars(mark: marks.Bars) -> Any:
    import plotly.graph_objects as go

    y = _floats(mark.values)
    error = None
    if mark.lower is not None and mark.upper is not None:
        error = {
            "type": "data",
            "symmetric": False,
            "array": _floats(mark.upper) - y,
            "arrayminus": y - _floats(mark.lower),
            "thickness": 1,
        }
    figure = go.Figure(
        go.Bar(
            x=list(map(_html, mark.labels)),
            y=y,
            error_y=error,
            marker={"color": [BLUE if v >= 0 else ORANGE for v in y.tolist()]},
            hovertemplate=f"{mark.axis} %{{x}}<br>%{{y:.4g}} {mark.unit}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    return _axes(figure, mark.axis, mark.unit)


def _floats(values: Sequence[marks.Number]) -> Array:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


_MEASURED = ("mean", "value", "score", "difference", "flip_share", "prob", "seconds")
"""Columns of a table to draw: the first one that exists."""

_NO_LABEL = ("n", "id", "rank", "unit", "a_n", "b_n")


def plot_table(table: Table, *, value: str = "", most: int = 40, **where: Any) -> Any:
    """A bar per row of a table.

    Args:
        table: any.
        value: the column drawn; by default a mean, score, probability or the like.
        most: the largest number of rows, from the first; the title gives their total number.
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


def figure_of(mark: Mark, title: str = "") -> Any:
    """A mark as a plotly figure.

    Raises: MeasureError for the marks that only a report draws (histograms, circuits).
    """
    match mark:
        case marks.Heatmap():
            figure = _heatmap(mark)
        case marks.Lines():
            figure = _lines(mark)
        case marks.Waterfall():
            figure = _waterfall(mark)
        case marks.Bars():
            figure = _bars(mark)
        case marks.Strip():
            figure = _strip(mark)
        case _:
            raise MeasureError(f"plotly draws no {type(mark).__name__}", hint="See the report")
    return _titled(figure, title)


def _titled(figure: Any, title: str) -> Any:
    figure.update_layout(
        title={"text": _html(title), "font": {"size": 15}},
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        font={"size": 12},
    )
    return figure


def _axes(figure: Any, x: str, y: str) -> Any:
    return figure.update_layout(xaxis_title=_html(x), yaxis_title=_html(y))


def _html(text: object) -> str:
    # plotly reads a small HTML in its texts; a label is never markup
    return str(Markup.escape(token_or_text(text)))


def _labels(labels: Sequence[object] | None, n: int, name: str) -> list[str]:
    if labels is None:
        return [str(i) for i in range(n)]
    if len(labels) != n:
        raise MeasureError(f"{len(labels)} {name} for {n} values", allowed="one label per value")
    return list(map(str, labels))


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
