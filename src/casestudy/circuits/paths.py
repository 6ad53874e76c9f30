"""Along which path does one component of the model affect another?

Path patching (Wang et al. 2022, "Interpretability in the Wild", appendix B): a sender's output from
the other run is propagated along one kind of path to a receiver, and only the receiver's input is
patched; after the receiver everything is computed as usual. Two modes:

- `through_mlps`, as in the paper: all other heads are frozen at the unpatched run, and the MLPs
  between sender and receiver are recomputed;
- `direct`: one edge; everything else is frozen.

The norms on the path are recomputed, or frozen at the unpatched run's scales with
`norms="frozen"`, which makes a direct effect on the logits linear in the sender.

Senders are the embeddings, heads and MLPs; receivers a later head's query, key or value, an MLP, or
the logits. Assumes pairs of equal length. Cost: for `through_mlps` one MLP per sender, position and
layer in between; then one sweep in which every sender is a cell at the receiver (see `sweep`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.checks import check_different, check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.graph import (
    LOGITS,
    Receiver,
    Sender,
    checked_receiver,
    reaches,
    senders_before,
)
from casestudy.engine.cells import Cell, Place, first_differences
from casestudy.engine.climb import final_rows
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell, fill
from casestudy.engine.plan import SweepPlan
from casestudy.engine.readout import Metric, Readout, Tails
from casestudy.engine.rows import after_attention, head_maps, mlp_out, mlp_reads, through_block
from casestudy.engine.sweep import STAGE, Sweep, sweep
from casestudy.errors import SiteError
from casestudy.measure.metrics import rows_of
from casestudy.measure.pairs import Direction, Pairs, equal_lengths, one_reading
from casestudy.measure.patched import Patched, patched
from casestudy.model.config import mlp_after_attention
from casestudy.model.decoder import apply_norm, merge_heads, mlp, norm_scale, project, run
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.model.weights import Norm
from casestudy.results import names
from casestudy.results.result import Axis

Mode = Literal["through_mlps", "direct"]
Norms = Literal["recomputed", "frozen"]
P = TypeVar("P", bound="Path")


def path_patch(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    receiver: Receiver = LOGITS,
    *,
    senders: Sequence[Sender] | None = None,
    mode: Mode = "through_mlps",
    norms: Norms = "recomputed",
    direction: Direction = "denoising",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Patched:
    """The effect of each sender on the contrast through one receiver.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length.
        contrast: a contrast, or a function of the last token's logits and each row's prompt.
        receiver: its input is patched, at every position.
        senders: their outputs come from the other run, at every position; by default all senders
            before the receiver.
        mode: "through_mlps" or "direct".
        norms: of the MLPs on the path and of the receiver: "recomputed", or "frozen" at the scales
            of the unpatched run.
        direction: "denoising" runs the corrupted prompts (unpatched) with senders from the clean
            run; "noising" runs the clean prompts with senders from the corrupted run.
        budget: memory, checking.
        progress: called with the number of finished cells of a block of prompts.

    Shape:  raw (sender, prompt); a head's label is "layer.head".
    Unit:   logits, for a contrast.
    Error:  of the sweep at the receiver; none for the logits, which need no sweep.
    Raises: MeasureError for pairs of unequal length or identical ones; SiteError for a sender that
            does not come before the receiver, and for components that the model does not have.
    """
    config = model.config
    one_reading(pairs, "a path")
    equal_lengths(pairs.clean, pairs.corrupted, "a path by position")
    receiver = checked_receiver(config, receiver)
    chosen = senders_before(config, receiver) if senders is None else tuple(senders)
    if "neuron" in (receiver.kind, *(sender.kind for sender in chosen)):
        raise SiteError(
            "a path from or to a neuron", allowed="heads, MLPs, the embeddings and the logits"
        )
    for sender in chosen:
        if not reaches(config, sender, receiver):
            raise SiteError(
                f"sender {sender} does not come before receiver {receiver}",
                allowed=", ".join(map(str, senders_before(config, receiver))),
            )
    sides = pairs.sides(direction)
    base, source = sides.base.to(model.device), sides.source.to(model.device)
    # the senders' changes at the receiver are in memory for one block of prompts at a time
    per_prompt = 4 * len(chosen) * base.ids.shape[1] * config.d_model
    per_prompt *= model.weights.W_E.element_size()
    found = []
    for some in fill([per_prompt] * len(base), budget.memory // 4):
        metric = rows_of(contrast, some)
        with torch.no_grad():
            path = Path(model, base[some], source[some], receiver, mode, norms)
            found.append(path.patch(chosen, metric, budget, progress))
    about = (
        f"{direction.capitalize()} along paths to {receiver}, {mode.replace('_', ' ')}, norms "
        f"{norms}; Wang et al. 2022, appendix B."
    )
    name = names.paths(mode, str(receiver), direction)
    axes = (Axis("sender", tuple(map(str, chosen))),)
    return patched(_joined(found), name, about, axes, pairs.labels, contrast)


def _joined(found: list[Sweep]) -> Sweep:
    """Join the sweeps of blocks of prompts into one."""
    plans, shift, blocks = [part.plan for part in found], 0, []
    for part in found:
        blocks += [
            (tuple(p + shift for p in prompts), climbs) for prompts, climbs in part.plan.blocks
        ]
        shift += len(part.base)
    first = plans[0]
    plan = SweepPlan(
        first.memory,
        first.rows,
        first.threads,
        tuple(blocks),
        sum(plan.operations for plan in plans),
    )
    error = {key: max(part.error[key] for part in found) for key in found[0].error}
    return Sweep(
        found[0].cells,
        np.concatenate([part.values for part in found], 1),
        np.concatenate([part.base for part in found]),
        np.concatenate([part.other for part in found if part.other is not None]),
        np.concatenate([part.known for part in found], 1),
        error,
        plan,
    )


class Path:
    """Paths of some prompts to one receiver, and `to` others.

    Raises: MeasureError for pairs that are identical.
    """

    def __init__(
        self,
        model: Model,
        base: Tokens,
        source: Tokens,
        receiver: Receiver,
        mode: Mode,
        norms: Norms,
        keep: Sequence[Keep | Site] = (),
        tails: Tails | None = None,
    ) -> None:
        self.tails = Tails.ends(len(base)) if tails is None else tails
        self.model, self.config = model, model.config
        self.tokens, self.receiver, self.mode, self.norms = base, receiver, mode, norms
        sites = [Site.RESID_PRE, Site.ATTN_OUT, Site.Z, Site.MLP_OUT, Site.RESID_POST]
        if mlp_after_attention(self.config):
            sites.append(Site.RESID_MID)
        theirs: list[Keep | Site] = [Site.RESID_PRE.at(0), Site.Z, Site.MLP_OUT]
        self.base: Trace = run(model, base, keep=[*sites, Site.FINAL_RESID, *keep])
        self.source: Trace = run(model, source, keep=[*theirs, Site.FINAL_RESID, *keep])
        self.first = first_differences(base, source)
        check_different(base, source)
        self._take_rows()

    def _take_rows(self) -> None:
        """The (prompt, position) rows of the paths: for the logits only the positions read."""
        last_only = self.receiver.kind == "logits"
        rows = [
            (b, p)
            for b, n in enumerate(self.tokens.lengths.tolist())
            for p in range(n - self.tails.counts[b] if last_only else self.first[b], n)
        ]
        columns = torch.tensor(rows, device=self.model.device).reshape(-1, 2)
        self.prompts, self.positions = columns[:, 0], columns[:, 1]

    def to(self: P, receiver: Receiver) -> P:
        """The same runs' paths to another receiver."""
        other = copy.copy(self)
        other.receiver = checked_receiver(self.config, receiver)
        if (receiver.kind == "logits") != (self.receiver.kind == "logits"):
            other._take_rows()
        return other

    def patch(
        self,
        senders: Sequence[Sender],
        metric: Contrast | Metric,
        budget: Budget,
        progress: Tell | None,
    ) -> Sweep:
        """The senders' effects: a sweep at the receiver, or a readout for the logits."""
        x = self.carried(senders)
        if self.receiver.kind == "logits":
            return self.read(x, metric, budget, progress)
        cells = self.cells(x)
        found = sweep(
            self.model, self.tokens, None, cells, metric, budget=budget, progress=progress
        )
        other = self.value(self.source, metric)
        return Sweep(
            found.cells,
            found.values,
            found.base,
            other.cpu().numpy(),
            found.known,
            found.error,
            found.plan,
        )

    def cells(self, x: Float[Tensor, "sender row d_model"]) -> list[Cell]:
        """The receiver's output for each residual stream, as cells of a sweep."""
        values = self.received(x)
        ends = self.tokens.lengths.tolist()
        where = tuple(tuple(range(d, n)) for d, n in zip(self.first, ends, strict=True))
        place = Place("all", where, where)
        site = Site.MLP_OUT if self.receiver.kind == "mlp" else Site(self.receiver.kind)
        cells = []
        for told in values:
            table = told.new_zeros(*self.tokens.ids.shape, told.shape[-1])
            table[self.prompts, self.positions] = told
            cells.append(
                Cell(site, self.receiver.layer, place, head=self.receiver.head, values=table)
            )
        return cells

    def value(self, trace: Trace, metric: Contrast | Metric) -> Float[Tensor, " batch"]:
        """The metric of an unpatched run, prompt by prompt."""
        rows = final_rows(trace, self.tails, range(len(self.tokens)))
        readout = Readout(self.model, metric, len(rows))
        return self.tails.added(readout(rows, torch.arange(len(rows), device=rows.device)))

    def rows(self, site: Site, layer: int | None, trace: Trace | None = None) -> Tensor:
        """(row, …) a kept activation at the rows of the paths."""
        trace = self.base if trace is None else trace
        return trace.values[site, layer][self.prompts, self.positions]

    # Sender to receiver.

    def change(self, sender: Sender) -> Float[Tensor, "row d_model"]:
        """The change of the residual stream if the sender's output comes from the other run."""
        if sender.kind == "embed":
            site, layer = Site.RESID_PRE, 0
            return self.rows(site, layer, self.source) - self.rows(site, layer)
        layer = sender.layer if sender.layer is not None else 0
        if sender.kind == "mlp":
            site = Site.MLP_OUT
            return self.rows(site, layer, self.source) - self.rows(site, layer)
        block = self.model.weights.blocks[layer]
        old, new = self.rows(Site.Z, layer), self.rows(Site.Z, layer, self.source)
        assert sender.head is not None
        if block.attn_post_norm is None:
            return (new - old)[:, sender.head] @ block.attn.W_O[sender.head]
        z = old.clone()
        z[:, sender.head] = new[:, sender.head]
        merged, before = merge_heads(z, block.attn), merge_heads(old, block.attn)
        return self.norm(block.attn_post_norm, merged, before) - self.rows(Site.ATTN_OUT, layer)

    def norm(
        self,
        norm: Norm | None,
        x: Float[Tensor, "*rows d_model"],
        base: Float[Tensor, "row d_model"],
    ) -> Float[Tensor, "*rows d_model"]:
        """A norm on the path: recomputed, or with the unpatched rows' scales."""
        if self.norms == "recomputed" or norm is None:
            return apply_norm(self.config, norm, x)
        out = norm_at_scale(self.config, norm, x, norm_scale(self.config, base).to(x))
        return out if norm.bias is None else out + norm.bias

    def carried(self, senders: Sequence[Sender]) -> Float[Tensor, "sender row d_model"]:
        """The stream that the receiver reads, sender by sender."""
        if self.mode == "direct":
            site, layer = self.read_from()
            base = self.rows(site, layer)
            return torch.stack([base + self.change(sender) for sender in senders])
        order = sorted(range(len(senders)), key=lambda i: self.enters(senders[i]))
        x = torch.empty(0, len(self.prompts), self.config.d_model, dtype=self.model.dtype).to(
            self.model.device
        )
        queue = [senders[i] for i in order]

        def joined(x: Tensor, layer: int, kind: str, site: Site) -> Tensor:
            new = []
            while queue and (queue[0].layer or 0, queue[0].kind) == (layer, kind):
                new.append(self.rows(site, layer) + self.change(queue.pop(0)))
            return torch.cat([x, torch.stack(new)]) if new else x

        def frozen(layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, self.rows(Site.ATTN_OUT, layer)

        stop = self.config.n_layers if self.receiver.layer is None else self.receiver.layer
        site = after_attention(self.config)
        x = joined(x, 0, "embed", Site.RESID_PRE)
        for layer in range(stop):
            x = through_block(
                self.config,
                x,
                partial(frozen, layer),
                partial(self.mlp, layer),
                partial(joined, layer=layer, kind="head", site=site),
            )
            if site is Site.RESID_POST:
                x = joined(x, layer, "head", site)
            x = joined(x, layer, "mlp", Site.RESID_POST)
        if self.receiver.kind == "mlp" and site is mlp_reads(self.config):
            x = joined(x + self.rows(Site.ATTN_OUT, stop), stop, "head", site)
        back = torch.tensor(order, device=x.device).argsort()
        return x[back]

    def enters(self, sender: Sender) -> tuple[int, int]:
        """The order in which senders are added."""
        rank = {"embed": -1, "head": 0, "mlp": 1}[sender.kind]
        return (sender.layer or 0, rank)

    def read_from(self) -> tuple[Site, int | None]:
        """The site and layer of the residual stream that the receiver reads."""
        if self.receiver.kind == "logits":
            return Site.FINAL_RESID, None
        at_mlp = self.receiver.kind == "mlp"
        return mlp_reads(self.config) if at_mlp else Site.RESID_PRE, self.receiver.layer

    def mlp(
        self, layer: int, x: Float[Tensor, "sender row d_model"]
    ) -> Float[Tensor, "sender row d_model"]:
        """mlp_out of the changed streams, sender by sender, to keep the hidden layer small."""
        block = self.model.weights.blocks[layer]
        out = torch.empty_like(x)
        if self.norms == "recomputed":
            for i, rows in enumerate(x):
                out[i] = mlp_out(self.config, block, rows)
            return out
        base = self.rows(mlp_reads(self.config), layer)
        for i, rows in enumerate(x):
            raw = mlp(self.config, block.mlp, self.norm(block.mlp_norm, rows, base))
            before = raw
            if block.mlp_post_norm is not None:
                before = mlp(self.config, block.mlp, apply_norm(self.config, block.mlp_norm, base))
            out[i] = self.norm(block.mlp_post_norm, raw, before)
        return out

    # At the receiver.

    def received(self, x: Float[Tensor, "sender row d_model"]) -> Float[Tensor, "sender row d_out"]:
        """The receiver's output for the residual stream: its q, k or v, or its mlp_out."""
        layer = self.receiver.layer
        assert layer is not None
        if self.receiver.kind == "mlp":
            return self.mlp(layer, x)
        block, head = self.model.weights.blocks[layer], self.receiver.head
        assert head is not None
        W, b = head_maps(block.attn)[Site(self.receiver.kind)]
        normed = self.norm(block.attn_norm, x, self.rows(Site.RESID_PRE, layer))
        one = slice(head, head + 1)
        return project(normed, W[one], None if b is None else b[one])[..., 0, :]

    def read(
        self,
        x: Float[Tensor, "sender row d_model"],
        metric: Contrast | Metric,
        budget: Budget,
        progress: Tell | None,
    ) -> Sweep:
        """Effects on the logits; the rows are the positions that are read."""
        base_rows = final_rows(self.base, self.tails, range(len(self.tokens)))
        readout = Readout(self.model, metric, len(base_rows))
        readings = torch.arange(len(base_rows), device=base_rows.device)
        ends = (self.value(trace, metric).cpu().numpy() for trace in (self.base, self.source))
        base, other = ends
        sides = [trace.tokens for trace in (self.base, self.source)]
        check_finite([base, other], prompts=range(len(base)), model=self.model, of=sides)
        norm = self.model.weights.final_norm
        values = torch.stack(
            [readout.of_normed(self.norm(norm, rows, base_rows), readings) for rows in x]
        )
        values = self.tails.added(values)
        if progress:
            progress(Progress(STAGE, values.numel(), values.numel()))
        plan = SweepPlan(budget.memory, 0, torch.get_num_threads(), (), 0)
        known = np.zeros(values.shape, dtype=bool)
        return Sweep((), values.cpu().numpy(), base, other, known, {}, plan)
