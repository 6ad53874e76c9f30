"""What do all circuits share on some prompts?

The clean run before the first difference, every sender's ablated output from there on, and the
places where the metric is read. The stream is kept as rows: prompt by prompt, each with the
positions from the first difference on; after the last layer's attention only those that are read.
Only attention knows which rows are of one prompt: prompts of similar length and first difference
attend together, as a segment; all else is computed over the rows of all segments.

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


class _Segment:
    """Some prompts that attend together, as a rectangle of prompts and positions.

    Args:
        ablated: the ablated outputs of all prompts.
        some: which prompts.
        start: the first position that is computed; before it all runs are the clean run.
        begin: the segment's first row in its block.
    """

    def __init__(self, ablated: Ablated, some: Sequence[int], start: int, begin: int) -> None:
        self.model, self.start = ablated.model, start
        model, config = self.model, self.model.config
        clean = ablated.pairs.clean[list(some)].to(model.device)
        tails = ablated.pairs.tails.some(some)
        keep: list[Keep | Site] = [Site.RESID_PRE.at(0), Site.FINAL_RESID.at(last=tails.single)]
        if start:
            keep += [Site.ROT_K, Site.V]
        trace = run(model, clean, keep=keep)
        by_prompt = ablated.at(some, start)
        self.ablated: Float[Tensor, "sender row d_model"] = by_prompt.transpose(0, 1).flatten(1, 2)
        self.embed = trace[Site.RESID_PRE, 0][:, start:].flatten(0, 1)
        self.before = [
            (trace[Site.ROT_K, layer][:, :start], trace[Site.V, layer][:, :start])
            for layer in range(config.n_layers if start else 0)
        ]
        self.final = final_rows(trace, tails, range(len(clean)))
        self.positions = torch.arange(start, clean.ids.shape[1], device=model.device)
        self.prompts = torch.arange(len(clean), device=model.device)
        whose, where = tails.places(clean.lengths)
        self.ends: Int[Tensor, " end"] = begin + whose * len(self.positions) + where - start
        self.rows = slice(begin, begin + len(clean) * len(self.positions))

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "run row head d_head"],
        k: Float[Tensor, "run row kv_head d_head"],
        v: Float[Tensor, "run row kv_head d_head"],
        kv_heads: Int[Tensor, " run"] | None,
    ) -> Float[Tensor, "run row head d_head"]:
        """z of the segment's rows; as `PromptBlock.attend`."""
        config, attn = self.model.config, self.model.weights.blocks[layer].attn
        n, width, at = len(self.prompts), len(self.positions), self.positions
        q, k, v = (x.reshape(-1, width, *x.shape[2:]) for x in (q, k, v))
        q, k = position_queries_and_keys(config, attn, layer, q, k, at, at)
        runs = len(q) // n
        prompts = self.prompts.repeat(runs)
        prefix = (k, v)
        if self.before:
            prefix = self.before[layer]
            if kv_heads is not None:  # each prompt's heads as prompts of one head
                heads = config.n_kv_heads
                prompts = (self.prompts[None] * heads + kv_heads[:, None]).flatten()
                keys, values = (x.transpose(1, 2).flatten(0, 1)[:, :, None] for x in prefix)
                prefix = keys, values
        z = attend_after(config, layer, q, k, v, self.start, prefix, prompts)
        return z.reshape(runs, n * width, *z.shape[2:])


class PromptBlock:
    """Some prompts, with their senders' ablated outputs.

    Args:
        ablated: the ablated outputs of all prompts.
        metric: of all prompts.
        segments: which prompts, those that attend together in one list.
        starts: for each segment the first position that is computed.
    """

    def __init__(
        self,
        ablated: Ablated,
        metric: Contrast | Metric,
        segments: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> None:
        self.model, self.graph, self.config = ablated.model, ablated.graph, ablated.model.config
        self.some = [prompt for some in segments for prompt in some]
        self.segments: list[_Segment] = []
        begin = 0
        for some, start in zip(segments, starts, strict=True):
            self.segments.append(_Segment(ablated, some, start, begin))
            begin = self.segments[-1].rows.stop
        self.n_rows = begin
        """Tokens that are computed."""
        # a copy even of one segment: contiguous, as every sender's rows are read together
        self.ablated = torch.cat([one.ablated for one in self.segments], 1)
        self.embed = torch.cat([one.embed for one in self.segments])
        self.ends = torch.cat([one.ends for one in self.segments])
        """The rows at which the metric is read, prompt by prompt."""
        final = torch.cat([one.final for one in self.segments])
        for one in self.segments:  # copied into the block's
            del one.ablated, one.embed, one.final
        self.tails = ablated.pairs.tails.some(self.some)
        metric = rows_of(metric, ablated.pairs.tails.of(self.some))
        self.readout = Readout(self.model, metric, len(self.ends))
        (self.full,) = self.read(final[None])

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        before = sum(k.nbytes + v.nbytes for one in self.segments for k, v in one.before)
        return self.ablated.nbytes + self.embed.nbytes + before

    @cached_property
    def only_ends(self) -> bool:
        """Whether the rows that are read are all rows, in order."""
        return self.ends.tolist() == list(range(self.n_rows))

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
        """z of several runs; keys and values before a segment's first position are the clean
        run's.

        Args:
            kv_heads: of each run, where it is one head alone.
        """
        parts = [
            one.attend(layer, q[:, one.rows], k[:, one.rows], v[:, one.rows], kv_heads)
            for one in self.segments
        ]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
