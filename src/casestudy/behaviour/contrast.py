"""What is an answer weighed against?

A `Contrast` holds, for each prompt, weights over tokens: its value is their weighted sum of logits,
the logit difference. One answer against one counterpart has weights +1 and -1; a class contrast has
the frozen within-class probabilities, and its entropy term as a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.errors import BehaviourError
from casestudy.model.model import Model
from casestudy.model.weights import Weights


@dataclass(frozen=True)
class Contrast:
    """Per prompt, weights over tokens and a constant.

    Attributes:
        name: what it is called in tables ("lowercase", "capital mass").
        ids: (batch, k) token ids; where a prompt needs fewer than k its weight is 0.
        weights: (batch, k) float64.
        constant: (batch,) float64, added to the weighted sum (a class contrast's entropy term).
        answers, counterparts: per prompt, what stands on either side, for people to read.
    """

    name: str
    ids: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]
    constant: Float[Tensor, " batch"]
    answers: tuple[str, ...]
    counterparts: tuple[str, ...]

    @classmethod
    def between(
        cls,
        model: Model,
        answers: Sequence[str],
        counterparts: Sequence[str],
        *,
        name: str = "answer against counterpart",
    ) -> Contrast:
        """logit(answer) - logit(counterpart), one pair of single tokens per prompt.

        Raises: TokenError where a text is not one token; BehaviourError where the two are the same
        or the lists differ in length.
        """
        if len(answers) != len(counterparts):
            raise BehaviourError(
                f"{len(answers)} answers and {len(counterparts)} counterparts",
                allowed="one of each per prompt",
            )
        single = model.tokenizer.single
        rows = []
        for i, (answer, counterpart) in enumerate(zip(answers, counterparts, strict=True)):
            row = [single(answer), single(counterpart)]
            if row[0] == row[1]:
                raise BehaviourError(
                    f"prompt {i}: answer and counterpart are both {answer!r}",
                    allowed="two different tokens",
                )
            rows.append(row)
        ids = torch.tensor(rows, dtype=torch.long)
        weights = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(len(rows), 2)
        zero = torch.zeros(len(rows), dtype=torch.float64)
        return cls(name, ids, weights, zero, tuple(answers), tuple(counterparts))

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
        )

    def value(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """The contrast of each prompt's logits, summed in float64."""
        chosen = logits.gather(1, self.ids.to(logits.device)).double()
        return (chosen * self.weights.to(logits.device)).sum(1) + self.constant.to(logits.device)

    def directions(self, weights: Weights) -> Float[Tensor, "batch d_model"]:
        """Σₜ weightₜ · W_U[:, t] per prompt, in float64: what the final stream is projected on."""
        device = weights.W_U.device
        columns = weights.W_U.T[self.ids.to(device)].double()  # batch k d_model
        return torch.einsum("bk,bkd->bd", self.weights.to(device), columns)
