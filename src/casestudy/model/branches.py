"""Which texts does a row of tokens hold, and what stands before each token?

Two texts that begin alike can be run in one row: their common beginning is computed once. The
second text's own tokens stand behind the first text, at the positions that they have in theirs,
and see its beginning, but not what the first text has of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from casestudy.model.tokens import Tokens


@dataclass(frozen=True)
class Branches:
    """Where rows of tokens go on twice: two texts that begin alike, in one row.

    A row is the first text, and behind it what the second one has after their common beginning.

    Attributes:
        ends: the length of the first text in each row; the row's own length without a second one.
        shared: the length of the common beginning.
    """

    ends: tuple[int, ...]
    shared: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """What stands before what.

    Attributes:
        positions: of each token in its text.
        allowed: the keys that each query may look at, apart from a layer's window; None for
            all up to its own position.
    """

    positions: Int[Tensor, "*batch pos"]
    allowed: Bool[Tensor, "batch one pos pos"] | None = None

    @classmethod
    def of(cls, tokens: Tokens, branches: Branches | None, n_ctx: int) -> Order:
        """Of rows of tokens."""
        at = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
        if branches is None:
            return cls(at)
        ends, shared = (
            torch.tensor(x, device=at.device)[:, None] for x in (branches.ends, branches.shared)
        )
        second = at >= ends  # batch pos
        positions = torch.where(second, at - ends + shared, at).clamp(max=n_ctx - 1)
        hidden = second[:, :, None] & ((at >= shared) & ~second)[:, None]  # the first text's own
        return cls(positions, ((at[:, None] >= at) & ~hidden)[:, None])
