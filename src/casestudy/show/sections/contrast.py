"""By how much? Every prompt's logit difference, means by contrast and group, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Array, Grid
from casestudy.show import distribution, marks
from casestudy.show.blocks import Block, Figure, Listing, columns_of, paragraph
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import capital, chip, clean, count, interval, number, percent, signed
from casestudy.show.weighed import Weighed, weighed
from casestudy.show.wording import NOTHING, Mean, Spread, known, spoken


def differences(study: StoredStudy) -> list[Block]:
    """Every prompt's logit difference, and the means."""
    grid = study.grid(names.LOGIT_DIFFERENCE, "contrast", "prompt")
    means = study.grid(names.mean(names.LOGIT_DIFFERENCE), "contrast")
    labels = grid.axis("contrast").labels
    found = {name: Mean.of(means, contrast=name) for name in labels}
    main = found[study.contrast]
    values = grid.select(contrast=study.contrast).values
    everyone = int(np.isfinite(values).sum())
    counted = known(values[study.main_prompts(grid.axis("prompt").labels)])
    sides = weighed(study)
    blocks: list[Block] = [preference(sides, main, counted), *_always_capital(study, grid)]
    others = [name for name in labels if name != study.contrast]
    if others:
        phrases = [
            Markup("{} it is {} ({})").format(
                weighed(study, name).against, signed(found[name].value), found[name].bracket
            )
            for name in others
        ]
        blocks.append(paragraph("For {}.", Markup("; for ").join(phrases)))
    drawn = distribution.rows(
        "contrast",
        [_row_label(study, label) for label in labels],
        list(grid.values),
        list(found.values()),
        unit=sides.difference if len(labels) == 1 else _units(study, labels),
        dots=marks.Data.of(grid),
        row=54,
    )
    linear = sides.unit == "logits"
    of, what = ("logit", "logit difference") if linear else ("log-probability", "difference")
    caption = f"The {of} of {sides.answer.plain} minus that of {sides.counterpart.plain} "
    caption += f"after every prompt. {drawn.reading}"
    if main.n < everyone:
        caption += (
            f" Means are over the {main.n:,} prompts of the behaviour’s main groups; all "
            f"{everyone:,} are drawn."
        )
    spread = Spread.of(counted)
    blocks.append(
        Figure(
            f"The {what} of every prompt",
            drawn.mark,
            f"Distribution of {what}s. Mean, {sides.against_plain}: "
            f"{signed(main.value)} {sides.unit}, {main.bracket}; median {number(spread.median)}, "
            f"range {number(counted.min())} to {number(counted.max())}."
            if spread is not None
            else "Distribution without a measured value; 0 prompts.",
            drawn.data,
            caption,
        )
    )
    return blocks


def _units(study: StoredStudy, contrasts: Sequence[str]) -> str:
    """The axis of several contrasts."""
    units = {weighed(study, name).unit for name in contrasts}
    return "logit difference, logits" if units == {"logits"} else "difference, logits or nats"


def _row_label(study: StoredStudy, contrast: str) -> str:
    """A contrast's row: its two tokens where all prompts have the same, or its form."""
    sides = weighed(study, contrast)
    label = sides.against_plain if sides.named else spoken(contrast)
    return label if len(label) <= MOST_LABEL else spoken(contrast)


MOST_LABEL = 24
"""Characters of a row's label."""

ALWAYS_CAPITAL = frozenset({"I", "I'm", "I'll", "I've", "I'd", "I’m", "I’ll", "I’ve", "I’d"})
"""Words that English always writes with a capital."""


def _always_capital(study: StoredStudy, grid: Grid) -> list[Block]:
    """The mean without answers that always have a capital, if the contrast is about case."""
    if study.contrast != "lowercase" or names.ANSWERS not in study.tables:
        return []
    rows = study.table(names.ANSWERS, "prompt", "form", "token").rows()
    always = {
        str(row["prompt"])
        for row in rows
        if row["form"] == "answer" and str(row["token"]).strip() in ALWAYS_CAPITAL
    }
    labels = grid.axis("prompt").labels
    main = [i for i in study.main_prompts(labels) if np.isfinite(_main(study, grid)[i])]
    others = [i for i in main if labels[i] not in always]
    if len(others) == len(main):
        return []
    without = Mean.over(_main(study, grid)[others]) if others else NOTHING
    size = f"{signed(without.value)} logits ({without.bracket})" if without.n else "not measured"
    return [
        paragraph(
            "In {} of {} the answer is a word that is always a capital ({}); without them the mean "
            "is {}.",
            *(len(main) - len(others), count(len(main), "prompt"), chip(" I"), size),
        )
    ]


