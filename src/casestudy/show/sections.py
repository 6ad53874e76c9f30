"""In what order does the argument run, and what does each step show?

Does it? By how much? Who writes it? Where does it come from? Is it causal? What is the circuit? How
sure? Every sentence here is filled from measured values, with their n and interval; a step whose
measurements a study lacks is left out and listed under "What was not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.measure.result import Grid
from casestudy.measure.stats import mean_interval
from casestudy.show import draw
from casestudy.show.blocks import Block, Figure, Listing, Topic, paragraph
from casestudy.show.stored import Missing, Stored
from casestudy.show.text import (
    chip,
    clean,
    count,
    interval,
    listing,
    number,
    ordinal,
    percent,
    shorten,
    signed,
)

B_U = "final norm bias (b_U)"
EXAMPLES = 24
"""How many prompts a report goes through one by one; all of them where a study has no more."""

AGAINST = {
    "lowercase": "its lower-case form",
    "no_space": "the same word without its leading space",
    "lowercase_no_space": "its lower-case form without the leading space",
    "counterpart": "its counterpart",
    "capital mass": "lower case, as probability mass of the two classes",
}


def against(contrast: str) -> str:
    """What a contrast weighs the answer against, in words."""
    return AGAINST.get(contrast, f"“{clean(contrast)}”")


@dataclass(frozen=True)
class Mean:
    """A mean with what is known of it."""

    value: float
    lower: float
    upper: float
    n: int

    @classmethod
    def of(cls, grid: Grid, **where: str) -> Mean:
        """One cell of a grid of means."""
        cell = grid.select(**where) if where else grid

        def one(array: Any) -> float:
            return float("nan") if array is None else float(np.asarray(array).ravel()[0])

        n = one(cell.n)
        value = one(cell.values)
        return cls(value, one(cell.lower), one(cell.upper), 0 if np.isnan(n) else int(n))

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.lower > 0 or self.upper < 0

    @property
    def bracket(self) -> str:
        """ "95 % interval 3.2 to 4.9, n = 17"."""
        if np.isnan(self.lower) or np.isnan(self.upper):
            return f"n = {self.n}, no interval"
        return f"95 % interval {interval(self.lower, self.upper)}, n = {self.n:,}"


# Does it?


def prompts_table(study: Stored) -> list[Block]:
    """Each prompt with what the model expects next, and where the answer stands."""
    prompts = study.table("prompts", "prompt", "text")
    predictions = _by_prompt(study.table("predictions", "prompt", "rank", "token", "prob").rows())
    answers = _by_prompt(study.tables["answers"].rows()) if "answers" in study.tables else {}
    study.shown.add("answers")
    examples = set(example_prompts(study))
    rows: list[list[str | Markup]] = []
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
        rows.append(
            [
                Markup('<a href="#prompt-{}">{}</a>').format(prompt, prompt),
                Markup('<bdi class="prompt">{}</bdi>').format(shorten(clean(row["text"]), 60)),
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
                "its median rank is {}.{}",
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
    head = ["", "Prompt", "Most probable next", "Answer", "Counterpart"]
    blocks.append(Listing("What the model expects next", head, rows, caption))
    return blocks


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


def example_prompts(study: Stored) -> list[int]:
    """The prompts gone through one by one: all, or the first of each group and then by difference.

    The rule is stated in the report, so that nobody has to wonder who picked the examples.
    """
    rows = study.table("prompts", "prompt", "text").rows()
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


def _ranked_prompts(study: Stored) -> list[int]:
    if "logit_difference" not in study.grids:
        return []
    grid = study.grid("logit_difference", "contrast", "prompt").select(contrast=study.contrast)
    known = [
        (value, int(label))
        for value, label in zip(grid.values.tolist(), grid.axes[0].labels, strict=True)
        if np.isfinite(value)
    ]
    return [label for _, label in sorted(known)]


# By how much?


def differences(study: Stored) -> list[Block]:
    """Every prompt's logit difference, and the means."""
    grid = study.grid("logit_difference", "contrast", "prompt")
    means = study.grid("logit_difference.mean", "contrast")
    labels = grid.axis("contrast").labels
    drawing = draw.strip(
        labels,
        [draw.numbers(row) for row in grid.values],
        unit="logit difference, logits",
        mean=draw.numbers(means.values),
        lower=None if means.lower is None else draw.numbers(means.lower),
        upper=None if means.upper is None else draw.numbers(means.upper),
    )
    main = Mean.of(means, contrast=study.contrast)
    values = grid.select(contrast=study.contrast).values
    known = values[np.isfinite(values)]
    blocks: list[Block] = [preference(study.contrast, main, known)]
    others = [name for name in labels if name != study.contrast]
    if others:
        said = []
        for name in others:
            mean = Mean.of(means, contrast=name)
            said.append(f"against {against(name)} it is {signed(mean.value)} ({mean.bracket})")
        blocks.append(paragraph("{}.", _capital("; ".join(said))))
    blocks.append(
        Figure(
            "The logit difference of every prompt",
            drawing,
            f"Dot plot of logit differences. Mean against {against(study.contrast)}: "
            f"{signed(main.value)} logits, {main.bracket}; "
            f"range {number(known.min())} to {number(known.max())}."
            if known.size
            else "Dot plot without a measured value.",
            draw.Data.of(grid),
            "One dot per prompt, at logit(answer) − logit(counterpart); blue where the answer is "
            "preferred, orange where it is not. Below the dots: the mean and its 95 % interval.",
        )
    )
    return blocks


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


