"""The names and the layout of a checkpoint's parameters, and the reader that uses them.

A `Layout` is a table: the module of each part, which parts have a bias, and whether queries, keys
and values, or an MLP's two inputs, share one matrix. `read_weights` reads every architecture by its
table. It returns views of the checkpoint's tensors, also of fused matrices; only per-head norms are
stacked, which copies them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.config import ModelConfig
from casestudy.model.families.reading import Tensors
from casestudy.model.weights import MLP, Attention, Block, Norm, Weights

NORMS = ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parameter names of one architecture.

    Attributes:
        prefixes: possible prefixes of every name; the first that the checkpoint uses, else none.
        embed, positions, final_norm: modules; positions is None without position embeddings.
        unembed: possible modules of the unembedding, without prefix; the first that exists.
        tied: whether the unembedding is the transposed embedding, if config.json does not say. For
            a loaded model see `Weights.tied`.
        block: prefix of a layer's modules, with `{}` for the layer.
        parts: module by part: q, k, v or qkv; o; in, gate or gate_up; out; q_norm, k_norm; and the
            norms, as in `Block`. A q_norm or k_norm with `{}` has a module per head.
        biased: the parts that have a bias; also "final_norm" and "unembed".
        transposed: matrices are stored (in, out), as by GPT-2's Conv1D.
        qkv_by_head: a fused matrix holds each head's query, key and value together (GPT-NeoX), not
            all queries first.
        derived: pattern of the names, after the prefix, of tensors that are not learned (masks,
            rotary tables).
    """

    prefixes: tuple[str, ...]
    embed: str
    final_norm: str
    block: str
    parts: Mapping[str, str]
    biased: frozenset[str] = frozenset()
    positions: str | None = None
    unembed: tuple[str, ...] = ("lm_head",)
    tied: bool = False
    transposed: bool = False
    qkv_by_head: bool = False
    derived: str = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rotary_emb\.inv_freq"

    def is_derived(self, name: str) -> bool:
        """Whether a tensor of this name is not learned (a mask, a rotary table)."""
        bare = next((name[len(p) :] for p in self.prefixes if name.startswith(p)), name)
        return re.fullmatch(self.derived, bare) is not None


def read_weights(config: ModelConfig, layout: Layout, tensors: Mapping[str, Tensor]) -> Weights:
    """A checkpoint's tensors as `Weights`.

    Raises: ModelError naming a tensor that is missing, has another shape, or is in no table.
    """
    used = (p for p in layout.prefixes if any(name.startswith(p) for name in tensors))
    take = Tensors(tensors, next(used, ""))
    d = config.d_model
    W_E = _embedding(config, layout, tensors, take)
    W_U, b_U, head_taken = _unembedding(config, layout, tensors, W_E)
    rows = config.n_ctx + config.position_offset
    weights = Weights(
        W_E=W_E,
        W_pos=take(f"{layout.positions}.weight", rows, d) if layout.positions else None,
        blocks=tuple(_Layer(config, layout, take, i).block() for i in range(config.n_layers)),
        final_norm=_norm(take, layout.final_norm, d, bias="final_norm" in layout.biased),
        W_U=W_U,
        b_U=b_U,
    )
    take.taken |= head_taken
    take.check_all_taken(layout.is_derived)
    return weights


def _norm(take: Tensors, module: str, *shape: int, bias: bool) -> Norm:
    return Norm(take(f"{module}.weight", *shape), take(f"{module}.bias", *shape) if bias else None)


def _embedding(
    config: ModelConfig, layout: Layout, tensors: Mapping[str, Tensor], take: Tensors
) -> Float[Tensor, "d_vocab d_model"]:
    """W_E. A checkpoint with tied weights may contain it under the unembedding's name only."""
    shape = config.d_vocab, config.d_model
    own = take.maybe(f"{layout.embed}.weight", *shape)
    if own is None and layout.tied:
        names = (f"{module}.weight" for module in layout.unembed)
        own = next((Tensors(tensors)(name, *shape) for name in names if name in tensors), None)
    return take(f"{layout.embed}.weight", *shape) if own is None else own


def _unembedding(
    config: ModelConfig,
    layout: Layout,
    tensors: Mapping[str, Tensor],
    W_E: Float[Tensor, "d_vocab d_model"],
) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"] | None, set[str]]:
    """W_U and b_U; W_U is the transposed embedding if the two are tied.

    Raises: ModelError if config.json ties them and the checkpoint has two different tensors, or if
        it does not and the checkpoint has only one.
    """
    take = Tensors(tensors)
    here = next((name for name in layout.unembed if f"{name}.weight" in tensors), None)
    if here is None and not layout.tied:
        raise ModelError(
            f"the checkpoint has no tensor {layout.unembed[0]}.weight, and its configuration does "
            "not tie the unembedding to the embedding",
            hint="If the checkpoint was trained with the two tied, set tie_word_embeddings to true "
            "in a local copy of config.json; otherwise the checkpoint is incomplete",
        )
    module = here or layout.unembed[0]
    b_U = take(f"{module}.bias", config.d_vocab) if "unembed" in layout.biased else None
    if not layout.tied:
        return take(f"{module}.weight", *W_E.shape).T, b_U, take.taken
    own = take.maybe(f"{module}.weight", *W_E.shape)
    if own is not None and own.data_ptr() != W_E.data_ptr() and not torch.equal(own, W_E):
        raise ModelError(
            f"config.json ties the unembedding to the embedding, but {module}.weight differs "
            "from it",
            hint="If the checkpoint is right, set tie_word_embeddings to false in a local copy",
        )
    return W_E.T, b_U, take.taken


