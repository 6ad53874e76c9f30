"""What is the answer, in one paragraph?

Written from measured values only. Each sentence appears if its measurement is there; a mean whose
interval includes zero is called undecided; and a page without interventions says that it shows no
causes.
"""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from casestudy.show.sections import circuit
from casestudy.show.sections.ledger import group_means, present
from casestudy.show.sections.patching import strongest
from casestudy.show.stored import UNEXPECTED, Missing, StoredStudy
from casestudy.show.text import clean, count, interval, number, signed
from casestudy.show.wording import Mean, against


def paragraphs(study: StoredStudy) -> list[Markup]:
    """The sentences that the study's values support, as one paragraph, or why there are none."""
    sentences: list[Markup] = []
    for sentence in (_preference, _direct_contributions, _causal_effects, circuit.sentence):
        try:
            sentences.append(sentence(study))
        except (Missing, *UNEXPECTED):
            if not sentences:
                return [Markup("The study holds no measured logit difference: no answer yet.")]
    return [Markup(" ").join(sentences)]


def _preference(study: StoredStudy) -> Markup:
    means = study.grid("logit_difference.mean", "contrast")
    mean = Mean.of(means, contrast=study.contrast)
    grid = study.grid("logit_difference", "contrast", "prompt").select(contrast=study.contrast)
    known = grid.values[study.main_prompts(grid.axis("prompt").labels)]
    known = known[np.isfinite(known)]
    model = study.about("model", "name") or "the model"
    if not known.size:
        raise Missing("no prompt has a logit difference")
    if mean.n < 2 or np.isnan(mean.lower):
        return Markup(
            "After the one prompt measured, <b>{}</b> prefers its answer to {} by "
            "<b>{} logits</b>; one prompt gives no interval."
            if mean.value > 0
            else "After the one prompt measured, <b>{}</b> does not prefer its answer to {} "
            "(<b>{} logits</b>); one prompt gives no interval."
        ).format(model, against(study.contrast), signed(mean.value))
    if not mean.clear:
        return Markup(
            "Over {}, whether <b>{}</b> prefers its answer to {} is undecided: the mean logit "
            "difference is {} with a 95 % interval of {} that includes zero."
        ).format(
            count(mean.n, "prompt"),
            model,
            against(study.contrast),
            signed(mean.value),
            interval(mean.lower, mean.upper),
        )
    ratio = float(np.exp(min(abs(mean.value), 700.0)))
    verb = "prefers its answer to" if mean.value > 0 else "prefers, to its answer,"
    return Markup(
        "Over {}, <b>{}</b> {} {} by <b>{} logits</b> on average (95 % interval {}): {} times the "
        "probability. The difference has that sign in {} of {}."
    ).format(
        count(mean.n, "prompt"),
        model,
        verb,
        against(study.contrast),
        number(abs(mean.value)),
        interval(mean.lower, mean.upper) if mean.value > 0 else interval(-mean.upper, -mean.lower),
        number(ratio, 1 if ratio < 100 else 0),
        int((np.sign(known) == np.sign(mean.value)).sum()),
        count(len(known), "prompt"),
    )


def _direct_contributions(study: StoredStudy) -> Markup:
    groups = group_means(study)
    total = sum(m.value for m in groups.values())
    order = sorted(groups.items(), key=lambda item: -abs(item[1].value))
    phrases = [
        Markup("the {} {} {} [{}]").format(
            name.removeprefix("the "),
            "gives" if "bias b_U" in name else "give",
            signed(m.value),
            interval(m.lower, m.upper),
        )
        for name, m in order
        if abs(m.value) >= 0.02 * abs(total)
    ]
    grid = study.grid("ledger.mean", "contrast", "term").select(contrast=study.contrast)
    grid = present(grid)
    terms = grid.axis("term").labels
    top = int(np.argmax(np.abs(grid.values)))
    single = Mean.of(grid, term=terms[top])
    closes = study.grids["ledger"].error
    closing = ""
    if "gap" in closes:
        bound = closes.get("bound")
        held = bound is None or closes["gap"] <= bound
        closing = (
            f" The account closes: in no prompt do its terms miss the difference by more than "
            f"{number(closes['gap'])} logits."
            if held
            else f" The account does not close: its gap, {number(closes['gap'])} logits, exceeds "
            f"the bound of {number(bound)}."
        )
    return Markup(
        "Of the parts that wrote it, {}. The largest single term is <b>{}</b> ({} [{}]).{}"
    ).format(
        Markup(", ").join(phrases[:-1]) + Markup(" and ") + phrases[-1]
        if len(phrases) > 1
        else phrases[0],
        clean(terms[top]),
        signed(single.value),
        interval(single.lower, single.upper),
        closing,
    )


def _causal_effects(study: StoredStudy) -> Markup:
    if any(name.startswith(("patching.", "circuit.", "ablation")) for name in study.grids):
        return strongest(study)
    return Markup(
        "Nothing was intervened on here, so this page says which parts write the difference, not "
        "which of them are needed for it."
    )
