"""How does one run of a prompt fill a page's panels?

From a probe's grids to figures by the report's drawing functions, and to one piece of HTML per
panel. A panel that cannot be filled says why in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show import marks
from casestudy.show.blocks import Figure, paragraph
from casestudy.show.explorer.page_state import VIEWS, PageState
from casestudy.show.page import environment, figure_html
from casestudy.show.sections.attention import attention_mark
from casestudy.show.sections.ledger import heads_figure, largest_heads, lens_figure
from casestudy.show.sections.predictions import class_figure
from casestudy.show.sections.prompts import ledger_figure
from casestudy.show.text import chip, chips, clean, listing, number, percent, signed, visible

if TYPE_CHECKING:
    from casestudy.measure.quick_look import Probe

TITLES = {
    "predictions": "What comes next? Predictions",
    "classes": "Which kinds of token? Probability by class",
    "ledger": "Who writes the difference? Direct contributions",
    "lens": "Where along the depth? Logit lens",
    "heads": "Which heads write it? Direct contributions by head",
    "attention": "Where do they look? Attention",
}
"""The panels, in the page's order, by the names of their places on it."""

PLACES = ("tokens-0", "tokens-1", "edits", "outcome", *TITLES)
"""Every place of the page that `panels` may fill."""

FIRST = 12
"""Predictions that are seen at once; the others can be unfolded."""
TOP_HEADS = 10
"""Rows of the attention panel."""
MOST_KEYS = 48
"""Its columns: of a longer prompt, the tokens that one of these heads looks at most."""


def panels(
    found: Probe, page_state: PageState, edits: Sequence[tuple[str, str]]
) -> dict[str, Markup]:
    """Each place of the page with what belongs there.

    Args:
        found: by the model.
        page_state: by the page.
        edits: corrupted prompts that may be chosen, with the kind of each.
    """
    probed = [chips(tokens) for tokens in found.tokens]
    html = {
        "tokens-0": _counted(probed[0], len(found.tokens[0])),
        "tokens-1": _counted(probed[1], len(found.tokens[1])) if len(probed) > 1 else Markup(""),
        "edits": _macro("edits", edits, page_state.corrupted),
        "outcome": _outcome(found, page_state) + _noticed(found),
        "predictions": _predictions(found, page_state),
        "classes": figure_html(_classes(found.classes, page_state)),
    }
    contrasted: dict[str, Callable[[Probe, PageState], Figure]] = {
        "ledger": _ledger,
        "lens": _lens,
        "heads": _heads,
        "attention": _attention,
    }
    for name, make in contrasted.items():
        if found.problem is None:
            html[name] = figure_html(make(found, page_state))
        else:
            html[name] = Markup('<p class="caption">{}</p>').format(
                "There is nothing to share out until an answer is weighed against a counterpart."
            )
    return html


def problem(why: str) -> Markup:
    """A sentence that stands where a result cannot."""
    return Markup('<p class="notice" role="alert">{}</p>').format(clean(why))


def _noticed(found: Probe) -> Markup:
    """How the texts were read, where that is not plain."""
    line = Markup('<p class="notice" role="note">{}</p>')
    return Markup("").join(line.format(clean(notice)) for notice in found.notices)


def _counted(shown: Markup, n: int) -> Markup:
    return Markup('{} <span class="q">{} token{}</span>').format(shown, n, "" if n == 1 else "s")


def _viewed(grid: Grid, page_state: PageState) -> Grid:
    """A probe's grid at its one contrast, for the prompt that is looked at."""
    (contrast,) = grid.axis("contrast").labels
    return grid.select(contrast=contrast, prompt=str(page_state.row))


def _weighed(found: Probe) -> str:
    return f"{visible(found.answer)} against {visible(found.counterpart)}"


def _outcome(found: Probe, page_state: PageState) -> Markup:
    """The difference in a sentence, for both prompts."""
    if found.problem is not None:
        return problem(found.problem)
    (values,) = found.grids[names.LOGIT_DIFFERENCE].values.tolist()
    words = paragraph(
        'After {}, {} has <b class="figure">{}</b> logits on {}.',
        VIEWS["clean"] if len(values) > 1 else "this prompt",
        chip(found.answer),
        signed(values[0]),
        chip(found.counterpart),
    )
    if len(values) > 1:
        words += paragraph(
            'After {}: <b class="figure">{}</b>.', VIEWS["corrupted"], signed(values[1])
        )
    return words


