"""What is the answer, in a few short paragraphs?

The paragraphs are written from measured values only. A sentence appears if its measurement exists;
a mean whose interval includes zero is called undecided; a page without interventions says that it
shows no causes.
"""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Array
from casestudy.show.sections import circuit, grounds, neurons, patching
from casestudy.show.sections.ledger import group_means, present
from casestudy.show.stored import UNEXPECTED, Missing, StoredStudy
from casestudy.show.text import MINUS, clean, count, interval, number, signed
from casestudy.show.weighed import Weighed, examples, weighed
from casestudy.show.wording import Mean

GENERAL = ("Why does the model prefer this next token?", "What comes next?")
"""Default questions of behaviours whose author wrote none."""

UNTITLED = "A study of next-token preferences"


def title(study: StoredStudy) -> str:
    """The page's title: the author's question, or else the result, with its tokens."""
    question = study.about("behaviour", "question")
    if question and question not in GENERAL:
        return question
    try:
        return _headline(study)
    except (Missing, *UNEXPECTED):
        return question or UNTITLED


def _headline(study: StoredStudy) -> str:
    """ "tiny prefers ·were to ·was by 2.61 logits (n = 10)"."""
    mean, _ = _measured(study)
    sides, model = weighed(study), study.about("model", "name") or "the model"
    n = f"(n\u00a0=\u00a0{mean.n:,})"
    if mean.n > 1 and not mean.clear:
        return f"{model}: no clear preference, {sides.against_plain} {n}"
    preferred, other = sides.by_sign(mean.value)
    size = number(abs(mean.value))
    return f"{model} prefers {preferred.plain} to {other.plain} by {size} {study.unit} {n}"


def sentences(study: StoredStudy) -> list[Markup]:
    """The sentences that the study's values support, one or two of each kind; the command line and
    the report show each kind as a paragraph.

    Returns: an empty list where there is no logit difference.
    """
    found: list[Markup] = []
    for sentence in (
        *(_preference, grounds.left_out, _direct_contributions, patching.what_decides),
        *(grounds.corrupted, _causal_effects, circuit.sentence, grounds.no_circuit),
        *(neurons.sentence, grounds.no_neurons, grounds.checks),
    ):
        try:
            found.append(sentence(study))
        except (Missing, *UNEXPECTED):
            if not found:
                return []
    return [one for one in found if one]


def plain(sentence: Markup) -> str:
    """A sentence for a terminal: no markup, and minus signs and spaces that can be copied."""
    return sentence.striptags().replace(MINUS, "-").replace("\u00a0", " ")


def paragraphs(study: StoredStudy) -> list[Markup]:
    """A paragraph for each kind of sentence, or why there are none."""
    nothing = Markup("The study has no measured logit difference, so there is no answer yet.")
    return sentences(study) or [nothing]


def _measured(study: StoredStudy) -> tuple[Mean, Array]:
    """The main contrast's mean, and the prompts' values behind it."""
    means = study.grid(names.mean(names.LOGIT_DIFFERENCE), "contrast")
    grid = study.grid(names.LOGIT_DIFFERENCE, "contrast", "prompt").select(contrast=study.contrast)
    known = grid.values[study.main_prompts(grid.axis("prompt").labels)]
    known = known[np.isfinite(known)]
    if not known.size:
        raise Missing("no prompt has a logit difference")
    return Mean.of(means, contrast=study.contrast), known


def _preference(study: StoredStudy) -> Markup:
    mean, known = _measured(study)
    sides = weighed(study)
    model = study.about("model", "name") or "the model"
    if mean.n < 2 or np.isnan(mean.lower):
        preferred, other = sides.by_sign(mean.value)
        return Markup(
            "After the one prompt measured, <b>{}</b> prefers {} to {} by <b>{} {}</b>; one "
            "prompt gives no interval."
        ).format(*(model, preferred.markup, other.markup, number(abs(mean.value)), study.unit))
    if not mean.clear:
        return Markup(
            "Over {}, whether <b>{}</b> prefers {} to {} is undecided: the mean {} "
            "is {} with a 95 % interval of {} that includes zero."
        ).format(
            *(count(mean.n, "prompt"), model, sides.answer.markup, sides.counterpart.markup),
            "logit difference" if study.unit == "logits" else "difference, in nats,",
            *(signed(mean.value), interval(mean.lower, mean.upper)),
        )
    return _clear_preference(study, sides, model, mean, known)


