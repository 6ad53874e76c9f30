"""Why does a head attend to a token?

An attention score is the product of a query and a key. Both are read from the residual stream,
which is a sum: embedding, positions, and the outputs of all earlier layers. With the norms' scales
frozen at their traced values everything in between is linear, so the score splits exactly over
pairs of components:

    score = Σᵢ Σⱼ scale · (norm(xᵢ) W_Q) · (norm(yⱼ) W_K)

where xᵢ is a component's output at the query position, and yⱼ at the key position. On each side one
more row, "bias", has what no component wrote: for queries the norm's bias through W_Q, and b_Q. A
normalisation of queries and keys is linear too with a frozen scale, and so is the rotation of
rotary positions. If scores are soft-capped, the score before the cap is split.

One score does not determine the attention: the softmax compares it with the query's other scores,
so explain two keys and compare. Source: Elhage et al. 2021 (the QK circuit); Kamath et al.
2025, "Tracing Attention Computation Through Feature Interactions", for features. Cost: one run of
the prompt, and for n components 2n products with W_Q and W_K.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.engine.rounding import worst_gap
from casestudy.errors import SiteError
from casestudy.measure.attribution import value_bias
from casestudy.measure.ledger import gap_bound
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import merge_heads, norm_scale, norm_weight, rotate, run, visible_keys
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site, check_layer
from casestudy.model.trace import Trace
from casestudy.model.weights import Norm
from casestudy.results import components, names
from casestudy.results.components import attn, attn_bias, mlp
from casestudy.results.names import BIAS
from casestudy.results.result import Axis, Grid


def explain_attention_score(
    model: Model,
    prompt: str,
    layer: int,
    head: int,
    query_pos: int,
    key_pos: int,
    *,
    grain: Literal["layer", "head"] = "layer",
) -> Grid:
    """Split one attention score over the components that wrote at the query and key positions.

    Args:
        model: any decoder.
        prompt: one text.
        layer, head: of the score.
        query_pos, key_pos: token positions, BOS included; negative ones count from the end.
        grain: with "layer" each attention layer is one component; with "head" each head is one, and
            the layer's biases are another.

    Shape:  (query_component, key_component); the last of each is "bias".
    Unit:   the score's own, before the softmax (and before a soft cap).
    Error:  the cells sum to the score; `gap` is the difference, `bound` what law 1 allows.
    Raises: SiteError for a layer, head or position that does not exist, or a key after the query.
    """
    config = model.config
    layer = check_layer(layer, config.n_layers)
    head = _within(head, config.n_heads, "head")
    tokens = model.tokenize([prompt])
    n = tokens.ids.shape[1]
    query_pos, key_pos = _within(query_pos, n, "position"), _within(key_pos, n, "position")
    places = torch.tensor([query_pos]), torch.tensor([key_pos])
    if not bool(visible_keys(config, layer, *places)):
        raise SiteError(
            f"the query at {query_pos} cannot see the key at {key_pos} in layer {layer}",
            allowed="a key at or before the query, within the layer's window",
        )
    trace = run(model, tokens, keep=_keep(model, layer, grain), logits="last")
    labels, queries = _side(model, trace, layer, head, query_pos, grain, "query")
    _, keys = _side(model, trace, layer, head, key_pos, grain, "key")
    cells = queries @ keys.T * config.attn_scale[layer]
    total, cap = cells.sum(), config.attn_softcap
    score = trace[Site.ATTN_SCORES, layer][0, head, query_pos, key_pos].double()
    capped = total if cap is None else cap * torch.tanh(total / cap)
    strings = model.tokenizer.labels(tokens.rows()[0])
    return Grid(
        names.ATTENTION_SCORE,
        cells.cpu().numpy(),
        (Axis("query_component", labels), Axis("key_component", labels)),
        "score",
        error=worst_gap(
            (capped - score).abs().view(1), gap_bound(model.dtype, cells.flatten()[:, None])
        ),
        about=f"Why {components.head(layer, head)} looks from {strings[query_pos]!r} ({query_pos}) "
        f"at {strings[key_pos]!r} ({key_pos}): its score of {float(total):.3f} split over what "
        "wrote either stream, the norms' scales frozen.",
    )


def _within(index: int, n: int, what: str) -> int:
    if not -n <= index < n:
        raise SiteError(f"{what} {index}", allowed=f"0 to {n - 1} (or -1 for the last)")
    return index % n


def _keep(model: Model, layer: int, grain: str) -> list[Keep]:
    before = range(layer)
    wrote = [Site.MLP_OUT, Site.ATTN_OUT if grain == "layer" else Site.Z]
    keep = [site.at(before) for site in wrote]
    keep += [site.at(layer) for site in (Site.RESID_PRE, Site.Q, Site.K, Site.ATTN_SCORES)]
    keep.append(Site.EMBED.at())
    if model.weights.W_pos is not None:
        keep.append(Site.POS_EMBED.at())
    return keep


def _side(
    model: Model,
    trace: Trace,
    layer: int,
    head: int,
    pos: int,
    grain: str,
    side: Literal["query", "key"],
) -> tuple[tuple[str, ...], Float[Tensor, "component d_head"]]:
    """The contribution of each component, and last of the biases, to a query or a key."""
    config, block = model.config, model.weights.blocks[layer]
    attn = block.attn
    labels, components = _components(model, trace, layer, pos, grain)
    resid = trace[Site.RESID_PRE, layer][0, pos]
    if side == "query":
        W, b, norm, whole = attn.W_Q, attn.b_Q, attn.q_norm, trace[Site.Q, layer][0, pos]
    else:
        W, b, norm, whole = attn.W_K, attn.b_K, attn.k_norm, trace[Site.K, layer][0, pos]
        head //= config.n_heads // config.n_kv_heads
    read = norm_at_scale(config, block.attn_norm, components, norm_scale(config, resid))
    bias = components.new_zeros(1, components.shape[1])
    if block.attn_norm is not None and block.attn_norm.bias is not None:
        bias = bias + block.attn_norm.bias.double()
    vectors = torch.cat((read, bias)) @ W[head].double()
    if b is not None:
        vectors[-1] += b[head].double()
    if config.qk_norm != "none":
        assert norm is not None
        vectors = _normalised(config, norm, whole, head, vectors)
    rotary = config.rotary[layer] if config.rotary else None
    if rotary is not None:
        # as a matrix in the model's own number format, whose cosines are the ones it used
        axes = torch.eye(W.shape[2], dtype=W.dtype, device=W.device)[:, None, None]
        turned = rotate(axes, torch.tensor([pos], device=W.device), rotary)
        vectors = vectors @ turned[:, 0, 0].double()
    return (*labels, BIAS), vectors


def _components(
    model: Model, trace: Trace, layer: int, pos: int, grain: str
) -> tuple[list[str], Float[Tensor, "component d_model"]]:
    """Every component's output to the residual stream at a position, before a layer."""
    parts = {names.EMBED: trace[Site.EMBED][0, pos]}
    if model.weights.W_pos is not None:
        parts[names.POS_EMBED] = trace[Site.POS_EMBED][0, pos]
    for i in range(layer):
        if grain == "layer":
            parts[attn(i)] = trace[Site.ATTN_OUT, i][0, pos]
        else:
            parts |= _heads(model, trace, i, pos)
        parts[mlp(i)] = trace[Site.MLP_OUT, i][0, pos]
    return list(parts), torch.stack([part.double() for part in parts.values()])


