"""How much of a behaviour does a subgraph keep on its own?

Edge ablation: the clean prompts are run, and every edge outside the circuit carries an ablated
activation: the corrupted run's, a mean, or zero. The circuit's faithfulness is its metric, scaled
from everything ablated (0) to the whole model (1).

Many circuits are evaluated at once, and only differences are computed. Let a_s be the ablated
output of sender s; a receiver reads Σ_s a_s + Σ over its edges in the circuit of (out_s - a_s). So
only senders with an edge into the circuit are computed, and if the ablation is the corrupted run,
only positions from a pair's first difference on. The sums over edges are one matrix product per
circuit and layer. Projections, MLPs and attention run over all circuits' rows together, each head's
weights once. The whole graph is the clean run. A graph without some whole nodes (knockouts) is a
forward pass in which these nodes have their ablated outputs.

Circuits are pruned first. A node that is not reached from the embeddings within the circuit stays
ablated (with mean or zero ablation, its output for ablated inputs would be different). A node that
does not reach the logits is left out. Nothing is frozen: each run has its own norm scales and
patterns. A random sample is computed again the plain way, with a full forward pass in which every
head's inputs are edited; the largest gap is kept.

Assumes pairs of equal length. Cost: per circuit, its nodes' share of a forward pass without the
unembedding, plus 2 · edges · d_model operations per token.
Sources: Wang et al. 2022 (mean ablation, faithfulness, completeness, minimality); Conmy et al. 2023
(edges); Hanna et al. 2024 and Mueller et al. 2025, "MIB" (the evaluation).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.checks import check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.ablated import Ablated, EdgeAblation
from casestudy.circuits.contributions import attention_bias
from casestudy.circuits.edge_scores import differing
from casestudy.circuits.graph import Circuit, Graph
from casestudy.circuits.plain import Plain, neurons_as_mlp
from casestudy.engine.climb import final_rows
from casestudy.engine.packing import Budget, Progress, Tell, fill, pack
from casestudy.engine.readout import Metric, Readout
from casestudy.engine.rounding import checked
from casestudy.engine.rows import attend_after, head_maps, mlp_out, through_block
from casestudy.errors import MeasureError
from casestudy.measure.metrics import rows_of
from casestudy.measure.pairs import Pairs
from casestudy.model.decoder import (
    apply_norm,
    merge_heads,
    norm_scale,
    position_queries_and_keys,
    project,
    run,
)
from casestudy.model.edits import Edit
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.weights import MLP
from casestudy.results.stats import FAITHFULNESS, mean_interval, ratio_in_parts, ratio_of_means

__all__ = ["CIRCUIT_BUDGET", "EdgeAblation", "Evaluation", "evaluate_circuit"]

CIRCUIT_BUDGET = Budget(check=4)
"""By default: a plain run of a circuit takes a forward pass for each of its receivers' inputs."""

_ROWS = 1024
"""Tokens per block and circuit: matrix products at full rate, buffers that nearly fit the cache."""


