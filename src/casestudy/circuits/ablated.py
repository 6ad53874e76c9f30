"""What does each node write to the residual stream when it is ablated?

Its output on the corrupted prompts, the mean of these at a token's role, or zero. The fast way and
the plain way of evaluating a circuit share only this definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.circuits.contributions import contribution_sites, contributions
from casestudy.circuits.graph import Graph
from casestudy.measure.means import class_means, token_classes
from casestudy.measure.pairs import Pairs, Roles
from casestudy.model.decoder import run
from casestudy.model.model import Model

EdgeAblation = Literal["corrupted", "mean", "zero"]
"""What edges outside a circuit carry. For single activations see `measure.patching.Ablation`."""

_COPIES = 4
"""Copies of the senders' outputs in one run: the run's own sites, the contributions, and these in
float64."""


class Ablated:
    """The senders' ablated outputs for a set of pairs.

    Args:
        pairs: of prompts, or of the texts of whole answers; a mean is then over the texts.
        ablation: "corrupted", "mean" (over the corrupted prompts, by role or position) or "zero".
        memory: bytes for the runs that a mean is over; one prompt is always run.
    """

    def __init__(
        self, model: Model, graph: Graph, pairs: Pairs, ablation: EdgeAblation, memory: int
    ) -> None:
        self.model, self.graph, self.pairs, self.ablation = model, graph, pairs, ablation
        self.means: Float[Tensor, "n_classes sender d_model"] | None = None
        if ablation == "mean":
            theirs: Roles | None = pairs.corrupted_roles or pairs.roles
            self.classes, known, n = token_classes(
                pairs.clean, pairs.roles, pairs.corrupted, theirs
            )
            self.means = class_means(
                model,
                pairs.corrupted,
                known,
                n,
                contribution_sites(model, graph),
                lambda trace: {None: contributions(model, graph, trace).transpose(1, 2)},
                most_tokens=memory // (_COPIES * self.token_bytes),
            )[None]

    @property
    def token_bytes(self) -> int:
        """Bytes of all senders' outputs at one token."""
        numbers = len(self.graph.senders) * self.model.config.d_model
        return numbers * self.model.weights.W_E.element_size()

    def at(self, some: Sequence[int], start: int) -> Float[Tensor, "batch sender pos d_model"]:
        """Some prompts' ablated outputs, from a position on; padding has arbitrary values."""
        model, graph = self.model, self.graph
        tokens = self.pairs.corrupted[list(some)].to(model.device)
        width = tokens.ids.shape[1]
        if self.means is not None:
            which = self.classes[list(some)][:, :width].clamp(min=0).to(self.means.device)
            return self.means[which].transpose(1, 2)[:, :, start:]
        if self.ablation == "corrupted":
            trace = run(model, tokens, keep=contribution_sites(model, graph))
            return contributions(model, graph, trace, start)
        shape = (len(some), len(graph.senders), width - start, model.config.d_model)
        return torch.zeros(shape, dtype=model.dtype, device=model.device)
