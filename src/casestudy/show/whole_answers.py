"""The HTML page of two answers of several tokens, compared whole.

One HTML file in the report's style: both answers as strips of their tokens, shaded by how probable
the model found each; the account of their sum; and for each place at which they are read its own
ledger, which opens where the token is chosen (without script, too). Made from an `Explanation`; it
needs no model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from casestudy.results import names
from casestudy.results.files import write_atomically
from casestudy.results.names import SIDES
from casestudy.show.blocks import Absent, Section
from casestudy.show.page import environment, figure_html
from casestudy.show.report import frame
from casestudy.show.sections.ledger_figure import ledger_figure
from casestudy.show.text import (
    MINUS,
    chip,
    clean,
    number,
    percent,
    prompt_excerpt,
    shorten,
    signed,
    visible,
)

if TYPE_CHECKING:
    from casestudy.measure.explanation import Explanation
    from casestudy.measure.whole_answers import WholeAnswers
    from casestudy.model.token import Token

MOST_PROMPT = 400
"""Columns of the prompt that stand before a strip."""
HOW = {
    "sum": "Each answer counts by the sum of its tokens’ log-probabilities.",
    "mean": "Each answer counts by the mean of its tokens’ log-probabilities.",
    "first": "Only the first token in which the answers differ counts.",
}
_ABSENT = (Absent("Intervals", "One prompt says nothing about others."),)


def write_whole_answers(
    found: Explanation,
    path: str | os.PathLike[str],
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page, completely or not at all, and return its path.

    Args:
        found: of answers of several tokens (`casestudy.explain`).
        path: the file.
        facts: lines of provenance beside the page's own.

    Raises: StudyError if the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, whole_answers_html(found, facts).encode("utf-8"))
    return path


def whole_answers_html(found: Explanation, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page."""
    whole = found.whole
    assert whole is not None
    macros: Any = environment().get_template("strip.html").module
    steps = [_step(whole, row) for row in whole.steps.rows()]
    prompt = prompt_excerpt(found.prompt, MOST_PROMPT)
    strips = [macros.legend()]
    for side in SIDES:
        strips += [_said(found, side), macros.strip_of(_tokens(found, whole, side), prompt)]
    answer = _answer(found)
    words = [_text(getattr(found, side).tokens) for side in SIDES]
    return (
        environment()
        .get_template("answers.html")
        .render(
            title=f"Why {clean(found.model)} prefers {_preferred(found, words)}",
            model=clean(found.model),
            description=shorten(answer.striptags(), 300),
            answer=[answer],
            sections=[
                Section("text", "The answers, token by token", strips),
                Section("sum", "Which parts wrote the difference?", [_sum(found, whole)]),
                Section("accounts", "Why this token?", [macros.accounts(steps, "Place")]),
            ],
            absent=_ABSENT,
            facts=[*facts, *_facts(found)],
            shared={"prompts": {}, "patterns": {}},
            **frame(),
        )
    )


def _text(tokens: Sequence[Token]) -> str:
    return visible("".join(token.label for token in tokens))


def _preferred(found: Explanation, words: Sequence[str]) -> str:
    first, second = words if found.logit_difference >= 0 else words[::-1]
    return f"{shorten(first, 40)} to {shorten(second, 40)}"


def _said(found: Explanation, side: str) -> Markup:
    """One answer's probability, above its strip."""
    score = getattr(found, side)
    return Markup("<p>{}: log p = {} ({}), {} token{}</p>").format(
        side.capitalize(),
        signed(score.log_prob),
        percent(math.exp(score.log_prob)),
        len(score.tokens),
        "" if len(score.tokens) == 1 else "s",
    )


def _tokens(found: Explanation, whole: WholeAnswers, side: str) -> list[dict[str, Any]]:
    """What a strip shows of each of one answer's tokens."""
    steps = enumerate(whole.steps.rows())
    read = {row["place"]: (i, row[f"{side}_log_prob"]) for i, row in steps if row[side] is not None}
    shown = []
    for place, token in enumerate(getattr(found, side).tokens):
        one: dict[str, Any] = {"text": visible(token), "breaks": "\n" in token.label, "share": 0}
        if place in read:
            step, log_p = read[place]
            p = math.exp(log_p)
            title = f"{percent(p)}, log p = {signed(log_p)}"
            one |= {"share": round(p, 4), "title": title, "href": f"#token-{step}"}
        else:
            one["title"] = "it does not count"
        shown.append(one)
    return shown


def _step(whole: WholeAnswers, row: dict[str, Any]) -> dict[str, Any]:
    """The account of one place."""
    step = str(row["step"])
    said = [visible(row[side]) for side in SIDES if row[side] is not None]
    alone = f"{'log p' if row['counterpart'] is None else f'{MINUS}log p'} of {said[0]}"
    figure = ledger_figure(
        whole.by_step[names.LEDGER].select(step=step),
        whole.by_step[names.LEDGER_CHECK].select(step=step),
        "Direct contributions of the model’s parts",
        of="the place’s",
        contrast=" against ".join(said) if len(said) == 2 else alone,
        unit=whole.value.unit,
    )
    return {"words": _words(row), "figure": figure_html(figure)}


def _words(row: dict[str, Any]) -> Markup:
    """The tokens that are read at one place."""
    said = [
        Markup("{} ({})").format(chip(row[side]), percent(math.exp(row[f"{side}_log_prob"])))
        for side in SIDES
        if row[side] is not None
    ]
    worth = Markup(": {} nats").format(signed(row["value"]))
    kind = "" if len(said) == 2 else f", of the {SIDES[row['answer'] is None]}"
    return Markup(" against ").join(said) + kind + worth


def _sum(found: Explanation, whole: WholeAnswers) -> Markup:
    """The account of the whole difference."""
    against = " against ".join(_text(getattr(found, side).tokens) for side in SIDES)
    figure = ledger_figure(
        whole.ledger.select(prompt="0"),
        whole.grids[names.LEDGER_CHECK].select(prompt="0"),
        "Direct contributions of the model’s parts to the difference of the answers",
        of="the answers’",
        contrast=against,
        unit=found.unit,
    )
    return figure_html(figure)


def _answer(found: Explanation) -> Markup:
    """The preference, what of the answers counts, and the strongest part."""
    first, second = (
        getattr(found, side) for side in (SIDES if found.logit_difference >= 0 else SIDES[::-1])
    )
    assert found.whole is not None
    text = Markup("{} prefers {} to {} by {} {}. {} ").format(
        clean(found.model),
        chip("".join(t.label for t in first.tokens)),
        chip("".join(t.label for t in second.tokens)),
        number(abs(found.logit_difference)),
        found.unit,
        HOW[found.whole.scoring],
    )
    part = found.parts[0]
    effect = Markup("The largest exact effect is that of {}: {} {}").format(
        part.name, signed(part.effect), found.unit
    )
    share = "" if part.share is None else f" ({percent(part.share)} of the difference)"
    return text + effect + share + f" — {found.method}."


def _facts(found: Explanation) -> list[tuple[str, str]]:
    rows = [("Prompt", f"{len(found.tokens):,} tokens")]
    if found.partner is not None:
        rows.append(("Corrupted prompt", clean(found.partner.text)))
    for check in found.checks:
        bound = "no bound is guaranteed" if check.bound is None else f"bound {number(check.bound)}"
        rows.append((check.what, f"largest gap {number(check.gap)}, {bound}"))
    return rows
