"""What do all circuits share on some prompts?

The clean run before the first difference, every sender's ablated output from there on, and the
places where the metric is read. The stream is kept as rows: prompt by prompt, each with the
positions from the first difference on; after the last layer's attention only those that are read.

Assumes prompts that fit into memory together. Cost: the clean run and the ablated one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.ablated import Ablated
from casestudy.engine.climb import final_rows
from casestudy.engine.readout import Metric, Readout
from casestudy.engine.rows import attend_after
from casestudy.measure.metrics import rows_of
from casestudy.model.decoder import position_queries_and_keys, run
from casestudy.model.sites import Keep, Site


class PromptBlock:
    """Some prompts, with their senders' ablated outputs.

    Args:
        ablated: the ablated outputs of all prompts.
        metric: of all prompts.
        some: which prompts.
        start: the first position that is computed; before it all runs are the clean run.
    """

    def __init__(
        self, ablated: Ablated, metric: Contrast | Metric, some: Sequence[int], start: int
    ) -> None:
        self.model, self.graph, self.config = ablated.model, ablated.graph, ablated.model.config
        self.some, self.start = list(some), start
        model, config = self.model, self.config
        self.clean = clean = ablated.pairs.clean[self.some].to(model.device)
        self.tails = tails = ablated.pairs.tails.some(self.some)
        keep: list[Keep | Site] = [Site.RESID_PRE.at(0), Site.FINAL_RESID.at(last=tails.single)]
        if start:
            keep += [Site.ROT_K, Site.V]
        trace = run(model, clean, keep=keep)
        by_prompt = ablated.at(self.some, start)
        # sender row d_model; contiguous, as every sender's rows are read together
        self.ablated = by_prompt.transpose(0, 1).flatten(1, 2).contiguous()
        self.embed = trace[Site.RESID_PRE, 0][:, start:].flatten(0, 1)
        self.before = [
            (trace[Site.ROT_K, layer][:, :start], trace[Site.V, layer][:, :start])
            for layer in range(config.n_layers if start else 0)
        ]
        self.positions = torch.arange(start, clean.ids.shape[1], device=model.device)
        self.prompts = torch.arange(len(clean), device=model.device)
        whose, where = tails.places(clean.lengths)
        self.ends = whose * len(self.positions) + where - start
        """The rows at which the metric is read, prompt by prompt."""
        metric = rows_of(metric, ablated.pairs.tails.of(self.some))
        self.readout = Readout(model, metric, len(self.ends))
        (self.full,) = self.read(final_rows(trace, tails, range(len(clean)))[None])

    @property
    def n_rows(self) -> int:
        """Tokens that are computed."""
        return len(self.clean) * len(self.positions)

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        before = sum(k.nbytes + v.nbytes for k, v in self.before)
        return self.ablated.nbytes + self.embed.nbytes + before

    @cached_property
    def ablated_at_ends(self) -> Float[Tensor, "sender row d_model"]:
        """The ablated outputs at the rows that are read."""
        return self.ablated[:, self.ends]

    def read(self, final: Float[Tensor, "run row d_model"]) -> Float[Tensor, "run batch"]:
        """The metric of several runs, from their final stream at the rows that are read."""
        n = len(self.ends)
        readings = torch.arange(n, device=final.device).repeat(len(final))
        return self.tails.added(self.readout(final.flatten(0, 1), readings).view(-1, n))

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "run row head d_head"],
        k: Float[Tensor, "run row kv_head d_head"],
        v: Float[Tensor, "run row kv_head d_head"],
        kv_heads: Int[Tensor, " run"] | None = None,
    ) -> Float[Tensor, "run row head d_head"]:
        """z of several runs; keys and values before the first position are the clean run's.

        Args:
            kv_heads: of each run, where it is one head alone.
        """
        n, width = len(self.clean), len(self.positions)
        q, k, v = (x.reshape(-1, width, *x.shape[2:]) for x in (q, k, v))
        attn, at = self.model.weights.blocks[layer].attn, self.positions
        q, k = position_queries_and_keys(self.config, attn, layer, q, k, at, at)
        runs = len(q) // n
        prompts = self.prompts.repeat(runs)
        prefix = (k, v)
        if self.before:
            prefix = self.before[layer]
            if kv_heads is not None:  # each prompt's heads as prompts of one head
                heads = self.config.n_kv_heads
                prompts = (self.prompts[None] * heads + kv_heads[:, None]).flatten()
                keys, values = (x.transpose(1, 2).flatten(0, 1)[:, :, None] for x in prefix)
                prefix = keys, values
        z = attend_after(self.config, layer, q, k, v, self.start, prefix, prompts)
        return z.reshape(runs, n * width, *z.shape[2:])
