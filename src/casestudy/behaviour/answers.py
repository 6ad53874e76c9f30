"""Which answer does a prompt get, and which counterpart is it compared with?

With the rule "space-capital", the answer is the most probable token that is a space and a
capitalised word. Its counterparts are the same word in lower case (" he"), without the space
("He"), and both ("he"). If a counterpart is not one token, or the word has no lower-case form, the
rule takes the next candidate, and lists the skipped one with the reason. If a vocabulary has no
words without a space, the counterparts without a space do not exist and are left out. With the rule
"classes", answer and counterpart are the most probable tokens of two classes. An answer or
counterpart that a prompt has is used under every rule, as the token that continues the prompt. A
token given by id stays that id. Where both are given and one has several tokens, the first token of
each counts here; `measure/whole_answers` has the whole answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import AnswerRule, Prompt
from casestudy.behaviour.readouts import text_of
from casestudy.errors import BehaviourError, TokenError
from casestudy.model.model import Model
from casestudy.model.token import Token
from casestudy.model.tokens import Tokenizer

FORMS = ("lowercase", "no_space", "lowercase_no_space")
"""The three counterparts of a space+Capital answer, the main one first."""


@dataclass(frozen=True)
class Answer:
    """One prompt's answer and counterparts. Each is a single token.

    Attributes:
        token: the answer.
        counterparts: by form; only those that exist.
    """

    token: Token
    counterparts: Mapping[str, Token]

    @property
    def text(self) -> str:
        """The answer's label."""
        return self.token.label


@dataclass(frozen=True)
class PassedOver:
    """A predicted token that cannot be the answer, with its rank and the reason."""

    prompt: int
    candidate: Token
    rank: int
    why: str


@dataclass(frozen=True)
class Answers:
    """The answers of some prompts.

    Attributes:
        chosen: one per prompt; None if the prompt has no usable answer.
        passed_over: the skipped candidates, with the reasons.
        errors: for each prompt without an answer, the reason.
    """

    chosen: tuple[Answer | None, ...]
    passed_over: tuple[PassedOver, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)

    def contrast(self, form: str) -> Contrast:
        """The contrast with one form of counterpart. Prompts without this form have NaN weights,
        so their values are NaN (not measured).
        """
        pairs = [
            (a.token, a.counterparts[form]) if a is not None and form in a.counterparts else None
            for a in self.chosen
        ]
        ids = [[p[0].id, p[1].id] if p else [0, 0] for p in pairs]
        sign = [[1.0, -1.0] if p else [float("nan")] * 2 for p in pairs]
        return Contrast(
            form,
            torch.tensor(ids, dtype=torch.long),
            torch.tensor(sign, dtype=torch.float64),
            torch.zeros(len(pairs), dtype=torch.float64),
            tuple(p[0].label if p else "" for p in pairs),
            tuple(p[1].label if p else "" for p in pairs),
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
    logits: Float[Tensor, "batch d_vocab"] | None,
    *,
    rule: AnswerRule = "space-capital",
    top_k: int = 100,
    classes: Contrast | None = None,
) -> Answers:
    """Each prompt's answer and counterparts.

    Args:
        model: whose tokens they are.
        prompts: one per row of `logits`; an answer or counterpart given there is kept.
        logits: at each prompt's last position; None will do for the rule "given", which chooses
            nothing.
        rule: how to choose an answer for a prompt that has none.
        top_k: how many predictions to search.
        classes: the prompts' class contrast, for the rule "classes".

    A prompt without a usable answer (none within `top_k`, or a given answer that is not one token
    or equals its counterpart) is left out, with the reason in `errors`.
    """
    chosen: list[Answer | None] = []
    passed: list[PassedOver] = []
    errors: dict[int, str] = {}
    ranked: list[list[int]] = []
    tops: list[tuple[int, int] | None] = [None] * len(prompts)
    if rule != "given":
        if logits is None:
            raise BehaviourError(f"no logits for the rule {rule!r}", hint="Run the prompts first")
        top_k = min(top_k, logits.shape[1])
        ranked = logits.topk(top_k, dim=1).indices.tolist()
        tops = tops if classes is None else _likeliest(classes, logits)
    for i, prompt in enumerate(prompts):
        answer = None
        try:
            token, other = _given(model.tokenizer, prompt)
            if rule == "classes":
                answer = _of_classes(model, token, other, tops[i])
            elif rule == "given":
                answer = _pair(token, other)
            else:
                if token is None:
                    token, over = _first_capital(model, ranked[i])
                    passed += [PassedOver(i, *candidate) for candidate in over]
                if token is None:
                    raise BehaviourError(
                        f"no usable space+Capital token among the first {top_k} predictions",
                        hint=_without_capital(model.tokenizer),
                    )
                answer = _with_forms(model, token, other)
        except (BehaviourError, TokenError) as problem:
            errors[i] = str(problem)
        chosen.append(answer)
    return Answers(tuple(chosen), tuple(passed), errors)


