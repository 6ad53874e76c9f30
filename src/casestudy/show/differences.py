"""By how much? Every prompt's logit difference, means by contrast and group, and the controls."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.show import draw
from casestudy.show.blocks import Block, Figure, paragraph
from casestudy.show.means import Mean, against, spoken
from casestudy.show.stored import Missing, Stored
from casestudy.show.text import clean, count, number, signed


def differences(study: Stored) -> list[Block]:
    """Every prompt's logit difference, and the means."""
    grid = study.grid("logit_difference", "contrast", "prompt")
    means = study.grid("logit_difference.mean", "contrast")
    labels = grid.axis("contrast").labels
    drawing = draw.strip(
        [spoken(label) for label in labels],
        [draw.numbers(row) for row in grid.values],
        unit="logit difference, logits",
        mean=draw.numbers(means.values),
        lower=None if means.lower is None else draw.numbers(means.lower),
        upper=None if means.upper is None else draw.numbers(means.upper),
    )
    main = Mean.of(means, contrast=study.contrast)
    values = grid.select(contrast=study.contrast).values
    everyone = int(np.isfinite(values).sum())
    known = values[study.main_prompts(grid.axis("prompt").labels)]
    known = known[np.isfinite(known)]
    blocks: list[Block] = [preference(study.contrast, main, known)]
    others = [name for name in labels if name != study.contrast]
    if others:
        said = []
        for name in others:
            mean = Mean.of(means, contrast=name)
            said.append(f"against {against(name)} it is {signed(mean.value)} ({mean.bracket})")
        blocks.append(paragraph("{}.", _capital("; ".join(said))))
    caption = (
        "One dot per prompt, at logit(answer) − logit(counterpart); blue where the answer is "
        "preferred, orange where it is not. Below the dots: the mean and its 95 % interval."
    )
    if main.n < everyone:
        caption += (
            f" Means are over the {main.n} prompts of the behaviour’s main groups; all {everyone} "
            "are drawn."
        )
    blocks.append(
        Figure(
            "The logit difference of every prompt",
            drawing,
            f"Dot plot of logit differences. Mean against {against(study.contrast)}: "
            f"{signed(main.value)} logits, {main.bracket}; "
            f"range {number(known.min())} to {number(known.max())}."
            if known.size
            else "Dot plot without a measured value; 0 prompts.",
            draw.Data.of(grid),
            caption,
        )
    )
    return blocks


def by_group(study: Stored) -> list[Block]:
    """The main contrast by group of prompts, where there are groups."""
    grid = study.grid("logit_difference", "contrast", "prompt").select(contrast=study.contrast)
    groups = _groups(study)
    if len(groups) < 2:
        raise Missing("the prompts are not in groups")
    place = {label: i for i, label in enumerate(grid.axis("prompt").labels)}
    stored = study.grid("logit_difference.by_group", "group", "contrast")
    stored = stored.select(contrast=study.contrast)
    lines: list[list[draw.Number]] = []
    means: list[Mean | None] = []
    for name, members in groups.items():
        lines.append(draw.numbers(np.array([grid.values[place[p]] for p in members if p in place])))
        mean = Mean.of(stored, group=name) if name in stored.axis("group").labels else None
        means.append(mean if mean is not None and mean.n > 1 else None)
    names = list(groups)
    width = max(map(len, lines))
    cells = [value for line in lines for value in [*line, *[None] * (width - len(line))]]
    members = [p for found in groups.values() for p in [*found, *[""] * (width - len(found))]]
    known = {n: m for n, m in zip(names, means, strict=True) if m is not None}
    said = "; ".join(f"{n} {signed(m.value)} ({m.bracket})" for n, m in known.items())
    data = draw.Data(
        [("group", names), ("place", [str(i) for i in range(width)])],
        {"value": cells, "prompt": [int(p) if p.isdigit() else None for p in members]},
        grid.unit,
        "arrays/logit_difference.safetensors",
    )
    drawing = draw.strip(
        names,
        [[*line, *[None] * (width - len(line))] for line in lines],
        unit="logit difference, logits",
        mean=[None if m is None else m.value for m in means],
        lower=[None if m is None else m.lower for m in means],
        upper=[None if m is None else m.upper for m in means],
        row=42,
    )
    return [
        *_group_tests(study),
        Figure(
            "The same difference by group of prompts",
            drawing,
            f"Dot plot of the logit difference by group, {len(names)} groups. {said}",
            data,
            f"Contrast against {against(study.contrast)}. A prompt may stand in several groups; a "
            "group of one prompt has no mean.",
        ),
    ]


def _group_tests(study: Stored) -> list[Block]:
    """Which groups' means differ, after correction for looking at every pair."""
    try:
        table = study.table("group_tests", "contrast", "group", "other", "difference", "p_holm")
    except Missing:
        return []
    rows = [r for r in table.rows() if r["contrast"] == study.contrast and r["p_holm"] is not None]
    if not rows:
        return []
    clear = sorted((r for r in rows if r["p_holm"] < 0.05), key=lambda r: r["p_holm"])
    said = [
        f"“{clean(r['group'])}” against “{clean(r['other'])}” {signed(r['difference'])} "
        f"(p\u00a0=\u00a0{number(r['p_holm'], 3)})"
        for r in clear[:6]
    ]
    return [
        paragraph(
            "Of {} pairs of groups, {} differ in their mean difference at the 5\u00a0% level after "
            "Holm’s correction{}{}.",
            *(len(rows), len(clear) or "none", ": " if said else "", "; ".join(said)),
        )
    ]


