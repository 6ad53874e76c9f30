"""Which edges matter, to first order?

Edge attribution patching scores all edges at once: the change of the sender's output between the
runs, times a coefficient at the receiver's input, by default the metric's gradient:

- `eap` (Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery"): at one
  run, the clean one for noising, the corrupted one for denoising;
- `eap-ig-inputs` (Hanna et al. 2024, "Have Faith in Faithfulness", section 3): averaged over runs
  whose embeddings lie between the corrupted and the clean ones, at the midpoints of equal steps;
- `eap-ig-activations` (the same authors' later code; Marks et al. 2024): for the edges that leave a
  layer's heads, or its MLP, averaged over clean runs in which only that output is changed;
- `relp` (Jafari et al. 2025, arXiv 2508.21258, "RelP"): not a gradient but a propagation
  coefficient, at one run as `eap`, by LN-rule, Identity-rule and Half-rule (`model/relevance`);
- `relp-ah`: the same with attention patterns held constant (AH-rule), so no edge into a query or a
  key has a score.

A score is an estimate of m(clean) - m(clean with the corrupted activation on that edge), or, for
`eap` and `relp` at the corrupted run (denoising), of m(corrupted with the clean activation on that
edge) - m(corrupted): positive edges support the metric. (The sources write the metric as a loss,
which gives the same sign.) A node's score (attribution patching) is the sum over its outgoing
edges.

These are approximations. `patch_edges` computes the exact values, and `agreement` compares both.

Assumes pairs of equal length. Cost: two forward passes and one backward pass for eap and relp, and
about a fifth more for the scores; for the integrals one more forward and backward pass per step,
and for activations (2 layers + 1) times that. Prompts are streamed; only sums are kept: of scores,
and of scores with random weights for the bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.checks import check_different, check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.contributions import contribution_sites, contributions
from casestudy.circuits.graph import Graph
from casestudy.engine.cells import first_differences
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell, pack
from casestudy.engine.readout import Metric, Readout
from casestudy.engine.rows import head_maps
from casestudy.engine.workers import at_once, mapped
from casestudy.errors import MeasureError, one_of
from casestudy.measure.attribution_patching import (
    RULES,
    STEPS,
    check_steps,
    gradients,
    read_last,
)
from casestudy.measure.metrics import rows_of
from casestudy.measure.pairs import Direction, Pairs, equal_lengths
from casestudy.model.decoder import norm_scale, run
from casestudy.model.edits import Edit
from casestudy.model.linear import fold_into, norm_at_scale, through_scale
from casestudy.model.model import Model
from casestudy.model.relevance import relevance_edits
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.model.weights import Norm
from casestudy.results.stats import BOOTSTRAP_FROM, units_of

Method = Literal["eap", "eap-ig-inputs", "eap-ig-activations", "relp", "relp-ah"]
METHODS: tuple[Method, ...] = get_args(Method)


def attribute_edges(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    method: Method = "eap-ig-inputs",
    *,
    graph: Graph | None = None,
    steps: int = STEPS,
    direction: Direction = "denoising",
    replicates: int = 0,
    documents: Sequence[str] | None = None,
    signs: Sequence[Sequence[int]] = (),
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> EdgeScores:
    """Score every edge of the graph, by gradients.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length; a pair's scores are the sums over its
            `texts`.
        contrast: a contrast, or a function of the last token's logits with a gradient.
        method: see above.
        graph: by default the model's own; give another graph to have neurons as nodes.
        steps: number of points of the integrals.
        direction: the run in which `eap` and `relp` take their coefficient: the corrupted one for
            "denoising", the clean one for "noising" (the unpatched run of `patch_edges`). The
            integrals do not depend on it.
        replicates: number of Poisson-bootstrap means to keep.
        documents: per prompt, its document; resampled together.
        signs: controls: 1 or -1 per prompt, by which its scores are multiplied; each control gives
            a mean of its own (`flipped`), which has only chance in it.
        budget: memory of a chunk of prompts, seed of the bootstrap.
        progress: called with the number of finished prompts.

    Error:  none of its own; compare with exact values (`agreement`).
    Raises: MeasureError for pairs that are identical or of unequal length, a metric without a
            gradient, too few prompts for the bootstrap.
    """
    one_of("method", method, METHODS, MeasureError)
    check_steps(steps)
    n = len(pairs)
    weights = _weights(n, replicates, documents, signs, budget.seed)
    graph = Graph(model.config) if graph is None else graph
    firsts = differing(pairs)
    total = np.zeros(graph.real.shape)
    drawn = torch.zeros(len(weights), *graph.real.shape)
    runs = np.zeros((2, len(pairs.clean)))
    whose = list(range(n)) if pairs.texts is None else list(pairs.texts.pairs)
    done = 0
    workers = at_once(model.device, len(pairs.clean))
    chunks = _chunks(model, graph, pairs, firsts, budget.memory // workers, workers)
    scored = partial(_scored, (model, graph, pairs, contrast, firsts), (method, steps, direction))
    # summed in the order of chunks, so that the last bits do not depend on which ends first
    for some, found, ends in mapped(scored, chunks, workers):
        runs[:, some] = ends
        total += found.double().sum(0).cpu().numpy()
        if len(weights):
            mine = weights[:, [whose[i] for i in some]].float()
            drawn += torch.einsum("kb,bsr->ksr", mine, found.float().cpu())
        done += len(some)
        if progress is not None:
            progress(Progress("edge scores", done, len(whose)))
    values = np.where(graph.real, total / n, np.nan)
    kept, runs = drawn.numpy(), pairs.of_pairs(runs)
    return EdgeScores(
        graph,
        method,
        values,
        n,
        runs[0],
        runs[1],
        replicates=kept[:replicates] if replicates else None,
        flipped=kept[replicates:] if signs else None,
    )


def _weights(
    n: int,
    replicates: int,
    documents: Sequence[str] | None,
    signs: Sequence[Sequence[int]],
    seed: int,
) -> Float[Tensor, "mean prompt"]:
    """The prompts' weights in each mean that is kept: of the bootstrap, and with other signs.

    Raises: MeasureError for too few prompts, and for signs of other prompts.
    """
    if replicates and n < BOOTSTRAP_FROM:
        raise MeasureError(
            f"{n} prompts for a bootstrap", allowed=f"{BOOTSTRAP_FROM} or more, or replicates=0"
        )
    if any(len(row) != n for row in signs):
        raise MeasureError(f"signs for other than {n} prompts", allowed="one per prompt")
    weights = _poisson(n, replicates, documents, seed)
    weights /= weights.sum(1, keepdim=True)
    flips = torch.tensor([list(row) for row in signs], dtype=torch.float64).view(-1, n) / n
    return torch.cat([weights, flips])


def differing(pairs: Pairs) -> list[int]:
    """Each pair's first position that differs.

    Raises: MeasureError for pairs of unequal length or identical ones.
    """
    equal_lengths(pairs.clean, pairs.corrupted, "an edge by position")
    check_different(pairs.clean, pairs.corrupted)
    return first_differences(pairs.clean, pairs.corrupted)


def _poisson(
    n: int, replicates: int, documents: Sequence[str] | None, seed: int
) -> Float[Tensor, "replicate prompt"]:
    """Poisson(1) weights per resampled unit, for a streamed bootstrap."""
    unit = units_of(n, documents, seed=seed)
    rng = np.random.default_rng(seed)
    drawn = rng.poisson(1.0, size=(replicates, int(unit.max()) + 1))
    drawn[drawn.sum(1) == 0] = 1  # a replicate without prompts has no mean
    return torch.tensor(drawn[:, unit], dtype=torch.float64)


def _chunks(
    model: Model, graph: Graph, pairs: Pairs, firsts: Sequence[int], memory: int, parts: int
) -> list[list[int]]:
    """Batches of prompts of similar length and first difference that fit into memory."""
    lengths = pairs.clean.lengths.tolist()
    config = model.config
    # activations and their gradients of a pass, contributions, and one layer's receivers
    per_token = config.n_layers * (12 * config.d_model + 3 * config.d_mlp)
    per_window = (len(graph.senders) + 6 * config.n_heads + 3 * _most(graph)) * config.d_model
    size = model.weights.W_E.element_size()

    def fits(n: int, length: int, width: int) -> bool:
        return n * size * (length * per_token + width * per_window) <= memory

    batches = pack(lengths, firsts, fits=fits, parts=parts)
    return [sorted(batch) for batch in batches[::-1]]  # the longest first


def _most(graph: Graph) -> int:
    return max((len(chosen) for chosen in graph.neurons.values()), default=0)


def _scored(
    on: tuple[Model, Graph, Pairs, Contrast | Metric, Sequence[int]],
    how: tuple[Method, int, Direction],
    some: list[int],
) -> tuple[list[int], Float[Tensor, "batch sender receiver"], NDArray[np.float64]]:
    """Some prompts, their scores, and the metric of both their runs."""
    model, graph, pairs, contrast, firsts = on
    metric = rows_of(contrast, pairs.tails.of(some))
    work = _Chunk(model, graph, pairs, metric, some, firsts, how[0])
    return some, work.scores(*how), work.runs()


class _Chunk:
    """Some pairs, with their senders' outputs."""

    def __init__(
        self,
        model: Model,
        graph: Graph,
        pairs: Pairs,
        metric: Contrast | Metric,
        some: list[int],
        firsts: Sequence[int],
        method: Method,
    ) -> None:
        self.model, self.graph, self.config = model, graph, model.config
        self.rules = RULES.get(method, ())
        self.clean, self.corrupted = (
            tokens[some].to(model.device) for tokens in (pairs.clean, pairs.corrupted)
        )
        self.start = min(firsts[i] for i in some)
        self.tails = pairs.tails.some(some)
        self.readout = Readout(model, metric, len(self.tails.weights))
        self.values: dict[str, Tensor] = {}
        self.buffer: Tensor | None = None

    def runs(self) -> NDArray[np.float64]:
        """The metric of the clean and of the corrupted run."""
        found = [self.values[side].detach().double().cpu().numpy() for side in _SIDES]
        check_finite(found, model=self.model, of=[self.clean, self.corrupted])
        return np.stack(found)

    def scores(
        self, method: Method, steps: int, direction: Direction
    ) -> Float[Tensor, "batch sender receiver"]:
        """Every prompt's scores."""
        base = "clean" if direction == "noising" else "corrupted"
        single = method == "eap" or bool(self.rules)
        edits = relevance_edits(self.model, self.rules)
        traces = {}
        for side, tokens in zip(_SIDES, (self.clean, self.corrupted), strict=True):
            here = single and side == base
            traces[side] = self.trace(tokens, grad=here, edits=edits if here else ())
            self.values[side] = self.value(traces[side])
        delta = self.difference(traces["clean"], traces["corrupted"])
        out = delta.new_zeros(len(delta), *self.graph.real.shape)
        if single:
            self.add(out, delta, traces[base], self.values[base])
            return out
        points = [(step + 0.5) / steps for step in range(steps)]
        whole = slice(0, len(self.graph.senders))
        if method == "eap-ig-inputs":
            for point in points:
                moved = self.moved(traces, Site.RESID_PRE, 0, point)
                self.step(out, delta, whole, moved)
        else:
            for senders, site, layer in self.groups():
                for point in points:
                    self.step(out, delta, senders, self.moved(traces, site, layer, point))
        return out / steps

    def groups(self) -> Iterator[tuple[slice, Site, int]]:
        """Senders whose outputs are changed together, with their site and layer."""
        yield slice(0, 1), Site.RESID_PRE, 0
        for layer in range(self.config.n_layers):
            first = self.graph.first_sender(layer)
            yield slice(first, first + self.config.n_heads), Site.Z, layer
            end = self.graph.first_sender(layer + 1)
            yield slice(first + self.config.n_heads, end), Site.MLP_OUT, layer

    def moved(self, traces: dict[str, Trace], site: Site, layer: int, point: float) -> list[Edit]:
        """Edits that set a site between the corrupted (0) and the clean (1) run's values."""
        clean, corrupted = (traces[side][site, layer].detach() for side in _SIDES)
        return [Edit.replace(site, layer, corrupted + point * (clean - corrupted))]

    def step(self, out: Tensor, delta: Tensor, senders: slice, edits: list[Edit]) -> None:
        """Add one run's scores to the rows of some senders."""
        trace = self.trace(self.clean, grad=True, edits=edits)
        self.add(out[:, senders], delta[:, senders], trace, self.value(trace), senders.start)

    def trace(self, tokens: Tokens, *, grad: bool, edits: Sequence[Edit] = ()) -> Trace:
        keep: list[Keep | Site] = [*contribution_sites(self.model, self.graph)]
        keep.append(Site.FINAL_RESID.at(last=self.tails.single))
        if grad:
            keep += [Site.RESID_PRE, Site.Q, Site.K, Site.V, Site.MLP_IN]
            chosen = [layer for layer, neurons in self.graph.neurons.items() if neurons]
            if chosen:
                keep.append(Site.MLP_PRE.at(chosen))
                if self.model.weights.gated:
                    keep.append(Site.MLP_GATE.at(chosen))
        return run(self.model, tokens, keep=keep, edit=edits, grad=grad)

    def value(self, trace: Trace) -> Float[Tensor, " batch"]:
        """The metric at the last tokens, with gradients to the trace."""
        return read_last(self.readout, self.model, trace, self.rules, tails=self.tails)

    def difference(
        self, clean: Trace, corrupted: Trace
    ) -> Float[Tensor, "batch sender pos d_model"]:
        """Each sender's clean output minus its corrupted output; 0 in the padding."""
        if any(site is Site.ATTN_POST_SCALE for site, _ in corrupted.values):
            delta = contributions(self.model, self.graph, clean, self.start)
            delta -= contributions(self.model, self.graph, corrupted, self.start)
        else:  # linear in what was kept
            change = {
                (site, layer): clean.values[site, layer].detach() - x.detach()
                for (site, layer), x in corrupted.values.items()
                if (site, layer) == (Site.RESID_PRE, 0) or site in _WRITTEN
            }
            delta = contributions(
                self.model, self.graph, replace(corrupted, values=change), self.start
            )
        mask = self.clean.mask[:, self.start :]
        return delta if bool(mask.all()) else delta.mul_(mask[:, None, :, None])

    def add(
        self,
        out: Tensor,
        delta: Tensor,
        trace: Trace,
        value: Float[Tensor, " batch"],
        first: int = 0,
    ) -> None:
        """Add Σ over positions of delta · gradient to the scores of each edge.

        Args:
            out, delta: rows of some senders, from `first` on.
        """
        graph = self.graph
        # receivers of earlier layers do not read these senders
        layer = self.graph.senders[first].layer or 0
        for start, end, limit, gradient in self.gradients(trace, value, layer):
            read = min(max(limit - first, 0), delta.shape[1])  # of these senders, the first so many
            if read:
                # (batch, sender, pos d_model) · (batch, pos d_model, receiver)
                pair = torch.bmm(delta[:, :read].flatten(2), gradient.flatten(2).transpose(1, 2))
                out[:, :read, start:end] += pair
        assert end == len(graph.receivers)

    def gradients(
        self, trace: Trace, value: Float[Tensor, " batch"], lowest: int
    ) -> Iterator[tuple[int, int, int, Float[Tensor, "batch receiver pos d_model"]]]:
        """The metric's gradient at each receiver's input, from a layer on, for some receivers at a
        time: their start, their end, and the number of senders they read.

        For heads the gradient is taken at q, k and v and propagated back through weights and norm
        by a matrix product, without a separate input for each head.
        """
        config, graph = self.config, self.graph
        sites = [Site.Q, Site.K, Site.V, Site.MLP_IN, Site.MLP_PRE, Site.MLP_GATE]
        kept = [
            (site, layer)
            for layer in range(lowest, config.n_layers)
            for site in sites
            if (site, layer) in trace.values
        ]
        last = (Site.FINAL_RESID, None)
        ends = trace.lasts if self.tails.single else trace.values
        wanted = [trace.values[address] for address in kept] + [ends[last]]
        found = gradients(value, wanted)
        by_site: dict[tuple[Site, int | None], Tensor] = {
            address: gradient[:, self.start :]
            for address, gradient in zip(kept, found, strict=False)
        }
        by_site[last] = found[-1]
        for layer in range(lowest, config.n_layers):
            yield from self.gradients_of_heads(trace, by_site, layer)
            yield from self.gradients_of_mlp(trace, by_site, layer)
        final = found[-1][:, None]
        if self.tails.single:
            final = found[-1].new_zeros(len(value), 1, self.clean.ids.shape[1], config.d_model)
            final[torch.arange(len(value)), 0, self.clean.last] = found[-1]
        end = len(graph.receivers)
        yield end - 1, end, len(graph.senders), final[:, :, self.start :]

    def gradients_of_heads(
        self, trace: Trace, by_site: dict[tuple[Site, int | None], Tensor], layer: int
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        attn, norm = (
            self.model.weights.blocks[layer].attn,
            self.model.weights.blocks[layer].attn_norm,
        )
        x = trace[Site.RESID_PRE, layer][:, self.start :].detach()
        place, limit = self.graph.first_receiver(layer), self.graph.first_sender(layer)
        # q, k and v as heads of one map: their product with the senders is then wide enough to run
        # at full rate
        sites = (Site.Q, Site.K, Site.V)
        out = torch.cat([trace[site, layer][:, self.start :].detach() for site in sites], 2)
        slope = torch.cat([by_site[site, layer] for site in sites], 2)
        W = torch.cat([w for w, _ in head_maps(attn).values()])
        maps = head_maps(attn).values()
        b = torch.cat([W.new_zeros(len(w), W.shape[2]) if b is None else b for w, b in maps])
        yield place, place + len(W), limit, self.through(norm, x, W, b, out, slope)

    def gradients_of_mlp(
        self, trace: Trace, by_site: dict[tuple[Site, int | None], Tensor], layer: int
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        block, chosen = self.model.weights.blocks[layer], list(self.graph.neurons.get(layer, ()))
        whole = by_site[Site.MLP_IN, layer][:, None]
        end = self.graph.first_receiver(layer + 1)
        limit = self.graph.limit(self.graph.receivers[end - 1])
        if chosen:
            x = trace[Site.MLP_IN, layer][:, self.start :].detach()
            neurons = whole.new_zeros(len(whole), len(chosen), *whole.shape[2:])
            maps = [(Site.MLP_PRE, block.mlp.W_in, block.mlp.b_in)]
            if block.mlp.W_gate is not None:
                maps.append((Site.MLP_GATE, block.mlp.W_gate, block.mlp.b_gate))
            for at, W, b in maps:
                columns = W[:, chosen].T[..., None]  # neuron d_model 1: heads of one dimension
                bias = None if b is None else b[chosen][:, None]
                out = trace[at, layer][:, self.start :, chosen, None].detach()
                slope = by_site[at, layer][..., chosen, None]
                neurons += self.through(block.mlp_norm, x, columns, bias, out, slope)
            yield end - 1 - len(chosen), end - 1, limit, neurons
            whole = whole - neurons.sum(1, keepdim=True)
        yield end - 1, end, limit, whole

    def through(
        self,
        norm: Norm | None,
        x: Float[Tensor, "batch pos d_model"],
        W: Float[Tensor, "head d_model d_head"],
        b: Float[Tensor, "head d_head"] | None,
        out: Float[Tensor, "batch pos head d_head"],
        gradient: Float[Tensor, "batch pos head d_head"],
    ) -> Float[Tensor, "batch head pos d_model"]:
        """The gradient at each head's own input, from that at `out` = norm(x) W + b.

        The norm's gradient at a fixed scale is a product with W folded into the norm; the
        term for the change of the scale (`through_scale`) needs the product of the gradient with
        x̂, which is gradient · (out - out at x̂ = 0). So one pass over the heads' inputs is enough.
        """
        config = self.config
        if norm is None:
            return self.onto(gradient, W)
        maps = fold_into(config, norm, W)
        zero = W.new_zeros(()) if b is None else b
        if norm.bias is not None:
            zero = zero + torch.einsum("d,hde->he", norm.bias, W)
        scale = norm_scale(config, x).to(x.dtype)
        unit = norm_at_scale(config, Norm(), x, scale)
        slope = gradient / scale[..., None]
        if "LN-rule" in self.rules:
            return self.onto(slope, maps)
        along = (slope * (out - zero)).sum(-1)
        return through_scale(self.onto(slope, maps), unit[:, None], along.transpose(1, 2))

    def onto(
        self, slope: Float[Tensor, "batch pos head d_head"], W: Float[Tensor, "head d_model d_head"]
    ) -> Float[Tensor, "batch head pos d_model"]:
        """Σ_e slope_e W_e of each head, in a buffer that the next call uses again: these are the
        largest tensors of a pass, and new memory for each layer costs as much as the product.
        """
        batch, pos, heads, _ = slope.shape
        rows = slope.permute(2, 0, 1, 3).flatten(1, 2)  # head (batch pos) d_head
        shape = (heads, batch * pos, W.shape[1])
        if self.buffer is None or self.buffer.shape != shape:
            self.buffer = slope.new_empty(shape)
        torch.bmm(rows, W.transpose(1, 2), out=self.buffer)
        return self.buffer.view(heads, batch, pos, -1).transpose(0, 1)


_SIDES = ("clean", "corrupted")
_WRITTEN = frozenset({Site.Z, Site.MLP_OUT, Site.MLP_POST})
