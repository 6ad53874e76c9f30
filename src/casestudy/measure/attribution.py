"""Which heads and which neurons wrote a logit difference?

The ledger's attention terms are split by head and its MLP terms by neuron, each with one row of
biases, so that the sum still equals the logit difference:

    attention layer = Σ heads + bias,   head = Σ_key pattern · (x W_V) W_O · u
    MLP layer       = Σ neurons + bias, neuron = post-activation · W_out · u

where u is the contrast's direction before the final norm, whose scale is frozen. A pattern's
rows sum to 1, so the constant part of the values (b_V, and the attention norm's bias through W_V)
gives the same output for every pattern. It is in the bias row, with b_O. So the values of heads do
not depend on how the checkpoint stores its biases, and equal those of TransformerLens after its
default rewrites (fold_ln and fold_value_biases). A norm after the attention or the MLP (Gemma 2,
OLMo 2) is folded into u with its own frozen scale, and its bias is in the bias row.

This measures only direct contributions to the logits: a head that writes for a later layer has a
small one. Source: Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"; Geva et al. 2022 for neurons. Cost: per layer one product of the contrasts' directions
with W_O or W_out; no vector of d_model per head or neuron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.prompts import Prompts
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.engine.rounding import worst_gap
from casestudy.measure.ledger import final_direction, gap_bound, keep_for_ledger, ledger_terms
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import merge_heads, norm_scale
from casestudy.model.linear import bias_along, pull_back
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.trace import Trace
from casestudy.model.weights import Block
from casestudy.results import names
from casestudy.results.components import layer_kind
from casestudy.results.names import BIAS
from casestudy.results.result import Array, Axis, Grid, Result, Table
from casestudy.results.stats import t_interval

Check = tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]
"""Per prompt, the gap between a sum and the logit difference, and the bound of the gap."""

TOP_NEURONS = 50


def keep_for_heads(model: Model) -> Sequence[Keep]:
    """The ledger's sites and every head's z, at the last positions only."""
    return [*keep_for_ledger(model), Site.Z.at(last=True)]


def keep_for_neurons(model: Model) -> Sequence[Keep]:
    """The ledger's sites and every neuron's activation, at the last positions only."""
    return [*keep_for_ledger(model), Site.MLP_POST.at(last=True)]


def final_directions(
    model: Model, trace: Trace, directions: Sequence[Float[Tensor, "batch d_model"]]
) -> Float[Tensor, "contrast batch d_model"]:
    """Each contrast's direction in the final residual stream, final norm folded in, in float64.

    Args:
        model: which was run.
        trace: the run.
        directions: of each contrast, before the final norm is folded in (`Batch.directions`).
    """
    scale = trace.last(Site.FINAL_SCALE) if model.weights.final_norm is not None else None
    return torch.stack([final_direction(model, u, scale) for u in directions])


def value_bias(config: ModelConfig, block: Block) -> Float[Tensor, "head d_head"]:
    """The constant part of each head's values, in float64: b_V, and the norm's bias by W_V."""
    attn, norm = block.attn, block.attn_norm
    common = attn.W_V.new_zeros(attn.W_V.shape[::2], dtype=torch.float64)
    if attn.b_V is not None:
        common = common + attn.b_V.double()
    if norm is not None and norm.bias is not None:
        common = common + torch.einsum("d,hde->he", norm.bias.double(), attn.W_V.double())
    return common.repeat_interleave(config.n_heads // config.n_kv_heads, 0)


def head_shares(
    model: Model, trace: Trace, layer: int, u: Float[Tensor, "contrast batch d_model"]
) -> Float[Tensor, "contrast head batch"]:
    """Each head's contribution along u, and last the biases'; they sum to attn_out · u."""
    block = model.weights.blocks[layer]
    attn, z = block.attn, trace.last((Site.Z, layer))
    norm, scale = block.attn_post_norm, norm_scale(model.config, merge_heads(z, attn))
    v, bias = pull_back(model.config, norm, u, scale), bias_along(norm, u)
    per_z = torch.einsum("cbd,hed->cbhe", v, attn.W_O.to(v))
    constant = value_bias(model.config, block)
    bias = bias + torch.einsum("cbhe,he->cb", per_z, constant)
    z = z.to(v) - constant
    if attn.b_O is not None:
        bias = bias + v @ attn.b_O.to(v)
    return torch.cat(((per_z * z).sum(-1), bias[..., None]), -1).transpose(1, 2)


def neuron_shares(
    model: Model, trace: Trace, layer: int, u: Float[Tensor, "contrast batch d_model"]
) -> tuple[Float[Tensor, "contrast batch d_mlp"], Float[Tensor, "contrast batch"]]:
    """Each neuron's contribution along u, at least in float32, and the biases'."""
    mlp, norm = model.weights.blocks[layer].mlp, model.weights.blocks[layer].mlp_post_norm
    post = trace.last((Site.MLP_POST, layer))
    out = post @ mlp.W_out
    scale = norm_scale(model.config, out if mlp.b_out is None else out + mlp.b_out)
    v, bias = pull_back(model.config, norm, u, scale), bias_along(norm, u)
    if mlp.b_out is not None:
        bias = bias + v @ mlp.b_out.to(v)
    # Each neuron is one number times one number: float32 is enough for a model in float32.
    post = post if post.dtype == torch.float64 else post.float()
    shares = (v.to(post) @ mlp.W_out.to(post).T).mul_(post)
    return shares, bias


def check_sum(
    batch: Batch,
    contrast: int,
    part: str,
    finer: Float[Tensor, "term batch"],
    sizes: Float[Tensor, "size batch"],
) -> Check:
    """Law 1 at a finer grain: the ledger's gap and bound with its `part` terms replaced.

    Args:
        batch: made with `keep_for_ledger`.
        contrast: which of the batch's.
        part: "attn" or "mlp".
        finer: the terms that replace them.
        sizes: the sum of the absolute values of everything that was summed in `finer`.
    """
    one, u = batch.contrasts[contrast], batch.directions[contrast]
    labels, terms = ledger_terms(batch.model, batch.trace, one, directions=u)
    others = terms[[i for i, label in enumerate(labels) if layer_kind(label) != part]]
    gap = (others.sum(0) + finer.sum(0) - one.value(batch.logits)).abs()
    return gap, gap_bound(batch.model.dtype, torch.cat((others, sizes)))


def _worst(
    checks: Sequence[Check],
) -> dict[str, float]:
    """The gap closest to its bound, and that bound; empty if nothing was measured."""
    gaps, bounds = (torch.cat(parts) for parts in zip(*checks, strict=True))
    return worst_gap(gaps, bounds)


def measure_heads(batch: Batch) -> list[Result]:
    """Every head's direct contribution to every contrast, with each layer's biases."""
    config = batch.model.config
    u = final_directions(batch.model, batch.trace, batch.directions)
    layers = [head_shares(batch.model, batch.trace, i, u) for i in range(config.n_layers)]
    shares = torch.stack(layers, 1)  # contrast layer head batch
    checks = [
        check_sum(batch, i, "attn", own.flatten(0, 1), own.flatten(0, 1))
        for i, own in enumerate(shares)
    ]
    heads = Axis("head", (*Axis.count("head", config.n_heads).labels, BIAS))
    return [
        Grid(
            names.HEAD_SHARES,
            shares.cpu().numpy(),
            (batch.contrast_axis, Axis.count("layer", config.n_layers), heads, batch.prompt_axis),
            "logits",
            error=_worst(checks),
            about="Each head's share of the logit difference, and each attention layer's biases "
            "(b_O, and what its values have in common); together they are the ledger's term.",
        )
    ]


def measure_neurons(batch: Batch) -> list[Result]:
    """Every neuron's direct contribution, summed over the prompts of the main groups (as every mean
    is), and each MLP's biases."""
    config = batch.model.config
    u = final_directions(batch.model, batch.trace, batch.directions)
    behaviour = batch.behaviour
    main = [behaviour is None or behaviour.is_main(prompt) for prompt in batch.prompts]
    summed = ~u.isnan().any(-1) & torch.tensor(main, device=u.device)  # contrast batch
    sums = u.new_zeros(len(batch.contrasts), 2, config.n_layers, config.d_mlp)
    parts = u.new_zeros(len(batch.contrasts), config.n_layers, 2, len(batch.index))
    sizes = u.new_zeros(len(batch.contrasts), len(batch.index))
    for layer in range(config.n_layers):
        shares, bias = neuron_shares(batch.model, batch.trace, layer, u)
        for i, own in enumerate(shares):  # one contrast at a time in float64
            wide = own[summed[i]].double()
            sums[i, 0, layer] = wide.sum(0)
            sums[i, 1, layer] = wide.square().sum(0)
            parts[i, layer] = torch.stack((own.double().sum(-1), bias[i]))
            sizes[i] += own.double().abs().sum(-1) + bias[i].abs()
    checks = [
        check_sum(batch, i, "mlp", parts[i].flatten(0, 1), sizes[i : i + 1])
        for i in range(len(batch.contrasts))
    ]
    layers, neurons = Axis.count("layer", config.n_layers), Axis.count("neuron", config.d_mlp)
    statistics = Axis("statistic", ("sum", "sum of squares"))
    return [
        Grid(
            names.NEURON_SUMS,
            sums.cpu().numpy(),
            (batch.contrast_axis, statistics, layers, neurons),
            "logits",
        ),
        Grid(
            names.NEURON_COUNTS,
            summed.sum(1).double().cpu().numpy(),
            (batch.contrast_axis,),
            "prompts",
        ),
        Grid(
            names.MLP_SHARES,
            parts.cpu().numpy(),
            (batch.contrast_axis, layers, Axis("part", ("neurons", BIAS)), batch.prompt_axis),
            "logits",
            error=_worst(checks),
            about="Each MLP's share of the logit difference: the sum over its neurons, and its "
            "biases; together they are the layer's term of the ledger.",
        ),
    ]