# Who writes it?


def ledger_mean(study: Stored) -> list[Block]:
    """The account of the mean difference, as a waterfall, and b_U as its own line."""
    means = study.grid("ledger.mean", "contrast", "term").select(contrast=study.contrast)
    total = Mean.of(study.grid("logit_difference.mean", "contrast"), contrast=study.contrast)
    terms = list(means.axis("term").labels)
    if np.isnan(total.value) or not np.isfinite(means.values).any():
        raise Missing("no prompt has a ledger to average")
    lower = None if means.lower is None else draw.numbers(means.lower)
    upper = None if means.upper is None else draw.numbers(means.upper)
    values = means.values.tolist()
    gap = abs(float(np.nansum(means.values)) - total.value)
    order = sorted(range(len(terms)), key=lambda i: -abs(np.nan_to_num(values[i])))
    largest = [
        f"{clean(terms[i])} ({signed(values[i])} [{interval(lower[i], upper[i])}])"
        if lower and upper and lower[i] is not None
        else f"{clean(terms[i])} ({signed(values[i])})"
        for i in order[:3]
    ]
    blocks: list[Block] = [_groups(study, terms), _b_u(study, total)]
    figure = Figure(
        "The ledger: every term of the mean logit difference",
        draw.waterfall(terms, values, total.value, lower=lower, upper=upper, marked=(B_U,)),
        f"Waterfall from 0 to the mean logit difference, {signed(total.value)} logits "
        f"({total.bracket}). Largest terms: {listing(largest)}. Gap between the sum of the terms "
        f"and the difference: {number(gap)} logits.",
        ledger_data(means, total),
        Markup(
            "Contrast against {}. Each bar starts where the one above ended, so the last bar must "
            "end where the account ends; lines are 95 % intervals of a term’s mean (n = {}). The "
            "terms sum to {}, the logit difference is {}: a gap of {} logits. The outlined bar is "
            "the final norm’s bias through the unembedding."
        ).format(
            against(study.contrast),
            total.n,
            number(float(np.nansum(means.values)), 3),
            number(total.value, 3),
            number(gap),
        ),
    )
    return [*blocks[:1], figure, *blocks[1:]]


def ledger_data(terms: Grid, total: Mean | float) -> draw.Data:
    """A waterfall's cells: the terms and the total, and where each bar ends."""
    ends = np.cumsum(np.nan_to_num(terms.values))
    mean = total if isinstance(total, Mean) else Mean(total, float("nan"), float("nan"), 0)
    columns: dict[str, list[draw.Number]] = {
        "value": draw.numbers(np.append(terms.values, mean.value)),
        "ends at": draw.numbers(np.append(ends, mean.value)),
    }
    if isinstance(total, Mean):
        for name, end in (("lower", total.lower), ("upper", total.upper), ("n", total.n)):
            array = getattr(terms, name)
            if array is not None:
                columns[name] = draw.numbers(np.append(array, end))
    labels = [*terms.axis("term").labels, "logit difference"]
    return draw.Data([("term", labels)], columns, terms.unit, "arrays/ledger.safetensors")


GROUPS: Mapping[str, Callable[[str], bool]] = {
    "attention layers": lambda term: term.startswith("attn "),
    "MLP layers": lambda term: term.startswith("mlp "),
    "token and position embeddings": lambda term: term in ("embed", "pos_embed"),
    "the final norm’s bias b_U": lambda term: term == B_U,
    "other biases": lambda term: term in ("unembedding bias", "soft cap", "entropy term"),
}


