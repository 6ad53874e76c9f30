"""Which metric is computed at a prompt's last token, or at several of its last ones?

A linear contrast is a dot product of the final residual stream with one direction per prompt (final
norm and unembedding combined), without an unembedding. Other metrics are functions of the logits.
Cost: d_model operations per row for a linear contrast, the whole unembedding otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.errors import MeasureError
from casestudy.model.decoder import apply_norm, unembed
from casestudy.model.model import Model

Metric = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (rows, d_vocab) and each row's prompt (rows) to a value per row; its reading,
where prompts are read at several positions (see `Tails`). It may be called from several threads at
the same time (see `engine/workers`)."""


@dataclass(frozen=True)
class Tails:
    """How many of its last positions each prompt is read at; the values are added up by weight.

    Attributes:
        counts: of each prompt, at least one.
        weights: of each reading: prompt by prompt, in the order of positions.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.counts, default=1) < 1 or sum(self.counts) != len(self.weights):
            raise MeasureError(
                f"{len(self.weights)} weights for readings {list(self.counts)[:10]}",
                allowed="a weight for each reading, at least one reading of each prompt",
            )

    @classmethod
    def ends(cls, n: int) -> Tails:
        """The last position of each of n prompts."""
        return cls((1,) * n, (1.0,) * n)

    @cached_property
    def single(self) -> bool:
        """Whether every prompt's value is that of its last position."""
        return set(self.counts) <= {1} and set(self.weights) <= {1.0}

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Each prompt's first reading, by number."""
        return tuple(accumulate(self.counts, initial=0))[:-1]

    @cached_property
    def prompts(self) -> tuple[int, ...]:
        """Each reading's prompt, by number."""
        return tuple(b for b, n in enumerate(self.counts) for _ in range(n))

    def of(self, prompts: Sequence[int]) -> list[int]:
        """The readings of some prompts, by number."""
        return [k for b in prompts for k in range(self.starts[b], self.starts[b] + self.counts[b])]

    def some(self, prompts: Sequence[int]) -> Tails:
        """Where some of the prompts are read."""
        counts = tuple(self.counts[b] for b in prompts)
        return Tails(counts, tuple(self.weights[k] for k in self.of(prompts)))

    def places(
        self, lengths: Int[Tensor, " prompt"]
    ) -> tuple[Int[Tensor, " reading"], Int[Tensor, " reading"]]:
        """Each reading's prompt and position, of prompts with so many tokens."""
        device = lengths.device
        prompts = torch.tensor(self.prompts, dtype=torch.long, device=device)
        number = torch.arange(len(prompts), device=device)
        counts, starts = (torch.tensor(x, device=device) for x in (self.counts, self.starts))
        return prompts, (lengths - counts - starts)[prompts] + number

    def added(self, read: Float[Tensor, "*runs reading"]) -> Float[Tensor, "*runs prompt"]:
        """Each prompt's readings, added up by weight; with a gradient if they have one."""
        if self.single:
            return read
        sums = read.new_zeros(len(self.weights), len(self.counts), dtype=torch.float64)
        sums[list(range(len(self.weights))), list(self.prompts)] = sums.new_tensor(self.weights)
        return read.double() @ sums


class Readout:
    """Maps the final residual stream at the positions that are read to the metric.

    A linear contrast is a dot product with Σ weight · W_U in float64; a soft-capped unembedding or
    any other function of the logits needs the logits.
    """

    def __init__(self, model: Model, metric: Contrast | Metric, n_prompts: int) -> None:
        self.model, self.metric = model, metric
        self.linear = isinstance(metric, Contrast) and model.config.final_softcap is None
        if isinstance(metric, Contrast):
            if len(metric) != n_prompts:
                raise MeasureError(
                    f"a contrast of {len(metric)} prompts for {n_prompts}", allowed="one each"
                )
            undefined = metric.weights.isnan().any(1).nonzero()[:, 0].tolist()
            if undefined:
                raise MeasureError(
                    f"the contrast {metric.name!r} is not defined for prompts {undefined}",
                    hint="Leave them out: they have no answer or no counterpart",
                )
            device = model.device
            self.ids, self.weights = metric.ids.to(device), metric.weights.to(device)
            self.constant = metric.constant.to(device)
            if self.linear:
                self.directions = metric.directions(model.weights)
                if model.weights.b_U is not None:
                    biases = model.weights.b_U[self.ids].double()
                    self.constant = self.constant + (biases * self.weights).sum(1)

    def __call__(
        self, x: Float[Tensor, "row d_model"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The metric of rows of the final residual stream, each with its prompt."""
        return self.of_normed(
            apply_norm(self.model.config, self.model.weights.final_norm, x), prompts
        )

    def of_normed(
        self, normed: Float[Tensor, "row d_model"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The metric of rows after the final norm."""
        if self.linear:
            found = (normed.double() * self.directions[prompts]).sum(-1)
            return found + self.constant[prompts]
        size = max(1, (64 << 20) // (self.model.config.d_vocab * normed.element_size()))
        pieces = [
            self.of_logits(unembed(self.model.config, self.model.weights, rows), which)
            for rows, which in zip(normed.split(size), prompts.split(size), strict=True)
        ]
        return torch.cat(pieces)

    def of_logits(
        self, logits: Float[Tensor, "row d_vocab"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The metric of logits."""
        if isinstance(self.metric, Contrast):
            chosen = logits.gather(1, self.ids[prompts]).double()
            return (chosen * self.weights[prompts]).sum(1) + self.constant_of_logits(prompts)
        return self.metric(logits, prompts).double()

    def constant_of_logits(self, prompts: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The contrast's constant alone: logits already include the unembedding's bias."""
        assert isinstance(self.metric, Contrast)
        return self.metric.constant.to(self.model.device)[prompts]
