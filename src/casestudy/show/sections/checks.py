"""How sure? The results of each measurement's own check, and what was left out."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.show.blocks import Block, Listing, paragraph
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import chip, clean, count, number, ordinal, prompt_excerpt


def checks(study: StoredStudy) -> list[Block]:
    """The results of each measurement's own check."""
    rows: list[list[str | Markup]] = []
    for name, grid in sorted(study.grids.items()):
        if "gap" in grid.error and not inherited(name, study):
            bound = grid.error.get("bound")
            held = bound is None or grid.error["gap"] <= bound
            rows.append(
                [
                    clean(name),
                    number(grid.error["gap"]),
                    "none promised" if bound is None or np.isinf(bound) else number(bound),
                    _outcome(bound, held),
                ]
            )
    if not rows:
        raise Missing("no measurement stored the outcome of a check")
    caption = (
        "For the ledger, the gap is between the sum of all terms and the difference of the logits "
        "themselves, at the prompt where it is largest against its bound."
    )
    return [
        Listing(
            "Each measurement’s own check",
            ["Measurement", "Largest gap#", "Bound#", "Outcome"],
            rows,
            caption,
        )
    ]


def _outcome(bound: float | None, held: bool) -> str:
    """The result of a check in words; without a bound there is none."""
    if bound is None or np.isinf(bound):
        return "shown only"
    return "holds" if held else Markup("<strong>exceeded</strong>")


def inherited(name: str, study: StoredStudy) -> bool:
    """Whether a grid shares the check of another grid that is listed."""
    base, _, part = name.rpartition(".")
    if part == "raw":
        return base in study.grids or names.effect(base) in study.grids
    return part in ("mean", "by_group") or (part == "effect" and base in study.grids)


def notices(study: StoredStudy) -> list[Block]:
    """Notices about the tokenisation of the prompts, one line per kind."""
    notes = study.manifest.get("notes")
    if not isinstance(notes, list) or not notes:
        return []
    lines = Markup("").join(Markup("<li>{}</li>").format(clean(note)) for note in notes)
    return [Markup("<p>How the prompts were read:</p><ul>{}</ul>").format(lines)]


def exclusions(study: StoredStudy) -> list[Block]:
    """Prompts left out of the contrasts, and predictions that could not be an answer."""
    blocks: list[Block] = []
    prompts = study.table(names.PROMPTS, "prompt", "text").rows()
    out = [row for row in prompts if row.get("error")]
    blocks.append(
        paragraph(
            "{} of {} entered the contrasts.",
            f"{len(prompts) - len(out):,}",
            count(len(prompts), "prompt"),
        )
    )
    if out:
        blocks.append(
            Listing(
                "Prompts that were left out",
                ["No.", "Prompt", "Why"],
                [
                    [
                        str(row["prompt"]),
                        Markup("<bdi>{}</bdi>").format(prompt_excerpt(row["text"], 60)),
                        clean(row["error"]),
                    ]
                    for row in out[:50]
                ],
                f"The first 50 of {len(out):,}." if len(out) > 50 else "",
            )
        )
    passed = study.tables.get(names.PASSED_OVER)
    if passed is not None and passed.columns.get("prompt"):
        rows = passed.rows()
        blocks.append(
            Listing(
                "Predictions passed over when the answer was chosen",
                ["Prompt", "Candidate", "Rank", "Why"],
                [
                    [
                        str(r["prompt"]),
                        chip(r["candidate"]),
                        ordinal(int(r["rank"]) + 1),
                        clean(r["why"]),
                    ]
                    for r in rows[:40]
                ],
                f"The first 40 of {len(rows):,}." if len(rows) > 40 else "",
            )
        )
    return blocks