def _predictions(found: Probe, page_state: PageState) -> Markup:
    """The most probable next tokens, each a choice for answer and counterpart."""
    rows = found.predictions.rows()
    probs = [
        {r["id"]: r["prob"] for r in rows if r["prompt"] == i} for i in range(len(page_state.texts))
    ]
    other = probs[1 - page_state.row] if len(probs) > 1 else None
    shown = [
        {
            "place": row["rank"] + 1,
            "id": row["id"],
            "written": row["written"],
            "chip": chip(row["token"]),
            "named": visible(row["token"]),
            "prob": percent(row["prob"]),
            "share": round(row["prob"] / (max(probs[page_state.row].values()) or 1), 4),
            "other": None if other is None else percent(other.get(row["id"])),
            "logit": number(row["logit"]),
        }
        for row in rows
        if row["prompt"] == page_state.row
    ]
    if other is not None:
        least = min(other.values())
        for entry in shown:
            if entry["other"] == "not measured":
                entry["other"] = f"below {percent(least)}"
    return _macro(
        "predictions",
        shown[:FIRST],
        shown[FIRST:],
        found.answer and found.answer.id,
        found.counterpart and found.counterpart.id,
        VIEWS["clean" if page_state.row else "corrupted"] if other is not None else "",
    )


def _classes(grid: Grid, page_state: PageState) -> Figure:
    grid = grid.select(prompt=str(page_state.row))
    labels = grid.axis("class").labels
    grid = grid.take("class", [labels[i] for i in np.flatnonzero(np.isfinite(grid.values))])
    best = int(np.argmax(grid.values))
    most = f"{grid.axis('class').labels[best]}, {percent(float(grid.values[best]))}"
    return _unstored(
        class_figure(
            grid,
            alt=f"Bars of probability by class of token; most goes to {most}.",
            caption="Summed over the whole vocabulary.",
        )
    )


def _ledger(found: Probe, page_state: PageState) -> Figure:
    ledger, check = (
        _viewed(found.grids[name], page_state) for name in (names.LEDGER, names.LEDGER_CHECK)
    )
    figure = ledger_figure(
        ledger,
        check,
        "The ledger: every term of the logit difference",
        of="the prompt’s",
        contrast=_weighed(found),
    )
    return _unstored(figure)


def _lens(found: Probe, page_state: PageState) -> Figure:
    frozen, own = (
        _viewed(found.grids[name], page_state) for name in (names.LENS, names.LENS_OWN_NORM)
    )
    return _unstored(lens_figure(frozen, own, height=200))


def _heads(found: Probe, page_state: PageState) -> Figure:
    shares = _viewed(found.grids[names.HEAD_SHARES], page_state)
    return _unstored(heads_figure(shares, opens=True))


def _unstored(figure: Figure) -> Figure:
    """A section's figure of a run that no study holds."""
    return replace(figure, data=replace(figure.data, source=""))


def _attention(found: Probe, page_state: PageState) -> Figure:
    grid = found.grids[names.attention_from(page_state.row)]
    top = largest_heads(_viewed(found.grids[names.HEAD_SHARES], page_state), TOP_HEADS)
    values = np.stack([grid.select(layer=a, head=b).values for a, b in top])
    rows = [f"{a}.{b}" for a, b in top]
    every = grid.axis("key_pos").labels
    most = np.sort(np.argsort(-values.max(0), kind="stable")[:MOST_KEYS])
    values, keys = values[:, most], [every[k] for k in most]
    left_out = len(every) - len(keys)
    tokens = [label.partition(":")[2] for label in keys]
    said = [
        f"{row} looks most at “{visible(tokens[k])}” ({percent(float(line[k]))})"
        for row, line in zip(rows[:3], values, strict=False)
        for k in [int(np.argmax(line))]
    ]
    return Figure(
        "Attention from the last token, of the heads that write most",
        replace(attention_mark(values, rows, tokens, opens=True), tokens=True),
        f"Heatmap of attention by head and token: {listing(said)}.",
        marks.Data(
            [("head", rows), ("key_pos", keys)], {"value": marks.numbers(values)}, grid.unit
        ),
        (f"Without the {left_out} tokens that get least. " if left_out else "")
        + "A click on a row opens the whole pattern. Attention says what a head reads; "
        "whether the model uses it, patching says.",
    )


def pattern_bytes(grid: Grid) -> bytes:
    """A pattern for the page's script: a byte per entry on and below the diagonal."""
    rows, cols = np.tril_indices(len(grid.axes[0]))
    packed = (np.clip(grid.values[rows, cols], 0, 1) * 255).round()
    return bytes(packed.astype(np.uint8).tobytes())


def _macro(name: str, *values: Any) -> Markup:
    module = environment().get_template("panels.html").module
    return Markup(getattr(module, name)(*values))
