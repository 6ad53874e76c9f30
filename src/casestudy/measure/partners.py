"""Which corrupted prompt removes a preference?

For one prompt and one contrast, all known edits (`behaviour/swaps`, and the families of
`behaviour/counterfactual`) are made. Those that keep the number of tokens are run, and each is
listed with the contrast that remains. These are suggestions: choose the edit that changes what your
question is about. Cost: one forward pass per edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from casestudy.behaviour.counterfactual import FAMILIES, Family, propose
from casestudy.behaviour.prompts import Prompt, prompts_given
from casestudy.behaviour.readouts import at_position, partner_of, row_of, text_of
from casestudy.behaviour.steps import Scoring
from casestudy.behaviour.swaps import swaps
from casestudy.measure.whole_answers import answer_values
from casestudy.model.model import Model
from casestudy.model.token import Token, by_ids


@dataclass(frozen=True)
class Partner:
    """A corrupted prompt that could be used.

    Attributes:
        edit: what was changed ("singular or plural: dogs → dog").
        text: the corrupted prompt.
        clean, corrupted: the contrast of either prompt, for the same two answers.
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


def partners(
    model: Model,
    prompt: str | Prompt,
    answer: Token | Sequence[Token],
    counterpart: Token | Sequence[Token],
    *,
    scoring: Scoring = "sum",
) -> tuple[Partner, ...]:
    """The possible corrupted prompts with the same number of tokens, best first.

    Those that differ before the last token come first. Within both groups the order is by the
    remaining difference, smallest (most negative) first.

    Args:
        model: the decoder.
        prompt: a text or a Prompt; edits are of what is read, up to its readout.
        answer, counterpart: a token each, or several.
        scoring: how the tokens of an answer count, see `whole_answers`.

    Unit:   logits, at the last token; nats for answers of several tokens.
    Raises: PromptError for a prompt that cannot be run.
    """
    tokenizer = model.tokenizer
    (given,) = prompts_given(prompt)
    own = at_position(tokenizer, replace(given, corrupted=None))
    text = text_of(tokenizer, own)
    edits = {f"{one.kind}: {one.what}": _family(one.text) for one in swaps(text)}
    families = [Family(name, edit, "") for name, edit in edits.items()]
    proposals = propose(model, [own], [*families, *FAMILIES])
    pairs = [pair for pair in proposals.pairs if pair.aligned == "position"]
    behind = own.text[len(text) :]
    whole = [partner_of(own, pair.corrupted.text + behind) for pair in pairs]
    if behind:  # an edit that joins with what is behind it would be read as another one
        same = [
            row_of(tokenizer, partner) == row_of(tokenizer, pair.corrupted)
            for partner, pair in zip(whole, pairs, strict=True)
        ]
        pairs, whole = list(compress(pairs, same)), list(compress(whole, same))
    first, second = (by_ids(_several(side)) for side in (answer, counterpart))
    asked = [replace(one, answer=first, counterpart=second) for one in (own, *whole)]
    clean, *left = answer_values(model, asked, scoring=scoring)
    offers = [
        Partner(pair.family, partner.text, clean, value, pair.before_last)
        for pair, partner, value in zip(pairs, whole, left, strict=True)
    ]
    distinct = {offer.text: offer for offer in reversed(offers)}  # keep the first of each text
    return tuple(sorted(distinct.values(), key=lambda o: (not o.before_last, o.left)))


def _several(side: Token | Sequence[Token]) -> Sequence[Token]:
    return [side] if isinstance(side, Token) else side


def _family(text: str) -> Callable[[str], str | None]:
    """The edit that gives this text."""
    return lambda _: text
