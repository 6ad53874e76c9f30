"""How does one run of a prompt fill a page's panels?

The grids of a probe go to the functions of the report's sections, which make a figure or a table of
each; a panel is that figure as HTML. A panel without a result says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show.blocks import Figure, Listing, paragraph
from casestudy.show.explorer.page_state import VIEWS, PageState
from casestudy.show.page import environment, figure_html
from casestudy.show.sections.attention import prompt_attention
from casestudy.show.sections.ledger import heads_figure, largest_heads, lens_figure
from casestudy.show.sections.ledger_figure import ledger_figure
from casestudy.show.sections.predictions import class_figure, next_tokens
from casestudy.show.text import chip, chips, clean, count, number, percent, signed, visible
from casestudy.show.wording import class_words

if TYPE_CHECKING:
    from casestudy.measure.quick_look import Probe
    from casestudy.model.token import Token

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


def panels(
    found: Probe, page_state: PageState, edits: Sequence[tuple[str, str]], first: int = 0
) -> dict[str, Markup]:
    """Each place of the page with what belongs there.

    Args:
        found: by the model.
        page_state: by the page.
        edits: corrupted prompts that may be chosen, with the kind of each.
    """
    html = {
        "tokens-0": _tokens(found, 0, first),
        "tokens-1": _tokens(found, 1) if len(found.tokens) > 1 else Markup(""),
        "edits": _macro("edits", edits, page_state.corrupted),
        "outcome": _outcome(found, page_state) + _noticed(found),
        "predictions": figure_html(_predictions(found, page_state)),
        "classes": figure_html(_classes(found, page_state)),
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
                "This panel needs an answer and a counterpart."
            )
    return html


def problem(why: str) -> Markup:
    """A sentence that stands where a result cannot."""
    return Markup('<p class="notice" role="alert">{}</p>').format(clean(why))


def _noticed(found: Probe) -> Markup:
    """How the texts were read, where that is not plain."""
    line = Markup('<p class="notice" role="note">{}</p>')
    return Markup("").join(line.format(clean(notice)) for notice in found.notices)


def _tokens(found: Probe, row: int, first: int | None = None) -> Markup:
    """A prompt's tokens; each from `first` on, if that is given, is a choice of where to read."""
    read, behind = found.tokens[row], found.behind[row]
    shown = [
        {
            "text": visible(token),
            "value": "" if i + 1 == len(read) + len(behind) else i,
            "choice": first is not None and i >= first,
            "here": i + 1 == len(read),
            "behind": i >= len(read),
            "breaks": str(token).endswith("\n"),
            "position": i,
        }
        for i, token in enumerate((*read, *behind))
    ]
    words = count(len(shown), "token")
    if behind:
        words += f", read at position {len(read) - 1}"
    return _macro("tokens", shown, words)


def _viewed(grid: Grid, page_state: PageState) -> Grid:
    """A probe's grid at its one contrast, for the prompt that is looked at."""
    (contrast,) = grid.axis("contrast").labels
    return grid.select(contrast=contrast, prompt=str(page_state.row))


def _weighed(found: Probe) -> str:
    return " against ".join(_words(side) for side in (found.answer, found.counterpart))


def _words(side: Sequence[Token]) -> str:
    """An answer of one token, or of several."""
    return visible("".join(token.label for token in side))


def _outcome(found: Probe, page_state: PageState) -> Markup:
    """The difference in a sentence, for both prompts."""
    if found.problem is not None:
        return problem(found.problem)
    difference = found.grids[names.LOGIT_DIFFERENCE]
    (values,) = difference.values.tolist()
    read = VIEWS["clean"] if len(values) > 1 else "this prompt"
    words = paragraph(
        'After {}{}, the {} {} − {} is <b class="figure">{}</b> {}.',
        read,
        Markup(" (read up to {})").format(chip(found.tokens[0][-1])) if found.behind[0] else "",
        "difference" if found.whole else "logit difference",
        *(_chips(found.answer), _chips(found.counterpart), signed(values[0]), difference.unit),
    )
    if len(values) > 1:
        words += paragraph(
            'After {}: <b class="figure">{}</b>.', VIEWS["corrupted"], signed(values[1])
        )
    return words + _steps(found, page_state)