def top_of_sums(chunks: Mapping[str, Sequence[Result]]) -> list[Result]:
    """The neurons with the largest mean contributions over all chunks' prompts.

    The sums are added in float64, and the neurons are chosen from the total, so the result does not
    depend on the chunks.
    """
    sums = [r for r in chunks.get(names.NEURON_SUMS, ()) if isinstance(r, Grid)]
    counts = [r for r in chunks.get(names.NEURON_COUNTS, ()) if isinstance(r, Grid)]
    if not sums:
        return []
    total = np.sum([grid.values for grid in sums], 0)
    n = np.sum([grid.values for grid in counts], 0)
    return [_top_neurons(sums[0].axis("contrast").labels, total, n, TOP_NEURONS)]


def _top_neurons(contrasts: Sequence[str], sums: Array, n: Array, top: int) -> Table:
    columns: dict[str, list[Any]] = {
        name: [] for name in ("contrast", "rank", "layer", "neuron", "mean", "lower", "upper", "n")
    }
    for name, (total, squares), count in zip(contrasts, sums, n, strict=True):
        if count == 0:
            continue
        mean, lower, upper = t_interval(total, squares, int(count))
        best = np.argsort(-np.abs(mean), axis=None, kind="stable")[:top]
        columns["contrast"] += [name] * len(best)
        columns["rank"] += list(range(len(best)))
        columns["layer"] += [int(i) for i in best // mean.shape[1]]
        columns["neuron"] += [int(i) for i in best % mean.shape[1]]
        for column, values in (("mean", mean), ("lower", lower), ("upper", upper)):
            columns[column] += [None if np.isnan(v) else float(v) for v in values.flat[best]]
        columns["n"] += [int(count)] * len(best)
    return Table(
        names.NEURON_SHARES,
        columns,
        "The neurons with the largest mean share of the logit difference, in logits, with t "
        "intervals of 95 % that take prompts as independent. They were chosen for being large, so "
        "their means on new prompts will tend to be smaller.",
    )


def _keep(model: Model) -> Sequence[Keep]:
    return [*keep_for_heads(model), *keep_for_neurons(model)]


def measure_attribution(batch: Batch) -> list[Result]:
    """Heads and neurons."""
    return [*measure_heads(batch), *measure_neurons(batch)]


HEADS = Measurement("heads", keep_for_heads, measure_heads)
NEURONS = Measurement("neurons", keep_for_neurons, measure_neurons)
ATTRIBUTION = Measurement(
    "attribution",
    _keep,
    measure_attribution,
    partial=(names.NEURON_SUMS, names.NEURON_COUNTS),
    combine=top_of_sums,
)


def head_attribution(model: Model, behaviour: Prompts) -> Grid:
    """Every attention head's direct contribution to every contrast of a behaviour.

    Shape:  (contrast, layer, head, prompt), at each prompt's last position; the last head label is
            "bias". The sum over heads is the layer's attention term of the ledger.
    Unit:   logits.
    Error:  as in the ledger, with its attention terms replaced by these.
    """
    batch = run_whole(model, behaviour, [HEADS])
    (grid,) = measure_heads(batch)
    assert isinstance(grid, Grid)
    return grid


def neuron_attribution(model: Model, behaviour: Prompts) -> Grid:
    """Every MLP neuron's direct contribution to every contrast of a behaviour, per prompt.

    Shape:  (contrast, layer, neuron, prompt), at each prompt's last position; the last neuron label
            is "bias". The sum over neurons is the layer's MLP term of the ledger.
    Unit:   logits.
    Cost:   memory for all these numbers; `top_neurons` keeps only sums.
    """
    batch = run_whole(model, behaviour, [NEURONS])
    u = final_directions(batch.model, batch.trace, batch.directions)
    layers = []
    for layer in range(model.config.n_layers):
        shares, bias = neuron_shares(model, batch.trace, layer, u)
        layers.append(torch.cat((shares, bias.to(shares)[..., None]), -1))
    check = next(r for r in measure_neurons(batch) if r.name == names.MLP_SHARES)
    assert isinstance(check, Grid)
    neurons = Axis("neuron", (*Axis.count("neuron", model.config.d_mlp).labels, BIAS))
    return Grid(
        names.NEURON_SHARES,
        torch.stack(layers, 1).transpose(2, 3).cpu().numpy(),
        (batch.contrast_axis, check.axis("layer"), neurons, batch.prompt_axis),
        "logits",
        error=check.error,
        about="Each neuron's share of the logit difference, and each MLP's biases.",
    )


def top_neurons(
    model: Model,
    behaviour: Prompts,
    *,
    top: int = TOP_NEURONS,
) -> Table:
    """The neurons with the largest mean direct contribution to each contrast of a behaviour.

    Rows:   one per contrast and rank, with layer, neuron, mean, 95 % interval and n; see the
            table's `about` for the assumptions of the interval.
    """
    batch = run_whole(model, behaviour, [NEURONS])
    grids = {r.name: r for r in measure_neurons(batch) if isinstance(r, Grid)}
    labels = batch.contrast_axis.labels
    return _top_neurons(
        labels, grids[names.NEURON_SUMS].values, grids[names.NEURON_COUNTS].values, top
    )
