"""Can the same model be expressed with simpler weights?

Five rewrites that change no log-probability in exact arithmetic. They serve to compare weights
across heads, or to reproduce figures of rewritten models. No measurement needs them: loading
rewrites nothing, and the ledger folds norms on the fly. Each is a function from a model to a new
model, in any order, alone or together; each refuses an architecture on which it would not be exact.
`REWRITES` holds them in the order in which to apply several: fold_ln makes new value biases, and
changes the matrices that are factored last.

The five, their names and their purpose are TransformerLens's weight processing (Nanda and Bloom
2022); the same factor carries the singular values. One difference: a term that a rewrite removes is
absent (None), not zero.

Cost: a copy of the weights that change; the arithmetic is float64 whatever the model's format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.errors import RewriteError, unknown
from casestudy.model.config import ModelConfig
from casestudy.model.linear import fold_into
from casestudy.model.model import Model
from casestudy.model.weights import MLP, Attention, Norm, Weights


def rewrite(model: Model, *names: str) -> Model:
    """Apply rewrites by name, in the order given.

    Raises: RewriteError for a name there is not, or where the architecture does not allow one.
    """
    for name in names:
        if name not in REWRITES:
            raise unknown(RewriteError, f"no rewrite is called {name!r}", name, REWRITES)
        model = REWRITES[name](model)
    return model


def fold_ln(model: Model) -> Model:
    """Move each norm's weight and bias into the matrices that read its output.

    x̂γ + β read by W, b is x̂ read by diag(γ)W, b + βW. The norms still normalise; they no longer
    scale or shift. The final norm's bias becomes b_U. A LayerNorm's output has mean zero, so the
    part of a matrix that reads the mean reads nothing, and is removed.

    Raises: RewriteError where a norm does not stand directly before what it feeds.
    """
    config, weights = model.config, model.weights
    _need_norms(model, "fold_ln")
    attends = [_fold_attention(config, block.attn, block.attn_norm) for block in weights.blocks]
    mlps = [_fold_mlp(config, block.mlp, block.mlp_norm) for block in weights.blocks]
    W_U, b_U = _fold(config, weights.final_norm, weights.W_U, weights.b_U)
    blocks = tuple(
        replace(block, attn=attn, mlp=mlp, attn_norm=Norm(), mlp_norm=Norm())
        for block, attn, mlp in zip(weights.blocks, attends, mlps, strict=True)
    )
    folded = replace(weights, blocks=blocks, W_U=W_U, b_U=b_U, final_norm=Norm())
    return _rewritten(model, "fold_ln", folded)


def center_unembed(model: Model) -> Model:
    """Subtract each row of W_U's mean over the vocabulary: a softmax does not see it.

    Raises: RewriteError under a soft-cap, which does see it.
    """
    if model.config.final_softcap is not None:
        raise _refusal(model, "center_unembed", "its logits are soft-capped, so their mean matters")
    W_U, b_U = model.weights.W_U, model.weights.b_U
    centred = replace(model.weights, W_U=_centred(W_U), b_U=None if b_U is None else _centred(b_U))
    return _rewritten(model, "center_unembed", centred)


def center_writing_weights(model: Model) -> Model:
    """Subtract the mean over d_model of all that is written to the stream: no LayerNorm sees it.

    Raises: RewriteError where something reads the stream without subtracting its mean, or writes to
    it through a norm.
    """
    config, weights = model.config, model.weights
    _need_norms(model, "center_writing_weights")
    if config.norm != "layer":
        raise _refusal(
            model, "center_writing_weights", f"its norms ({config.norm}) do not subtract the mean"
        )
    if any(block.attn_post_norm or block.mlp_post_norm for block in weights.blocks):
        raise _refusal(model, "center_writing_weights", "its layers write through a norm")

    def maybe(b: Tensor | None) -> Tensor | None:
        return None if b is None else _centred(b)

    blocks = tuple(
        replace(
            block,
            attn=replace(block.attn, W_O=_centred(block.attn.W_O), b_O=maybe(block.attn.b_O)),
            mlp=replace(block.mlp, W_out=_centred(block.mlp.W_out), b_out=maybe(block.mlp.b_out)),
        )
        for block in weights.blocks
    )
    # W_U stays as it was, so a tied unembedding is one no longer
    W_E, W_pos = _centred(weights.W_E), maybe(weights.W_pos)
    centred = replace(weights, W_E=W_E, W_pos=W_pos, blocks=blocks)
    return _rewritten(model, "center_writing_weights", centred)


def fold_value_biases(model: Model) -> Model:
    """Move b_V to b_O: a pattern's rows sum to 1, so a head writes b_V W_O wherever it looks."""
    blocks = tuple(
        replace(block, attn=_fold_value_bias(block.attn)) for block in model.weights.blocks
    )
    return _rewritten(model, "fold_value_biases", replace(model.weights, blocks=blocks))