def _chips(side: Sequence[Token]) -> Markup:
    return chip(side[0]) if len(side) == 1 else chips(side)


def _steps(found: Probe, page_state: PageState) -> Markup:
    """Answers of several tokens, token by token, after the prompt that is looked at."""
    if found.whole is None:
        return Markup("")
    sides = (found.answer, found.counterpart)
    same = [a.id == b.id for a, b in zip(*sides, strict=False)]
    shared = same.index(False) if False in same else len(same)
    rows = [row for row in found.whole.steps.rows() if row["prompt"] == page_state.row]
    lines: list[dict[str, Any]] = [
        {"place": i + 1, "shared": chip(token)} for i, token in enumerate(sides[0][:shared])
    ]
    for place in sorted({row["place"] for row in rows}):
        here = [row for row in rows if row["place"] == place]  # both sides, or one of each
        line = {"place": place + 1, "shared": "", "value": signed(sum(r["value"] for r in here))}
        for side in names.SIDES:
            row = next((row for row in here if row[side] is not None), None)
            line[side] = "" if row is None else chip(row[side])
            line[f"{side}_log_p"] = "" if row is None else number(row[f"{side}_log_prob"])
        lines.append(line)
    after = VIEWS[page_state.view] if len(page_state.texts) > 1 else "this prompt"
    total = float(_viewed(found.grids[names.LOGIT_DIFFERENCE], page_state).values)
    return _macro("steps", lines, after, signed(total))


def _predictions(found: Probe, page_state: PageState) -> Listing:
    """The most probable next tokens; each can be chosen as answer or counterpart."""
    rows = found.predictions.rows()
    probs = [
        {r["id"]: r["prob"] for r in rows if r["prompt"] == i} for i in range(len(page_state.texts))
    ]
    top = [row for row in rows if row["prompt"] == page_state.row]
    columns: dict[str, Sequence[str | Markup]] = {
        "Weigh it as": [_macro("choice", row, visible(row["token"]), *_sides(found)) for row in top]
    }
    if len(probs) > 1:
        other = probs[1 - page_state.row]
        below = f"below {percent(min(other.values()))}"
        view = VIEWS["clean" if page_state.row else "corrupted"]
        columns[f"after {view}#"] = [
            percent(other[row["id"]]) if row["id"] in other else below for row in top
        ]
    return next_tokens(top, columns=columns, fold=FIRST)


def _sides(found: Probe) -> tuple[int | None, int | None]:
    """The ids of answer and counterpart, where they are one token each."""
    answer, counterpart = (
        side[0].id if len(side) == 1 else None for side in (found.answer, found.counterpart)
    )
    return answer, counterpart


def _classes(found: Probe, page_state: PageState) -> Figure:
    grid = found.classes.select(prompt=str(page_state.row))
    labels = grid.axis("class").labels
    grid = grid.take("class", [labels[i] for i in np.flatnonzero(np.isfinite(grid.values))])
    best = int(np.argmax(grid.values))
    most = f"{class_words(grid.axis('class').labels[best])} {percent(float(grid.values[best]))}"
    return _unstored(
        class_figure(
            grid,
            alt=f"Bars of probability by class of token; the largest is {most}.",
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
        f"The ledger: every term of the {'difference' if found.whole else 'logit difference'}",
        of="the prompt’s",
        contrast=_weighed(found),
        unit=ledger.unit,
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
    heads = largest_heads(_viewed(found.grids[names.HEAD_SHARES], page_state), TOP_HEADS)
    grid = found.grids[names.attention_from(page_state.row)]
    note = "The tokens of the answers are not shown. " if found.whole else ""
    return prompt_attention(grid, heads, opens=True, note=note)


def pattern_bytes(grid: Grid) -> bytes:
    """A pattern for the page's script: a byte per entry on and below the diagonal."""
    rows, cols = np.tril_indices(len(grid.axes[0]))
    packed = (np.clip(grid.values[rows, cols], 0, 1) * 255).round()
    return bytes(packed.astype(np.uint8).tobytes())


def _macro(name: str, *values: Any) -> Markup:
    module = environment().get_template("panels.html").module
    return Markup(getattr(module, name)(*values)).strip()
