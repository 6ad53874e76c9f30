"""Which answer does a prompt get, and what is it weighed against?

By the flagship's rule, the answer is the model's first space+Capital prediction by rank, and its
counterparts are the same word in lower case (" he"), without the space ("He"), and both ("he"). A
candidate whose counterpart is not one token, or whose word has no lower-case twin, is passed over,
and listed with the reason. A prompt that brings its own answer or counterpart keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import AnswerRule, Prompt
from casestudy.errors import BehaviourError, TokenError
from casestudy.model.model import Model

FORMS = ("lowercase", "no_space", "lowercase_no_space")
"""The three counterparts of a space+Capital answer, the main one first."""


@dataclass(frozen=True)
class Answer:
    """One prompt's answer and counterparts, each a single token.

    Attributes:
        text: the answer.
        counterparts: by form; only those that exist.
    """

    text: str
    counterparts: Mapping[str, str]


@dataclass(frozen=True)
class PassedOver:
    """A candidate that could not be the answer."""

    prompt: int
    candidate: str
    rank: int
    why: str


@dataclass(frozen=True)
class Answers:
    """The answers of some prompts.

    Attributes:
        chosen: one per prompt; None where no candidate served.
        passed_over: candidates left out, with the reasons.
        errors: by prompt, why there is no answer.
    """

    chosen: tuple[Answer | None, ...]
    passed_over: tuple[PassedOver, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)

    def contrast(self, model: Model, form: str) -> Contrast:
        """The contrast against one form; prompts that lack it have NaN weights, so their values
        are NaN: not measured.
        """
        pairs = [
            (a.text, a.counterparts[form]) if a is not None and form in a.counterparts else None
            for a in self.chosen
        ]
        single = model.tokenizer.single
        ids = [[single(p[0]), single(p[1])] if p else [0, 0] for p in pairs]
        sign = [[1.0, -1.0] if p else [float("nan")] * 2 for p in pairs]
        return Contrast(
            form,
            torch.tensor(ids, dtype=torch.long),
            torch.tensor(sign, dtype=torch.float64),
            torch.zeros(len(pairs), dtype=torch.float64),
            tuple(p[0] if p else "" for p in pairs),
            tuple(p[1] if p else "" for p in pairs),
        )


def is_space_capital(text: str) -> bool:
    """Whether a token is a space, then a word that starts with a capital of any script."""
    return len(text) > 1 and text[0] == " " and (text[1].isupper() or text[1].istitle())


def other_forms(text: str) -> dict[str, str]:
    """The three counterparts of a space+Capital text, whether or not they are tokens."""
    lower = text.lower()
    return {"lowercase": lower, "no_space": text[1:], "lowercase_no_space": lower[1:]}


def choose_answers(
    model: Model,
    prompts: Sequence[Prompt],
    logits: Float[Tensor, "batch d_vocab"],
    *,
    rule: AnswerRule = "space-capital",
    top_k: int = 100,
) -> Answers:
    """Each prompt's answer and counterparts.

    Args:
        model: whose tokens they are.
        prompts: one per row of `logits`; an answer or counterpart given there is kept.
        logits: at each prompt's last position.
        rule: how an answer is chosen where none is given.
        top_k: how many predictions to look through.

    Raises: TokenError for a given answer that is not one token; BehaviourError for a given
        answer equal to its counterpart.
    """
    chosen: list[Answer | None] = []
    passed: list[PassedOver] = []
    errors: dict[int, str] = {}
    top_k = min(top_k, logits.shape[1])
    ranked = logits.topk(top_k, dim=1).indices.tolist()
    for i, prompt in enumerate(prompts):
        if prompt.answer is not None:
            chosen.append(_given(model, prompt, rule))
            continue
        answer = None
        for rank, id in enumerate(ranked[i]):
            text = model.tokenizer.string(id)
            if not is_space_capital(text):
                continue
            why = _unfit(model, text)
            if why is None:
                answer = Answer(text, other_forms(text))
                break
            passed.append(PassedOver(i, text, rank, why))
        if answer is not None and prompt.counterpart is not None:
            answer = Answer(answer.text, {"lowercase": prompt.counterpart})
        if answer is None:
            errors[i] = f"no usable space+Capital token among the first {top_k} predictions"
        chosen.append(answer)
    return Answers(tuple(chosen), tuple(passed), errors)


def _given(model: Model, prompt: Prompt, rule: AnswerRule) -> Answer:
    answer = prompt.answer
    assert answer is not None
    model.tokenizer.single(answer)
    if prompt.counterpart is not None:
        if model.tokenizer.single(prompt.counterpart) == model.tokenizer.single(answer):
            raise BehaviourError(
                f"answer and counterpart of {prompt.text!r} are both {answer!r}",
                allowed="two different tokens",
            )
        forms = {k: v for k, v in other_forms(answer).items() if _is_one_token(model, v)}
        main = "lowercase" if rule == "space-capital" else "counterpart"
        extra = forms if rule == "space-capital" and is_space_capital(answer) else {}
        return Answer(answer, {**extra, main: prompt.counterpart})
    why = _unfit(model, answer) if is_space_capital(answer) else "is not space+Capital"
    if why is not None:
        raise BehaviourError(
            f"answer {answer!r} of {prompt.text!r} {why}", hint="Give its counterpart too"
        )
    return Answer(answer, other_forms(answer))


def _unfit(model: Model, text: str) -> str | None:
    """Why a space+Capital token cannot be the answer; None when it can."""
    forms = other_forms(text)
    if forms["lowercase"] == text:
        return "has no lower-case twin"
    for form in forms.values():
        if not _is_one_token(model, form):
            n = len(model.tokenizer.ids(form))
            return f"has the counterpart {form!r}, which is {n} tokens"
    return None


def _is_one_token(model: Model, text: str) -> bool:
    try:
        model.tokenizer.single(text)
    except TokenError:
        return False
    return True
