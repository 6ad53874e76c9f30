"""Which cards of parts does the study have? Their main figures, links to their pages, and how the
cards of other parts are made."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.part_card import PartCard
from casestudy.results.result import Grid
from casestudy.show.blocks import Block, Listing, paragraph
from casestudy.show.part_links import card_addresses, command
from casestudy.show.stored import StoredStudy
from casestudy.show.text import clean, interval, signed


def cards(study: StoredStudy) -> list[Block]:
    """A table of the cards beside the report, and how others are made; nothing where there are no
    cards and no part is named."""
    addresses = card_addresses(study.cards)
    rows = [
        (
            Markup('<a href="{}">{}</a>').format(addresses[card.part], clean(card.part)),
            _mean(card, names.PART_SHARE),
            _mean(card, names.PART_ABLATION),
            _loss(card),
        )
        for card in study.cards.values()
    ]
    if not rows:
        named = names.mean(names.HEAD_SHARES) in study.grids or names.NEURON_SHARES in study.tables
        return [_how_made("No card of a part is beside this report.")] if named else []
    return [
        Listing(
            "Cards of single parts",
            ("part", "writes#", "replaced by zero#", "next-token loss#"),
            rows,
            "Each links to its card: where the part is active, what it writes, what it reads and "
            "what it is needed for. “Writes” is its direct contribution to the logit difference, "
            "“replaced by zero” the change of the logit difference (logits), “next-token loss” its "
            "change over the corpus in nats; means with 95 % intervals.",
        ),
        _how_made("Wherever this report names one of these parts, the name opens its card."),
    ]


def _how_made(first: str) -> Markup:
    """The commands that make cards."""
    return paragraph(
        "{} The command <code>casestudy parts DIR --corpus TEXT</code> makes the cards of the "
        "strongest heads and neurons, and <code>{}</code> that of any other; DIR is the folder of "
        "this report, and TEXT a file or folder of text in which the parts are looked for (without "
        "it the card has no contexts).",
        first,
        command("head 0.2"),
    )


def _mean(card: PartCard, name: str) -> str:
    grid = card.get(names.mean(name))
    if not isinstance(grid, Grid):
        return "not measured"
    # the main contrast, or the ablation by zero, is the first
    value, lower, upper = (
        float("nan") if array is None else float(np.asarray(array).ravel()[0])
        for array in (grid.values, grid.lower, grid.upper)
    )
    return f"{signed(value)} [{interval(lower, upper)}]"


def _loss(card: PartCard) -> str:
    rows = [row for row in card.rows(names.PART_LOSS) if row["kind"] == "zero"]
    if not rows:
        return "not measured"
    (row,) = rows
    return f"{signed(row['difference'], 3)} [{interval(row['lower'], row['upper'], 3)}]"