@dataclass(frozen=True)
class Evaluation:
    """The metric of each circuit.

    Attributes:
        circuits: as evaluated: pruned.
        values: (circuit, prompt) the metric with all other edges ablated.
        full: (prompt,) the metric of the whole model.
        empty: (prompt,) the metric with everything ablated.
        ablation: what the edges outside the circuits carried.
        error: {"gap": largest difference from the plain way in the sample, "bound": allowed (absent
            if there is no guarantee, as in bfloat16), "checked": sample size}; see
            `rounding.checked`.
    """

    circuits: tuple[Circuit, ...]
    values: NDArray[np.float64]
    full: NDArray[np.float64]
    empty: NDArray[np.float64]
    ablation: EdgeAblation
    error: Mapping[str, float]

    @property
    def faithfulness(self) -> NDArray[np.float64]:
        """(circuit,) (mean value - mean empty) / (mean full - mean empty); NaN if full and
        empty are equal.

        1 is the whole model, 0 everything ablated; above 1 a circuit overshoots.
        """
        return ratio_of_means(self.values, self.empty, self.full)

    def interval(
        self, documents: Sequence[str] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Faithfulness and the ends of its 95 % interval over prompts, the ratio linearised."""
        parts = ratio_in_parts(self.values, self.empty, self.full)
        found = mean_interval(parts.T, unit=FAITHFULNESS, documents=documents)
        return found[:3]


def evaluate_circuit(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    circuits: Sequence[Circuit],
    *,
    ablation: EdgeAblation = "corrupted",
    budget: Budget = CIRCUIT_BUDGET,
    progress: Tell | None = None,
) -> Evaluation:
    """Run the clean prompts through each circuit, all other edges ablated.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length; a pair's value is the sum over its
            `texts`.
        contrast: a contrast, or a function of the last token's logits.
        circuits: subsets of one graph's edges.
        ablation: what edges outside a circuit carry: "corrupted" the activation of the corrupted
            prompt, "mean" the mean of the corrupted prompts at a token's role (or position, if
            roles are not known), "zero" zero.
        budget: memory, and how many (circuit, prompt) pairs to compute again the plain way.
        progress: called with the number of finished (circuit, prompt) pairs.

    Shape:  values (circuit, prompt).
    Unit:   the metric's.
    Error:  largest gap between the sampled values and full forward passes.
    Raises: MeasureError for pairs that are identical or of unequal length, circuits of several
            graphs, NaN in a run, or a failed check.
    """
    if not circuits:
        raise MeasureError("no circuit to evaluate")
    graph = circuits[0].graph
    if any(c.graph is not graph and c.graph != graph for c in circuits):
        raise MeasureError("circuits of different graphs", allowed="one graph for all")
    if graph.config != model.config:
        raise MeasureError("a circuit of another model", hint="Its config differs from this one's")
    firsts = differing(pairs)
    pruned = tuple(circuit.pruned() for circuit in circuits)
    # Equal circuits are evaluated once: the smallest of a curve are often equal.
    place: dict[Circuit, int] = {}
    for circuit in (graph.full, graph.empty, *pruned):
        place.setdefault(circuit, len(place))
    distinct = list(place)
    with torch.no_grad():
        engine = _Engine(model, graph, pairs, contrast, ablation, firsts, budget.memory)
        values, error = engine.evaluate(distinct, budget, progress)
    values = pairs.of_pairs(values)
    rows = [place[circuit] for circuit in pruned]
    return Evaluation(pruned, values[rows], values[0], values[1], ablation, error)


class _Engine:
    """Blocks of prompts, each with all circuits."""

    def __init__(
        self,
        model: Model,
        graph: Graph,
        pairs: Pairs,
        metric: Contrast | Metric,
        ablation: EdgeAblation,
        firsts: Sequence[int],
        memory: int,
    ) -> None:
        self.model, self.graph, self.config = model, graph, model.config
        self.pairs, self.metric, self.ablation, self.firsts = pairs, metric, ablation, firsts
        self.ablated = Ablated(model, graph, pairs, ablation, memory)

    def evaluate(
        self, circuits: Sequence[Circuit], budget: Budget, progress: Tell | None
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        n = len(self.pairs.clean)
        total = len(circuits) * n
        numbers = random.Random(budget.seed).sample(range(total), min(budget.check, total))
        sample = [divmod(number, n) for number in numbers]
        values, plain = self.both_ways(circuits, range(n), sample, budget.memory, progress)
        sides = [self.pairs.clean, self.pairs.corrupted]
        texts = self.pairs.texts
        whose = range(n) if texts is None else texts.pairs
        check_finite(values, prompts=whose, model=self.model, of=sides)
        fast = np.array([values[place] for place in sample])
        again = partial(self.in_float64, circuits, sample, budget.memory)
        return values, checked(self.model, fast, plain, again, "a circuit's value")

    def both_ways(
        self,
        circuits: Sequence[Circuit],
        prompts: Iterable[int],
        sample: Sequence[tuple[int, int]],
        memory: int,
        progress: Tell | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(circuit, prompt) values (NaN for prompts that are not needed), and a sample of (circuit,
        prompt) values by the plain way."""
        chosen = set(prompts)
        values, done = np.full((len(circuits), len(self.pairs.clean)), np.nan), 0
        for some in self.blocks(memory, sorted(chosen)):
            block = _Block(self, some)
            for group in self.groups(circuits, block, memory):
                masks = torch.tensor(
                    np.stack([circuits[i].mask for i in group]), device=self.model.device
                )
                found = block.run(masks, [self.knocked_out(circuits[i], block) for i in group])
                values[np.ix_(group, some)] = found.cpu().numpy()
                done += len(group) * len(some)
                if progress is not None:
                    progress(Progress("circuits", done, len(circuits) * len(chosen)))
        plain = [Plain(self.ablated, self.metric, circuits[i], b).value() for i, b in sample]
        return values, np.array(plain)

    def in_float64(
        self,
        circuits: Sequence[Circuit],
        sample: Sequence[tuple[int, int]],
        memory: int,
        model: Model,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A sample's values by the fast way and the plain way, with the model in float64."""
        kind, firsts = self.ablation, self.firsts
        wide = _Engine(model, self.graph, self.pairs, self.metric, kind, firsts, memory)
        which = sorted({i for i, _ in sample})
        here = [(which.index(i), b) for i, b in sample]
        some = [circuits[i] for i in which]
        values, plain = wide.both_ways(some, {b for _, b in sample}, here, memory)
        return np.array([values[place] for place in here]), plain

    def knocked_out(self, circuit: Circuit, block: _Block) -> tuple[int, ...] | None:
        """The senders that a circuit lacks, if it has all edges between the others.

        None if it has not, or if a forward pass would cost more than its edges: a norm after
        attention mixes the heads, neurons are no site, and most positions may be the clean run's.
        """
        gone = tuple(np.flatnonzero(~circuit.senders).tolist())
        if not gone:
            return () if circuit == self.graph.full else None
        senders = [self.graph.senders[i] for i in gone]
        split = any(self.graph.neurons.get(s.layer or 0) for s in senders)
        posts = any(b.attn_post_norm is not None for b in self.model.weights.blocks)
        late = 2 * len(block.positions) < block.clean.ids.shape[1]
        if split or posts or late or senders[0].kind == "embed":
            return None
        return gone if self.graph.full.without(gone).pruned() == circuit else None

    def blocks(self, memory: int, prompts: Sequence[int]) -> list[list[int]]:
        """Blocks of prompts of similar length and first difference; a circuit's rows fit."""
        lengths = [int(self.pairs.clean.lengths[b]) for b in prompts]
        start = [self.firsts[b] if self.ablation == "corrupted" else 0 for b in prompts]
        most = max(1, min(_ROWS, memory // 2 // (self.row_floats() * self.itemsize)))
        batches = pack(lengths, start, fits=lambda n, _, width: n * width <= most)
        return [sorted(prompts[i] for i in batch) for batch in batches]

    def groups(self, circuits: Sequence[Circuit], block: _Block, memory: int) -> list[list[int]]:
        """Batches of circuits that fit in memory together."""

        def cost(circuit: Circuit) -> int:
            senders = int(circuit.senders.sum())
            used = np.flatnonzero(np.asarray(circuit.mask.any(0)))
            layers = [self.graph.receivers[r].layer for r in used]
            most = max((layers.count(layer) for layer in set(layers)), default=0)
            masks = circuit.mask.size * (1 + self.itemsize)  # as they are, and as shares
            return masks + block.rows * self.itemsize * self.circuit_floats(senders, most)

        return fill([cost(circuit) for circuit in circuits], memory // 2)

    @property
    def itemsize(self) -> int:
        return self.model.weights.W_E.element_size()

    def circuit_floats(self, senders: int, receivers: int) -> int:
        """Numbers per token of one circuit: its senders, a layer's inputs and what they become."""
        config = self.config
        longest = int(self.pairs.clean.lengths.max())
        per_head = config.n_heads * (4 * config.d_head + 3 * longest)  # the last: scores
        return config.d_model * (senders + 3 * receivers + 4) + 3 * config.d_mlp + per_head

    def row_floats(self) -> int:
        """Numbers per token of the ablated run, its traces, and the largest circuit."""
        receivers = self.config.n_heads + 2 * self.config.n_kv_heads
        whole = self.circuit_floats(len(self.graph.senders), receivers)
        return 2 * len(self.graph.senders) * self.config.d_model + whole


class _Block:
    """Some prompts with their senders' ablated outputs, from the first difference on."""

    def __init__(self, engine: _Engine, some: Sequence[int]) -> None:
        self.engine, self.model, self.graph = engine, engine.model, engine.graph
        self.config, self.weights = engine.config, engine.model.weights
        model, config = self.model, self.config
        self.clean = clean = engine.pairs.clean[list(some)].to(model.device)
        width = clean.ids.shape[1]
        from_run = engine.ablation == "corrupted"
        self.start = min(engine.firsts[b] for b in some) if from_run else 0
        self.tails = tails = engine.pairs.tails.some(some)
        keep: list[Keep | Site] = [Site.RESID_PRE.at(0), Site.FINAL_RESID.at(last=tails.single)]
        if self.start:
            keep += [
                Site.ROT_K,
                Site.V,
            ]  # before the first difference all runs share them
        trace = run(model, clean, keep=keep)
        self.ablated = engine.ablated.at(some, self.start)
        self.embed = trace[Site.RESID_PRE, 0][:, self.start :] - self.ablated[:, 0]
        self.before = {
            layer: (trace[Site.ROT_K, layer], trace[Site.V, layer])
            for layer in range(config.n_layers if self.start else 0)
        }
        self.positions = torch.arange(self.start, width, device=model.device)
        whose, where = tails.places(clean.lengths)
        self.read_at = whose, where - self.start
        metric = rows_of(engine.metric, engine.pairs.tails.of(some))
        self.readout = Readout(model, metric, len(whose))
        self.full = self.value(final_rows(trace, tails, range(len(clean))))

    @property
    def rows(self) -> int:
        """Tokens that are computed."""
        return len(self.clean) * len(self.positions)

    def value(self, final: Float[Tensor, "reading d_model"]) -> Float[Tensor, "*runs batch"]:
        """The metric of one run or several of all prompts, from the final residual stream at every
        reading, run by run."""
        n = len(self.read_at[0])
        readings = torch.arange(n, device=final.device).repeat(len(final) // n)
        found = self.tails.added(self.readout(final, readings).view(-1, n))
        return found[0] if len(final) == n else found

    def run(
        self,
        masks: Bool[Tensor, "circuit sender receiver"],
        lacks: Sequence[tuple[int, ...] | None],
    ) -> Float[Tensor, "circuit batch"]:
        """The metric of each circuit; `lacks` as `_Engine.knocked_out` gives it."""
        found = self.full.new_empty(len(masks), len(self.clean))
        by_edges = [i for i, gone in enumerate(lacks) if gone is None]
        by_nodes = [i for i, gone in enumerate(lacks) if gone]
        found[[i for i, gone in enumerate(lacks) if gone == ()]] = self.full
        if by_edges:
            found[by_edges] = _Circuits(self, masks[by_edges]).climb()
        if by_nodes:
            found[by_nodes] = self.without([lacks[i] or () for i in by_nodes])
        return found

    def without(self, sets: Sequence[tuple[int, ...]]) -> Float[Tensor, "set batch"]:
        """The metric with the outputs of sets of nodes ablated."""
        n, layers = len(self.clean), self.model.weights.blocks
        tokens = self.clean[list(range(n)) * len(sets)]
        heads: dict[int, list[tuple[int, int]]] = {}
        edits: list[Edit] = []
        for c, gone in enumerate(sets):
            for i in gone:
                sender, rows = self.graph.senders[i], slice(c * n, (c + 1) * n)
                assert sender.layer is not None
                if sender.kind == "head":
                    heads.setdefault(sender.layer, []).append((c, i))
                else:
                    edits.append(Edit(Site.MLP_OUT, sender.layer, partial(self.put, rows, i)))
        for layer, chosen in heads.items():
            attn = layers[layer].attn
            kept: list[Tensor] = []

            def note(z: Tensor, kept: list[Tensor] = kept) -> Tensor:
                kept[:] = [z]
                return z

            def exchange(
                x: Tensor,
                kept: list[Tensor] = kept,
                chosen: list[tuple[int, int]] = chosen,
                W_O: Tensor = attn.W_O,
            ) -> Tensor:
                x = x.clone()
                for c, i in chosen:
                    rows, head = slice(c * n, (c + 1) * n), self.graph.senders[i].head
                    own = kept[0][rows, self.start :, head] @ W_O[head]
                    x[rows, self.start :] += self.ablated[:, i] - own
                return x

            edits += [Edit(Site.Z, layer, note), Edit(Site.ATTN_OUT, layer, exchange)]
        keep = [Site.FINAL_RESID.at(last=self.tails.single)]
        trace = run(self.model, tokens, keep=keep, edit=edits)
        final = final_rows(trace, self.tails, list(range(n)) * len(sets))
        return self.value(final).view(len(sets), n)

    def put(self, rows: slice, sender: int, x: Tensor) -> Tensor:
        """A sender's ablated output in some rows, from the block's start on."""
        x = x.clone()
        x[rows, self.start :] = self.ablated[:, sender]
        return x


class _Circuits:
    """Several circuits on a block, layer by layer."""

    def __init__(self, block: _Block, masks: Bool[Tensor, "circuit sender receiver"]) -> None:
        self.block, self.graph, self.config = block, block.graph, block.config
        self.masks = masks
        self.shares = masks.to(block.embed.dtype)
        live = masks.any(2)
        self.live = live.cpu().numpy()
        batch, pos, d_model = block.embed.shape
        # each live sender's output minus its ablated output, in the order of computation
        self.deltas = [block.embed.new_empty(int(n), batch, pos, d_model) for n in self.live.sum(1)]
        self.slot = self.live.cumsum(1) - 1
        self.senders = [row.nonzero()[:, 0] for row in live]

    def climb(self) -> Float[Tensor, "circuit batch"]:
        """From the embeddings to the metric."""
        block, config = self.block, self.config
        ablated = block.ablated
        x = ablated[:, 0].clone()  # the stream with everything ablated
        for c in np.flatnonzero(self.live[:, 0]):
            self.deltas[c][0] = block.embed
        for layer in range(config.n_layers):
            first = self.graph.first_sender(layer)
            middle, end = first + config.n_heads, self.graph.first_sender(layer + 1)

            def attention(
                x: Tensor, layer: int = layer, first: int = first, middle: int = middle
            ) -> tuple[Tensor, Tensor]:
                self.heads(layer, x)
                bias = attention_bias(config, block.weights.blocks[layer])
                out = ablated[:, first:middle].sum(1)
                return x, out if bias is None else out + bias

            def mlp(x: Tensor, layer: int = layer, middle: int = middle, end: int = end) -> Tensor:
                self.mlps(layer, x)
                return ablated[:, middle:end].sum(1)

            x = through_block(config, x, attention, mlp)
        return self.read(x)

    def mixed(
        self, c: int, receivers: Int[Tensor, " receiver"], limit: int
    ) -> Float[Tensor, "receiver batch pos d_model"]:
        """The sum over a circuit's edges of each sender's change, for some receivers."""
        n = int(self.live[c, :limit].sum())
        deltas = self.deltas[c][:n]
        shares = self.shares[c][self.senders[c][:n]][:, receivers]  # sender receiver
        return (shares.T @ deltas.flatten(1)).view(-1, *deltas.shape[1:])

    def inputs(
        self, start: int, end: int, limit: int, x: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Int[Tensor, " read"], Int[Tensor, " read"], Float[Tensor, "read batch pos d_model"]]:
        """The inputs of the live receivers among some, receiver by receiver: their circuits, their
        numbers (from `start`), and the residual streams they read."""
        entered = self.masks[:, :limit, start:end].any(1)  # circuit receiver
        which, circuits = entered.T.nonzero(as_tuple=True)
        read = x.new_empty(len(which), *x.shape)
        for c in circuits.unique().tolist():
            mine = (circuits == c).nonzero()[:, 0]
            read[mine] = self.mixed(c, which[mine] + start, limit) + x
        return circuits, which, read

    def keep(self, circuits: Sequence[int], sender: int, out: Tensor) -> None:
        """Store a sender's output minus its ablated output, for each circuit."""
        ablated = self.block.ablated[:, sender]
        for c, rows in zip(circuits, out, strict=True):
            torch.sub(rows, ablated, out=self.deltas[c][self.slot[c, sender]])

    def heads(self, layer: int, x: Float[Tensor, "batch pos d_model"]) -> None:
        """Every live head of a layer."""
        block, config, graph = self.block, self.config, self.graph
        weights = block.weights.blocks[layer]
        attn, norm = weights.attn, weights.attn_norm
        start, first = graph.first_receiver(layer), graph.first_sender(layer)
        n_inputs = config.n_heads + 2 * config.n_kv_heads
        circuits, which, read = self.inputs(start, start + n_inputs, first, x)
        if not len(circuits):
            return
        active = circuits.unique()
        row = torch.full((len(self.masks),), -1, device=x.device)
        row[active] = torch.arange(len(active), device=x.device)
        read = apply_norm(config, norm, read)
        base = apply_norm(config, norm, x)
        found, place = [], 0
        for W, b in head_maps(attn).values():
            # inputs without an edge come from the ablated stream
            out = project(base, W, b).expand(len(active), -1, -1, -1, -1).clone()
            for head in range(len(W)):
                mine = (which == place + head).nonzero()[:, 0]
                if len(mine):
                    part = slice(int(mine[0]), int(mine[-1]) + 1)  # sorted by receiver
                    bias = None if b is None else b[head : head + 1]
                    rows = project(read[part], W[head : head + 1], bias)[..., 0, :]
                    out[row[circuits[part]], :, :, head] = rows
            found.append(out.flatten(0, 1))
            place += len(W)
        z = self.attend(layer, *found).unflatten(0, (len(active), -1))
        post, scale = weights.attn_post_norm, None
        if post is not None:
            scale = norm_scale(config, merge_heads(z, attn)).to(z)
        for head in range(config.n_heads):
            theirs = [c for c in active.tolist() if self.live[c, first + head]]
            if theirs:
                out = z[row[theirs], :, :, head] @ attn.W_O[head]
                if scale is not None and post is not None:
                    out = norm_at_scale(config, post, out, scale[row[theirs]])
                self.keep(theirs, first + head, out)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        """z of rows of all circuits; keys and values before the window are the clean run's."""
        block, config, at = self.block, self.config, self.block.positions
        attn = block.weights.blocks[layer].attn
        q, k = position_queries_and_keys(config, attn, layer, q, k, at, at)
        n = len(block.clean)
        prompts = torch.arange(n, device=q.device).repeat(len(q) // n)
        prefix = block.before.get(layer, (k, v))
        return attend_after(config, layer, q, k, v, block.start, prefix, prompts)

    def mlps(self, layer: int, x: Float[Tensor, "batch pos d_model"]) -> None:
        """The live nodes of a layer's MLP: chosen neurons one by one, and the rest of the MLP."""
        config, graph = self.config, self.graph
        weights = self.block.weights.blocks[layer]
        end = graph.first_receiver(layer + 1)
        chosen = graph.neurons.get(layer, ())
        start, limit = end - 1 - len(chosen), graph.limit(graph.receivers[end - 1])
        circuits, which, read = self.inputs(start, end, limit, x)
        if not len(circuits):
            return
        first = graph.first_sender(layer) + config.n_heads
        for i in which.unique().tolist():
            part = (which == i).nonzero()[:, 0]
            neuron = None if i == len(chosen) else chosen[i]
            own = _mlp_part(weights.mlp, neuron, chosen)
            out = mlp_out(config, weights, read[part], weights=own)
            mine = circuits[part].tolist()
            there = [j for j, c in enumerate(mine) if self.live[c, first + i]]
            self.keep([mine[j] for j in there], first + i, out[there])

    def read(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "circuit batch"]:
        """The metric at the positions at which each prompt is read."""
        batch, where = self.block.read_at
        final = x[batch, where].expand(len(self.masks), -1, -1).clone()
        for c, deltas in enumerate(self.deltas):
            shares = self.shares[c, self.senders[c], -1]
            final[c] += torch.einsum("s,sbd->bd", shares, deltas[:, batch, where])
        return self.block.value(final.flatten(0, 1)).view(len(final), -1)


def _mlp_part(weights: MLP, neuron: int | None, chosen: Sequence[int]) -> MLP:
    """One neuron as an MLP, or (None) all neurons that are not chosen, with the bias."""
    if neuron is not None:
        return neurons_as_mlp(weights, [neuron])
    if not chosen:
        return weights
    rest = [i for i in range(weights.W_in.shape[1]) if i not in set(chosen)]
    return replace(neurons_as_mlp(weights, rest), b_out=weights.b_out)
