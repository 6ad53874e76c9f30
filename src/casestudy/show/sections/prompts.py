"""What happened in this one prompt?

The page's averages can be opened up: for every example prompt its tokens, what the model expected,
the answer and its counterparts, and its own ledger.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show.blocks import Block, Figure, paragraph
from casestudy.show.distribution import MOST_DOTS
from casestudy.show.page import figure_html
from casestudy.show.sections.answer_strips import Strips
from casestudy.show.sections.ledger import PATTERN_AXES, pattern_names
from casestudy.show.sections.ledger_figure import ledger_figure
from casestudy.show.sections.predictions import EXAMPLES, MOST_TEXT, example_prompts, next_tokens
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import (
    chip,
    chips,
    clean,
    filled,
    joined,
    number,
    ordinal,
    percent,
    prompt_excerpt,
    prose,
    shorten,
    signed,
    visible,
)
from casestudy.show.weighed import weighed

TOP = 10
FOLD = 14
"""Prompts listed before the rest has to be asked for."""
TABLES: Mapping[str, Sequence[str]] = {
    names.PREDICTIONS: (),
    names.ANSWERS: (),
    names.LENS_TOP: ("depth", "pos", "read", "rank", "token", "prob"),
}
"""The tables with rows of each prompt, and the columns that they need to have."""

Row = Mapping[str, Any]


def one_by_one(study: StoredStudy) -> list[Block]:
    """An account of each example prompt, folded."""
    rows = {int(r["prompt"]): r for r in study.table(names.PROMPTS, "prompt", "text").rows()}
    examples = example_prompts(study)
    blocks: list[Block] = []
    if len(examples) < len(rows):
        blocks.append(
            paragraph(
                "{} of {} prompts: the first of each group (up to {}), then evenly spaced from the "
                "smallest logit difference to the largest. The others are in the study’s folder.",
                *(len(examples), f"{len(rows):,}", EXAMPLES // 2),
            )
        )
    by_prompt: dict[int, dict[str, list[Row]]] = {i: {} for i in examples}
    for name, needed in TABLES.items():
        if name in study.tables:
            for row in study.table(name, "prompt", *needed).rows():
                if row["prompt"] in by_prompt:
                    by_prompt[row["prompt"]].setdefault(name, []).append(row)
    strips = Strips(study, examples)
    contrast = weighed(study).against_plain if study.contrasts else ""
    found = [_prompt(study, rows[i], by_prompt[i], strips, contrast) for i in examples]
    shown = len(found) if len(found) <= FOLD + 3 else FOLD
    blocks += found[:shown]
    if found[shown:]:
        blocks.append(
            filled(
                '<details class="more"><summary>{} more</summary>{}</details>',
                *(len(found) - shown, joined(found[shown:])),
            )
        )
    return blocks


def _prompt(
    study: StoredStudy,
    row: Row,
    found: Mapping[str, Sequence[Row]],
    strips: Strips,
    contrast: str,
) -> Markup:
    prompt = str(row["prompt"])
    tokens = row.get("tokens") or [prompt_excerpt(row["text"], MOST_TEXT)]
    parts: list[Markup] = [
        filled('<p class="prompt-tokens">{}</p>', chips(tokens)),
    ]
    if row.get("error"):
        parts.append(paragraph("Left out of the contrasts: {}", clean(row["error"])))
    top = sorted(found.get(names.PREDICTIONS, []), key=lambda r: r["rank"])[:TOP]
    if top:
        parts.append(figure_html(next_tokens(top)))
    if found.get(names.ANSWERS):
        parts.append(_answers(found["answers"]))
    try:
        whole = _ledger(study, prompt, contrast)
        strip = strips.of(row["prompt"], row["text"], whole)
        parts.append(figure_html(whole) if strip is None else strip)
    except Missing as reason:
        parts.append(paragraph("No ledger of its own: {}.", str(reason)))
    if found.get(names.LENS_TOP):
        about = study.table(names.LENS_TOP).about
        parts.append(lens_table(prompt, found[names.LENS_TOP], about))
    difference = _difference(study, prompt)
    return filled(
        '<details class="one" id="prompt-{}"><summary><span class="no">{}</span> '
        '<bdi class="prompt">{}</bdi> <span class="q">{}</span></summary>{}</details>',
        prompt,
        prompt,
        prompt_excerpt(row["text"], MOST_TEXT),
        "" if difference is None else f"{signed(difference)} {study.unit}",
        joined(parts),
    )


def _difference(study: StoredStudy, prompt: str) -> float | None:
    grid = study.grids.get(names.LOGIT_DIFFERENCE)
    if grid is None or prompt not in grid.axis("prompt").labels:
        return None
    value = float(grid.select(contrast=study.contrast, prompt=prompt).values)
    return value if np.isfinite(value) else None


def _answers(rows: Sequence[Row]) -> Markup:
    cells = [
        filled(
            "<tr><th scope=row>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            str(r["form"]).replace("_", " "),
            chip(r["token"]),
            ordinal(int(r["rank"]) + 1),
            number(r["logit"]),
            percent(r["prob"]),
        )
        for r in rows
    ]
    return filled(
        '<div class="scroll" tabindex="0"><table><thead><tr><th scope=col>Form</th>'
        "<th scope=col>Token</th><th scope=col>Rank</th><th scope=col>Logit</th>"
        "<th scope=col>Probability</th></tr></thead><tbody>{}</tbody></table></div>",
        joined(cells),
    )


def _ledger(study: StoredStudy, prompt: str, contrast: str) -> Figure:
    ledger = _of_prompt(study.grid(names.LEDGER, "contrast", "term", "prompt"), study, prompt)
    check = _of_prompt(
        study.grid(names.LEDGER_CHECK, "contrast", "quantity", "prompt"), study, prompt
    )
    if not np.isfinite(ledger.values).any():
        raise Missing("it has no answer with a counterpart")
    return ledger_figure(
        *(ledger, check, "Its ledger"),
        of=f"prompt {prompt}’s",
        contrast=contrast,
        unit=study.unit,
    )


def _of_prompt(grid: Grid, study: StoredStudy, prompt: str) -> Grid:
    if prompt not in grid.axis("prompt").labels:
        raise Missing("it was not measured")
    return grid.select(contrast=study.contrast, prompt=prompt)


def lens_table(prompt: str, rows: Sequence[Row], about: str) -> Markup:
    """The classic logit lens: what every position would predict, were the model to end there.

    Args:
        prompt: its number.
        rows: its rows of the table "lens.top".
        about: what a row of the table is.
    """
    rows = [row for row in rows if row["rank"] == 0]
    if not rows:
        return Markup("")
    depths = list(dict.fromkeys(r["depth"] for r in rows))
    read = {r["pos"]: r["read"] for r in rows}
    cells = {(r["depth"], r["pos"]): r for r in rows}
    head = joined(filled("<th scope=col>{}</th>", chip(read[pos])) for pos in sorted(read))
    lines = [
        filled(
            "<tr><th scope=row>{}</th>{}</tr>",
            clean(depth),
            joined(_lens_cell(cells.get((depth, pos))) for pos in sorted(read)),
        )
        for depth in reversed(depths)
    ]
    return filled(
        '<div class="listing"><p class="head">What each position would predict at each depth</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Logit lens of prompt {}">'
        '<table class="lens"><thead><tr><th scope=col>depth</th>{}</tr></thead><tbody>{}</tbody>'
        '</table></div><p class="caption">{} The stronger the colour, the more probable; the last '
        "column is where the answer is decided.</p></div>",
        *(prompt, head, joined(lines), prose(about)),
    )


def _lens_cell(row: Row | None) -> Markup:
    if row is None:
        return Markup("<td></td>")
    prob = float(row["prob"])
    return filled(
        '<td style="--t:{}" title="{}"><bdi>{}</bdi></td>',
        *(round(min(1.0, prob), 3), percent(prob), shorten(visible(row["token"]), 12)),
    )


def patterns(study: StoredStudy) -> dict[str, Any]:
    """Whole attention patterns for the page's script, a byte per entry on and below the diagonal.

    A byte resolves 1/255, four parts in a thousand, which is finer than the eye; the study's
    folder has the exact values.
    """
    found: dict[str, Any] = {}
    for name in pattern_names(study)[0]:
        grid = study.grid(name, *PATTERN_AXES)
        labels = grid.axis("key_pos").labels
        rows, cols = np.tril_indices(len(labels))
        packed = (np.clip(np.nan_to_num(grid.values), 0, 1)[..., rows, cols] * 255).round()
        found[name.removeprefix(names.PATTERNS)] = {
            "layers": list(grid.axis("layer").labels),
            "heads": list(grid.axis("head").labels),
            "tokens": [visible(label.partition(":")[2]) for label in labels],
            "bytes": base64.b64encode(packed.astype(np.uint8).tobytes()).decode("ascii"),
        }
    return found


def shared(study: StoredStudy) -> dict[str, Any]:
    """What the page's script needs of every figure: the prompts' texts, and the patterns.

    Beyond so many prompts no figure names them one by one, and only the patterns' are needed.
    """
    table = study.tables[names.PROMPTS].columns if names.PROMPTS in study.tables else {}
    found = patterns(study)
    numbers = table.get("prompt", [])
    named = {str(i) for i in numbers} if len(numbers) <= MOST_DOTS else set(found)
    texts = zip(map(str, numbers), table.get("text", []), strict=False)
    return {
        "prompts": {i: prompt_excerpt(text, 160) for i, text in texts if i in named},
        "patterns": found,
    }
