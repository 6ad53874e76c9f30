"""Is the capital a direction? In figures, and in words.

The direction of one layer's residual stream at the last token that carries the preset's contrast:
the difference of means, and a trained one (see `casestudy.measure.directions`). Cost: two or three
minutes of one core for `tiny`, about ten for `smollm2`.
"""

from __future__ import annotations

from typing import Any

from docs.findings_kept import number
from docs.findings_tables import NAMES, Found, share, table

from casestudy.behaviour.presets import preset
from casestudy.measure.alignment_search import Training
from casestudy.measure.directions import DirectionChoices
from casestudy.measure.subspaces import Spot
from casestudy.model.model import Model
from casestudy.show.text import interval
from casestudy.study.searches import behaviour_direction

BEHAVIOUR = "full-stop-capitals"
CHOICES = {
    "tiny": DirectionChoices(Spot("resid_post", 2, "last"), coefficients=(-1.0, 1.0)),
    "smollm2": DirectionChoices(
        Spot("resid_post", 24, "last"),
        training=Training(steps=30),
        random_sets=3,
        coefficients=(-1.0, 1.0),
    ),
}
"""Of each model: a layer after which the last token holds what decides."""


def measure_direction(name: str, model: Model) -> Found:
    """What each kind of direction carries on pairs held out, and what steering by it does."""
    card = behaviour_direction(model, preset(BEHAVIOUR), CHOICES[name])
    return {"weight_hash": model.weight_hash, **kept(card.as_dict())}


def kept(found: dict[str, Any]) -> Found:
    """The figures of a card that the page says."""
    return {
        "family": found["family"],
        "found_on": found["n_found_on"],
        "shares": [
            {key: row[key] for key in ("directions", "rank", "way", "n")} | _ends(row)
            for row in found["shares"]
            if row["pairs"] == "held out"
        ],
        "steered": [
            {key: row[key] for key in ("method", "run", "coefficient", "n")} | _ends(row)
            for row in found["steering"]
            if row["coefficient"] in (-1, 0, 1)
        ],
    }


def _ends(row: dict[str, Any]) -> Found:
    low, high = (None if row[end] is None else number(row[end]) for end in ("lower", "upper"))
    return {"mean": number(row["value"]), "low": low, "high": high}


# The words


def directions_page(found: Found) -> str:
    """A table of what directions carry, and sentences on steering."""
    models = {
        title: found[name]["direction"]
        for name, title in NAMES.items()
        if found[name].get("direction")
    }
    rows = [
        [title, _spot(title), row["directions"], row["way"], f"{_with_ends(row)}, n = {row['n']}"]
        for title, one in models.items()
        for row in one["shares"]
    ]
    head = ["model", "where", "exchanged", "from", "share of the difference, held out"]
    return table(head, rows) + "\n" + "\n\n".join(_steered(*item) for item in models.items()) + "\n"


def _spot(title: str) -> str:
    (name,) = (name for name, known in NAMES.items() if known == title)
    spot = CHOICES[name].spot
    return f"`{spot.site.value}` of layer {spot.layer}"


def _with_ends(row: Found) -> str:
    ends = "" if row["low"] is None else f" ({interval(row['low'], row['high'])})"
    return f"{share(row['mean'])}{ends}"


def _steered(title: str, found: Found) -> str:
    """What adding the trained direction once does to corrupted prompts, and taking it to clean."""
    cells = {(row["method"], row["run"], row["coefficient"]): row for row in found["steered"]}

    def of(run: str, coefficient: int) -> str:
        return _with_ends(cells["trained", run, coefficient])

    whole = min(row["mean"] for row in found["shares"] if row["directions"] == "whole site")
    alone = " These pairs differ in their last token alone, so that its whole stream carries all."
    return (
        f"In {title}, pairs of the family “{found['family']}”, found on {found['found_on']}: the "
        f"mean difference along the trained direction, added at every position, takes the "
        f"corrupted prompts' contrast from {of('corrupted', 0)} to {of('corrupted', 1)} logits; "
        f"taken away, the clean prompts' from {of('clean', 0)} to {of('clean', -1)}."
        + (alone if whole > 0.9999 else "")
    )
