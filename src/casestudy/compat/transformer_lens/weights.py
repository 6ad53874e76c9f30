"""What are a model's weights called in a notebook?

The part of `HookedTransformer` that reads weights: stacked over layers, multiplied out, and summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from casestudy.compat.transformer_lens import parts
from casestudy.compat.transformer_lens.factored_matrix import FactoredMatrix, composition_scores
from casestudy.errors import SiteError
from casestudy.model.model import Model


class NamedWeights:
    """Weights under TransformerLens's names.

    Attributes:
        model: casestudy's own `Model`, whose weights they are.
        embed, pos_embed, unembed, blocks, ln_final: parts with weights of their own.
    """

    model: Model
    pos_embed: Any
    unembed: Any
    _parts: dict[str, Any]

    @property
    def W_E(self) -> Tensor:
        """Embedding, (d_vocab, d_model)."""
        return self.model.weights.W_E

    @property
    def W_pos(self) -> Tensor:
        """Position embedding, (n_ctx, d_model)."""
        W_pos: Tensor = self.pos_embed.W_pos
        return W_pos

    @property
    def W_E_pos(self) -> Tensor:
        """Both, one above the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Tensor:
        """Unembedding, (d_model, d_vocab)."""
        return self.model.weights.W_U

    @property
    def b_U(self) -> Tensor:
        """The unembedding's bias, (d_vocab,)."""
        b_U: Tensor = self.unembed.b_U
        return b_U

    W_Q = parts.stacked("attn", "W_Q")  # layer head d_model d_head
    W_K = parts.stacked("attn", "W_K")
    W_V = parts.stacked("attn", "W_V")
    W_O = parts.stacked("attn", "W_O")  # layer head d_head d_model
    b_Q = parts.stacked("attn", "b_Q")  # layer head d_head
    b_K = parts.stacked("attn", "b_K")
    b_V = parts.stacked("attn", "b_V")
    b_O = parts.stacked("attn", "b_O")  # layer d_model
    W_in = parts.stacked("mlp", "W_in")  # layer d_model d_mlp
    W_gate = parts.stacked("mlp", "W_gate")
    W_out = parts.stacked("mlp", "W_out")  # layer d_mlp d_model
    b_in = parts.stacked("mlp", "b_in")  # layer d_mlp
    b_out = parts.stacked("mlp", "b_out")  # layer d_model

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ, (layer, head, d_model, d_model)."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O, (layer, head, d_model, d_model)."""
        return FactoredMatrix(self.W_V, self.W_O)

    def all_composition_scores(self, mode: str) -> Tensor:
        """How strongly each head's output enters each later head's Q, K or V.

        Shape:  (layer, head, layer, head); zero unless the second head is of a later layer.
        """
        sides = {"Q": self.QK, "K": self.QK.T, "V": self.OV}
        if mode not in sides:
            raise SiteError(f"mode {mode!r}", allowed="Q, K, V")
        scores = composition_scores(self.OV, sides[mode])
        layers = torch.arange(self.model.config.n_layers, device=scores.device)
        later = layers[:, None, None, None] < layers[:, None]
        return torch.where(later, scores, torch.zeros_like(scores))

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        """The sum of b_O and b_out over the layers before `layer`, (d_model,)."""
        bias: Tensor = self.b_O[: layer + mlp_input].sum(0)
        return bias + self.b_out[:layer].sum(0) if include_mlp_biases else bias

    def all_head_labels(self) -> list[str]:
        """ "L0H0", "L0H1", …"""
        c = self.model.config
        return [f"L{layer}H{head}" for layer in range(c.n_layers) for head in range(c.n_heads)]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight with TransformerLens's dotted name."""
        for part in self._parts.values():
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, parts.ModelPart):
                    yield from each.named()

    def parameters(self) -> Iterator[Tensor]:
        """Every weight."""
        return (tensor for _, tensor in self.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Weights by name."""
        return dict(self.named_parameters())
