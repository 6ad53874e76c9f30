"""What does a decoder compute, and what did it compute on the way?

`run` is the only forward pass and the only interception point: it takes tokens, what to keep and
what to edit, and returns a `Trace`. Read it from top to bottom. Sweeps call the
same functions that it consists of (`apply_norm`, `project`, `rotate`, `attention_scores`, `mlp`).

Prompts of unequal length are padded on the right. A causal decoder never looks right, so a prompt's
activations do not depend on its padding; those at padded positions mean nothing.

Cost: one forward pass of the blocks. The unembedding is computed only where logits are asked for,
attention patterns are materialised only where they are kept or edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from casestudy.errors import EditError, MeasureError, PromptError, TokenError
from casestudy.model.branches import Branches, Order
from casestudy.model.config import ModelConfig, Rotary
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import IdRows, Tokens, id_rows
from casestudy.model.trace import Address, Tap, Trace, take_last
from casestudy.model.weights import MLP, Attention, Block, Norm, Weights

Logits = Literal["none", "last", "all"]
_NO_TAP = Tap()


def run(
    model: Model,
    tokens: Tokens | str | Sequence[str] | IdRows,
    *,
    keep: Iterable[Keep | Site | str] | Keep | Site = (),
    edit: Iterable[Edit] | Edit = (),
    logits: Logits = "none",
    grad: bool = False,
    branches: Branches | None = None,
) -> Trace:
    """Run a decoder over prompts, keeping and editing what is asked.

    Args:
        model: what `casestudy.load` returns.
        tokens: `model.tokenize(...)`, a text or texts (tokenised with the model's BOS rule), or ids
            of one prompt or several, as lists, an array or a tensor (taken as they are: no BOS).
        keep: sites to keep, in all layers or as `Site("z").at(layers=3, last=True)`.
        edit: changes to activations, applied in order; one or several, as with `keep`.
        logits: "none", at each prompt's "last" token, or at "all" positions.
        grad: build an autograd graph, from the embeddings on. What is kept at every position is
            part of it; what is kept at the last tokens alone is read off it.
        branches: where a row goes on twice; by default each row is one text. Scores and patterns
            of such rows cannot be kept at the last token alone.

    Shape:  logits (batch, d_vocab) or (batch, pos, d_vocab); kept tensors as their site's axes.
    Raises: SiteError for a layer or site the model lacks; EditError for an edit of a wrong shape or
            of a site this model never computes; PromptError, TokenError for bad prompts;
            MeasureError for logits of an unedited run that are not finite, naming the layer.
    """
    if logits not in get_args(Logits):
        raise PromptError(f"logits={logits!r}", allowed=", ".join(get_args(Logits)))
    if not isinstance(tokens, Tokens):
        tokens = _read(model, tokens)
    tokens = tokens.to(model.device)
    order = Order.of(tokens, branches, model.config.n_ctx)
    _check_fit(model.config, tokens, branches)
    keep = (keep,) if isinstance(keep, str | Site | Keep) else keep
    edits = (edit,) if isinstance(edit, Edit) else tuple(edit)
    tap = Tap(model.config.n_layers, keep, edits, tokens.last)
    with torch.set_grad_enabled(grad):
        x = embed_ids(model.config, model.weights, tokens.ids, tap, grad, positions=order.positions)
        for layer, block in enumerate(model.weights.blocks):
            final = layer == model.config.n_layers - 1
            only_last = final and logits != "all" and tap.asks_only_last_from_z(layer)
            x = _block(model.config, block, layer, x, tap, only_last, order)
        x = tap(Site.FINAL_RESID, None, x)
        x = apply_norm(model.config, model.weights.final_norm, x, tap, (Site.FINAL_SCALE, None))
        x = tap(Site.FINAL_NORMED, None, x)
        tap.check_all_met()
        out = None
        if logits != "none":
            if logits == "last":
                x = take_last(Site.FINAL_NORMED, x, tap.last)
            out = unembed(model.config, model.weights, x)
            if not edits:
                _check_finite(model, tokens, out)
    return Trace(tokens, tap.values, tap.lasts, out, model.config.n_layers)


def _check_finite(model: Model, tokens: Tokens, logits: Tensor) -> None:
    """Logits of an unedited run are numbers, or what overflowed is named."""
    low, high = logits.detach().aminmax()  # hands NaN on, and makes no copy as isfinite would
    if low.isfinite() and high.isfinite():
        return
    fine = torch.isfinite(logits).flatten(1).all(1)
    row = int((~fine).nonzero()[0])
    one = tokens[[row]]
    trace = run(model, one, keep=[Site.RESID_PRE.at(0), Site.RESID_POST, Site.FINAL_NORMED])
    names = ["the embeddings", *(f"layer {i}" for i in range(model.config.n_layers))]
    streams = [trace[Site.RESID_PRE, 0]]
    streams += [trace[Site.RESID_POST, i] for i in range(model.config.n_layers)]
    streams.append(trace[Site.FINAL_NORMED])
    bad = [i for i, x in enumerate(streams) if not torch.isfinite(x).all()]
    where = [*names, "the final norm", "the unembedding"][bad[0] if bad else -1]
    kind = str(model.dtype).removeprefix("torch.")
    raise MeasureError(
        f"prompt {row} gave NaN or infinity in {kind}: not finite from {where} on",
        hint="Use bfloat16 or float32 (dtype='float32'): float16 ends at 65,504",
    )


def _read(model: Model, given: str | Sequence[str] | IdRows) -> Tokens:
    """Texts or ids as tokens."""
    rows = id_rows(given)
    return model.tokenize(cast("str | Sequence[str]", given)) if rows is None else Tokens.of(rows)


def _check_fit(config: ModelConfig, tokens: Tokens, branches: Branches | None = None) -> None:
    """Tokens made by hand may be longer, or of another vocabulary, than the model's own."""
    longest = tokens.ids.shape[1]
    if branches is not None:
        rows = zip(tokens.lengths.tolist(), branches.ends, branches.shared, strict=True)
        longest = max(max(end, shared + n - end) for n, end, shared in rows)
    if longest > config.n_ctx:
        raise PromptError(f"a prompt of {longest} tokens", allowed=f"at most {config.n_ctx}")
    low, high = (int(end) for end in tokens.ids.aminmax())
    if low < 0 or high >= config.d_vocab:
        raise TokenError(
            f"token id {low if low < 0 else high}", allowed=f"0 to {config.d_vocab - 1}"
        )


def embed_ids(
    config: ModelConfig,
    weights: Weights,
    ids: Int[Tensor, "batch pos"],
    tap: Tap = _NO_TAP,
    grad: bool = False,
    first: int = 0,
    positions: Int[Tensor, "*batch pos"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Token and learned position embeddings, of these positions or of those from `first` on."""
    embed = F.embedding(ids, weights.W_E)
    if config.embed_scale != 1.0:
        # rounded to the model's dtype first, as the checkpoints were trained
        embed = embed * torch.tensor(config.embed_scale, dtype=embed.dtype, device=embed.device)
    if grad:
        embed = embed.requires_grad_()
    x = tap(Site.EMBED, None, embed)
    if weights.W_pos is not None:
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device) + first
        pos_embed = weights.W_pos[positions + config.position_offset].expand_as(x)
        if grad:
            pos_embed = pos_embed.requires_grad_()
        x = x + tap(Site.POS_EMBED, None, pos_embed)
    return x


def _block(
    config: ModelConfig,
    block: Block,
    layer: int,
    x: Float[Tensor, "batch pos d_model"],
    tap: Tap,
    only_last: bool,
    order: Order,
) -> Float[Tensor, "batch row d_model"]:
    """One layer; with `only_last`, after attention, only the last position of each prompt.

    In the last layer, where no other position is needed, that saves nearly all of its MLP.
    """
    resid_pre = tap(Site.RESID_PRE, layer, x)
    attn_in = tap(Site.ATTN_IN, layer, resid_pre)
    if only_last:
        resid_pre = take_last(Site.RESID_PRE, resid_pre, tap.last).unsqueeze(1)
    attn_out = _attention(config, block, layer, attn_in, tap, only_last, order)
    attn_out = tap(Site.ATTN_OUT, layer, attn_out)
    if config.parallel:
        mlp_out = _mlp(config, block, layer, tap(Site.MLP_IN, layer, resid_pre), tap)
        x = resid_pre + attn_out + tap(Site.MLP_OUT, layer, mlp_out)
    else:
        resid_mid = tap(Site.RESID_MID, layer, resid_pre + attn_out)
        mlp_out = _mlp(config, block, layer, tap(Site.MLP_IN, layer, resid_mid), tap)
        x = resid_mid + tap(Site.MLP_OUT, layer, mlp_out)
    return tap(Site.RESID_POST, layer, x)


def _attention(
    config: ModelConfig,
    block: Block,
    layer: int,
    x: Float[Tensor, "batch pos d_model"],
    tap: Tap,
    only_last: bool,
    order: Order,
) -> Float[Tensor, "batch row d_model"]:
    attn = block.attn
    normed = apply_norm(config, block.attn_norm, x, tap, (Site.ATTN_SCALE, layer))
    normed = tap(Site.ATTN_NORMED, layer, normed)

    def project_from(site: Site, W: Tensor, b: Tensor | None) -> Tensor:
        """Project what this site's heads read: one stream for all, or one each where split."""
        if not tap.wants(site, layer):
            return project(normed, W, b)
        if tap.edits(Site.ATTN_SCALE, layer) or tap.edits(Site.ATTN_NORMED, layer):
            raise EditError(
                f"{site.value}, layer {layer}, is normalised head by head, past the edit of "
                "attn_scale or attn_normed",
                hint="Edit attn_in, or do the two in separate runs",
            )
        split = tap(site, layer, x.unsqueeze(2).expand(-1, -1, W.shape[0], -1))
        read = apply_norm(config, block.attn_norm, split)
        out = torch.einsum("bphd,hde->bphe", read, W)
        return out if b is None else out + b

    q = tap(Site.Q, layer, project_from(Site.Q_IN, attn.W_Q, attn.b_Q))
    k = tap(Site.K, layer, project_from(Site.K_IN, attn.W_K, attn.b_K))
    v = tap(Site.V, layer, project_from(Site.V_IN, attn.W_V, attn.b_V))
    at = order.positions
    q, k = position_queries_and_keys(config, attn, layer, q, k, at, at)
    q, k = tap(Site.ROT_Q, layer, q), tap(Site.ROT_K, layer, k)

    visible = visible_keys(config, layer, at, at)
    if order.allowed is not None:
        visible = visible[:, None] & order.allowed
    if tap.wants_all(Site.ATTN_SCORES, layer) or tap.wants_all(Site.PATTERN, layer):
        scores = tap(Site.ATTN_SCORES, layer, attention_scores(config, layer, q, k, visible))
        pattern = tap(Site.PATTERN, layer, softmax(scores))
        z = mix_values(pattern, v)
    else:
        if tap.wants(Site.ATTN_SCORES, layer) or tap.wants(Site.PATTERN, layer):
            if order.allowed is not None:
                raise MeasureError("scores and patterns of rows with branches, at the last token")
            _keep_last_rows(config, layer, q, k, visible, tap)
        z = attend(config, layer, q, k, v, visible)
    if only_last:
        z = take_last(Site.Z, z, tap.last).unsqueeze(1)
        tap.narrow()
    z = tap(Site.Z, layer, z)

    if tap.wants(Site.RESULT, layer):
        result = tap(Site.RESULT, layer, torch.einsum("bphe,hed->bphd", z, attn.W_O))
        out = result.sum(2) if attn.b_O is None else result.sum(2) + attn.b_O
    else:
        out = merge_heads(z, attn)
    if block.attn_post_norm is not None:
        out = apply_norm(config, block.attn_post_norm, out, tap, (Site.ATTN_POST_SCALE, layer))
    return out


def _keep_last_rows(
    config: ModelConfig,
    layer: int,
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos kv_head d_head"],
    visible: Bool[Tensor, "pos pos"],
    tap: Tap,
) -> None:
    """Scores and pattern of each prompt's last query alone, where the whole grid is not wanted."""
    query = take_last(Site.ROT_Q, q, tap.last).unsqueeze(1)
    every_key = visible.new_ones(1, visible.shape[1])
    scores = attention_scores(config, layer, query, k, every_key)
    scores = scores.masked_fill(~visible[tap.last][:, None, None], float("-inf"))
    tap.keep_last(Site.ATTN_SCORES, layer, scores.squeeze(2))
    tap.keep_last(Site.PATTERN, layer, softmax(scores).squeeze(2))


def _mlp(
    config: ModelConfig, block: Block, layer: int, x: Float[Tensor, "batch pos d_model"], tap: Tap
) -> Float[Tensor, "batch pos d_model"]:
    normed = apply_norm(config, block.mlp_norm, x, tap, (Site.MLP_SCALE, layer))
    normed = tap(Site.MLP_NORMED, layer, normed)
    out = mlp(config, block.mlp, normed, tap, layer)
    if block.mlp_post_norm is not None:
        out = apply_norm(config, block.mlp_post_norm, out, tap, (Site.MLP_POST_SCALE, layer))
    return out


# The parts. Each works on any leading axes, so that a sweep can run them on rows of its own.


def apply_norm(
    config: ModelConfig,
    norm: Norm | None,
    x: Float[Tensor, "*rows d"],
    tap: Tap | None = None,
    where: Address | None = None,
) -> Float[Tensor, "*rows d"]:
    """Normalise the last axis; None leaves it alone.

    The scale is a site of its own, at `where`, and computed apart only if the tap wants it.
    """
    if norm is None:
        return x
    weight = norm_weight(config, norm)
    if tap is None or where is None or not tap.wants(*where):
        if config.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, norm.bias, config.norm_eps)
        return rms_norm(x, weight, config.norm_eps)
    wide = _at_least_float32(x)
    if config.norm == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    out = wide / tap(*where, norm_scale(config, x))
    out = out if weight is None else out * weight
    return (out if norm.bias is None else out + norm.bias).to(x.dtype)


def norm_scale(config: ModelConfig, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows one"]:
    """What a norm divides by: LayerNorm's sqrt(variance + eps), RMSNorm's sqrt(mean square + eps).

    At least float32, whatever the stream's number format.
    """
    wide = _at_least_float32(x)
    if config.norm == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    return (wide.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()


def _at_least_float32(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    return x if x.dtype == torch.float64 else x.float()


def norm_weight(config: ModelConfig, norm: Norm) -> Float[Tensor, "*head d"] | None:
    """The factor a norm multiplies by, as the forward pass uses it."""
    if norm.weight is None or config.norm_weight_offset == 0.0:
        return norm.weight
    return norm.weight + config.norm_weight_offset


def rms_norm(
    x: Float[Tensor, "*rows d"], weight: Float[Tensor, " d"] | None, eps: float
) -> Float[Tensor, "*rows d"]:
    """x / sqrt(mean x² + eps) · weight, the mean taken in at least float32."""
    wide = _at_least_float32(x)
    out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return out.to(x.dtype) if weight is None else (out * weight).to(x.dtype)


def project(
    x: Float[Tensor, "*rows d_model"],
    W: Float[Tensor, "head d_model d_head"],
    b: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "*rows head d_head"]:
    """Each head's linear map of the stream, all heads in one matrix product."""
    n_heads, d_model, d_head = W.shape
    flat = W.permute(1, 0, 2).reshape(d_model, n_heads * d_head)
    rows = x.reshape(-1, d_model)
    out = rows @ flat if b is None else torch.addmm(b.reshape(-1), rows, flat)
    return out.view(*x.shape[:-1], n_heads, d_head)


def merge_heads(
    z: Float[Tensor, "*rows head d_head"], attn: Attention
) -> Float[Tensor, "*rows d_model"]:
    """Sum over heads of z W_O, plus b_O."""
    flat = attn.W_O.reshape(-1, attn.W_O.shape[-1])
    rows = z.reshape(-1, flat.shape[0])
    out = rows @ flat if attn.b_O is None else torch.addmm(attn.b_O, rows, flat)
    return out.view(*z.shape[:-2], -1)


def position_queries_and_keys(
    config: ModelConfig,
    attn: Attention,
    layer: int,
    q: Float[Tensor, "batch query_pos head d_head"],
    k: Float[Tensor, "batch key_pos kv_head d_head"],
    query_positions: Int[Tensor, "*batch query_pos"],
    key_positions: Int[Tensor, "*batch key_pos"],
) -> tuple[
    Float[Tensor, "batch query_pos head d_head"], Float[Tensor, "batch key_pos kv_head d_head"]
]:
    """Normalise queries and keys where the family does, then rotate them to their positions."""
    if config.qk_norm != "none":
        assert attn.q_norm is not None
        assert attn.k_norm is not None
        q, k = _qk_norm(config, attn.q_norm, q), _qk_norm(config, attn.k_norm, k)
    rotary = config.rotary[layer] if config.rotary else None
    if rotary is None:
        return q, k
    return rotate(q, query_positions, rotary), rotate(k, key_positions, rotary)


def _qk_norm(
    config: ModelConfig, norm: Norm, x: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos head d_head"]:
    shape = x.shape
    if config.qk_norm == "all":
        x = x.flatten(-2)
    weight = norm_weight(config, norm)
    if config.qk_norm_kind == "layer":
        # StableLM has one weight row per head; the mean and variance are each head's own
        x = F.layer_norm(x, x.shape[-1:], None, None, config.norm_eps)
        x = x if weight is None else x * weight
        x = x if norm.bias is None else x + norm.bias
    else:
        x = rms_norm(x, weight, config.norm_eps)
    return x.view(shape)


def rotate(
    x: Float[Tensor, "batch pos head d_head"], positions: Int[Tensor, "*rows pos"], rotary: Rotary
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotate pairs of a head's first dimensions by position times frequency."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    frequencies = torch.tensor(rotary.inverse_frequencies, dtype=wide, device=x.device)
    angles = positions.to(wide)[..., None, None] * frequencies  # (batch) pos 1 pair
    cos = (angles.cos() * rotary.magnitude).to(x.dtype)
    sin = (angles.sin() * rotary.magnitude).to(x.dtype)
    turned, rest = x[..., : rotary.dim], x[..., rotary.dim :]
    if rotary.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((turned, rest), -1)


def visible_keys(
    config: ModelConfig,
    layer: int,
    query_positions: Int[Tensor, "*batch query_pos"],
    key_positions: Int[Tensor, "*batch key_pos"],
) -> Bool[Tensor, "*batch query_pos key_pos"]:
    """Which keys each query may look at: not the future, and not past the layer's window."""
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    window = config.windows[layer] if config.windows else None
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def attention_scores(
    config: ModelConfig,
    layer: int,
    q: Float[Tensor, "batch query_pos head d_head"],
    k: Float[Tensor, "batch key_pos kv_head d_head"],
    visible: Bool[Tensor, "*mask query_pos key_pos"],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """q·k times the layer's scale, soft-capped where the family does; -inf where not visible."""
    k = _per_query_head(k, q.shape[2])
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * config.attn_scale[layer]
    if config.attn_softcap is not None:
        scores = config.attn_softcap * torch.tanh(scores / config.attn_softcap)
    return scores.masked_fill(~visible, float("-inf"))


def softmax(
    scores: Float[Tensor, "batch head query_pos key_pos"],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Over keys, in at least float32."""
    if scores.dtype == torch.float64:
        return scores.softmax(-1)
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def mix_values(
    pattern: Float[Tensor, "batch head query_pos key_pos"],
    v: Float[Tensor, "batch key_pos kv_head d_head"],
) -> Float[Tensor, "batch query_pos head d_head"]:
    """Each head's values averaged by its pattern."""
    v = _per_query_head(v, pattern.shape[1])
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


def attend(
    config: ModelConfig,
    layer: int,
    q: Float[Tensor, "batch query_pos head d_head"],
    k: Float[Tensor, "batch key_pos kv_head d_head"],
    v: Float[Tensor, "batch key_pos kv_head d_head"],
    visible: Bool[Tensor, "*mask query_pos key_pos"],
) -> Float[Tensor, "batch query_pos head d_head"]:
    """Scores, softmax and mixing in one fused kernel, for when nobody looks at the pattern."""
    if config.attn_softcap is not None:
        return mix_values(softmax(attention_scores(config, layer, q, k, visible)), v)
    # The kernel takes "all keys up to the query" as a flag, anything else as a mask.
    whole = visible.ndim == 2 and q.shape[1] == k.shape[1]
    causal = whole and not (config.windows and config.windows[layer])
    z = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        _per_query_head(k, q.shape[2]).transpose(1, 2),
        _per_query_head(v, q.shape[2]).transpose(1, 2),
        attn_mask=None if causal else visible,
        is_causal=causal,
        scale=config.attn_scale[layer],
    )
    return z.transpose(1, 2)


def _per_query_head(
    x: Float[Tensor, "batch key_pos kv_head d_head"], n_heads: int
) -> Float[Tensor, "batch key_pos head d_head"]:
    """Keys or values, repeated for the query heads that share them."""
    groups = n_heads // x.shape[2]
    return x if groups == 1 else x.repeat_interleave(groups, 2)


def mlp(
    config: ModelConfig,
    weights: MLP,
    x: Float[Tensor, "*rows d_model"],
    tap: Tap | None = None,
    layer: int = 0,
) -> Float[Tensor, "*rows d_model"]:
    """act(x W_in + b_in) W_out + b_out; gated: act(x W_gate) * (x W_in)."""
    tap = tap or _NO_TAP
    pre = tap(Site.MLP_PRE, layer, _linear(x, weights.W_in, weights.b_in))
    if weights.W_gate is None:
        post = activate(config, pre)
    else:
        gate = tap(Site.MLP_GATE, layer, _linear(x, weights.W_gate, weights.b_gate))
        post = activate(config, gate) * pre
    post = tap(Site.MLP_POST, layer, post)
    return _linear(post, weights.W_out, weights.b_out)


def activate(config: ModelConfig, x: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_mlp"]:
    """The MLP's nonlinearity."""
    match config.activation:
        case "gelu_new":
            return F.gelu(x, approximate="tanh")
        case "gelu":
            return F.gelu(x)
        case "relu":
            return F.relu(x)
        case "silu":
            return F.silu(x)
        case "identity":
            return x


def unembed(
    config: ModelConfig,
    weights: Weights,
    x: Float[Tensor, "*rows d_model"],
    ids: Int[Tensor, " token"] | None = None,
) -> Float[Tensor, "*rows token"]:
    """Logits of the final normalised stream, of the whole vocabulary or of these tokens alone."""
    W_U, b_U = weights.W_U, weights.b_U
    if ids is not None:
        # index_select takes half the time of W_U.T[ids]
        W_U, b_U = W_U.T.index_select(0, ids).T, None if b_U is None else b_U[ids]
    logits = _linear(x, W_U, b_U)
    cap = config.final_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _linear(
    x: Float[Tensor, "*rows m"], W: Float[Tensor, "m n"], b: Float[Tensor, " n"] | None
) -> Float[Tensor, "*rows n"]:
    rows = x.reshape(-1, x.shape[-1])
    out = rows @ W if b is None else torch.addmm(b, rows, W)
    return out.view(*x.shape[:-1], -1)