def _main(study: StoredStudy, grid: Grid) -> Array:
    return grid.select(contrast=study.contrast).values


MOST_GROUPS = 24
"""Groups that are drawn; the table has all."""


def by_group(study: StoredStudy) -> list[Block]:
    """The main contrast by group of prompts, if there are groups."""
    grid = study.grid(names.LOGIT_DIFFERENCE, "contrast", "prompt").select(contrast=study.contrast)
    members = _groups(study)
    if len(members) < 2:
        raise Missing("the prompts are not in groups")
    place = {label: i for i, label in enumerate(grid.axis("prompt").labels)}
    stored = study.grid(names.by_group(names.LOGIT_DIFFERENCE), "group", "contrast")
    stored = stored.select(contrast=study.contrast)
    known_groups = stored.axis("group").labels
    groups = {
        name: _Group(
            [p for p in prompts if p in place],
            grid.values[[place[p] for p in prompts if p in place]],
            Mean.of(stored, group=name) if name in known_groups else NOTHING,
        )
        for name, prompts in members.items()
    }
    largest = sorted(groups, key=lambda name: -len(groups[name].prompts))[:MOST_GROUPS]
    drawn_groups = [name for name in groups if name in largest]
    drawn = distribution.rows(
        "group",
        drawn_groups,
        [groups[name].values for name in drawn_groups],
        [groups[name].mean if groups[name].mean.n > 1 else None for name in drawn_groups],
        unit=weighed(study).difference,
        dots=_dots(grid, {name: groups[name] for name in drawn_groups}),
        row=42,
    )
    phrases = [
        f"{name} {signed(groups[name].mean.value)} ({groups[name].mean.bracket})"
        for name in drawn_groups
        if groups[name].mean.n > 1
    ]
    rest = (
        f" The {len(drawn_groups)} largest of {len(groups):,} groups."
        if len(drawn_groups) < len(groups)
        else ""
    )
    return [
        Figure(
            "The same difference by group of prompts",
            drawn.mark,
            f"Distribution of the logit difference by group, {len(drawn_groups)} groups. "
            + "; ".join(phrases),
            drawn.data,
            f"{capital(weighed(study).against_plain)}. {drawn.reading} A prompt may stand in "
            f"several groups; a group of one prompt has no mean.{rest}",
        ),
        _group_numbers(groups, study.unit),
        *_group_tests(study),
    ]


@dataclass(frozen=True)
class _Group:
    prompts: Sequence[str]
    values: Array
    mean: Mean


def _dots(grid: Grid, groups: Mapping[str, _Group]) -> marks.Data:
    """Each group's prompts side by side; shorter groups end in cells that were not measured."""
    width = max(len(group.prompts) for group in groups.values())
    cells: list[marks.Number] = []
    prompts: list[marks.Number] = []
    for group in groups.values():
        none: list[marks.Number] = [None] * (width - len(group.prompts))
        cells += [*marks.numbers(group.values), *none]
        prompts += [*(int(p) if p.isdigit() else None for p in group.prompts), *none]
    return marks.Data(
        [("group", list(groups)), ("place", [str(i) for i in range(width)])],
        {"value": cells, "prompt": prompts},
        grid.unit,
        "arrays/logit_difference.safetensors",
    )