def _given(tokenizer: Tokenizer, prompt: Prompt) -> tuple[Token | None, Token | None]:
    """The prompt's own answer and counterpart, as the tokens that continue it; the first tokens of
    two that have several.

    Raises: TokenError if one of them is not one token and stands alone; BehaviourError if two of
        several tokens begin with the same one.
    """
    after = text_of(tokenizer, prompt)
    if prompt.answer is not None and prompt.counterpart is not None:
        sides = [tokenizer.continuation(after, s).ids for s in (prompt.answer, prompt.counterpart)]
        first, second = (tokenizer.token(ids[0]) for ids in sides)
        if first.id == second.id and max(map(len, sides)) > 1:
            raise BehaviourError(
                f"answer and counterpart both begin with {first.label!r}",
                allowed="answers whose first tokens differ",
                hint="Put what they share at the end of the prompt; their whole log-probabilities "
                "are compared in any case",
            )
        return first, second
    answer, counterpart = (
        None if text is None else tokenizer.token(text, after=after)
        for text in (prompt.answer, prompt.counterpart)
    )
    return answer, counterpart


def _first_capital(
    model: Model, ranked: Sequence[int]
) -> tuple[Token | None, list[tuple[Token, int, str]]]:
    """The first usable space+Capital prediction; the skipped ones as (token, rank, reason)."""
    over: list[tuple[Token, int, str]] = []
    for rank, id in enumerate(ranked):
        text = model.tokenizer.string(id)
        if not is_space_capital(text):
            continue
        token = model.tokenizer.token(id)
        why = _unfit(model, text)
        if why is None:
            return token, over
        over.append((token, rank, why))
    return None, over


def _likeliest(
    classes: Contrast, logits: Float[Tensor, "batch d_vocab"]
) -> list[tuple[int, int] | None]:
    """The most probable token of each side of a class contrast; None for prompts without one."""
    if classes.sides is None:
        raise BehaviourError(f"{classes.name!r} is no class contrast")
    chosen = logits.gather(1, classes.ids.to(logits.device))
    sides = classes.sides.to(logits.device)
    best = [chosen.masked_fill(sides != s, float("-inf")).argmax(1).cpu() for s in (1, -1)]
    pairs = [classes.ids.gather(1, b[:, None])[:, 0].tolist() for b in best]
    measured = sides.ne(0).any(1).tolist()
    return [p if has else None for has, p in zip(measured, zip(*pairs, strict=True), strict=True)]


def _of_classes(
    model: Model, answer: Token | None, counterpart: Token | None, pair: tuple[int, int] | None
) -> Answer:
    if pair is not None:
        answer = answer or model.tokenizer.token(pair[0])
        counterpart = counterpart or model.tokenizer.token(pair[1])
    return _pair(answer, counterpart)


def _pair(answer: Token | None, counterpart: Token | None) -> Answer:
    """An answer with its one counterpart.

    Raises: BehaviourError if one is missing or they are the same token.
    """
    if answer is None or counterpart is None:
        raise BehaviourError(
            f"the prompt has no {'answer' if answer is None else 'counterpart'}",
            allowed="both, given or from classes",
        )
    if answer.id == counterpart.id:
        raise BehaviourError(
            f"answer and counterpart are both {answer.label!r}", allowed="two different tokens"
        )
    return Answer(answer, {"counterpart": counterpart})


def _with_forms(model: Model, answer: Token, counterpart: Token | None) -> Answer:
    """An answer with its other forms; a given counterpart replaces the lower-case form.

    Raises: BehaviourError if the two are the same token, or the answer has neither forms nor a
        counterpart.
    """
    text, tokenizer = model.tokenizer.string(answer.id), model.tokenizer
    if counterpart is not None:
        _pair(answer, counterpart)
        others = other_forms(text) if is_space_capital(text) else {}
        kept = {f: tokenizer.token(t) for f, t in others.items() if is_one_token(model, t)}
        return Answer(answer, {**kept, FORMS[0]: counterpart})
    why = _unfit(model, text) if is_space_capital(text) else "is not space+Capital"
    if why is not None:
        raise BehaviourError(f"answer {answer.label!r} {why}", hint="Give its counterpart too")
    forms = other_forms(text)
    return Answer(answer, {f: tokenizer.token(forms[f]) for f in _forms_asked_for(model)})


def _unfit(model: Model, text: str) -> str | None:
    """The reason why a space+Capital token cannot be the answer; None if it can."""
    forms = other_forms(text)
    if forms["lowercase"] == text:
        return "has no lower-case twin"
    for form in (forms[name] for name in _forms_asked_for(model)):
        if not is_one_token(model, form):
            n = len(model.tokenizer.ids(form))
            return f"has the counterpart {form!r}, which is {n} tokens"
    return None


def _forms_asked_for(model: Model) -> tuple[str, ...]:
    return FORMS if _has_bare_words(model.tokenizer) else FORMS[:1]


@lru_cache(maxsize=8)
def _without_capital(tokenizer: Tokenizer) -> str:
    """What to try for a prompt after which no space and capital is predicted."""
    if any(map(is_space_capital, tokenizer.vocabulary())):
        return "Give the prompt an answer and a counterpart of its own"
    return (
        "Words and their spaces are tokens of their own here: choose answers by classes (Capital "
        "against lower)"
    )


@lru_cache(maxsize=8)
def _has_bare_words(tokenizer: Tokenizer) -> bool:
    """Whether any capitalised word of three letters or more is a token with and without a space.

    Shorter words do not count: single letters often have both forms in vocabularies without such
    words.
    """
    texts = set(tokenizer.vocabulary())
    return any(len(t) > 3 and is_space_capital(t) and t[1:] in texts for t in texts)


def is_one_token(model: Model, text: str) -> bool:
    """Whether a text is exactly one token."""
    try:
        model.tokenizer.single(text)
    except TokenError:
        return False
    return True
