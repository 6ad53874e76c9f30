"""What makes a part active: which earlier parts does it read?

What a neuron reads is linear in the residual stream once the norm before its MLP is held at its
traced scale, so its input is a sum over what wrote the stream: embedding, positions, every earlier
head and MLP, and the biases,

    input = Σᵢ xᵢ · u + b · w + b_in,      u = C (weight · w) / s

with w its column of W_in (and of W_gate for its gate). An attention score is linear in the query's
stream and in the key's (see `explain`). What decides where a head attends is how the score of the
key that it chooses differs from the scores of the keys that it does not, q · (k* - mean k); that
difference is split twice, over what wrote the query's stream, and over what wrote the keys'.

Error: each split sums to what it splits; the gap is shown. Source: Elhage et al. 2021. Cost: one
run of the contexts, and one product with W_O for each earlier layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.engine.rounding import worst_gap
from casestudy.measure.attribution import head_shares, neuron_shares
from casestudy.measure.ledger import gap_bound
from casestudy.measure.part_activity import Activity
from casestudy.measure.parts import CardPart, DirectionPart, HeadPart, NeuronPart
from casestudy.model.config import ModelConfig, mlp_after_attention
from casestudy.model.decoder import norm_scale, norm_weight, rotate, run, visible_keys
from casestudy.model.linear import bias_along, pull_back
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.model.weights import Norm
from casestudy.results import components, names
from casestudy.results.names import BIAS
from casestudy.results.result import Axis, Grid

NEURONS, OTHERS = 24, "other neurons"
"""Of an MLP's neurons, so many are components of their own."""
READ_CONTEXTS = 8
"""Of the strongest contexts, so many have what they read split."""


def keep_upstream(model: Model, layer: int, *, own: bool) -> list[Keep]:
    """The sites that `upstream_shares` reads.

    Args:
        model: the decoder.
        layer: of the part that reads.
        own: whether its own layer's attention wrote what it reads.
    """
    keep = [Site.MLP_OUT.at(range(layer)), Site.Z.at(range(layer + own)), Site.EMBED.at()]
    return keep + ([Site.POS_EMBED.at()] if model.weights.W_pos is not None else [])


def rows_of_trace(
    trace: Trace, prompts: Int[Tensor, " row"], positions: Int[Tensor, " row"]
) -> Trace:
    """Some positions of a run as rows: what was kept everywhere, as if each were a last token."""
    lasts = {
        address: values[prompts, positions]
        for address, values in trace.values.items()
        if address[0].axes[:2] == ("batch", "pos")
    }
    return Trace(trace.tokens, {}, lasts, None, trace.n_layers)


def upstream_shares(
    model: Model, rows: Trace, layer: int, u: Float[Tensor, "row d_model"], *, own: bool
) -> tuple[tuple[str, ...], Float[Tensor, "component row"]]:
    """The components of a residual stream before a layer's attention or MLP, along a direction.

    Args:
        model: the decoder.
        rows: from `rows_of_trace`, made with `keep_upstream`.
        layer: whose input the stream is.
        u: of each row.
        own: whether the layer's own attention is part of the stream.

    Returns: the components' names and their shares; they sum to the stream · u.
    """
    parts: dict[str, Tensor] = {}

    def add(name: str, key: Site | tuple[Site, int]) -> None:
        parts[name] = (rows.last(key).double() * u).sum(-1)

    add(names.EMBED, Site.EMBED)
    if model.weights.W_pos is not None:
        add(names.POS_EMBED, Site.POS_EMBED)
    for i in range(layer + own):
        heads = head_shares(model, rows, i, u[None])[0]
        labels = [components.head(i, h) for h in range(model.config.n_heads)]
        parts |= zip([*labels, components.attn_bias(i)], heads, strict=True)
        if i < layer:
            add(components.mlp(i), (Site.MLP_OUT, i))
    return tuple(parts), torch.stack(list(parts.values()))


@dataclass(frozen=True)
class InputPositions:
    """Positions whose input is split.

    Attributes:
        tokens: the prompts or contexts.
        positions: one of each.
        labels: of the prompts.
    """

    tokens: Tokens
    positions: Sequence[int]
    labels: tuple[str, ...]

    def rows(self, model: Model) -> tuple[Tensor, Tensor]:
        """The (prompt, position) of each row."""
        every = torch.arange(len(self.tokens), device=model.device)
        return every, torch.tensor(list(self.positions), device=model.device)