def group_means(study: Stored) -> dict[str, Mean]:
    """The ledger summed by kind of part, per prompt, then averaged."""
    grid = study.grid("ledger", "contrast", "term", "prompt").select(contrast=study.contrast)
    terms = grid.axis("term").labels
    found = {}
    for name, belongs in GROUPS.items():
        rows = [i for i, term in enumerate(terms) if belongs(term)]
        if rows:
            sums = grid.values[rows].sum(0)[:, None].astype(float)
            mean, lower, upper, n = (a.item() for a in mean_interval(sums))
            if n:
                found[name] = Mean(mean, lower, upper, n)
    return found


def _groups(study: Stored, terms: Sequence[str]) -> Markup:
    try:
        groups = group_means(study)
    except Missing:
        return Markup("")
    said = [
        Markup("{} <b>{}</b> [{}]").format(name, signed(m.value), interval(m.lower, m.upper))
        for name, m in sorted(groups.items(), key=lambda item: -abs(item[1].value))
    ]
    n = max((m.n for m in groups.values()), default=0)
    return paragraph(
        "With the final norm’s scale frozen at its measured value, the difference is a sum over "
        "the parts of the model that wrote to the residual stream. By kind of part: {} "
        "(logits, mean over n = {} with 95 % interval). The share a part writes directly is not "
        "its causal effect: it may pass on what an earlier part wrote.",
        Markup(", ").join(said),
        n,
    )


def _b_u(study: Stored, total: Mean) -> Markup:
    """With and without b_U: what a projection of the residual stream alone would have given."""
    try:
        check = study.grid("ledger.check", "contrast", "quantity", "prompt")
        check = check.select(contrast=study.contrast)
        without = check.select(quantity="without b_U").values
    except Exception as error:
        raise Missing(f"the ledger’s check is not as expected: {error}") from error
    known = without[np.isfinite(without)]
    if not known.size or "ledger.mean" not in study.grids:
        return Markup("")
    terms = study.grid("ledger.mean", "contrast", "term")
    if B_U not in terms.axis("term").labels:
        return paragraph("This model’s final norm has no bias: there is no b_U to account for.")
    bias = Mean.of(terms, contrast=study.contrast, term=B_U)
    return Markup(
        '<aside class="note"><h3>With and without b_U</h3><p>The logit difference is '
        "<strong>{}</strong>; projecting the residual stream on the unembedding alone gives "
        "<strong>{}</strong>. What is left, {} [{}], is the final norm’s bias: it gives every "
        "token a constant, b_U, which does not cancel between answer and counterpart. It is the "
        "same whatever the prompt says, for the same two tokens.</p></aside>"
    ).format(
        number(total.value, 3),
        number(float(known.mean()), 3),
        signed(bias.value, 3),
        interval(bias.lower, bias.upper, 3),
    )


# How sure?


def checks(study: Stored) -> list[Block]:
    """What each measurement's own check found."""
    rows: list[list[str | Markup]] = []
    for name, grid in sorted(study.grids.items()):
        if "gap" in grid.error:
            bound = grid.error.get("bound")
            held = bound is None or grid.error["gap"] <= bound
            rows.append(
                [
                    clean(name),
                    number(grid.error["gap"]),
                    "none promised" if bound is None or np.isinf(bound) else number(bound),
                    "holds" if held else Markup("<strong>exceeded</strong>"),
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
            ["Measurement", "Largest gap#", "Bound#", ""],
            rows,
            caption,
        )
    ]


def exclusions(study: Stored) -> list[Block]:
    """Prompts left out of the contrasts, and predictions that could not be an answer."""
    blocks: list[Block] = []
    prompts = study.table("prompts", "prompt", "text").rows()
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
                ["", "Prompt", "Why"],
                [
                    [
                        str(row["prompt"]),
                        Markup("<bdi>{}</bdi>").format(shorten(clean(row["text"]), 60)),
                        clean(row["error"]),
                    ]
                    for row in out[:50]
                ],
                f"The first 50 of {len(out):,}." if len(out) > 50 else "",
            )
        )
    passed = study.tables.get("passed_over")
    if passed is not None and passed.columns.get("prompt"):
        study.shown.add("passed_over")
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


ARGUMENT: Sequence[Topic] = (
    Topic("does-it", "Does it?", [("predictions and answers", prompts_table)]),
    Topic("how-much", "By how much?", [("logit differences", differences)]),
    Topic("who", "Who writes it?", [("the ledger", ledger_mean)]),
    Topic("how-sure", "How sure?", [("checks", checks), ("exclusions", exclusions)]),
)
"""The questions in their order, and what answers each."""
