"""What is a circuit's metric by a full forward pass in which every receiver's input is edited?

This checks `evaluate`: a random sample of its values is computed again in this way.
Cost: a forward pass per circuit and prompt, with separate inputs for every head.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.ablated import Ablated
from casestudy.circuits.contributions import attention_bias
from casestudy.circuits.graph import Circuit
from casestudy.engine.readout import Metric, Readout
from casestudy.measure.metrics import rows_of
from casestudy.model.decoder import apply_norm, mlp, run
from casestudy.model.edits import Edit
from casestudy.model.linear import norm_at_scale
from casestudy.model.sites import Site
from casestudy.model.weights import MLP, Block


class Plain:
    """One circuit on one prompt, by a full forward pass with every receiver's input edited.

    It shares only the definition of ablated outputs with the fast way. The decoder's own blocks
    run; each head's q, k and v, each MLP and the final norm read the sum over their edges.
    """

    def __init__(
        self, ablated: Ablated, metric: Contrast | Metric, circuit: Circuit, prompt: int
    ) -> None:
        self.model, self.graph = ablated.model, ablated.graph
        self.config, self.prompt, self.metric = self.model.config, prompt, metric
        self.tails = ablated.pairs.tails
        self.clean = ablated.pairs.clean[[prompt]].to(self.model.device)
        self.ablated = ablated.at([prompt], 0)[0]  # sender pos d_model
        self.change = self.ablated.new_zeros(self.ablated.shape)  # what is written beyond that
        self.summed = (0, torch.zeros_like(self.ablated[0]))  # so many senders, ablated
        self.head_inputs = (-1, self.ablated[:0])  # of which layer
        self.shares = torch.tensor(circuit.mask, device=self.model.device).to(self.model.dtype)

    def value(self) -> float:
        """The metric where the prompt is read."""
        edits = [Edit(Site.RESID_PRE, 0, lambda x: self.noted(0, 1, x[0, None], x))]
        for layer, block in enumerate(self.model.weights.blocks):
            edits += self.at_heads(layer, block)
            edits += self.at_mlp(layer, block)
        end = len(self.graph.receivers)
        edits.append(Edit(Site.FINAL_RESID, None, lambda _: self.read(end - 1, end)[:, :, 0]))
        tails = self.tails.some([self.prompt])
        ends: Literal["last", "all"] = "last" if tails.single else "all"
        logits = run(self.model, self.clean, edit=edits, logits=ends).logits
        assert logits is not None
        n = len(tails.weights)
        logits = logits if tails.single else logits[0, -n:]
        readout = Readout(self.model, rows_of(self.metric, self.tails.of([self.prompt])), n)
        return float(tails.added(readout.of_logits(logits, torch.arange(n))))

    def noted(self, start: int, end: int, out: Tensor, x: Tensor) -> Tensor:
        """Note what some senders wrote, (sender, pos, d_model); the activation stays as it is."""
        self.change[start:end] = out - self.ablated[start:end]
        return x

    def read(self, start: int, end: int) -> Float[Tensor, "one pos receiver d_model"]:
        """What some receivers read, each through its own edges."""
        limit = self.graph.limit(self.graph.receivers[start])
        x = self.everything_ablated(limit)
        layer = self.graph.receivers[start].layer
        at_mlp = self.graph.receivers[start].kind in ("mlp", "neuron") and not self.config.parallel
        for before, block in enumerate(self.model.weights.blocks):
            bias = attention_bias(self.config, block)
            if bias is not None and (layer is None or before < layer + at_mlp):
                x = x + bias
        shares = self.shares[:limit, start:end]
        change = (shares.T @ self.change[:limit].flatten(1)).view(-1, *x.shape)  # receiver pos d
        return (x + change).transpose(0, 1)[None]

    def everything_ablated(self, limit: int) -> Float[Tensor, "pos d_model"]:
        """What the first senders write when ablated, summed on from the last reader's."""
        known, x = self.summed
        if known > limit:
            known, x = 0, torch.zeros_like(x)
        self.summed = limit, x + self.ablated[known:limit].sum(0)
        return self.summed[1]

    def at_heads(self, layer: int, block: Block) -> list[Edit]:
        """Edits of what a layer's heads read, and notes of what they write."""
        config, start = self.config, 0
        first = self.graph.first_sender(layer)
        edits = []
        for site, n in (
            (Site.Q_IN, config.n_heads),
            (Site.K_IN, config.n_kv_heads),
            (Site.V_IN, config.n_kv_heads),
        ):
            edits.append(Edit(site, layer, partial(self.instead, layer, slice(start, start + n))))
            start += n
        norm = block.attn_post_norm

        written: list[Tensor] = []

        def result(x: Tensor) -> Tensor:
            written[:] = [x[0].transpose(0, 1)]
            return self.noted(first, first + config.n_heads, written[0], x)

        def scale(x: Tensor) -> Tensor:
            assert norm is not None
            (raw,) = written
            normed = norm_at_scale(config, norm, raw, x[0].to(raw))
            return self.noted(first, first + config.n_heads, normed, x)

        edits.append(Edit(Site.RESULT, layer, result))
        if norm is not None:
            edits.append(Edit(Site.ATTN_POST_SCALE, layer, scale))
        return edits

    def at_mlp(self, layer: int, block: Block) -> list[Edit]:
        """Edits of what a layer's MLP and its chosen neurons read, and notes of what they write."""
        chosen = self.graph.neurons.get(layer, ())
        end = self.graph.first_receiver(layer + 1)
        first = self.graph.first_sender(layer) + self.config.n_heads

        def neurons(post: Tensor) -> Tensor:
            normed = apply_norm(
                self.config, block.mlp_norm, self.read(end - 1 - len(chosen), end - 1)[0]
            )  # pos neuron d_model
            for i, neuron in enumerate(chosen):
                own = neurons_as_mlp(block.mlp, [neuron])
                out = mlp(self.config, own, normed[:, i])
                self.noted(first + i, first + i + 1, out, post)
            post = post.clone()
            post[..., list(chosen)] = 0  # what is left writes for the rest alone
            return post

        def whole(x: Tensor) -> Tensor:
            return self.noted(first + len(chosen), first + len(chosen) + 1, x, x)

        def read(_: Tensor) -> Tensor:
            return self.read(end - 1, end)[:, :, 0]

        edits = [Edit(Site.MLP_IN, layer, read)]
        edits += [Edit(Site.MLP_POST, layer, neurons)] if chosen else []
        return [*edits, Edit(Site.MLP_OUT, layer, whole)]

    def instead(self, layer: int, some: slice, _: Tensor) -> Tensor:
        """The inputs of a layer's queries, keys or values, whatever the stream holds."""
        if self.head_inputs[0] != layer:
            start = self.graph.first_receiver(layer)
            n = self.config.n_heads + 2 * self.config.n_kv_heads
            self.head_inputs = layer, self.read(start, start + n)
        return self.head_inputs[1][:, :, some]


def neurons_as_mlp(weights: MLP, index: list[int]) -> MLP:
    """Some of an MLP's neurons as an MLP, without the bias of its output."""

    def at(bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias[index]

    gate = None if weights.W_gate is None else weights.W_gate[:, index]
    return MLP(
        weights.W_in[:, index], weights.W_out[index], gate, at(weights.b_in), at(weights.b_gate)
    )