def neuron_inputs(model: Model, part: NeuronPart, reading: InputPositions) -> Grid:
    """A neuron's input (and gate) split over what wrote the residual stream.

    Shape:  (input, component, prompt); the last component is "bias".
    Unit:   of the input, before the activation function.
    Error:  the components sum to the input; `gap` is the largest difference, `bound` what law 1
            allows.
    """
    layer, block = part.layer, model.weights.blocks[part.layer]
    own = mlp_after_attention(model.config)
    sites = {"input": (Site.MLP_PRE, block.mlp.W_in, block.mlp.b_in)}
    if block.mlp.W_gate is not None:
        sites["gate"] = (Site.MLP_GATE, block.mlp.W_gate, block.mlp.b_gate)
    keep = [*keep_upstream(model, layer, own=own), Site.MLP_IN.at(layer)]
    keep += [site.at(layer) for site, _, _ in sites.values()]
    trace = run(model, reading.tokens, keep=keep, logits="last")  # logits name what overflows
    rows = rows_of_trace(trace, *reading.rows(model))
    scale = norm_scale(model.config, rows.last((Site.MLP_IN, layer)))
    found, gaps, bounds = [], [], []
    labels: tuple[str, ...] = ()
    for site, W, b in sites.values():
        w = W[:, part.index].double()
        u = pull_back(model.config, block.mlp_norm, w, scale.double())
        u = u.expand(len(reading.positions), -1)
        labels, shares = upstream_shares(model, rows, layer, u, own=own)
        bias = bias_along(block.mlp_norm, w)
        bias = bias if b is None else bias + b[part.index].double()
        shares = torch.cat((shares, bias.expand(1, shares.shape[1])))
        value = rows.last((site, layer))[:, part.index].double()
        found.append(shares)
        gaps.append((shares.sum(0) - value).abs())
        bounds.append(gap_bound(model.dtype, shares))
    return Grid(
        names.PART_READS,
        torch.stack(found).cpu().numpy(),
        (Axis("input", tuple(sites)), Axis("component", (*labels, BIAS)), _prompts(reading)),
        "input",
        error=worst_gap(torch.cat(gaps), torch.cat(bounds)),
        about=f"What {part.name} reads: its input before the activation function, split over what "
        "wrote the residual stream, the scale of the norm before the MLP frozen at its traced "
        "value.",
    )


def _prompts(reading: InputPositions) -> Axis:
    return Axis("prompt", reading.labels)


def split_input(
    model: Model, part: CardPart, reading: InputPositions, choices: Sequence[Choice]
) -> Grid:
    """A neuron's input, or a head's difference of scores, at these positions."""
    if isinstance(part, HeadPart):
        return score_parts(model, part, reading, choices)
    if isinstance(part, NeuronPart):
        return neuron_inputs(model, part, reading)
    assert isinstance(part, DirectionPart)
    return coordinates(model, part, reading)


def coordinates(model: Model, part: DirectionPart, reading: InputPositions) -> Grid:
    """The coordinates along a site's directions, split over what wrote the site.

    The residual stream is split over embeddings, heads and MLPs; a layer's attention over its
    heads, and its MLP over the neurons with the largest shares and the rest of them.

    Shape:  (direction, component, prompt).
    Unit:   of the coordinates.
    Error:  the components sum to the coordinate; `gap` is the largest difference, `bound` what law
            1 allows.
    """
    layer, site = part.layer, part.site
    whole = site in (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST)
    keep = [*keep_upstream(model, layer, own=True), site.at(layer)]
    keep += [site.at(layer) for site in (Site.MLP_POST, Site.MLP_OUT)]
    trace = run(model, reading.tokens, keep=keep, logits="last")
    rows = rows_of_trace(trace, *reading.rows(model))
    values = part.taken(rows.last((site, layer)).double())
    labels: tuple[str, ...] = ()
    found, gaps, bounds = [], [], []
    for i, u in enumerate(part.written(model)):
        along = u.expand(len(reading.positions), -1)
        if whole:
            own = site is not Site.RESID_PRE
            labels, shares = upstream_shares(model, rows, layer, along, own=own)
            if site is Site.RESID_POST:
                last = (rows.last((Site.MLP_OUT, layer)).double() * along).sum(-1)
                labels, shares = (*labels, components.mlp(layer)), torch.cat((shares, last[None]))
        elif site is Site.ATTN_OUT:
            shares = head_shares(model, rows, layer, along[None])[0]
            heads = [components.head(layer, h) for h in range(model.config.n_heads)]
            labels = (*heads, components.attn_bias(layer))
        else:
            labels, shares = _of_mlp(model, rows, layer, along)
        found.append(dict(zip(labels, shares, strict=True)))
        gaps.append((shares.sum(0) - values[:, i]).abs())
        bounds.append(gap_bound(model.dtype, shares))
    every = tuple(dict.fromkeys(name for one in found for name in one))
    absent = torch.full_like(gaps[0], float("nan"))
    table = torch.stack([torch.stack([one.get(name, absent) for name in every]) for one in found])
    return Grid(
        names.PART_READS,
        table.cpu().numpy(),
        (_directions(part), Axis("component", every), _prompts(reading)),
        "coordinate",
        error=worst_gap(torch.cat(gaps), torch.cat(bounds)),
        about=f"What wrote the {part.name}: the coordinate along it, split over the components "
        "that wrote the site.",
    )


