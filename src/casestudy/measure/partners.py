"""Which corrupted prompt would take a preference away?

For one prompt and one contrast, every small edit that casestudy knows (`behaviour/swaps`, and the
families of `behaviour/counterfactual`) is made, those that keep the number of tokens are run, and
each is listed with the contrast that is left. An offer, not a proof: the person chooses the edit
that changes what the question is about. Cost: one forward pass per edit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import FAMILIES, Family, propose, score
from casestudy.behaviour.prompts import Prompt
from casestudy.behaviour.swaps import swaps
from casestudy.model.model import Model
from casestudy.model.token import Token


@dataclass(frozen=True)
class Partner:
    """A corrupted prompt that could be used.

    Attributes:
        edit: what was changed ("singular or plural: dogs → dog").
        text: the corrupted prompt.
        clean, corrupted: the logit difference of either prompt, for the same two tokens.
        before_last: whether the two differ before their last token, so that patching by position
            can tell something.
    """

    edit: str
    text: str
    clean: float
    corrupted: float
    before_last: bool

    @property
    def left(self) -> float:
        """The share of the clean difference that is left; negative where the sign changes."""
        return self.corrupted / self.clean if self.clean else float("nan")

    @property
    def undoes(self) -> bool:
        """Whether at least half of the difference is gone."""
        return self.left <= 0.5

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "edit": self.edit,
            "text": self.text,
            "logit_difference": self.corrupted,
            "share_left": self.left if self.clean else None,
            "before_last": self.before_last,
        }


def partners(model: Model, prompt: str, answer: Token, counterpart: Token) -> tuple[Partner, ...]:
    """The corrupted prompts of as many tokens that casestudy can offer, best first.

    First come those that differ before the last token, then the others; among them those that
    leave the least of the difference, a difference of the other sign being least.

    Args:
        model: the decoder.
        prompt: a text.
        answer, counterpart: the two tokens.

    Unit:   logits, at the last token.
    Raises: PromptError for a prompt that cannot be run.
    """
    edits = {f"{one.kind}: {one.what}": _family(one.text) for one in swaps(prompt)}
    families = [Family(name, edit, "") for name, edit in edits.items()]
    proposals = propose(model, [Prompt(prompt)], [*families, *FAMILIES])
    contrast = Contrast.between(model, [answer], [counterpart])
    found = [one.of_equal_length for one in score(model, proposals, contrast)]
    offers = [
        Partner(
            one.family,
            one.pairs[0].corrupted.text,
            float(one.clean[0]),
            float(one.corrupted[0]),
            one.pairs[0].before_last,
        )
        for one in found
        if one.n
    ]
    distinct = {offer.text: offer for offer in reversed(offers)}  # the first of a kind stays
    return tuple(sorted(distinct.values(), key=lambda o: (not o.before_last, o.left)))


def _family(text: str) -> Callable[[str], str | None]:
    """The edit that gives this text."""
    return lambda _: text
