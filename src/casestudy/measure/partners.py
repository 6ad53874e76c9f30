"""Which corrupted prompt removes a preference?

For one prompt and one contrast, all known edits (`behaviour/swaps`, and the families of
`behaviour/counterfactual`) are made. Those that keep the number of tokens are run, and each is
listed with the contrast that remains. These are suggestions: choose the edit that changes what your
question is about. Cost: one forward pass per edit.
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
        before_last: whether the two differ before their last token, as patching by position
            needs.
    """

    edit: str
    text: str
    clean: float
    corrupted: float
    before_last: bool

    @property
    def left(self) -> float:
        """The share of the clean difference that remains; negative if the sign changes."""
        return self.corrupted / self.clean if self.clean else float("nan")

    @property
    def undoes(self) -> bool:
        """Whether at least half of the difference is removed."""
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
    """The possible corrupted prompts with the same number of tokens, best first.

    Those that differ before the last token come first. Within both groups the order is by the
    remaining difference, smallest (most negative) first.

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
    distinct = {offer.text: offer for offer in reversed(offers)}  # keep the first of each text
    return tuple(sorted(distinct.values(), key=lambda o: (not o.before_last, o.left)))


def _family(text: str) -> Callable[[str], str | None]:
    """The edit that gives this text."""
    return lambda _: text
