"""The parts of a model as a notebook reads them: `model.blocks[3].attn.W_O`.

Views of the engine's parameters under TransformerLens's names and shapes: a bias that is absent is
zero, keys and values of grouped heads are repeated for each query head. A norm, the MLP, the
embeddings and the unembedding can be called, as a logit lens does; a block or its attention cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse_name
from casestudy.compat.transformer_lens.hook_points import HookPoint
from casestudy.model.decoder import apply_norm, mlp, unembed
from casestudy.model.model import Model
from casestudy.model.weights import Attention, Norm

_REASONS = {
    "forward": "Only norms, MLPs, embeddings and the unembedding can be called",
    "OV": "Use model.OV[layer, head]",
    "QK": "Use model.QK[layer, head]",
    "mask": "Attention is causal; a pattern's upper triangle is 0",
    "register_forward_hook": "Use add_hook on a hook point, such as attn.hook_z",
}


class ModelPart:
    """A part of the model: its weights, hook points and parts, by name."""

    def __init__(self, path: str, call: Callable[..., Tensor] | None = None) -> None:
        self._path = path
        self._call = call
        self._weights: dict[str, Tensor] = {}
        self._children: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        for held in (own.get("_weights", {}), own.get("_children", {})):
            if name in held:
                return held[name]
        if name.startswith("__"):
            raise AttributeError(name)
        known = [*own.get("_weights", {}), *own.get("_children", {})]
        raise refuse_name(own.get("_path", "model"), name, known, _REASONS)

    def __call__(self, *args: Any) -> Tensor:
        """The output of this part for an input."""
        if self._call is None:
            raise refuse_name(self._path, "forward", [], _REASONS)
        return self._call(*args)

    def __dir__(self) -> list[str]:
        return [*self._weights, *self._children]

    def __repr__(self) -> str:
        return f"{self._path}({', '.join(self.__dir__())})"

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight below here, with its dotted name."""
        for name, tensor in self._weights.items():
            yield f"{self._path}.{name}", tensor
        for child in self._children.values():
            if isinstance(child, ModelPart):
                yield from child.named()


def build(model: Model, points: dict[str, HookPoint]) -> dict[str, Any]:
    """The parts at the top: embed, pos_embed, blocks, ln_final, unembed, and hook points."""
    config, weights = model.config, model.weights
    top: dict[str, Any] = {}
    embed = ModelPart("embed", lambda ids: weights.W_E[ids] * config.embed_scale)
    # rows of the table are multiplied by the embedding's scale when they are read
    embed._weights["W_E"] = weights.W_E
    top["embed"] = embed
    if weights.W_pos is not None:
        W_pos = weights.W_pos[config.position_offset :]
        pos_embed = ModelPart(
            "pos_embed", lambda ids: W_pos[: ids.shape[-1]].expand(*ids.shape, -1)
        )
        pos_embed._weights["W_pos"] = W_pos
        top["pos_embed"] = pos_embed
    top["blocks"] = [_block(model, layer) for layer in range(config.n_layers)]
    if weights.final_norm is not None:
        top["ln_final"] = _norm(model, "ln_final", weights.final_norm)
    last = ModelPart("unembed", lambda x: unembed(config, weights, x))
    b_U = weights.b_U
    last._weights["W_U"] = weights.W_U
    last._weights["b_U"] = weights.W_U.new_zeros(weights.W_U.shape[1]) if b_U is None else b_U
    top["unembed"] = last
    for name, point in points.items():
        _hang(top, name, point)
    return top


def _hang(top: dict[str, Any], name: str, point: HookPoint) -> None:
    """Add a hook point at the place of its name."""
    path = name.split(".")
    at: Any = top
    for step in path[:-1]:
        if step.isdigit():
            at = at[int(step)]
        else:
            at = at[step] if isinstance(at, dict) else at._children[step]
    (at if isinstance(at, dict) else at._children)[path[-1]] = point


def _block(model: Model, layer: int) -> ModelPart:
    config, block = model.config, model.weights.blocks[layer]
    path = f"blocks.{layer}"
    part = ModelPart(path)
    children = part._children
    for name, norm in (("ln1", block.attn_norm), ("ln2", block.mlp_norm)):
        if norm is not None:
            children[name] = _norm(model, f"{path}.{name}", norm)
    children["attn"] = _attention(f"{path}.attn", block.attn)
    weights = block.mlp
    children["mlp"] = feed = ModelPart(f"{path}.mlp", lambda x: mlp(config, weights, x))
    feed._weights["W_in"], feed._weights["W_out"] = weights.W_in, weights.W_out
    feed._weights["b_in"] = _or_zeros(weights.b_in, weights.W_in, config.d_mlp)
    feed._weights["b_out"] = _or_zeros(weights.b_out, weights.W_out, config.d_model)
    if weights.W_gate is not None:
        feed._weights["W_gate"] = weights.W_gate
    return part


def _attention(path: str, attn: Attention) -> ModelPart:
    part = ModelPart(path)
    n_heads, d_model, d_head = attn.W_Q.shape
    n_kv = attn.W_K.shape[0]
    held = part._weights
    held["W_Q"], held["W_O"] = attn.W_Q, attn.W_O
    held["b_Q"] = _or_zeros(attn.b_Q, attn.W_Q, n_heads, d_head)
    held["b_O"] = _or_zeros(attn.b_O, attn.W_O, d_model)
    for kind, W, b in (("K", attn.W_K, attn.b_K), ("V", attn.W_V, attn.b_V)):
        b = _or_zeros(b, W, n_kv, d_head)
        if n_kv != n_heads:
            # as stored, under the name TransformerLens gives them
            held[f"_W_{kind}"], held[f"_b_{kind}"] = W, b
        held[f"W_{kind}"] = W.repeat_interleave(n_heads // n_kv, 0) if n_kv != n_heads else W
        held[f"b_{kind}"] = b.repeat_interleave(n_heads // n_kv, 0) if n_kv != n_heads else b
    return part


def _norm(model: Model, path: str, norm: Norm | None) -> ModelPart:
    part = ModelPart(path, lambda x: apply_norm(model.config, norm, x))
    if norm is not None and norm.weight is not None:
        part._weights["w"] = norm.weight + model.config.norm_weight_offset
        if norm.bias is not None:
            part._weights["b"] = norm.bias
    return part


def _or_zeros(b: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device) if b is None else b


def stacked(part: str, name: str) -> Any:
    """A property of the whole model: one weight of every layer, along a new first axis.

    None for the gate of an MLP without a gate.
    """

    def get(model: Any) -> Any:
        if name == "W_gate" and not model.cfg.gated_mlp:
            return None
        return torch.stack([getattr(getattr(block, part), name) for block in model.blocks])

    return property(get, doc=f"{name} of every layer.")
