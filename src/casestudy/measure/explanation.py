"""Why does the model prefer this token to that one after this prompt, in one object?

The result has the contrast, its ledger, the heads and MLPs with the largest effects by exact
patching, the checks, and the warnings. It is a first answer before a study. If a corrupted prompt
is given or found (`partners`), the output of each head and MLP is patched from the clean run into
the corrupted run (denoising). If there is none, each is zero-ablated in the clean run. One prompt
gives no interval; a study over several prompts does.

Cost: one forward pass per candidate for the corrupted prompt, one patched run per head and MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from casestudy.behaviour.counterfactual import NO_ROLE, Counterfactual, propose
from casestudy.behaviour.notices import prompt_notices
from casestudy.behaviour.prompts import Prompt, prompts_given
from casestudy.behaviour.readouts import at_position, partner_of, row_of
from casestudy.behaviour.steps import Scoring, has_several
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.reading import Readings
from casestudy.errors import BehaviourError
from casestudy.measure.partners import Partner, partners
from casestudy.measure.patched import Patched
from casestudy.measure.patching_prompts import ablate_answers, patch_prompts, patch_prompts_sites
from casestudy.measure.predictions import AnswerScore, score_answer
from casestudy.measure.quick_look import CONTRAST, probe, weighed, with_answers
from casestudy.measure.whole_answers import WholeAnswers, answer_values, whole_answers
from casestudy.model.model import Model
from casestudy.model.token import Token, by_ids
from casestudy.results import components, names
from casestudy.results.result import Grid

SITES = {"z": "head", "mlp_out": "mlp"}
"""The sites that are patched, and the kind of component of each."""

UNLIKELY = 100
"""An answer of this rank or beyond gets a warning."""


@dataclass(frozen=True)
class PatchedPart:
    """One head or MLP, patched over all positions.

    Attributes:
        name: "head 3.1", "mlp 3".
        effect: change of the logit difference, in logits, from the unpatched run.
        share: of the difference between the two runs; None without a corrupted prompt, or if the
            difference is almost zero.
    """

    name: str
    effect: float
    share: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"part": self.name, "effect": self.effect, "share": self.share}


@dataclass(frozen=True)
class Check:
    """A comparison of two computations of the same values.

    Attributes:
        what: the values that are compared.
        gap: the largest difference, in logits.
        bound: the largest allowed gap; None if there is no guarantee.
    """

    what: str
    gap: float
    bound: float | None

    @property
    def holds(self) -> bool | None:
        """Whether the gap is within its bound; None without a bound."""
        return None if self.bound is None else self.gap <= self.bound

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"what": self.what, "gap": self.gap, "bound": self.bound, "holds": self.holds}


@dataclass(frozen=True)
class Explanation:
    """Why one token is preferred to another after one prompt.

    Attributes:
        model: its name.
        prompt, tokens: the text and the tokens that the model read.
        answer, counterpart: both tokens with rank and probability.
        logit_difference: logit(answer) - logit(counterpart), at the last token; of answers of
            several tokens, log p(answer) - log p(counterpart) by `scoring` (see `whole_answers`).
        ledger: its terms, in the model's order; they sum to it.
        partner: the corrupted prompt; None if parts were zero-ablated.
        method: the patch or ablation of each part, in words.
        parts: every head and MLP, the largest effect first.
        checks: the results of the checks.
        warnings: reasons for caution.
        n: number of prompts.
        whole: of answers of several tokens, the account of each token; else None.
    """

    model: str
    prompt: str
    tokens: tuple[str, ...]
    answer: AnswerScore
    counterpart: AnswerScore
    logit_difference: float
    ledger: tuple[tuple[str, float], ...]
    partner: Partner | None
    method: str
    parts: tuple[PatchedPart, ...]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    n: int = 1
    whole: WholeAnswers | None = None

    @property
    def unit(self) -> str:
        """Of the difference, its ledger and the effects."""
        return "logits" if self.whole is None else self.whole.value.unit

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """For JSON, with the `top` strongest parts."""
        return {
            "model": self.model,
            "prompt": self.prompt,
            "tokens": list(self.tokens),
            "n": self.n,
            "contrast": {
                "answer": self.answer.standing(),
                "counterpart": self.counterpart.standing(),
                "logit_difference": self.logit_difference,
                "unit": self.unit,
            }
            | ({} if self.whole is None else {"scoring": self.whole.scoring}),
            "ledger": [{"term": name, "value": value} for name, value in self.ledger],
            "corrupted": None if self.partner is None else self.partner.as_dict(),
            "method": self.method,
            "parts": [part.as_dict() for part in self.parts[:top]],
            "checks": [check.as_dict() for check in self.checks],
            "warnings": list(self.warnings),
        } | ({} if self.whole is None else {"steps": self.whole.accounts()})


def explain(
    model: Model,
    prompt: str | Prompt,
    answer: str | int | Token | None = None,
    counterpart: str | int | Token | None = None,
    *,
    scoring: Scoring = "sum",
    corrupted: str | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Explanation:
    """Explain one preference: contrast, ledger, and exact effects of heads and MLPs.

    Args:
        model: the decoder.
        prompt: a text; or a Prompt, whose answers and corrupted prompt are used unless others are
            given, and which is read at its readout.
        answer, counterpart: texts that continue the prompt, "id:1234" or ids; by default two tokens
            chosen as in `probe`. Both may have several tokens, if both are given.
        scoring: how the tokens of an answer of several count, see `whole_answers`.
        corrupted: a corrupted prompt with the same number of tokens; by default the best of
            `partners`, if it removes at least half of the difference.
        budget: memory and checks of the patches.
        progress: called with the progress of the patches.

    Unit:   logits; nats for answers of several tokens.
    Error:  see `checks`: the ledger's gap, and a sample of patched runs computed again in full.
    Raises: PromptError, TokenError for texts that cannot be read; BehaviourError if the
        corrupted prompt does not have the same number of tokens, and for a readout that the prompt
        does not have.
    """
    (given,) = prompts_given(prompt)
    asked = at_position(model.tokenizer, with_answers(given, answer, counterpart))
    if has_several(model.tokenizer, asked):
        found = _whole(model, asked, scoring)
    else:
        found = _single(model, asked)
    pair, partner = _partner(model, found, asked.corrupted if corrupted is None else corrupted)
    patches = _patches(model, found, pair, budget, progress)
    parts = _parts(patches)
    return Explanation(
        model=model.name,
        prompt=asked.text,
        tokens=tuple(model.tokenizer.labels(row_of(model.tokenizer, asked))),
        answer=found.sides[0],
        counterpart=found.sides[1],
        logit_difference=found.difference,
        ledger=tuple(
            zip(found.ledger.axis("term").labels, map(float, found.ledger.values), strict=True)
        ),
        partner=partner,
        method=_DENOISED if partner else _ZEROED,
        parts=parts,
        checks=_checks(found.ledger, patches),
        warnings=(
            *_prompt_warnings(found),
            *_patch_warnings(partner, patches, parts),
            *_re_encoding(model, found, pair, parts[0]),
        ),
        whole=found.whole,
    )


@dataclass(frozen=True)
class _Contrast:
    """What is explained of a prompt.

    Attributes:
        asked: the prompt with both answers, by id.
        sides: the answers.
        scoring: how their tokens count.
        difference, ledger: the contrast, and what wrote it.
        whole: of answers of several tokens.
    """

    asked: Prompt
    sides: tuple[AnswerScore, AnswerScore]
    scoring: Scoring
    difference: float
    ledger: Grid
    notices: tuple[str, ...] = ()
    whole: WholeAnswers | None = None


def _single(model: Model, prompt: Prompt) -> _Contrast:
    """Two tokens, given or chosen."""
    first, second = weighed(model, prompt)
    found = probe(model, [prompt], answer=first, counterpart=second)
    return _Contrast(
        replace(prompt, answer=first.by_id, counterpart=second.by_id),
        (score_answer(model, prompt, first), score_answer(model, prompt, second)),
        "sum",
        float(found.grids[names.LOGIT_DIFFERENCE].values[0, 0]),
        found.grids[names.LEDGER].select(contrast=CONTRAST, prompt="0"),
        found.notices,
    )


def _whole(model: Model, asked: Prompt, scoring: Scoring) -> _Contrast:
    """Two answers of any length."""
    found = whole_answers(model, asked, scoring=scoring, parts=("ledger",))
    assert asked.answer is not None
    assert asked.counterpart is not None
    answer, counterpart = (
        score_answer(model, asked, side) for side in (asked.answer, asked.counterpart)
    )
    return _Contrast(
        replace(asked, answer=by_ids(answer.tokens), counterpart=by_ids(counterpart.tokens)),
        (answer, counterpart),
        scoring,
        float(found.value.values[0]),
        found.ledger.select(prompt="0"),
        prompt_notices(model.tokenizer, [asked]),
        found,
    )


_DENOISED = (
    "each head and MLP of the clean run, over all positions, put into the corrupted run: the share "
    "of the difference that it restores"
)
_ZEROED = "each head and MLP set to zero at all positions: the change of the difference"


def _partner(
    model: Model, found: _Contrast, corrupted: str | None
) -> tuple[Counterfactual | None, Partner | None]:
    """The pair to patch between; None if no partner is given and none is good enough."""
    offers: Sequence[Partner] = ()
    if corrupted is None:
        sides = (side.tokens for side in found.sides)
        offers = partners(model, found.asked, *sides, scoring=found.scoring)
    offered = next((one for one in offers if one.undoes), None)
    text = offered.text if offered else corrupted
    if text is None:
        return None, None
    asked = replace(found.asked, corrupted=text)
    proposals = propose(model, [asked], ())
    if proposals.excluded or proposals.pairs[0].aligned != "position":
        why = proposals.excluded[0].why if proposals.excluded else NO_ROLE
        if why == NO_ROLE:
            both = (asked, partner_of(asked, text))
            clean, other = (len(row_of(model.tokenizer, one)) for one in both)
            why = f"the prompt has {clean} tokens and the corrupted one {other}"
        raise BehaviourError(
            f"the corrupted prompt does not fit: {why}",
            allowed="a partner of as many tokens, in which at least one token differs",
        )
    (pair,) = proposals.pairs
    if offered is None:
        partner = replace(
            partner_of(asked, text), answer=asked.answer, counterpart=asked.counterpart
        )
        (left,) = answer_values(model, [partner], scoring=found.scoring)
        offered = Partner("given", text, found.difference, left, pair.before_last)
    return pair, offered


def _patches(
    model: Model,
    found: _Contrast,
    pair: Counterfactual | None,
    budget: Budget,
    progress: Tell | None,
) -> dict[str, Patched]:
    """Of each site; between two prompts all in one sweep."""
    if pair is None:
        readings = Readings.of(model, found.asked, found.scoring)
        return {
            site: ablate_answers(readings, site, budget=budget, progress=progress) for site in SITES
        }
    asked = replace(found.asked, corrupted=pair.corrupted.text)
    on = model, [asked], list(SITES)
    return patch_prompts_sites(
        *on, by="all", scoring=found.scoring, budget=budget, progress=progress
    )


def _parts(patches: dict[str, Patched]) -> tuple[PatchedPart, ...]:
    parts = []
    for one in patches.values():
        effects = one.effect.to_polars().to_dicts()
        known = one.shares_mean_something
        shares = one.normalised.values.ravel().tolist() if known else [None] * len(effects)
        for row, share in zip(effects, shares, strict=True):
            layer = int(row["layer"])
            name = components.head(layer, row["head"]) if "head" in row else components.mlp(layer)
            parts.append(PatchedPart(name, float(row["value"]), share))
    return tuple(sorted(parts, key=lambda part: -abs(part.effect)))


def _checks(ledger: Grid, patches: dict[str, Patched]) -> tuple[Check, ...]:
    checks = [_check("the ledger's terms sum to the logit difference", ledger.error)]
    for site, one in patches.items():
        what = f"patched {SITES[site]}s equal full forward passes, in a sample"
        checks.append(_check(what, one.raw.error))
    return tuple(check for check in checks if check is not None)


def _check(what: str, error: Any) -> Check | None:
    gap, bound = error.get("gap"), error.get("bound")
    return None if gap is None else Check(what, float(gap), None if bound is None else float(bound))


def _prompt_warnings(found: _Contrast) -> tuple[str, ...]:
    """Warnings about the prompt and its two answers."""
    warnings = ["One prompt: no interval, and nothing about other prompts. Run a study on several."]
    warnings += [str(notice) for notice in found.notices]
    for name, side in zip(names.SIDES, found.sides, strict=True):
        if side.place is not None and side.place >= UNLIKELY:
            warnings.append(
                f"The {name} is unlikely here: it has rank {side.place:,} and probability "
                f"{side.prob:.2g}, so that the contrast weighs a token that is hardly predicted."
            )
    if found.difference < 0:
        what = "logit difference" if found.whole is None else "difference"
        warnings.append(f"The model prefers the counterpart: the {what} is negative.")
    lengths = [len(side.tokens) for side in found.sides]
    if found.whole is not None and found.scoring == "sum" and len(set(lengths)) > 1:
        warnings.append(
            f"The answer has {lengths[0]} tokens and the counterpart {lengths[1]}: a longer answer "
            "is less probable. scoring='mean' compares means per token."
        )
    return tuple(warnings)


def _patch_warnings(
    partner: Partner | None, patches: dict[str, Patched], parts: Sequence[PatchedPart]
) -> tuple[str, ...]:
    """Warnings about the corrupted prompt and the patches."""
    warnings = []
    if partner is None:
        warnings.append(
            "No corrupted prompt of as many tokens takes half of the difference away: parts were "
            "set to zero, which also breaks what other tokens need. Give one with corrupted=."
        )
    elif not all(one.shares_mean_something for one in patches.values()):
        warnings.append(
            "The clean and the corrupted prompt differ by almost nothing: effects are in logits, "
            "and shares are not given."
        )
    elif not partner.undoes:
        warnings.append(
            f"The corrupted prompt leaves {partner.left:.0%} of the difference: it hardly takes "
            "the preference away."
        )
    elif not partner.before_last:
        warnings.append(
            "The corrupted prompt differs in the last token alone, which carries everything by "
            "construction."
        )
    return tuple(warnings)


RE_ENCODED = 0.9
"""With this share of its effect at the changed tokens alone, mlp 0 only re-encodes them."""


def _re_encoding(
    model: Model, found: _Contrast, pair: Counterfactual | None, strongest: PatchedPart
) -> tuple[str, ...]:
    """A warning if mlp 0 is the strongest part, and at the changed tokens alone."""
    if pair is None or strongest.name != components.mlp(0):
        return ()
    asked = replace(found.asked, corrupted=pair.corrupted.text)
    there = patch_prompts(
        model, [asked], "mlp_out", by="role", layers=[0], scoring=found.scoring
    ).effect.select(layer="0", role=names.CHANGED_TOKENS)
    effect = float(there.values)
    if effect / strongest.effect < RE_ENCODED:
        return ()
    return (
        f"mlp 0 is first because it re-encodes the changed tokens: at these tokens alone it has "
        f"{effect:+.2f} of its {strongest.effect:+.2f} {found.ledger.unit}. Look at the parts "
        "below it.",
    )
