"""Which cards of parts does the study have? Their main figures, and links to their pages."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.part_card import FOLDER, PAGE, PartCard
from casestudy.results.result import Grid
from casestudy.show.blocks import Block, Listing
from casestudy.show.stored import StoredStudy
from casestudy.show.text import clean, interval, signed


def cards(study: StoredStudy) -> list[Block]:
    """A table of the cards beside the report; nothing where there are none."""
    rows = [
        (
            Markup('<a href="{}">{}</a>').format(
                f"{FOLDER}/{quote(folder)}/{PAGE}", clean(card.part)
            ),
            _mean(card, names.PART_SHARE),
            _mean(card, names.PART_ABLATION),
            _loss(card),
        )
        for folder, card in study.cards.items()
    ]
    if not rows:
        return []
    return [
        Listing(
            "Cards of single parts",
            ("part", "writes#", "replaced by zero#", "next-token loss#"),
            rows,
            "Each links to its card: where the part is active, what it writes, what it reads and "
            "what it is needed for. “Writes” is its direct contribution to the logit difference, "
            "“replaced by zero” the change of the logit difference (logits), “next-token loss” its "
            "change over the corpus in nats; means with 95 % intervals.",
        )
    ]


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