def _directions(part: DirectionPart) -> Axis:
    return Axis("direction", tuple(str(i) for i in range(1, part.rank + 1)))


def _of_mlp(
    model: Model, rows: Trace, layer: int, u: Float[Tensor, "row d_model"]
) -> tuple[tuple[str, ...], Float[Tensor, "component row"]]:
    """An MLP's output along a direction: its strongest neurons, the others, and the biases."""
    shares, bias = neuron_shares(model, rows, layer, u[None])
    own = shares[0].double().T
    best = own.abs().mean(1).argsort(descending=True, stable=True)[:NEURONS].sort().values
    rest = own.sum(0) - own[best].sum(0)
    labels = [components.neuron(layer, i) for i in best.tolist()]
    return (*labels, OTHERS, BIAS), torch.cat((own[best], rest[None], bias))


def of_contexts(model: Model, part: CardPart, found: Activity) -> ReadAt | None:
    """The strongest contexts of a corpus, each as a prompt that ends at its position.

    For a head, the key that gets most attention is compared with the query's other keys; None
    where there are none.
    """
    every = [context for heap in found.strongest for context in heap.contexts()]
    contexts = sorted(every, key=lambda context: -abs(context.value))[:READ_CONTEXTS]
    choices = []
    if isinstance(part, HeadPart):
        for context in contexts:
            places = torch.arange(context.at + 1)
            seen = visible_keys(model.config, part.layer, places[-1:], places)[0]
            others = [p for p in seen.nonzero()[:, 0].tolist() if p != context.key]
            assert context.key is not None
            choices.append(Choice((context.key,), tuple(others)))
        contexts = [one for one, choice in zip(contexts, choices, strict=True) if choice.others]
        choices = [choice for choice in choices if choice.others]
    if not contexts:
        return None
    tokens = Tokens.of([context.ids[: context.at + 1] for context in contexts])
    labels = tuple(f"context {i}" for i in range(1, len(contexts) + 1))
    words = f"the {len(contexts)} strongest contexts"
    words += ", the key that gets most attention against the other keys" if choices else ""
    reading = InputPositions(tokens.to(model.device), [context.at for context in contexts], labels)
    return reading, choices, words


# Heads


@dataclass(frozen=True)
class Choice:
    """Which keys a query chooses, and which it does not.

    Attributes:
        chosen, others: positions of the keys, at or before the query; neither empty.
    """

    chosen: tuple[int, ...]
    others: tuple[int, ...]


ReadAt = tuple[InputPositions, list[Choice], str]
"""Positions, for a head the keys to compare, and both in words."""


def score_parts(
    model: Model, part: HeadPart, reading: InputPositions, choices: Sequence[Choice]
) -> Grid:
    """Why a head attends to some keys rather than others: the difference of their scores, split.

    The difference is the mean score of the chosen keys minus that of the others, before the
    softmax (and before a soft cap).

    Shape:  (side, component, prompt): over what wrote the query's stream, and over what wrote the
            keys'; the last component is "bias".
    Unit:   the score's own.
    Error:  each side sums to the difference; `gap` is the largest difference, `bound` what law 1
            allows.
    """
    config, layer = model.config, part.layer
    keep = [*keep_upstream(model, layer, own=False)]
    keep += [site.at(layer) for site in (Site.RESID_PRE, Site.Q, Site.K, Site.ROT_Q, Site.ROT_K)]
    trace = run(model, reading.tokens, keep=keep, logits="last")
    prompts, positions = reading.rows(model)
    scale = config.attn_scale[layer]
    kv = part.kv_head(config)
    rot_q = trace[Site.ROT_Q, layer][:, :, part.index].double()
    rot_k = trace[Site.ROT_K, layer][:, :, kv].double()
    weights = _weights(choices, rot_k.shape[1]).to(model.device)
    query = rot_q[prompts, positions]
    difference = torch.einsum("bk,bke->be", weights, rot_k)
    total = (query * difference).sum(-1) * scale
    labels, by_query = _along(model, part, trace, "query", (prompts, positions), difference * scale)
    # every key is a row of its own, with its weight in the difference
    rows = weights.nonzero()
    where = (rows[:, 0], rows[:, 1])
    along = query[rows[:, 0]] * (weights[where] * scale)[:, None]
    _, per_key = _along(model, part, trace, "key", where, along)
    by_key = torch.zeros_like(by_query).index_add_(1, rows[:, 0], per_key)
    sizes = torch.zeros_like(by_query).index_add_(1, rows[:, 0], per_key.abs())
    # a bias that all keys share cancels, but for float64's rounding
    by_key = torch.where(by_key.abs() <= 1e-14 * sizes, 0.0, by_key)
    sides = torch.stack((by_query, by_key))
    gaps = (sides.sum(1) - total).abs()
    bounds = [gap_bound(model.dtype, terms) for terms in (by_query, sizes)]
    return Grid(
        names.PART_READS,
        sides.cpu().numpy(),
        (Axis("side", ("query", "key")), Axis("component", (*labels, BIAS)), _prompts(reading)),
        "score",
        error=worst_gap(gaps.flatten(), torch.stack(bounds).flatten()),
        about=f"Why {part.name} attends to the chosen keys: the mean score of those minus the mean "
        "score of the query's other keys, split over what wrote the query's stream and over what "
        "wrote the keys', the scale of the norm before the attention frozen.",
    )