def _heads(model: Model, trace: Trace, layer: int, pos: int) -> dict[str, Tensor]:
    """The output of each head of a layer, and of its biases, as in the head attribution."""
    block, z = model.weights.blocks[layer], trace[Site.Z, layer][0, pos]
    attn, norm = block.attn, block.attn_post_norm
    out = merge_heads(z, attn)
    bias = torch.zeros_like(out, dtype=torch.float64)
    constant = value_bias(model.config, block)
    bias = bias + torch.einsum("he,hed->d", constant, attn.W_O.double())
    z = z.double() - constant
    if attn.b_O is not None:
        bias = bias + attn.b_O.double()
    rows = torch.cat((torch.einsum("he,hed->hd", z, attn.W_O.double()), bias[None]))
    rows = norm_at_scale(model.config, norm, rows, norm_scale(model.config, out))
    if norm is not None and norm.bias is not None:
        rows[-1] += norm.bias.double()
    labels = [components.head(layer, i) for i in range(z.shape[0])]
    return dict(zip([*labels, attn_bias(layer)], rows, strict=True))


def _normalised(
    config: ModelConfig,
    norm: Norm,
    whole: Float[Tensor, "head d_head"],
    head: int,
    vectors: Float[Tensor, "component d_head"],
) -> Float[Tensor, "component d_head"]:
    """The normalisation of one head's queries or keys, at the frozen scale of the full run."""
    whole = whole.double()
    own = whole.flatten() if config.qk_norm == "all" else whole[head]
    if config.qk_norm_kind == "layer":
        own, vectors = own - own.mean(), vectors - vectors.mean(-1, keepdim=True)
    vectors = vectors / (own.square().mean() + config.norm_eps).sqrt()
    weight = _of_head(norm_weight(config, norm), whole, head)
    bias = _of_head(norm.bias, whole, head)
    vectors = vectors if weight is None else vectors * weight
    return vectors if bias is None else torch.cat((vectors[:-1], vectors[-1:] + bias))


def _of_head(
    parameter: Tensor | None, whole: Float[Tensor, "head d_head"], head: int
) -> Float[Tensor, " d_head"] | None:
    """One head's part of a normalisation's weight or bias, which heads may share."""
    if parameter is None:
        return None
    return parameter.double().reshape(-1, whole.shape[1]).expand_as(whole)[head]
