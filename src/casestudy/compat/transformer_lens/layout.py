"""How does left padding in a notebook map to right padding in the engine?

With left padding each prompt's last token is in the last column. The engine pads on the right,
where a causal decoder cannot attend to padding. A `LeftPadded` converts rows from one to the other
by rotating each row: exact, and differentiable. Values at padded positions are finite and have no
meaning; a padded query's row of an attention pattern is 0, and of scores -inf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens

_POSITIONS = ("pos", "query_pos", "key_pos")


class PaddedIds(Tensor):
    """Ids of prompts padded on the left, with the amount of padding of each row.

    Copies, casts and selections of whole rows keep it; the result of any other operation is a plain
    tensor, whose padding has to be found from the ids.

    Attributes:
        padding: of each row, by its ids.
    """

    padding: Mapping[tuple[int, ...], int]

    @classmethod
    def of(cls, ids: Int[Tensor, "batch pos"], padding: Sequence[int]) -> PaddedIds:
        """Ids with the given amount of padding at the start of each row."""
        return cls._carry(ids, dict(zip(map(tuple, ids.tolist()), padding, strict=True)))

    @classmethod
    def _carry(cls, ids: Tensor, padding: Mapping[tuple[int, ...], int]) -> PaddedIds:
        self = ids.as_subclass(cls)
        self.padding = padding
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
            if not isinstance(out, Tensor) or isinstance(out, PaddedIds):
                return out
            sources = [x for x in _flat(args) if isinstance(x, PaddedIds)]
            rows = out.ndim in (1, 2) and all(out.shape[-1] == x.shape[-1] for x in sources)
            if not sources or not rows or out.dtype not in INTEGERS:
                return out
            return cls._carry(out, {row: n for x in sources for row, n in x.padding.items()})

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return repr(plain(self))

    def __deepcopy__(self, memo: Any) -> PaddedIds:
        return type(self)._carry(plain(self).clone(), self.padding)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).__reduce_ex__(protocol)


INTEGERS = (torch.int32, torch.int64)
"""Number formats of ids."""


def plain(ids: Tensor) -> Tensor:
    """The same ids as an ordinary tensor."""
    with torch._C.DisableTorchFunctionSubclass():
        return ids.as_subclass(Tensor)


def _flat(args: Sequence[Any]) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, list | tuple):
            yield from _flat(arg)
        else:
            yield arg


@dataclass(frozen=True)
class LeftPadded:
    """A batch whose rows begin with padding.

    Attributes:
        ids: (batch, pos) as the notebook has them, padding first.
        shifts: the amount of padding at the start of each row; None if no row has any.
    """

    ids: Int[Tensor, "batch pos"]
    shifts: Int[Tensor, " batch"] | None

    @property
    def tokens(self) -> Tokens:
        """The same prompts as the engine takes them."""
        batch, width = self.ids.shape
        if self.shifts is None:
            return Tokens(self.ids, torch.full((batch,), width, device=self.ids.device))
        return Tokens(_rotate(self.ids, 1, -self.shifts), width - self.shifts)

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """True at the prompts' own tokens."""
        if self.shifts is None:
            return torch.ones_like(self.ids, dtype=torch.bool)
        return torch.arange(self.ids.shape[1], device=self.ids.device) >= self.shifts[:, None]

    def to_notebook(self, site: Site, x: Tensor) -> Tensor:
        """An activation of the engine's, padding first."""
        if self.shifts is None:
            return x
        for dim, axis in enumerate(site.axes):
            if axis in _POSITIONS:
                x = _rotate(x, dim, self.shifts)
        if site in (Site.PATTERN, Site.ATTN_SCORES):
            nothing = 0.0 if site is Site.PATTERN else -torch.inf
            x = x.masked_fill(~self.mask[:, None, :, None], nothing)
        return x

    def to_engine(self, site: Site, new: Tensor, old: Tensor) -> Tensor:
        """The reverse, for an activation that replaces the engine's `old`.

        Only values at a prompt's own tokens are replaced: a value in the padding must not affect
        others, as 0 x NaN would in an attention pattern.
        """
        if self.shifts is None:
            return new
        own = torch.ones((), dtype=torch.bool, device=new.device)
        for dim, axis in enumerate(site.axes):
            if axis in _POSITIONS:
                new = _rotate(new, dim, -self.shifts)
                shape = [1] * new.ndim
                shape[0], shape[dim] = self.ids.shape
                own = own & self.tokens.mask.view(shape)
        return torch.where(own, new, old)


def _rotate(x: Tensor, dim: int, by: Int[Tensor, " batch"]) -> Tensor:
    """Each row's `dim` moved up by its own number of places; what falls off the end comes first."""
    width = x.shape[dim]
    source = (torch.arange(width, device=x.device) - by[:, None]) % width  # batch pos
    shape = [1] * x.ndim
    shape[0], shape[dim] = source.shape
    return x.take_along_dim(source.view(shape), dim)