def _weights(choices: Sequence[Choice], width: int) -> Float[Tensor, "batch key_pos"]:
    """Of each key in the difference: 1 / n for the chosen ones, -1 / n for the others."""
    weights = torch.zeros(len(choices), width, dtype=torch.float64)
    for row, choice in zip(weights, choices, strict=True):
        row[list(choice.chosen)] = 1 / len(choice.chosen)
        row[list(choice.others)] = -1 / len(choice.others)
    return weights


def _along(
    model: Model,
    part: HeadPart,
    trace: Trace,
    side: str,
    where: tuple[Int[Tensor, " row"], Int[Tensor, " row"]],
    g: Float[Tensor, "row d_head"],
) -> tuple[tuple[str, ...], Float[Tensor, "component row"]]:
    """The components of the stream at some positions, as a query or a key reads them, along g.

    The transpose of the head's reading: back through the rotation, the normalisation of queries and
    keys, W_Q or W_K, and the norm before the attention, each at its frozen scale.
    """
    config, layer, block = model.config, part.layer, model.weights.blocks[part.layer]
    attn = block.attn
    if side == "query":
        W, b, norm, head, site = attn.W_Q, attn.b_Q, attn.q_norm, part.index, Site.Q
    else:
        kv = part.kv_head(config)
        W, b, norm, head, site = attn.W_K, attn.b_K, attn.k_norm, kv, Site.K
    rotary = config.rotary[layer] if config.rotary else None
    if rotary is not None:
        at, row = where[1].unique(return_inverse=True)
        axes = torch.eye(W.shape[2], dtype=W.dtype, device=W.device)[:, None, None]
        turned = rotate(axes.expand(-1, len(at), -1, -1), at, rotary)[:, :, 0]
        g = torch.einsum("rf,erf->re", g, turned.double()[:, row])
    bias = g.new_zeros(len(g))
    if config.qk_norm != "none":
        assert norm is not None
        whole = trace[site, layer][where].double()
        g, bias = _before_qk_norm(config, norm, whole, head, g)
    if b is not None:
        bias = bias + g @ b[head].double()
    v = g @ W[head].double().T
    bias = bias + bias_along(block.attn_norm, v)
    rows = rows_of_trace(trace, *where)
    scale = norm_scale(config, rows.last((Site.RESID_PRE, layer))).double()
    u = pull_back(config, block.attn_norm, v, scale)
    labels, shares = upstream_shares(model, rows, layer, u, own=False)
    return labels, torch.cat((shares, bias[None]))


def _before_qk_norm(
    config: ModelConfig,
    norm: Norm,
    whole: Float[Tensor, "row head d_head"],
    head: int,
    g: Float[Tensor, "row d_head"],
) -> tuple[Float[Tensor, "row d_head"], Float[Tensor, " row"]]:
    """g before the normalisation of one head's queries or keys at its frozen scale, and the share
    of the normalisation's bias."""
    own = whole.flatten(1) if config.qk_norm == "all" else whole[:, head]
    weight, bias = norm_weight(config, norm), norm.bias

    def of_head(parameter: Tensor) -> Tensor:
        return parameter.double().reshape(-1, whole.shape[2]).expand_as(whole[0])[head]

    constant = g.new_zeros(len(g)) if bias is None else g @ of_head(bias)
    g = g if weight is None else g * of_head(weight)
    if config.qk_norm_kind == "layer":
        own = own - own.mean(-1, keepdim=True)
        g = g - g.mean(-1, keepdim=True)
    return g / (own.square().mean(-1, keepdim=True) + config.norm_eps).sqrt(), constant
