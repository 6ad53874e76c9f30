"""How probable is each token of a prompt's answers, and which parts wrote it?

Where answers have several tokens: both answers as strips of their tokens, shaded by probability. A
token opens the ledger of the place at which it is read; that of the sum is open at first (without
script, too). Made from a study's tables `answer.tokens` and `answer.steps.ledger`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.names import SIDES
from casestudy.results.result import Axis, Grid
from casestudy.show.blocks import Figure
from casestudy.show.page import environment, figure_html
from casestudy.show.sections.ledger_figure import ledger_figure
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import MINUS, chip, percent, prompt_excerpt, signed, visible

MOST_PROMPT = 400
"""Columns of the prompt that stand before a strip."""
MOST_ACCOUNTS = 60
"""Ledgers of single places on a page; the study's folder has the others."""

Row = Mapping[str, Any]


class Strips:
    """The strips of a study's prompts.

    Attributes:
        tokens, terms: the rows of both tables, by prompt.
        left: how many more ledgers the page has room for.
    """

    def __init__(self, study: StoredStudy, prompts: Sequence[int]) -> None:
        self.tokens = _by_prompt(
            study, prompts, names.ANSWER_TOKENS, ("side", "place", "token", "log_prob", "step")
        )
        self.terms = _by_prompt(
            study, prompts, names.STEP_TERMS, ("step", "total", "term", "value")
        )
        self.left = MOST_ACCOUNTS

    def of(self, prompt: int, text: str, whole: Figure) -> Markup | None:
        """A prompt's strips and accounts, with the ledger of the sum; None where its answers are
        single tokens."""
        tokens = self.tokens.get(prompt)
        if not tokens:
            return None
        places = _places(self.terms.get(prompt, ()))
        if len(places) > self.left:
            places = {}
        self.left -= len(places)
        macros: Any = environment().get_template("strip.html").module
        excerpt = prompt_excerpt(text, MOST_PROMPT)
        parts = [macros.legend()] if places else []
        for side in SIDES:
            mine = sorted((r for r in tokens if r["side"] == side), key=lambda row: row["place"])
            linked = [_token(row, f"answer-{prompt}" if places else "") for row in mine]
            parts += [_said(side, mine), macros.strip_of(linked, excerpt)]
        if not places:
            return Markup("").join([*parts, figure_html(whole)])
        accounts = [_place(number, rows, tokens) for number, rows in places.items()]
        accounts_html = macros.answer_accounts(figure_html(whole), accounts, f"answer-{prompt}")
        return Markup("").join([*parts, accounts_html])


def _by_prompt(
    study: StoredStudy, prompts: Sequence[int], name: str, needed: tuple[str, ...]
) -> dict[int, list[Row]]:
    """A table's rows of these prompts; none where the study lacks it."""
    try:
        rows = study.table(name, "prompt", *needed).rows()
    except Missing:
        return {}
    found: dict[int, list[Row]] = {}
    wanted = set(prompts)
    for row in rows:
        if row["prompt"] in wanted:
            found.setdefault(int(row["prompt"]), []).append(row)
    return found


def _places(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The terms of each place, in order."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(int(row["step"]), []).append(row)
    return dict(sorted(found.items()))


def _said(side: str, tokens: Sequence[Row]) -> Markup:
    """One answer's probability, above its strip."""
    known = [row["log_prob"] for row in tokens if row["log_prob"] is not None]
    n, total = len(tokens), sum(known)
    but = "" if len(known) == n else f", without the {n - len(known)} that do not count"
    return Markup("<p>{}: log p = {} ({}), {} token{}{}</p>").format(
        side.capitalize(),
        signed(total),
        percent(math.exp(total)),
        n,
        "" if n == 1 else "s",
        but,
    )


def _token(row: Row, prefix: str) -> dict[str, Any]:
    """What a strip shows of one token."""
    text, log_p = str(row["token"]), row["log_prob"]
    one: dict[str, Any] = {"text": visible(text), "breaks": "\n" in text, "share": 0}
    if log_p is None:
        return one | {"title": "it does not count"}
    p = math.exp(log_p)
    one |= {"share": round(p, 4), "title": f"{percent(p)}, log p = {signed(log_p)}"}
    return one | ({"href": f"#{prefix}-{int(row['step'])}"} if prefix else {})


def _place(number: int, rows: Sequence[Row], tokens: Sequence[Row]) -> dict[str, Any]:
    """The account of one place."""
    here = {row["side"]: row for row in tokens if row["step"] == number}
    said = [here[side] for side in SIDES if side in here]
    names_ = [visible(row["token"]) for row in said]
    alone = f"{'log p' if 'answer' in here else f'{MINUS}log p'} of {names_[0]}"
    total = float(rows[0]["total"])
    ledger = Grid(
        names.LEDGER,
        np.array([float(row["value"]) for row in rows]),
        (Axis("term", tuple(str(row["term"]) for row in rows)),),
        "nats",
    )
    check = Grid(
        names.LEDGER_CHECK,
        np.array([total, abs(total - float(ledger.values.sum()))]),
        (Axis("quantity", ("logit difference", "gap")),),
        "nats",
    )
    figure = ledger_figure(
        *(ledger, check, "Direct contributions of the model’s parts"),
        of="the place’s",
        contrast=" against ".join(names_) if len(names_) == 2 else alone,
        unit="nats",
    )
    return {"words": _words(said, here, total), "figure": figure_html(figure)}


def _words(said: Sequence[Row], here: Mapping[str, Row], total: float) -> Markup:
    """The tokens that are read at one place."""
    chips = [
        Markup("{} ({})").format(chip(row["token"]), percent(math.exp(row["log_prob"])))
        for row in said
    ]
    kind = "" if len(said) == 2 else f", of the {next(iter(here))}"
    return Markup(" against ").join(chips) + kind + Markup(": {} nats").format(signed(total))
