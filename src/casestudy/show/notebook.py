"""How is a result shown in a notebook?

As HTML with the report's own drawings: without plotly, without script and without a network.
`attention_heads` is CircuitsVis' view, which needs CircuitsVis installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from casestudy.errors import MeasureError
from casestudy.results.result import Grid, Table
from casestudy.show import marks, svg
from casestudy.show.page import as_json, template_text
from casestudy.show.text import (
    clean,
    count,
    interval,
    number,
    shorten,
    signed,
    token_or_text,
    visible,
)

ROWS_SHOWN = 20
MOST_DRAWN = 64
"""The largest number of labels of one axis in a notebook's figure."""


@dataclass(frozen=True)
class Html:
    """A piece of HTML that a notebook shows."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.html


def attention_heads(pattern: Grid, **where: str) -> Html:
    """CircuitsVis' view of one layer's attention patterns, working without a network.

    CircuitsVis itself loads its script from the internet each time it is shown. Its package
    contains the script (1.3 MB); this function writes it into the view.

    Args:
        pattern: a grid with the axes head, query_pos and key_pos, as a study stores
            (`pattern.0`) or `attention_pattern` gives, and perhaps layer.
        where: a label for every other axis: `layer="3"`.

    Raises: MeasureError for other axes, or if CircuitsVis is not installed.
    """
    cut = pattern.select(**where)
    names = [axis.name for axis in cut.axes]
    if names != ["head", "query_pos", "key_pos"]:
        raise MeasureError(
            f"attention patterns with the axes {', '.join(names)}",
            allowed="head, query_pos, key_pos",
            hint="Fix the others: attention_heads(pattern, layer='0')",
        )
    found = importlib.util.find_spec("circuitsvis")
    if found is None or found.origin is None:
        raise MeasureError(
            "circuitsvis is not installed", hint="Install it: pip install 'casestudy[notebook]'"
        )
    script = Path(found.origin).parent.joinpath("dist", "cdn", "iife.js").read_text("utf-8")
    # Without its source map, which a browser's tools would look for; and nothing in it may close
    # the element it stands in.
    script = script.partition("//# sourceMappingURL")[0].replace("</script", "<\\/script")
    props = as_json(
        {
            "attention": np.round(cut.values.astype(float), 4).tolist(),
            "tokens": [visible(label.partition(":")[2]) for label in cut.axes[-1].labels],
            "attentionHeadNames": [f"head {label}" for label in cut.axes[0].labels],
            "maskUpperTri": True,
        }
    )
    name = "attention-" + hashlib.sha256(props.encode("utf-8")).hexdigest()[:12]
    return Html(
        f'<div id="{name}" style="margin: 15px 0"></div><script type="module">{script}\n'
        f'CircuitsVis.render("{name}", CircuitsVis.AttentionHeads, {props});</script>'
    )


def grid_html(grid: Grid) -> str:
    """A grid as a notebook shows it: a drawing, its unit, n, interval and error. No script."""
    cut, fixed = grid, []
    for axis in grid.axes[: max(0, len(grid.axes) - 2)]:
        cut = cut.select(**{axis.name: axis.labels[0]})
        fixed.append(f"{axis.name} {clean(axis.labels[0])} of {len(axis)}")
    for axis in cut.axes:
        if len(axis) > MOST_DRAWN:
            cut = cut.take(axis.name, axis.labels[:MOST_DRAWN])
            fixed.append(f"the first {MOST_DRAWN} of {len(axis):,} along {axis.name}")
    shape = " × ".join(f"{axis.name} {len(axis)}" for axis in grid.axes) or "one number"
    facts = [shape, grid.unit, *(f"shown: {f}" for f in fixed)]
    facts += [f"{key} {number(value)}" for key, value in grid.error.items()]
    body = _drawn(cut)
    return str(
        Markup(
            '<div class="casestudy"><style>{}</style><p><b>{}</b> {}</p>{}<p class="about">{}</p>'
            "</div>"
        ).format(
            Markup(template_text("plot.css")),
            clean(grid.name),
            "; ".join(facts),
            body,
            clean(grid.about),
        )
    )


def _drawn(grid: Grid) -> Markup:
    values = np.asarray(grid.values, dtype=float)
    known = values[np.isfinite(values)]
    if not known.size:
        return Markup("<p>{}</p>").format("nothing was measured")
    if values.ndim == 0:
        lowest, highest = (None if a is None else float(a) for a in (grid.lower, grid.upper))
        return Markup("<p>{} [{}]</p>").format(signed(float(values)), interval(lowest, highest))
    titles = marks.Data.of(grid).titles()
    mark = marks.mark_of(grid)
    if isinstance(mark, marks.Waterfall):
        titles.append(f"{mark.total_label}: {number(mark.total)} {grid.unit}")
    return svg.draw(mark).svg(marks.alternative(grid), [clean(title) for title in titles])


def study_html(name: str, n: int, headline: Grid | None, holds: Sequence[str], path: str) -> str:
    """A study as a notebook shows it: its headline, and the names of its other results."""
    return str(
        Markup(
            '<div class="casestudy"><style>{}</style><p><b>{}</b> {}</p><p class="about">{}</p>'
            '<p class="about">{}</p></div>{}'
        ).format(
            Markup(template_text("plot.css")),
            clean(name),
            count(n, "prompt"),
            f"In {clean(path)}; report() writes the page. Ask for study[…]:",
            clean(", ".join(holds)),
            Markup("") if headline is None else Markup(grid_html(headline)),
        )
    )


def trace_html(prompts: int, kept: Sequence[tuple[str, Sequence[int]]]) -> str:
    """The sites that a run kept, as a notebook shows them: names and shapes, not numbers."""
    columns = {"kept": [name for name, _ in kept], "shape": [str(tuple(s)) for _, s in kept]}
    return table_html(Table(f"Trace of {count(prompts, 'prompt')}", columns))


def table_html(table: Table) -> str:
    """A table as a notebook shows it: its first rows, and how many there are."""
    rows = table.rows()
    head = Markup("").join(Markup("<th>{}</th>").format(clean(name)) for name in table.columns)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td>{}</td>").format(_cell(v)) for v in row.values())
        )
        for row in rows[:ROWS_SHOWN]
    )
    more = f"{len(rows):,} rows" + (f", {ROWS_SHOWN} shown" if len(rows) > ROWS_SHOWN else "")
    return str(
        Markup(
            '<div class="casestudy"><style>{}</style><p><b>{}</b> {}</p><table><thead><tr>{}</tr>'
            '</thead><tbody>{}</tbody></table><p class="about">{}</p></div>'
        ).format(
            Markup(template_text("plot.css")),
            clean(table.name),
            more,
            head,
            body,
            clean(table.about),
        )
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return number(value, 3)
    return "" if value is None else shorten(token_or_text(value), 60)
