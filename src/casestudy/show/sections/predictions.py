"""Does it? What the model expects next, prompt by prompt and by class of token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, Listing, columns_of, paragraph
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import (
    chip,
    clean,
    count,
    excerpt,
    filled,
    listing,
    number,
    ordinal,
    percent,
    prompt_excerpt,
    visible,
)
from casestudy.show.wording import Mean, class_words, spoken

MOST_TEXT = 2000
"""Columns of a prompt's text: one that was too long for the model can be of any length."""

EXAMPLES = 48
"""How many prompts a report goes through one by one; all of them where a study has no more."""


def prompts_table(study: StoredStudy) -> list[Block]:
    """Each prompt with what the model expects next, and where the answer stands."""
    prompts = study.table(names.PROMPTS, "prompt", "text")
    predictions = _by_prompt(
        study.table(names.PREDICTIONS, "prompt", "rank", "token", "prob").rows()
    )
    answers = (
        _by_prompt(study.tables[names.ANSWERS].rows()) if names.ANSWERS in study.tables else {}
    )
    examples = set(example_prompts(study))
    rows: list[list[str | Markup]] = []
    raw: list[dict[str, Any]] = []
    errors = 0
    for row in prompts.rows():
        prompt = row["prompt"]
        errors += row.get("error") is not None
        if prompt not in examples:
            continue
        top = min(predictions.get(prompt, []), key=lambda r: r["rank"], default=None)
        forms = {r["form"]: r for r in answers.get(prompt, [])}
        answer = forms.get("answer")
        other = next((r for form, r in forms.items() if form != "answer"), None)
        raw.append(_raw(row, top=top, answer=answer, counterpart=other))
        rows.append(
            [
                Markup('<a href="#prompt-{}">{}</a>').format(prompt, prompt),
                Markup('<bdi class="prompt">{}</bdi>').format(prompt_excerpt(row["text"], 48)),
                _scored(top),
                _scored(answer, rank=True) if answer else Markup("<i>{}</i>").format("excluded"),
                _scored(other, rank=True),
            ]
        )
    blocks: list[Block] = []
    first = [r for rs in answers.values() for r in rs if r["form"] == "answer"]
    if first:
        at_top = sum(r["rank"] == 0 for r in first)
        median = sorted(r["rank"] for r in first)[len(first) // 2]
        blocks.append(
            paragraph(
                "The answer is the model’s single most probable next token in {} of {}; "
                "its median place is {}.{}",
                at_top,
                count(len(first), "prompt"),
                ordinal(median + 1),
                f" {count(errors, 'prompt')} had no usable answer and "
                f"{'is' if errors == 1 else 'are'} excluded from the contrasts, with the reason "
                "under “How sure?”."
                if errors
                else "",
            )
        )
    total = len(prompts.columns["prompt"])
    caption = (
        "Probability in per cent. In chips, · is a space and ↵ a newline. A prompt’s number leads "
        "to its full account."
    )
    if len(rows) < total:
        caption = (
            f"{len(rows)} of {total:,} prompts, chosen as described under “Prompt by prompt”. "
            + caption
        )
    head = ["No.", "Prompt", "Most probable next", "Answer", "Counterpart"]
    blocks.append(
        Listing(
            "What the model expects next",
            head,
            rows,
            caption,
            stack=True,
            fold=14,
            data=columns_of(raw),
        )
    )
    return blocks


def next_tokens(
    top: Sequence[Mapping[str, Any]],
    *,
    columns: Mapping[str, Sequence[str | Markup]] | None = None,
    fold: int = 0,
) -> Listing:
    """The most probable next tokens after one prompt, with a bar for each probability.

    Args:
        top: the prompt's rows of the table "predictions", the most probable first.
        columns: further columns by title, a cell for each row.
        fold: how many rows to show at first; 0 for all.
    """
    most = max((row["prob"] for row in top), default=0.0) or 1.0
    further = columns or {}
    logits = [row.get("logit") for row in top]
    known = any(logit is not None for logit in logits)
    cells: list[list[str | Markup]] = [
        [
            str(row["rank"] + 1),
            chip(row["token"]),
            filled(
                '<span class="share" style="--t:{}">{}</span>',
                *(round(row["prob"] / most, 4), percent(row["prob"])),
            ),
            *(column[i] for column in further.values()),
            *([number(logits[i])] if known else []),
        ]
        for i, row in enumerate(top)
    ]
    return Listing(
        "Most probable next tokens",
        ["Rank#", "Token", "Probability#", *further, *(["Logit#"] if known else [])],
        cells,
        fold=fold,
        data={
            "token": [visible(row["token"]) for row in top],
            "probability": [row["prob"] for row in top],
            **{name: [row.get(name) for row in top] for name in ("logit", "id")},
        },
    )


def class_mass(study: StoredStudy) -> list[Block]:
    """How much probability each class of token gets."""
    means = study.grid(names.mean(names.CLASS_MASS), "class")
    labels = means.axis("class").labels
    order = sorted(range(len(labels)), key=lambda i: -np.nan_to_num(means.values[i]))
    shown = [labels[i] for i in order if means.values[i] > 0][:3]
    phrases = []
    for name in shown:
        mean = Mean.of(means, **{"class": name})
        ends = "" if np.isnan(mean.lower) else f" [{percent(mean.lower)} to {percent(mean.upper)}]"
        phrases.append(f"{class_words(name)} {percent(mean.value)}{ends}")
    n = Mean.of(means, **{"class": labels[0]}).n
    return [
        paragraph(
            "The next token’s probability, summed over the whole vocabulary by class of token, is "
            "on average: {} (mean over n\u00a0=\u00a0{} prompts with 95 % interval).",
            *(listing(phrases), n),
        ),
        class_figure(
            means,
            alt=f"Bars of mean probability by class of token, n\u00a0=\u00a0{n}: "
            f"{listing(phrases)}.",
            caption=clean(means.about),
        ),
        *_mass_by_group(study),
    ]


def class_figure(masses: Grid, *, alt: str, caption: str) -> Figure:
    """The probability of each class of token, of one prompt or as a mean over prompts.

    Args:
        masses: over the axis class.
        alt: the alternative text.
        caption: below the figure.
    """
    bars = marks.mean_bars(masses, [spoken(label) for label in masses.axis("class").labels])
    shown = [percent(float(value)) for value in masses.values]
    return Figure(
        "Probability of the next token by class",
        replace(bars, unit="probability", shown=shown, axis=""),
        alt,
        marks.Data.of(masses),
        caption,
    )


def _mass_by_group(study: StoredStudy) -> list[Block]:
    """The same by group of prompts, where there are groups."""
    try:
        grid = study.grid(names.by_group(names.CLASS_MASS), "group", "class")
    except Missing:
        return []
    groups, classes = (list(map(clean, grid.axis(name).labels)) for name in ("group", "class"))
    values = np.asarray(grid.values, dtype=float)
    if not np.isfinite(values).any():
        return []
    i, j = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return [
        Figure(
            "The same by group of prompts",
            marks.Heatmap(values, groups, classes, unit="probability", limit=1.0, slanted=True),
            f"Heatmap of mean probability by group and class of token; the largest is "
            f"{classes[j]} in “{groups[i]}”, {percent(float(values[i, j]))}.",
            marks.Data.of(grid),
            "Means over the prompts of a group; n and intervals are in the data.",
        )
    ]


def _raw(row: Mapping[str, Any], **tokens: Mapping[str, Any] | None) -> dict[str, Any]:
    """A prompt's line unrounded, for CSV; places count from 1."""
    found = {"prompt": row["prompt"], "text": excerpt(row["text"], MOST_TEXT)}
    for name, token in tokens.items():
        found[name] = None if token is None else token["token"]
        found[f"{name} id"] = None if token is None else token.get("id")
        found[f"{name} probability"] = None if token is None else token["prob"]
        rank = None if token is None else token.get("rank")
        found[f"{name} place"] = None if rank is None else rank + 1
    return found | {"left out because": row.get("error")}


def _scored(row: Mapping[str, Any] | None, rank: bool = False) -> Markup:
    if row is None:
        return Markup("")
    place = f", {ordinal(row['rank'] + 1)}" if rank and row.get("rank") is not None else ""
    return Markup('{} <span class="q">{}{}</span>').format(
        chip(row["token"]), percent(row["prob"]), place
    )


def _by_prompt(rows: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["prompt"], []).append(row)
    return found


def example_prompts(study: StoredStudy) -> list[int]:
    """The prompts gone through one by one: all, or the first of each group and then by difference.

    The rule is stated in the report, so that nobody has to wonder who picked the examples.
    """
    rows = study.table(names.PROMPTS, "prompt", "text").rows()
    everyone = [int(row["prompt"]) for row in rows]
    if len(everyone) <= EXAMPLES:
        return everyone
    chosen = list(
        {tuple(row.get("groups") or ()): int(row["prompt"]) for row in reversed(rows)}.values()
    )
    chosen = sorted(chosen)[: EXAMPLES // 2]
    ranked = [i for i in _ranked_prompts(study) if i not in chosen] or everyone
    for k in np.linspace(0, len(ranked) - 1, EXAMPLES - len(chosen)).round().astype(int):
        chosen.append(ranked[k])
    return sorted(set(chosen))


def _ranked_prompts(study: StoredStudy) -> list[int]:
    if names.LOGIT_DIFFERENCE not in study.grids:
        return []
    grid = study.grid(names.LOGIT_DIFFERENCE, "contrast", "prompt").select(contrast=study.contrast)
    known = [
        (value, int(label))
        for value, label in zip(grid.values.tolist(), grid.axes[0].labels, strict=True)
        if np.isfinite(value)
    ]
    return [label for _, label in sorted(known)]
