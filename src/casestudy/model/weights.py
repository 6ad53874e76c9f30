"""Which parameters does a decoder have, under the field's names?

Plain dataclasses of tensors. Each is a view of the checkpoint's own tensor wherever the layout
allows it: heads are split by reshaping, nothing is copied or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Norm:
    """Scale and shift of a normalisation; None where the architecture has none.

    One vector each, but for norms of queries and keys that have one per head (StableLM).
    """

    weight: Float[Tensor, "*head d"] | None = None
    bias: Float[Tensor, "*head d"] | None = None


@dataclass(frozen=True)
class Attention:
    """One layer's attention. W_K and W_V have one matrix per key/value head."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_Q: Float[Tensor, "head d_head"] | None = None
    b_K: Float[Tensor, "kv_head d_head"] | None = None
    b_V: Float[Tensor, "kv_head d_head"] | None = None
    b_O: Float[Tensor, " d_model"] | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class MLP:
    """One layer's MLP; W_gate only where the MLP is gated."""

    W_in: Float[Tensor, "d_model d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None
    b_in: Float[Tensor, " d_mlp"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None
    b_out: Float[Tensor, " d_model"] | None = None


@dataclass(frozen=True)
class Block:
    """One layer. A norm that the architecture does not have is None."""

    attn: Attention
    mlp: MLP
    attn_norm: Norm | None = None
    mlp_norm: Norm | None = None
    attn_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None


@dataclass(frozen=True)
class Weights:
    """Every parameter of a decoder."""

    W_E: Float[Tensor, "d_vocab d_model"]
    blocks: tuple[Block, ...]
    W_U: Float[Tensor, "d_model d_vocab"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None = None
    final_norm: Norm | None = None
    b_U: Float[Tensor, " d_vocab"] | None = None

    @property
    def gated(self) -> bool:
        """Whether the MLPs multiply act(x W_gate) with x W_in."""
        return any(block.mlp.W_gate is not None for block in self.blocks)

    @property
    def tied(self) -> bool:
        """Whether W_U is the transpose of W_E in memory too."""
        return self.W_U.data_ptr() == self.W_E.data_ptr()

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Weights:
        """The same parameters elsewhere or in another number format; what was tied stays so."""
        skip = self.W_U if self.tied else None
        moved = map_tensors(self, lambda t: t if t is skip else t.to(device, dtype))
        return moved if skip is None else replace(moved, W_U=moved.W_E.T)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with a dotted name, in a fixed order."""
        yield from _named(self, "")


def _named(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield prefix[1:], node
    elif isinstance(node, tuple):
        for i, child in enumerate(node):
            yield from _named(child, f"{prefix}.{i}")
    elif is_dataclass(node):
        for field in fields(node):
            yield from _named(getattr(node, field.name), f"{prefix}.{field.name}")


def map_tensors(node: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same structure with `function` applied to every tensor."""
    mapped: Any = node
    if isinstance(node, Tensor):
        mapped = function(node)
    elif isinstance(node, tuple):
        mapped = tuple(map_tensors(child, function) for child in node)
    elif is_dataclass(node) and not isinstance(node, type):
        changes = {f.name: map_tensors(getattr(node, f.name), function) for f in fields(node)}
        mapped = replace(node, **changes)
    return mapped  # type: ignore[no-any-return]