def _group_numbers(groups: Mapping[str, _Group], unit: str) -> Listing:
    """The groups in numbers: means and quantiles."""
    rows: list[list[str | Markup]] = []
    raw: dict[str, list[object]] = {name: [] for name in ("group", *_NUMBERS)}
    for name, group in groups.items():
        mean, spread = group.mean, Spread.of(group.values)
        rows.append(
            [
                name,
                f"{spread.n if spread else 0:,}",
                signed(mean.value) if mean.n else "",
                interval(mean.lower, mean.upper) if mean.n > 1 else "",
                number(spread.median) if spread else "",
                interval(spread.first, spread.third) if spread and spread.n > 1 else "",
                percent(spread.positive) if spread else "",
            ]
        )
        cells = (
            *(spread.n if spread else 0, mean.value, mean.lower, mean.upper),
            *((getattr(spread, part) if spread else None) for part in _NUMBERS[4:]),
        )
        for key, value in zip(raw, (name, *cells), strict=True):
            raw[key].append(value)
    return Listing(
        "The groups in numbers",
        ["Group", "n#", "Mean#", "95\u00a0% interval#", "Median#", "Quartiles#", "Above zero#"],
        rows,
        f"In {unit}. Quartiles are the 25th and 75th percentile; the last column is the share of "
        "prompts in which the answer is preferred.",
        fold=MOST_GROUPS,
        data=raw,
    )


_NUMBERS = (
    *("n", "mean", "lower", "upper"),
    *("low", "first", "median", "third", "high", "positive"),
)


def _group_tests(study: StoredStudy) -> list[Block]:
    """Which groups' means differ, after correction for looking at every pair."""
    try:
        table = study.table(names.GROUP_TESTS, "contrast", "group", "other", "difference", "p_holm")
    except Missing:
        return []
    rows = [r for r in table.rows() if r["contrast"] == study.contrast and r["p_holm"] is not None]
    if not rows:
        return []
    clear = sorted((r for r in rows if r["p_holm"] < 0.05), key=lambda r: r["p_holm"])
    phrases = [
        f"“{clean(r['group'])}” against “{clean(r['other'])}” {signed(r['difference'])} "
        f"(p\u00a0=\u00a0{number(r['p_holm'], 3)})"
        for r in clear[:6]
    ]
    more = len(clear) - len(phrases)
    phrases += [f"and {count(more, 'pair')} more"] if more else []
    rows.sort(key=lambda r: r["p_holm"])
    cells: list[list[str | Markup]] = [
        [
            clean(r["group"]),
            clean(r["other"]),
            signed(r["difference"]),
            number(r["p"], 4) if r.get("p") is not None else "",
            number(r["p_holm"], 4),
        ]
        for r in rows
    ]
    head = ["Group", "Other", "Difference#", "p#", "p, corrected#"]
    listing = Listing(
        "Every pair of groups, tested",
        head,
        cells,
        clean(table.about),
        fold=6,
        data=columns_of(rows),
    )
    return [
        paragraph(
            "Of {} pairs of groups, {} differ in their mean difference at the 5\u00a0% level after "
            "Holm’s correction{}{}.",
            *(len(rows), len(clear) or "none", ": " if phrases else "", "; ".join(phrases)),
        ),
        listing,
    ]


def _groups(study: StoredStudy) -> dict[str, list[str]]:
    rows = study.table(names.PROMPTS, "prompt").rows()
    found: dict[str, list[str]] = {}
    for row in rows:
        for name in row.get("groups") or ():
            found.setdefault(clean(name), []).append(str(row["prompt"]))
    return found


