"""Where does it come from? Where the heads that matter look, and what kind of heads they are."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, paragraph
from casestudy.show.sections.ledger import (
    MOST_PATTERN_BYTES,
    has_patterns,
    head_button,
    pattern_names,
    top_heads,
)
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import capital, clean, count, listing, number, percent, prose
from casestudy.show.wording import spoken

HEADS = 12
"""How many heads are listed, the largest direct shares first."""


KINDS = {"bos": "share on BOS"}
"""Scores whose names need more words than they have."""


def attention(study: StoredStudy) -> list[Block]:
    """What the heads with the largest shares attend to, from the last token, by role."""
    means = study.grid("attention.last.mean", "layer", "head", "role")
    roles = means.axis("role").labels
    top = [(a, b) for a, b, _ in top_heads(study, HEADS)]
    if not top:
        top = [(a, b) for a in means.axis("layer").labels for b in means.axis("head").labels][
            :HEADS
        ]
    values = np.stack([means.select(layer=a, head=b).values for a, b in top])
    seen = [j for j in range(len(roles)) if np.isfinite(values[:, j]).any()]
    if not seen:
        raise Missing("no role was found in the prompts")
    values, names = values[:, seen], [clean(roles[j]) for j in seen]
    phrases = []
    for (layer, head), row in list(zip(top, values, strict=True))[:5]:
        best = int(np.nanargmax(row))
        phrases.append(
            Markup("{} looks most at “{}” ({})").format(
                head_button(study, layer, head), names[best], percent(float(row[best]))
            )
        )
    labels = [f"{a}.{b}" for a, b in top]
    i, j = np.unravel_index(int(np.nanargmax(values)), values.shape)
    cut = [means.select(layer=a, head=b) for a, b in top]
    columns = {"value": marks.numbers(values)}
    for part in ("lower", "upper", "n"):
        arrays = [getattr(c, part) for c in cut]
        if all(array is not None for array in arrays):
            columns[part] = marks.numbers(np.stack(arrays)[:, seen])
    return [
        paragraph(
            "From the last token, where the answer is decided: {}. Looking is not using: a head’s "
            "attention says what it reads, not what it does with it.",
            Markup("; ").join(phrases),
        ),
        Figure(
            "Where the heads with the largest direct shares look",
            marks.Heatmap(
                values,
                labels,
                names,
                unit=means.unit,
                row_name="head",
                limit=1.0,
                slanted=True,
                heads="row" if has_patterns(study) else None,
            ),
            f"Heatmap of attention by head and role of the token read; the largest is head "
            f"{labels[i]} on the {names[j]}, {percent(float(values[i, j]))}.",
            marks.Data(
                [("head", labels), ("role", names)],
                columns,
                means.unit,
                "arrays/attention.last.safetensors",
            ),
            f"{clean(means.about)} Mean over prompts that have the role; heads in the order of "
            "their direct share.",
        ),
        *_left_out(study),
    ]


def _left_out(study: StoredStudy) -> list[Block]:
    """That some prompts' patterns cannot be opened on this page, and where they are."""
    shown, left_out = pattern_names(study)
    if not left_out:
        return []
    several = len(left_out) > 1
    return [
        Markup('<p class="notice" role="note">{}</p>').format(
            f"The attention patterns of {count(len(left_out), 'prompt')} "
            f"({listing([name.removeprefix('pattern.') for name in left_out])}) are not on this "
            f"page, which holds at most {MOST_PATTERN_BYTES / 1e6:g} MB of them: "
            + ("those of the other " + count(len(shown), "prompt") + " open. " if shown else "")
            + f"They are in the study’s folder, {'each ' if several else ''}as "
            f"arrays/{'pattern.N' if several else left_out[0]}.safetensors."
        )
    ]


def profiles(study: StoredStudy) -> list[Block]:
    """Scores that tell kinds of heads apart: previous-token, induction, copying, …"""
    grid = study.grid("head_profile", "score", "layer", "head")
    layers, heads = grid.axis("layer").labels, grid.axis("head").labels
    blocks: list[Block] = []
    phrases = []
    for k, score in enumerate(grid.axis("score").labels):
        kind = KINDS.get(score, spoken(score))
        values = np.asarray(grid.values[k], dtype=float)
        if not np.isfinite(values).any():
            continue
        i, j = np.unravel_index(int(np.nanargmax(values)), values.shape)
        best = f"{layers[i]}.{heads[j]}"
        phrases.append(f"{kind} {number(float(values[i, j]))} ({best})")
        # A score of 1 is a head that does exactly this; a pale map says that none does.
        share = float(np.nanmax(np.abs(values))) <= 1
        blocks.append(
            Figure(
                capital(kind),
                marks.Heatmap(
                    values,
                    list(layers),
                    list(heads),
                    unit="",
                    limit=1.0 if share else None,
                    row_name="layer",
                    col_name="head",
                    heads="cell" if has_patterns(study) else None,
                ),
                f"Heatmap of {kind} (a score) by layer and head; the highest is head "
                f"{best} with {number(float(values[i, j]))}.",
                marks.Data.of(grid.select(score=score)),
                half=True,
            )
        )
    if not blocks:
        raise Missing("no head has a profile")
    words = paragraph(
        "The highest score of each kind, and the head that has it: {}. {}",
        listing(phrases),
        prose(grid.about),
    )
    return [words, *blocks]