def refactor_factored_attn_matrices(model: Model) -> Model:
    """Write each head's W_Q W_Kᵀ and W_V W_O by their singular value decompositions.

    Only the products matter, so the factors are chosen: W_Q and W_K (with their biases, as one more
    row) share the singular values evenly, W_V has all of its product's and W_O has orthonormal
    rows; all columns stand by falling singular value. b_V is folded into b_O first.

    Raises: RewriteError where a rotation or a norm stands between W_Q and W_K, or where heads share
    keys and values.
    """
    config, name = model.config, "refactor_factored_attn_matrices"
    if any(rotary is not None for rotary in config.rotary):
        raise _refusal(model, name, "a rotation stands between W_Q and W_K")
    if config.qk_norm != "none":
        raise _refusal(model, name, "queries and keys are normalised")
    if config.n_kv_heads != config.n_heads:
        raise _refusal(model, name, "query heads share keys and values")
    blocks = tuple(
        replace(block, attn=_refactor_ov(_refactor_qk(_fold_value_bias(block.attn))))
        for block in model.weights.blocks
    )
    return _rewritten(model, name, replace(model.weights, blocks=blocks))


REWRITES: dict[str, Callable[[Model], Model]] = {
    function.__name__: function
    for function in (
        fold_ln,
        center_writing_weights,
        center_unembed,
        fold_value_biases,
        refactor_factored_attn_matrices,
    )
}


def _rewritten(model: Model, name: str, weights: Weights) -> Model:
    """The model with other weights, cast back to its number format, and the rewrite on record."""
    weights = weights.to(model.device, model.dtype)
    return replace(model, weights=weights, rewrites=(*model.rewrites, name))


def _refusal(model: Model, name: str, reason: str) -> RewriteError:
    return RewriteError(
        f"{name} would change what {model.name} ({model.config.family}) computes: {reason}",
        hint="No measurement needs a rewrite; the ledger folds norms by itself",
    )


def _need_norms(model: Model, name: str) -> None:
    """Every read of the stream must be through a norm directly before it."""
    if not _norms(model.weights):
        raise _refusal(model, name, "it has no norms")
    for layer, block in enumerate(model.weights.blocks):
        for read, norm in (("attention", block.attn_norm), ("MLP", block.mlp_norm)):
            if norm is None:
                raise _refusal(model, name, f"no norm stands before layer {layer}'s {read}")
    if model.weights.final_norm is None:
        raise _refusal(model, name, "no norm stands before the unembedding")


def _norms(weights: Weights) -> list[Norm]:
    """Every norm of the stream that there is."""
    norms = [weights.final_norm]
    for block in weights.blocks:
        norms += [block.attn_norm, block.mlp_norm, block.attn_post_norm, block.mlp_post_norm]
    return [norm for norm in norms if norm is not None]


def _centred(x: Tensor) -> Tensor:
    wide = x.double()
    return wide - wide.mean(-1, keepdim=True)