def _groups(study: Stored) -> dict[str, list[str]]:
    rows = study.table("prompts", "prompt").rows()
    found: dict[str, list[str]] = {}
    for row in rows:
        for name in row.get("groups") or ():
            found.setdefault(clean(name), []).append(str(row["prompt"]))
    return found


def case_by_space(study: Stored) -> list[Block]:
    """The 2 x 2 of case and space: main effects and interaction."""
    means = study.grid("case_by_space.mean", "effect")
    effects = means.axis("effect").labels
    said = []
    for effect in effects:
        mean = Mean.of(means, effect=effect)
        zero = "" if mean.clear or np.isnan(mean.lower) else ", undecided"
        said.append(f"{spoken(effect)} {signed(mean.value)} ({mean.bracket}{zero})")
    return [
        paragraph(
            "The four forms of the answer, capital or lower case, with and without a leading "
            "space, make a 2 × 2. Its effects in logits: {}.",
            "; ".join(said),
        ),
        Figure(
            "Case and space apart",
            draw.mean_bars(means, [spoken(e) for e in effects]),
            f"Bars of the 2 × 2’s effects: {'; '.join(said)}.",
            draw.Data.of(means),
            clean(means.about) or "Means over prompts with 95 % intervals.",
        ),
    ]


CONTROLS = {
    "difference": "the difference itself",
    "b_U": "b_U alone",
    "unigram": "after BOS alone",
    "shuffled": "words in another order",
}
"""The controls in words."""


def controls(study: Stored) -> list[Block]:
    """What simpler explanations would give, as dots and means."""
    grid = study.grid("controls.logits", "contrast", "control", "prompt")
    means = study.grid("controls.logits.mean", "contrast", "control")
    grid, means = grid.select(contrast=study.contrast), means.select(contrast=study.contrast)
    names = grid.axis("control").labels
    labels = [CONTROLS.get(name, spoken(name)) for name in names]
    found = {name: Mean.of(means, control=name) for name in names}
    said = [
        f"{label} {signed(found[name].value)} ({found[name].bracket})"
        for name, label in zip(names, labels, strict=True)
        if found[name].n and name != "difference"
    ]
    if not said:
        raise Missing("no control could be measured")
    figure = Figure(
        "The difference beside what simpler explanations give",
        draw.strip(
            labels,
            [draw.numbers(row) for row in grid.values],
            unit=grid.unit,
            mean=draw.numbers(means.values),
            lower=None if means.lower is None else draw.numbers(means.lower),
            upper=None if means.upper is None else draw.numbers(means.upper),
            row=46,
        ),
        f"Dot plot of the logit difference beside controls: {'; '.join(said)}.",
        draw.Data.of(grid),
        clean(grid.about),
    )
    return [
        paragraph(
            "Simpler explanations give, of the same contrast: {}.{}",
            *("; ".join(said), _copied(study)),
        ),
        figure,
    ]


def _copied(study: Stored) -> str:
    """In how many of the main prompts the answer's word already stands."""
    try:
        table = study.table("controls", "prompt", "copied")
    except Missing:
        return ""
    main = set(study.main_prompts([str(p) for p in table.columns["prompt"]]))
    copied = [c for i, c in enumerate(table.columns["copied"]) if i in main and c is not None]
    return (
        f" The answer’s word stands in the prompt itself in {sum(map(bool, copied))} of "
        f"{count(len(copied), 'prompt')}."
    )


def preference(contrast: str, mean: Mean, known: Any) -> Markup:
    """The headline: the mean difference's direction and size, or that it is undecided."""
    ratio = float(np.exp(min(abs(mean.value), 700.0)))
    positive, n = int((known > 0).sum()), len(known)
    signs = f"The difference is positive in {positive:,} of {count(n, 'prompt')}."
    size = f"{signed(mean.value)} logits ({mean.bracket})"
    if np.isnan(mean.value):
        return paragraph("No mean difference against {} could be computed.", against(contrast))
    if mean.n < 2 or np.isnan(mean.lower):
        return paragraph(
            "Against {}, the answer’s logit difference is {}. One prompt gives no interval, and "
            "says nothing about others.",
            *(against(contrast), size),
        )
    if not mean.clear:
        return paragraph(
            "Against {}, the mean logit difference is {}: the interval includes zero, so these "
            "prompts do not show a preference in either direction. {}",
            *(against(contrast), size, signs),
        )
    more = "more" if mean.value > 0 else "less"
    return paragraph(
        "Against {}, the answer’s mean logit difference is <strong>{}</strong>: as a geometric "
        "mean over prompts it is {} times {} probable. {}",
        *(against(contrast), size, number(ratio, 1 if ratio < 100 else 0), more, signs),
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