def case_by_space(study: StoredStudy) -> list[Block]:
    """The 2 x 2 of case and space: main effects and interaction."""
    means = study.grid(names.mean(names.CASE_BY_SPACE), "effect")
    effects = means.axis("effect").labels
    phrases = []
    for effect in effects:
        mean = Mean.of(means, effect=effect)
        zero = "" if mean.clear or np.isnan(mean.lower) else ", undecided"
        phrases.append(f"{spoken(effect)} {signed(mean.value)} ({mean.bracket}{zero})")
    return [
        paragraph(
            "The four forms of the answer, capital or lower case, with and without a leading "
            "space, make a 2 × 2. Its effects in logits: {}.",
            "; ".join(phrases),
        ),
        Figure(
            "Case and space apart",
            marks.mean_bars(means, [spoken(e) for e in effects]),
            f"Bars of the 2 × 2’s effects: {'; '.join(phrases)}.",
            marks.Data.of(means),
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


def controls(study: StoredStudy) -> list[Block]:
    """The controls: the difference by simpler explanations, as dots and means."""
    grid = study.grid(names.CONTROL_LOGITS, "contrast", "control", "prompt")
    means = study.grid(names.mean(names.CONTROL_LOGITS), "contrast", "control")
    contrast = study.contrast_in(grid.axis("contrast").labels)
    grid, means = grid.select(contrast=contrast), means.select(contrast=contrast)
    kept = [name for name in grid.axis("control").labels if _applies(study, means, name)]
    grid, means = grid.take("control", kept), means.take("control", kept)
    labels = [CONTROLS.get(name, spoken(name)) for name in kept]
    found = {name: Mean.of(means, control=name) for name in kept}
    phrases = [
        f"{label} {signed(found[name].value)} ({found[name].bracket})"
        for name, label in zip(kept, labels, strict=True)
        if found[name].n and name != "difference"
    ]
    if not phrases:
        raise Missing("no control could be measured")
    drawn = distribution.rows(
        "control",
        labels,
        list(grid.values),
        list(found.values()),
        unit=grid.unit,
        dots=marks.Data.of(grid),
    )
    figure = Figure(
        "The difference beside what simpler explanations give",
        drawn.mark,
        f"Distribution of the logit difference beside controls: {'; '.join(phrases)}.",
        drawn.data,
        f"{clean(grid.about)} {drawn.reading}",
    )
    return [
        paragraph(
            "Simpler explanations give, of {}: {}.{}",
            "the same contrast" if contrast == study.contrast else weighed(study, contrast).against,
            *("; ".join(phrases), _copied(study)),
        ),
        figure,
    ]


def _applies(study: StoredStudy, means: Grid, control: str) -> bool:
    """Whether a control applies: it was measured, and its text could be a prompt's."""
    if control == "unigram" and study.about("settings", "prepend_bos") == "False":
        return False
    return Mean.of(means, control=control).n > 0


def _copied(study: StoredStudy) -> str:
    """The number of main prompts that contain the answer's word."""
    try:
        table = study.table(names.CONTROLS, "prompt", "copied")
    except Missing:
        return ""
    main = set(study.main_prompts([str(p) for p in table.columns["prompt"]]))
    copied = [c for i, c in enumerate(table.columns["copied"]) if i in main and c is not None]
    return (
        f" The answer’s word stands in the prompt itself in {sum(map(bool, copied))} of "
        f"{count(len(copied), 'prompt')}."
    )


def preference(sides: Weighed, mean: Mean, known: Any) -> Markup:
    """The headline: which side is preferred and by how much, or that it is undecided."""
    if np.isnan(mean.value):
        return paragraph("No mean difference of {} could be computed.", sides.against)
    preferred, other = sides.by_sign(mean.value)
    n, same = len(known), int((np.sign(known) == np.sign(mean.value)).sum())
    size = f"{signed(mean.value)} {sides.unit} ({mean.bracket})"
    of, what = ("logit", "logit difference")
    if sides.unit == "nats":
        of, what = ("log-probability", "difference of the log-probabilities")
    if mean.n < 2 or np.isnan(mean.lower):
        return paragraph(
            "The {} of {} minus that of {} is {}. One prompt gives no interval, and says "
            "nothing about others.",
            *(of, sides.answer.markup, sides.counterpart.markup, size),
        )
    if not mean.clear:
        return paragraph(
            "The mean {} of {} is {}: the interval includes zero, so these prompts "
            "do not show a preference in either direction. {} is preferred in {} of {}.",
            *(
                what,
                sides.against,
                size,
                capital(preferred.markup),
                f"{same:,}",
                count(n, "prompt"),
            ),
        )
    ratio = float(np.exp(min(abs(mean.value), 700.0)))
    return paragraph(
        "The mean {} of {} is <strong>{}</strong>: as a geometric mean over "
        "prompts, {} is {} times more probable than {}. It is preferred in {} of {}.",
        *(what, sides.against, size, preferred.markup, number(ratio, 1 if ratio < 100 else 0)),
        *(other.markup, f"{same:,}", count(n, "prompt")),
    )
