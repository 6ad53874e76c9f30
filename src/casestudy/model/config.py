"""What shape is the model, and which of the variants that decoders differ in does it use?

Everything that `decoder.py` needs to know is a field here, except what can be read from the
weights: which norms, gates, biases and position embeddings exist. `decoder.py` never reads a
model's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["layer", "rms"]
Activation = Literal["gelu_new", "gelu", "relu", "silu", "identity"]


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of one layer (Su et al. 2021, "RoFormer").

    Attributes:
        inverse_frequencies: one angle per position for each rotated pair; any scaling for long
            contexts is already in them.
        interleaved: pairs are (0, 1), (2, 3), … (GPT-J); otherwise halves are paired (GPT-NeoX).
        magnitude: factor on both rotated vectors (1 but for some long-context scalings).
    """

    inverse_frequencies: tuple[float, ...]
    interleaved: bool = False
    magnitude: float = 1.0

    @property
    def dim(self) -> int:
        """How many of a head's dimensions are rotated; the rest pass through."""
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder and the choices its forward pass makes.

    Attributes:
        n_kv_heads: key/value heads; fewer than n_heads under grouped-query attention.
        position_offset: row of W_pos that position 0 uses (OPT: 2).
        rotary: one entry per layer, None where a layer has no rotation; empty when none has.
        windows: how many keys back each layer may look, itself included (None: all of them);
            empty when no layer is limited.
        norm: kind of every normalisation there is.
        norm_weight_offset: added to every norm's weight (Gemma stores weight - 1).
        qk_norm: queries and keys normalised per head, over all heads together, or not at all.
        qk_norm_kind: the kind of that normalisation, where it exists.
        parallel: attention and MLP both read resid_pre (GPT-J, NeoX); there is no resid_mid.
        attn_scale: factor on q·k, usually 1/sqrt(d_head); one per layer.
        attn_softcap, final_softcap: cap·tanh(x/cap) on attention scores and on logits.
        embed_scale: factor on the token embedding (Gemma: sqrt(d_model)).
        prepend_bos: whether the family's convention starts every text with BOS; None leaves it to
            the checkpoint's own tokenizer.

    Constant attention needs no field: where a layer's W_Q and W_K are zero its heads weigh every
    key they see alike, whatever the tokens, or by distance where there are biases and a rotation.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    n_kv_heads: int
    attn_scale: tuple[float, ...]
    norm: NormKind = "layer"
    norm_eps: float = 1e-5
    norm_weight_offset: float = 0.0
    activation: Activation = "gelu_new"
    parallel: bool = False
    position_offset: int = 0
    rotary: tuple[Rotary | None, ...] = ()
    windows: tuple[int | None, ...] = ()
    qk_norm: Literal["none", "head", "all"] = "none"
    qk_norm_kind: NormKind = "rms"
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    prepend_bos: bool | None = True


def mlp_after_attention(config: ModelConfig) -> bool:
    """Whether a block's MLP reads the stream after its attention (resid_mid).

    In a parallel block the MLP reads resid_pre, as attention does, and there is no resid_mid. Code
    that depends on the order of a block calls this function, or uses the sites in `engine.rows`
    that follow from it. (The decoder, and the plain recomputations that check the fast code, read
    `parallel` themselves.)
    """
    return not config.parallel
