"""What is the answer compared with?

A `Contrast` has weights over tokens for each prompt. Its value is the weighted sum of the logits.
For one answer and one counterpart the weights are +1 and -1, and the value is the logit difference.

A class contrast is log p(A) - log p(B) for two classes of tokens. With p(t|A) = p(t) / p(A) and H
the entropy in nats, every t in A has log p(A) = log p(t) - log p(t|A); averaged over p(t|A),

    log p(A) - log p(B) = Σₜ (p(t|A) - p(t|B)) · logitₜ + H(p(·|A)) - H(p(·|B))

exactly, because the softmax's normaliser cancels. So a class contrast is a weighted sum too, with
the weights frozen at the run's own probabilities and the entropy term as a constant. Cost: A and B
may contain most of the vocabulary, so projections multiply by the unembedding in blocks of tokens,
which costs about as much as unembedding one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from casestudy.behaviour.classes import matching
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError
from casestudy.model.model import Model
from casestudy.model.token import Token
from casestudy.model.weights import Weights

BLOCK = 1024
"""Columns of the unembedding in float64 at a time: 6 MB for GPT-2 small, which stay in cache."""
BOTH = 2
"""The side of a token that both classes of a contrast hold."""
FEW = 64
"""With at most this many tokens per prompt, only their columns of W_U are read."""


@dataclass(frozen=True)
class Contrast:
    """Per prompt, weights over tokens and a constant.

    Attributes:
        name: its label in tables ("lowercase", "capital mass").
        ids: (batch, k) token ids; a prompt with fewer than k tokens has weight 0 for the others.
        weights: (batch, k) float64.
        constant: (batch,) float64, added to the weighted sum (a class contrast's entropy term).
        answers, counterparts: per prompt, the labels of both sides.
        sides: (batch, k), for a class contrast: 1 for a token of the answer's class, -1 for one of
            the counterpart's class, 0 for neither, `BOTH` for a token of both; None for single
            tokens.
    """

    name: str
    ids: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]
    constant: Float[Tensor, " batch"]
    answers: tuple[str, ...]
    counterparts: tuple[str, ...]
    sides: Int8[Tensor, "batch k"] | None = None

    @classmethod
    def between(
        cls,
        model: Model,
        answers: Sequence[str | int | Token],
        counterparts: Sequence[str | int | Token],
        *,
        after: Sequence[str] | None = None,
        name: str = "answer against counterpart",
    ) -> Contrast:
        """logit(answer) - logit(counterpart), one pair of single tokens per prompt.

        Args:
            model: whose tokens they are.
            answers, counterparts: texts, "id:1234", ids or tokens.
            after: the prompts that texts continue (see `Tokenizer.continuation`); by default a
                text is the token with exactly this text.
            name: of the contrast.

        Raises: TokenError if a text is not one token; BehaviourError if the two tokens are the
        same or the lists differ in length.
        """
        if len(answers) != len(counterparts):
            raise BehaviourError(
                f"{len(answers)} answers and {len(counterparts)} counterparts",
                allowed="one of each per prompt",
            )
        prompts = [None] * len(answers) if after is None else after
        sides: tuple[list[Token], ...] = tuple(
            [model.tokenizer.token(one, after=p) for one, p in zip(side, prompts, strict=True)]
            for side in (answers, counterparts)
        )
        for i, (answer, counterpart) in enumerate(zip(*sides, strict=True)):
            if answer.id == counterpart.id:
                raise BehaviourError(
                    f"prompt {i}: answer and counterpart are both {answer.label!r}",
                    allowed="two different tokens",
                )
        ids = torch.tensor([[t.id for t in side] for side in sides], dtype=torch.long).T
        weights = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(len(ids), 2)
        zero = torch.zeros(len(ids), dtype=torch.float64)
        labels, others = (tuple(t.label for t in side) for side in sides)
        return cls(name, ids, weights, zero, labels, others)

    @classmethod
    def of_classes(
        cls,
        logits: Float[Tensor, "batch d_vocab"],
        answer: Sequence[Sequence[int]],
        counterpart: Sequence[Sequence[int]],
        *,
        name: str,
        answers: Sequence[str],
        counterparts: Sequence[str],
    ) -> Contrast:
        """log p(A) - log p(B) at these logits, for one pair of token classes per prompt.

        Args:
            logits: at each prompt's last position; the weights are frozen at their probabilities.
            answer, counterpart: each prompt's A and B, as token ids; a prompt for which both are
                empty has no class contrast, and NaN weights.
            name, answers, counterparts: as in the attributes.

        Raises: BehaviourError if only one of the classes is empty, or if they overlap.
        """
        # Usually every prompt has the same two tuples, so their ids are looked through once.
        pairs = {(id(a), id(b)): (a, b) for a, b in zip(answer, counterpart, strict=True)}
        of_vocabulary = {
            key: _sides_of(name, a, b, logits.shape[1]) for key, (a, b) in pairs.items()
        }
        used = torch.stack(list(of_vocabulary.values())).ne(0).any(0).nonzero()[:, 0]
        used = used if len(used) else torch.zeros(1, dtype=torch.long)
        rows = {key: sides[used] for key, sides in of_vocabulary.items()}
        sides = torch.stack([rows[id(a), id(b)] for a, b in zip(answer, counterpart, strict=True)])
        ids = used.expand(len(sides), -1)
        weights, constant = _frozen(logits, ids, sides)
        return cls(name, ids, weights, constant, tuple(answers), tuple(counterparts), sides)

    @classmethod
    def of_log_probs(
        cls,
        model: Model,
        logits: Float[Tensor, "batch d_vocab"],
        answers: Sequence[int | None],
        counterparts: Sequence[int | None],
        *,
        name: str,
    ) -> Contrast:
        """log p(answer) - log p(counterpart) of single tokens; of one alone, log p or -log p.

        With both it is their logit difference. With one, log p(t) is the class contrast of that
        token against the whole vocabulary, which it is a member of.

        Args:
            model: whose tokens they are.
            logits: where they are read, one row each.
            answers, counterparts: ids, at least one of the two per row.
            name: of the contrast.
        """
        sides = torch.zeros(logits.shape, dtype=torch.int8)
        signs = []  # 1 where log p is of the answer, -1 of the counterpart, 0 with both
        for row, (a, b) in enumerate(zip(answers, counterparts, strict=True)):
            assert a is not None or b is not None
            signs.append((b is None) - (a is None))
            if a is None or b is None:  # one alone: the other class is the vocabulary
                sides[row] = 1 if a is None else -1
                sides[row, a if b is None else b] = BOTH
            else:
                sides[row, [a, b]] = torch.tensor([1, -1], dtype=torch.int8)
        # As `_frozen` would have it, from one softmax: the class of one token has no entropy.
        sign = torch.tensor(signs, dtype=torch.float64, device=logits.device)
        p = logits.double().softmax(1)
        constant = -sign * torch.special.entr(p).sum(1)
        weights = p.mul_(-sign[:, None])
        for given, one in ((answers, 1.0), (counterparts, -1.0)):
            known = [(row, id) for row, id in enumerate(given) if id is not None]
            if known:
                which, tokens = zip(*known, strict=True)
                weights[list(which), list(tokens)] += one
        ids = torch.arange(logits.shape[1]).expand(len(sides), -1)
        labels = [
            tuple("" if id is None else model.tokenizer.label(id) for id in side)
            for side in (answers, counterparts)
        ]
        return cls(name, ids, weights, constant, labels[0], labels[1], sides)

    def at(self, logits: Float[Tensor, "batch d_vocab"]) -> Contrast:
        """The same contrast for other logits: the weights of a class contrast are frozen at these
        logits, so that `contrast.at(logits).value(logits)` is log p(A) - log p(B). The weights of
        single tokens do not change.
        """
        if self.sides is None:
            return self
        weights, constant = _frozen(logits, self.ids, self.sides)
        return replace(self, weights=weights, constant=constant)

    @property
    def linear(self) -> bool:
        """Whether the weights are the same for all logits; not for class contrasts (see `at`)."""
        return self.sides is None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, index: Sequence[int]) -> Contrast:
        """The contrast of some of the prompts."""
        rows = torch.tensor(list(index), dtype=torch.long)
        return Contrast(
            self.name,
            self.ids[rows],
            self.weights[rows],
            self.constant[rows],
            tuple(self.answers[i] for i in index),
            tuple(self.counterparts[i] for i in index),
            None if self.sides is None else self.sides[rows],
        )

    def members(self, side: int) -> list[tuple[Tensor, Tensor]]:
        """A class contrast's prompts by the class that they have on one side: (prompts, ids).

        Args:
            side: 1 for the answer's class, -1 for the counterpart's.
        """
        assert self.sides is not None
        kinds, which = is_in(self.sides, side).unique(dim=0, return_inverse=True)
        ids = self.ids[0]  # the same for all: those of any class
        return [((which == i).nonzero()[:, 0], ids[kind]) for i, kind in enumerate(kinds)]

    def value(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """The contrast of each prompt's logits, summed in float64, with the current weights."""
        return self.weigh(logits) + self.constant.to(logits.device)

    def weigh(self, per_token: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """Σₜ weightₜ · xₜ per prompt, in float64: the value without the constant."""
        chosen = per_token.gather(1, self.ids.to(per_token.device)).double()
        return (chosen * self.weights.to(per_token.device)).sum(1)

    def directions(self, weights: Weights) -> Float[Tensor, "batch d_model"]:
        """Σₜ weightₜ · W_U[:, t] per prompt, in float64, to project the final residual stream on.

        Cost: for classes about as much as unembedding one position per prompt; several measurements
        of one run share `Batch.directions`.
        """
        device = weights.W_U.device
        ids, share = self.ids.to(device), self.weights.to(device)
        if ids.shape[1] <= FEW:
            columns = weights.W_U.T[ids].double()  # batch k d_model
            return torch.einsum("bk,bkd->bd", share, columns)
        d_model, d_vocab = weights.W_U.shape
        dense = share.new_zeros(len(self), d_vocab).scatter_add_(1, ids, share)
        total = share.new_zeros(len(self), d_model)
        for block in _blocks(d_vocab):
            total += dense[:, block] @ weights.W_U[:, block].T.double()
        return total

    def project(
        self, stream: Float[Tensor, "batch d_model"], weights: Weights
    ) -> Float[Tensor, "batch k"]:
        """stream · W_U[:, t] for each of a prompt's tokens, in float64."""
        ids, stream = self.ids.to(weights.W_U.device), stream.double()
        if ids.shape[1] <= FEW:
            columns = weights.W_U.T[ids].double()  # batch k d_model
            return torch.einsum("bd,bkd->bk", stream, columns)
        dense = [stream @ weights.W_U[:, b].double() for b in _blocks(weights.W_U.shape[1])]
        return torch.cat(dense, 1).gather(1, ids)


def class_contrast(
    model: Model,
    behaviour: Behaviour,
    prompts: Sequence[Prompt],
    logits: Float[Tensor, "batch d_vocab"],
) -> Contrast | None:
    """The class contrast of a behaviour or of its prompts; None if neither has one.

    Args:
        model: whose tokens they are.
        behaviour: its `class_contrast` applies to prompts without patterns of their own.
        prompts: some of its prompts, one per row of `logits`; those without classes get NaN.
        logits: at each prompt's last position.

    Raises: BehaviourError for a class without tokens, and for classes that overlap.
    """
    if not behaviour.has_classes:
        return None
    asked, tokenizer, d_vocab = behaviour.class_contrast, model.tokenizer, logits.shape[1]
    common: _Sides = ((), (), "", "")
    if asked is not None:
        names = (asked.answer, asked.counterpart)
        a, b = (behaviour.classes.ids(name, tokenizer, d_vocab) for name in names)
        common = (a, b, asked.answer, asked.counterpart)
    chosen: list[_Sides] = []
    for prompt in prompts:
        a_text, b_text = prompt.answer_class, prompt.counterpart_class
        if a_text is None or b_text is None:
            chosen.append(common)
        else:
            a, b = (matching(tokenizer, pattern, d_vocab) for pattern in (a_text, b_text))
            chosen.append((a, b, a_text, b_text))
    return Contrast.of_classes(
        logits,
        [c[0] for c in chosen],
        [c[1] for c in chosen],
        name=CLASS_MASS if asked is None else asked.name,
        answers=[c[2] for c in chosen],
        counterparts=[c[3] for c in chosen],
    )


_Sides = tuple[tuple[int, ...], tuple[int, ...], str, str]


def check_classes(model: Model, behaviour: Behaviour) -> None:
    """Check that each class of a behaviour and its prompts has a token in the model's vocabulary.

    Raises: BehaviourError naming the class or the pattern.
    """
    tokenizer, d_vocab = model.tokenizer, model.config.d_vocab
    behaviour.classes.of_vocabulary(tokenizer, d_vocab)
    asked = behaviour.class_contrast
    if asked is not None:
        for name in (asked.answer, asked.counterpart):
            behaviour.classes.ids(name, tokenizer, d_vocab)
    patterns = {p for x in behaviour.prompts for p in (x.answer_class, x.counterpart_class)}
    for pattern in patterns - {None}:
        matching(tokenizer, str(pattern), d_vocab)


CLASS_MASS = "class mass"
"""The name of a class contrast that only the prompts define."""


def _sides_of(
    name: str, answer: Sequence[int], counterpart: Sequence[int], d_vocab: int
) -> Int8[Tensor, " d_vocab"]:
    """1 for each token of the answer's class, -1 for the counterpart's.

    Raises: BehaviourError as `Contrast.of_classes`.
    """
    if bool(answer) != bool(counterpart):
        raise BehaviourError(f"{name}: a class holds no token", allowed="at least one each")
    sides = torch.zeros(d_vocab, dtype=torch.int8)
    sides[torch.tensor(answer, dtype=torch.long)] = 1
    other = torch.tensor(counterpart, dtype=torch.long)
    both = other[sides[other] == 1].unique()
    if len(both):
        raise BehaviourError(
            f"{name}: {len(both)} tokens are in both classes, the first with id {int(both[0])}",
            allowed="classes that do not overlap",
        )
    sides[other] = -1
    return sides


def is_in(sides: Int8[Tensor, "*batch k"], side: int) -> Bool[Tensor, "*batch k"]:
    """Which tokens are in the answer's class (1) or in the counterpart's (-1)."""
    return (sides == side) | (sides == BOTH)


def _frozen(
    logits: Float[Tensor, "batch d_vocab"],
    ids: Int[Tensor, "batch k"],
    sides: Int8[Tensor, "batch k"],
) -> tuple[Float[Tensor, "batch k"], Float[Tensor, " batch"]]:
    """p(t|A) - p(t|B) of each token, and H(p(·|A)) - H(p(·|B)), in float64."""
    chosen = logits.gather(1, ids.to(logits.device)).double()
    sides = sides.to(logits.device)
    weights, constant = torch.zeros_like(chosen), chosen.new_zeros(len(chosen))
    for side in (1, -1):
        member = is_in(sides, side)
        log_p = chosen.masked_fill(~member, float("-inf")).log_softmax(1)
        p = log_p.exp()
        weights += side * p
        # Outside the class p is 0 and its logarithm is -inf; their product would be NaN.
        constant -= side * (p * log_p.masked_fill(~member, 0.0)).sum(1)
    return weights, constant


def _blocks(d_vocab: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, d_vocab)) for start in range(0, d_vocab, BLOCK))
