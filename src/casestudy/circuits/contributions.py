"""What does each node write to the residual stream?

The residual stream is a sum: embeddings, every head, every MLP (or its neurons), and the attention
biases, which do not depend on the input. A norm after attention or MLP (OLMo 2, Gemma) is frozen at
the layer's own scale in that run. This makes it linear, so the outputs still add up exactly.

Assumes a trace that kept `contribution_sites`. Cost: one matrix product with W_O, and d_model
numbers per node and token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.circuits.graph import Graph
from casestudy.errors import MeasureError
from casestudy.model.config import ModelConfig
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.trace import Trace
from casestudy.model.weights import Block


def contribution_sites(model: Model, graph: Graph) -> Sequence[Keep]:
    """The sites that a run must keep for `contributions`.

    Raises: MeasureError for neurons before a norm, and for an attention bias before a norm,
        which belongs to no single head.
    """
    sites = [Site.RESID_PRE.at(0), Site.Z.at(), Site.MLP_OUT.at()]
    blocks = model.weights.blocks
    if any(b.attn_post_norm is not None for b in blocks):
        if any(b.attn.b_O is not None for b in blocks):
            raise MeasureError(
                "an attention bias b_O before a norm",
                allowed="one or the other",
                hint="Its share of the stream changes with the norm's scale, and is no node's",
            )
        sites.append(Site.ATTN_POST_SCALE.at())
    chosen = [layer for layer, neurons in graph.neurons.items() if neurons]
    if chosen:
        if any(b.mlp_post_norm is not None for b in blocks):
            raise MeasureError(
                "neurons as nodes of a model with a norm after its MLPs",
                allowed="heads and whole MLPs: the norm mixes the neurons",
            )
        sites.append(Site.MLP_POST.at(chosen))
    return sites


def contributions(
    model: Model, graph: Graph, trace: Trace, start: int = 0
) -> Float[Tensor, "batch sender pos d_model"]:
    """Every sender's output, from position `start` on."""
    config = model.config
    n = trace[Site.Z, 0].shape[0]
    width = trace[Site.Z, 0].shape[1] - start
    shape = (n, len(graph.senders), width, config.d_model)
    out = torch.empty(shape, dtype=model.dtype, device=model.device)
    out[:, 0] = trace[Site.RESID_PRE, 0][:, start:].detach()
    for layer, block in enumerate(model.weights.blocks):
        first = graph.first_sender(layer)
        z = trace[Site.Z, layer][:, start:].detach()
        heads = out[:, first : first + config.n_heads]
        heads.copy_(torch.einsum("bphe,hed->bhpd", z, block.attn.W_O))
        if block.attn_post_norm is not None:
            scale = trace[Site.ATTN_POST_SCALE, layer][:, None, start:].detach().to(heads)
            heads.copy_(norm_at_scale(config, block.attn_post_norm, heads, scale))
        chosen = list(graph.neurons.get(layer, ()))
        place = first + config.n_heads
        whole = trace[Site.MLP_OUT, layer][:, start:].detach()
        if chosen:
            post = trace[Site.MLP_POST, layer][:, start:, chosen].detach()
            neurons = post.transpose(1, 2)[..., None] * block.mlp.W_out[chosen][:, None]
            out[:, place : place + len(chosen)] = neurons
            whole = whole - neurons.sum(1)
        out[:, place + len(chosen)] = whole
    return out


def attention_bias(config: ModelConfig, block: Block) -> Float[Tensor, " d_model"] | None:
    """The output of a layer's attention that belongs to no head: b_O, or a later norm's bias."""
    norm = block.attn_post_norm
    return block.attn.b_O if norm is None else norm.bias