def _fold(
    config: ModelConfig,
    norm: Norm | None,
    W: Float[Tensor, "*head d n"],
    b: Float[Tensor, "*head n"] | None,
) -> tuple[Float[Tensor, "*head d n"], Float[Tensor, "*head n"] | None]:
    """W and b after the norm that they read; see `fold_ln`."""
    assert norm is not None
    wide, shift = W.double(), None if b is None else b.double()
    if norm.bias is not None:
        read = norm.bias.double() @ wide
        shift = read if shift is None else shift + read
    return fold_into(config, norm, wide), shift


def _fold_attention(config: ModelConfig, attn: Attention, norm: Norm | None) -> Attention:
    W_Q, b_Q = _fold(config, norm, attn.W_Q, attn.b_Q)
    W_K, b_K = _fold(config, norm, attn.W_K, attn.b_K)
    W_V, b_V = _fold(config, norm, attn.W_V, attn.b_V)
    return replace(attn, W_Q=W_Q, b_Q=b_Q, W_K=W_K, b_K=b_K, W_V=W_V, b_V=b_V)


def _fold_mlp(config: ModelConfig, mlp: MLP, norm: Norm | None) -> MLP:
    W_in, b_in = _fold(config, norm, mlp.W_in, mlp.b_in)
    folded = replace(mlp, W_in=W_in, b_in=b_in)
    if mlp.W_gate is None:
        return folded
    W_gate, b_gate = _fold(config, norm, mlp.W_gate, mlp.b_gate)
    return replace(folded, W_gate=W_gate, b_gate=b_gate)


def _fold_value_bias(attn: Attention) -> Attention:
    if attn.b_V is None:
        return attn
    b_V = attn.b_V.double().repeat_interleave(attn.W_O.shape[0] // attn.b_V.shape[0], 0)
    written = torch.einsum("hd,hde->e", b_V, attn.W_O.double())
    return replace(attn, b_V=None, b_O=written if attn.b_O is None else attn.b_O + written)


def _refactor_qk(attn: Attention) -> Attention:
    """With biases, a score is [x 1] A Bᵀ [x' 1]ᵀ, where A and B have the bias as their last row."""
    biased = attn.b_Q is not None or attn.b_K is not None
    A, B = attn.W_Q.double(), attn.W_K.double()
    if biased:
        A, B = _with_row(A, attn.b_Q), _with_row(B, attn.b_K)
    U, S, V = _svd_of_product(A, B)
    A, B = U * S.sqrt()[:, None], V * S.sqrt()[:, None]
    if not biased:
        return replace(attn, W_Q=A, W_K=B)
    return replace(attn, W_Q=A[:, :-1], b_Q=A[:, -1], W_K=B[:, :-1], b_K=B[:, -1])


def _refactor_ov(attn: Attention) -> Attention:
    U, S, V = _svd_of_product(attn.W_V.double(), attn.W_O.double().transpose(1, 2))
    return replace(attn, W_V=U * S[:, None], W_O=V.transpose(1, 2))


def _with_row(
    W: Float[Tensor, "head d d_head"], b: Float[Tensor, "head d_head"] | None
) -> Float[Tensor, "head d_and_one d_head"]:
    row = torch.zeros_like(W[:, 0]) if b is None else b.to(W)
    return torch.cat([W, row[:, None]], 1)


def _svd_of_product(
    A: Float[Tensor, "head m d_head"], B: Float[Tensor, "head n d_head"]
) -> tuple[
    Float[Tensor, "head m d_head"], Float[Tensor, "head d_head"], Float[Tensor, "head n d_head"]
]:
    """U, S, V with U diag(S) Vᵀ = A Bᵀ, by way of the small factors that QR leaves."""
    Q_A, R_A = torch.linalg.qr(A)
    Q_B, R_B = torch.linalg.qr(B)
    U, S, Vh = torch.linalg.svd(R_A @ R_B.transpose(1, 2))
    return Q_A @ U, S, Q_B @ Vh.transpose(1, 2)
