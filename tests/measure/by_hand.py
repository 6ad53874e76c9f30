"""A decoder as a graph, the slow and plain way: one stream per edge, nothing of casestudy's engine.

Knows what the hand-made models have: no norms, learned positions, relu or identity, biases on
queries and neurons. It is what the known circuits and the methods are held to.
"""

from __future__ import annotations

import torch
from benchmarks.known_circuits import KnownCircuit
from einops import einsum
from torch import Tensor

from casestudy.model.model import Model

Streams = dict[str, Tensor]


def senders(model: Model, receiver: str) -> list[str]:
    """Who wrote to the stream before a receiver reads it."""
    order = ["embed"]
    for layer in range(model.config.n_layers):
        if receiver.startswith(f"head {layer}."):
            return order
        order += [f"head {layer}.{head}" for head in range(model.config.n_heads)]
        if receiver == f"mlp {layer}":
            return order
        order.append(f"mlp {layer}")
    return order


def receivers(model: Model) -> list[str]:
    found = []
    for layer in range(model.config.n_layers):
        found += [f"head {layer}.{h}<{x}>" for h in range(model.config.n_heads) for x in "qkv"]
        found.append(f"mlp {layer}")
    return [*found, "logits"]


def edges(model: Model) -> list[str]:
    return [f"{sender}->{to}" for to in receivers(model) for sender in senders(model, to)]


def forward(
    model: Model, ids: Tensor, carried: Streams | None = None, silent: tuple[str, ...] = ()
) -> tuple[Streams, Streams, Tensor]:
    """What each node wrote, what each receiver read, and the logits at every position.

    Args:
        model: hand-made.
        ids: (batch, pos).
        carried: by edge, what it carries instead of what its sender wrote.
        silent: nodes that write zero.
    """
    config, weights = model.config, model.weights
    carried, wrote, read = carried or {}, {}, {}
    assert weights.W_pos is not None
    wrote["embed"] = weights.W_E[ids] + weights.W_pos[: ids.shape[1]]

    def reads(receiver: str) -> Tensor:
        read[receiver] = sum(
            (carried.get(f"{sender}->{receiver}", wrote[sender]))
            for sender in senders(model, receiver)
        )
        return read[receiver]

    future = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for layer, block in enumerate(weights.blocks):
        for head in range(config.n_heads):
            name, attn = f"head {layer}.{head}", block.attn
            assert attn.b_Q is not None
            q = reads(f"{name}<q>") @ attn.W_Q[head] + attn.b_Q[head]
            k = reads(f"{name}<k>") @ attn.W_K[head]
            v = reads(f"{name}<v>") @ attn.W_V[head]
            scores = einsum(q, k, "batch query e, batch key e -> batch query key")
            pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
            z = einsum(pattern, v, "batch query key, batch key e -> batch query e")
            wrote[name] = z @ attn.W_O[head] * (name not in silent)
        assert block.mlp.b_in is not None
        post = reads(f"mlp {layer}") @ block.mlp.W_in + block.mlp.b_in
        post = post.relu() if config.activation == "relu" else post
        wrote[f"mlp {layer}"] = post @ block.mlp.W_out * (f"mlp {layer}" not in silent)
    return wrote, read, reads("logits") @ weights.W_U + weights.b_U


def difference(circuit: KnownCircuit, logits: Tensor) -> Tensor:
    """logit(answer) - logit(counterpart) at each prompt's last token."""
    rows = torch.arange(len(logits))
    last = logits[rows, circuit.pairs.clean.last]
    answer, counterpart = circuit.contrast.ids.T
    return last[rows, answer] - last[rows, counterpart]


def effects(circuit: KnownCircuit, *, noising: bool = True) -> dict[str, float]:
    """By edge, the mean change of the difference when it alone carries the other run's value."""
    base, source = circuit.pairs.clean.ids, circuit.pairs.corrupted.ids
    if not noising:
        base, source = source, base
    theirs, _, _ = forward(circuit.model, source)
    before = difference(circuit, forward(circuit.model, base)[2])
    found = {}
    for edge in edges(circuit.model):
        _, _, logits = forward(circuit.model, base, {edge: theirs[edge.split("->")[0]]})
        found[edge] = float((difference(circuit, logits) - before).mean())
    return found