@dataclass(frozen=True)
class _Layer:
    """One layer of a checkpoint being read."""

    config: ModelConfig
    layout: Layout
    take: Tensors
    number: int

    def block(self) -> Block:
        norms = {place: self._norm(place) for place in NORMS if place in self.layout.parts}
        return Block(attn=self._attention(), mlp=self._mlp(), **norms)

    def _module(self, part: str) -> str:
        return self.layout.block.format(self.number) + self.layout.parts[part]

    def _norm(self, part: str) -> Norm:
        bias = part in self.layout.biased
        return _norm(self.take, self._module(part), self.config.d_model, bias=bias)

    def _linear(
        self, part: str, n_in: int, n_out: int
    ) -> tuple[Float[Tensor, "n_in n_out"], Float[Tensor, " n_out"] | None]:
        name = self._module(part)
        shape = (n_in, n_out) if self.layout.transposed else (n_out, n_in)
        W = self.take(f"{name}.weight", *shape)
        b = self.take(f"{name}.bias", n_out) if part in self.layout.biased else None
        return W if self.layout.transposed else W.T, b

    def _attention(self) -> Attention:
        config = self.config
        d, d_head, n, n_kv = config.d_model, config.d_head, config.n_heads, config.n_kv_heads
        Ws: Sequence[Tensor]
        bs: list[Tensor | None]
        if "qkv" in self.layout.parts:
            W, b = self._linear("qkv", d, (n + 2 * n_kv) * d_head)
            Ws = self._split_qkv(W)
            bs = [None] * 3 if b is None else [*self._split_qkv(b)]
        else:
            counts = (("q", n), ("k", n_kv), ("v", n_kv))
            read = [self._linear(part, d, heads * d_head) for part, heads in counts]
            Ws = [W.unflatten(1, (-1, d_head)) for W, _ in read]
            bs = [None if b is None else b.view(-1, d_head) for _, b in read]
        # (d_model, head, d_head) to (head, d_model, d_head)
        W_Q, W_K, W_V = (W.transpose(0, 1) for W in Ws)
        W_O, b_O = self._linear("o", n * d_head, d)
        return Attention(
            W_Q=W_Q,
            W_K=W_K,
            W_V=W_V,
            W_O=W_O.unflatten(0, (n, d_head)),
            b_Q=bs[0],
            b_K=bs[1],
            b_V=bs[2],
            b_O=b_O,
            q_norm=self._head_norm("q_norm", n),
            k_norm=self._head_norm("k_norm", n_kv),
        )

    def _split_qkv(self, fused: Float[Tensor, "*d_model n"]) -> Sequence[Tensor]:
        """(…, out) as queries, keys and values, each (…, head, d_head)."""
        config = self.config
        if self.layout.qkv_by_head:
            by_head = fused.unflatten(-1, (config.n_heads, 3, config.d_head))
            return [by_head.select(-2, i) for i in range(3)]
        counts = [config.n_heads, config.n_kv_heads, config.n_kv_heads]
        heads = fused.unflatten(-1, (sum(counts), config.d_head))
        return torch.split(heads, counts, -2)

    def _head_norm(self, part: str, n_heads: int) -> Norm | None:
        """The norm of queries or keys: one for all heads, one over all heads, or one per head."""
        if part not in self.layout.parts:
            return None
        d_head, name = self.config.d_head, self._module(part)
        if "{}" in self.layout.parts[part]:
            name = self.layout.block.format(self.number)
            each = [name + self.layout.parts[part].format(head) for head in range(n_heads)]
            return Norm(torch.stack([self.take(f"{one}.weight", d_head) for one in each]))
        width = n_heads * d_head if self.config.qk_norm == "all" else d_head
        return _norm(self.take, name, width, bias=False)

    def _mlp(self) -> MLP:
        d, d_mlp = self.config.d_model, self.config.d_mlp
        W_gate, b_gate = None, None
        if "gate_up" in self.layout.parts:
            W, b = self._linear("gate_up", d, 2 * d_mlp)
            W_gate, W_in = W.chunk(2, 1)
            b_gate, b_in = (None, None) if b is None else b.chunk(2)
        else:
            W_in, b_in = self._linear("in", d, d_mlp)
            if "gate" in self.layout.parts:
                W_gate, b_gate = self._linear("gate", d, d_mlp)
        W_out, b_out = self._linear("out", d_mlp, d)
        return MLP(W_in=W_in, W_out=W_out, W_gate=W_gate, b_in=b_in, b_gate=b_gate, b_out=b_out)