def _clear_preference(
    study: StoredStudy, sides: Weighed, model: str, mean: Mean, known: Array
) -> Markup:
    preferred, other = sides.by_sign(mean.value)
    ratio = float(np.exp(min(abs(mean.value), 700.0)))
    ends = (mean.lower, mean.upper) if mean.value > 0 else (-mean.upper, -mean.lower)
    return Markup(
        "Over {}, <b>{}</b> prefers {} to {} by <b>{} {}</b> on average (95 % interval {}): {} "
        "times the probability, in {} of {}{}."
    ).format(
        *(count(mean.n, "prompt"), model, preferred.markup, other.markup),
        *(
            number(abs(mean.value)),
            study.unit,
            interval(*ends),
            number(ratio, 1 if ratio < 100 else 0),
        ),
        int((np.sign(known) == np.sign(mean.value)).sum()),
        *(count(len(known), "prompt"), examples(study)),
    )


def _direct_contributions(study: StoredStudy) -> Markup:
    groups = group_means(study)
    total = sum(m.value for m in groups.values())
    order = sorted(groups.items(), key=lambda item: -abs(item[1].value))
    phrases = [
        Markup("the {} {} {} [{}]").format(
            name.removeprefix("the "),
            "gives" if name.startswith("the ") else "give",
            signed(m.value),
            interval(m.lower, m.upper),
        )
        for name, m in order
        if abs(m.value) >= 0.02 * abs(total)
    ]
    grid = study.grid(names.mean(names.LEDGER), "contrast", "term").select(contrast=study.contrast)
    grid = present(grid)
    terms = grid.axis("term").labels
    top = int(np.argmax(np.abs(grid.values)))
    single = Mean.of(grid, term=terms[top])
    return Markup(
        "Of the parts that wrote it{}, {}. The largest single term is <b>{}</b> ({} [{}]).{}"
    ).format(
        _positive(study),
        Markup(", ").join(phrases[:-1]) + Markup(" and ") + phrases[-1]
        if len(phrases) > 1
        else phrases[0],
        clean(terms[top]),
        signed(single.value),
        interval(single.lower, single.upper),
        _closing(study),
    )


def _positive(study: StoredStudy) -> Markup:
    """What a positive contribution is for, where the difference itself is negative."""
    value = float(_measured(study)[0].value)
    if not value < 0:
        return Markup("")
    return Markup(" (positive: for {})").format(weighed(study).answer.markup)


def _closing(study: StoredStudy) -> str:
    """Whether the ledger's terms sum to the difference; no verdict where no bound is promised."""
    closes = study.grids[names.LEDGER].error
    if "gap" not in closes:
        return ""
    gap, bound = f"{number(closes['gap'])} {study.unit}", closes.get("bound")
    if bound is None or not np.isfinite(bound):
        kind = study.about("model", "dtype")
        return f" The terms miss the difference by at most {gap}" + (
            f"; in {kind} there is no bound that they must keep." if kind else "."
        )
    if closes["gap"] <= bound:
        return f" In no prompt do the terms miss the difference by more than {gap}."
    return f" The account does not close: its gap, {gap}, exceeds the bound of {number(bound)}."


def _causal_effects(study: StoredStudy) -> Markup:
    if any(
        name.startswith((names.PATCHING, names.CIRCUIT, names.ABLATION)) for name in study.grids
    ):
        return patching.strongest(study)
    return Markup(
        "The study made no intervention, so this page says which parts write the difference, not "
        "which of them are needed for it."
    )
