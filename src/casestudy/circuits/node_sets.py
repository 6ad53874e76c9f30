"""How much of a behaviour do some heads and single neurons carry on their own?

Node ablation: the clean prompts are run, and every head and neuron outside a set has an ablated
activation at every position: the corrupted run's, a mean, or zero. The nodes of the set are
computed from what then reaches them, so they hear each other and nothing else. The neurons of an
MLP that are outside the set are its remainder, which is ablated as a whole; biases stay. The
embeddings are a node of every set, except of the empty one (everything ablated).

Exact: each value is a full forward pass in which activations are replaced, whatever the
architecture, also with norms after attention or MLP. Nothing is frozen.

Assumes pairs of equal length. Cost: a forward pass per set and prompt, without the unembedding.
Sources: Marks et al. 2025, "Sparse Feature Circuits" (faithfulness of node sets); Arora et al.
2026, arXiv 2601.22594, "Language Model Circuits Are Sparse in the Neuron Basis" (neurons as nodes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.checks import check_different, check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.ablated import EdgeAblation
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell, fill, pack
from casestudy.engine.readout import Metric, Readout
from casestudy.engine.workers import at_once, together
from casestudy.errors import MeasureError, SiteError, unknown
from casestudy.measure.means import mean_values
from casestudy.measure.metrics import rows_of
from casestudy.measure.pairs import Pairs, equal_lengths, one_reading
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.results.components import Component, read_component
from casestudy.results.stats import FAITHFULNESS, mean_interval, ratio_in_parts, ratio_of_means

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_SITES = (Site.Z, Site.MLP_POST)
_TOKENS = 2048
"""Tokens of all sets that run together: matrix products at full rate, memory that is soon free."""


@dataclass(frozen=True, eq=False)
class NodeSet:
    """Heads and neurons that are not ablated.

    Attributes:
        heads: (layer, head).
        neurons: (layer, neuron).
        embed: whether the embeddings are the clean prompt's.
    """

    heads: Mask
    neurons: Mask
    embed: bool = True

    @classmethod
    def of(cls, config: ModelConfig, value: bool = False, *, embed: bool = True) -> NodeSet:
        """All nodes, or none."""
        layers = config.n_layers
        return cls(
            np.full((layers, config.n_heads), value), np.full((layers, config.d_mlp), value), embed
        )

    @classmethod
    def named(cls, config: ModelConfig, names: Sequence[str]) -> NodeSet:
        """The set of these heads and neurons ("head 0.2", "neuron 4.312").

        Raises: SiteError for a node this model does not have, with a similar name if there is one.
        """
        found = cls.of(config)
        for name in names:
            part = read_component(name)
            table = {"head": found.heads, "neuron": found.neurons}.get(part.kind if part else "")
            place = None if part is None else (part.layer, part.index)
            if table is None or place is None or not _inside(place, table.shape):
                raise _no_node(config, name)
            table[place] = True
        return found

    @property
    def names(self) -> list[str]:
        """Its heads, then its neurons."""
        heads = [str(Component("head", int(i), int(j))) for i, j in np.argwhere(self.heads)]
        return heads + [
            str(Component("neuron", int(i), int(j))) for i, j in np.argwhere(self.neurons)
        ]

    @property
    def n(self) -> int:
        """The number of heads and neurons."""
        return int(self.heads.sum() + self.neurons.sum())

    def __repr__(self) -> str:
        return f"NodeSet({int(self.heads.sum())} heads, {int(self.neurons.sum())} neurons)"

    def without(self, other: NodeSet) -> NodeSet:
        """Its nodes that the other does not have."""
        return replace(self, heads=self.heads & ~other.heads, neurons=self.neurons & ~other.neurons)


def _inside(place: tuple[int | None, int | None], shape: tuple[int, ...]) -> bool:
    return all(i is not None and 0 <= i < n for i, n in zip(place, shape, strict=True))


def _no_node(config: ModelConfig, name: str) -> SiteError:
    """The error for a name that is no head or neuron of this model."""
    layers, heads, neurons = config.n_layers - 1, config.n_heads - 1, config.d_mlp - 1
    described = f"head 0.0 to head {layers}.{heads}, neuron 0.0 to neuron {layers}.{neurons}"
    known = [str(Component("head", i, j)) for i in range(layers + 1) for j in range(heads + 1)]
    known += [str(Component("neuron", i, min(neurons, _index(name)))) for i in range(layers + 1)]
    return unknown(SiteError, f"this model has no node {name!r}", name, known, described=described)


def _index(name: str) -> int:
    part = read_component(name)
    return 0 if part is None or part.index is None else part.index


@dataclass(frozen=True)
class NodeEvaluation:
    """The metric with only some nodes left.

    Attributes:
        sets: as evaluated.
        values: (set, prompt).
        full: (prompt,) of the whole model.
        empty: (prompt,) with everything ablated, embeddings included.
        ablation: what the other nodes had.
    """

    sets: tuple[NodeSet, ...]
    values: Array
    full: Array
    empty: Array
    ablation: EdgeAblation

    @property
    def faithfulness(self) -> Array:
        """(set,) (mean value - mean empty) / (mean full - mean empty); 1 is the whole model."""
        return ratio_of_means(self.values, self.empty, self.full)

    @property
    def in_parts(self) -> Array:
        """(set, prompt) numbers whose mean is the faithfulness; see `ratio_in_parts`."""
        return ratio_in_parts(self.values, self.empty, self.full)

    def interval(self, documents: Sequence[str] | None = None) -> tuple[Array, Array, Array]:
        """Faithfulness and the ends of its 95 % interval over prompts, the ratio linearised."""
        return mean_interval(self.in_parts.T, unit=FAITHFULNESS, documents=documents)[:3]


def evaluate_nodes(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    sets: Sequence[NodeSet],
    *,
    ablation: EdgeAblation = "corrupted",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> NodeEvaluation:
    """Run the clean prompts with all heads and neurons outside each set ablated.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length.
        contrast: a contrast, or a function of the last token's logits.
        sets: the nodes that stay.
        ablation: the activations of the others: "corrupted" the corrupted prompt's, "mean" the mean
            of the corrupted prompts at a token's role (or position), "zero" zero.
        budget: memory.
        progress: called with the number of finished (set, prompt) pairs.

    Shape:  values (set, prompt).
    Unit:   the metric's.
    Error:  none: every value is a full forward pass.
    Raises: MeasureError for no set, sets of another model, pairs that are identical or of unequal
            length, NaN in a run.
    """
    if not sets:
        raise MeasureError("no set of nodes to evaluate")
    whole, nothing = NodeSet.of(model.config, True), NodeSet.of(model.config, embed=False)
    for one in sets:
        if one.heads.shape != whole.heads.shape or one.neurons.shape != whole.neurons.shape:
            raise MeasureError("a set of nodes of another model")
    one_reading(pairs, "circuits of heads and neurons")
    equal_lengths(pairs.clean, pairs.corrupted, "a node by position")
    check_different(pairs.clean, pairs.corrupted)
    everything = [whole, nothing, *sets]
    n, values, done = len(pairs), np.full((len(everything), len(pairs)), np.nan), 0
    workers = at_once(model.device, n)
    memory = budget.memory // workers
    with torch.no_grad():
        ablated = _Ablated(model, pairs, ablation)

        def of_block(some: list[int]) -> Iterator[tuple[list[int], list[int], Array]]:
            block = _Block(ablated, pairs, rows_of(contrast, some), some)
            size = len(some) * int(pairs.clean.lengths[some].max())
            for group in fill([size] * len(everything), _most(model, memory)):
                found = block.run([everything[i] for i in group])
                yield group, some, found.double().cpu().numpy()

        blocks = _blocks(model, pairs, memory, workers)
        jobs = [partial(of_block, some) for some in blocks[::-1]]  # the longest first
        for _, (group, some, found) in together(jobs, workers):
            values[np.ix_(group, some)] = found
            done += len(group) * len(some)
            if progress is not None:
                progress(Progress("node sets", done, len(everything) * n))
    check_finite(values, prompts=range(n))
    return NodeEvaluation(tuple(sets), values[2:], values[0], values[1], ablation)


def _most(model: Model, memory: int) -> int:
    """Tokens that run together."""
    config = model.config
    numbers = 12 * config.d_model + 6 * config.d_mlp + config.n_heads * config.n_ctx
    return max(1, min(_TOKENS, memory // 2 // (numbers * model.weights.W_E.element_size())))


def _blocks(model: Model, pairs: Pairs, memory: int, parts: int) -> list[list[int]]:
    """Batches of prompts of similar length whose ablated activations fit into memory."""
    config = model.config
    kept = config.n_layers * (config.n_heads * config.d_head + config.d_mlp) + config.d_model
    held = memory // 2 // (kept * model.weights.W_E.element_size())
    most = min(_most(model, memory), held)
    lengths = pairs.clean.lengths.tolist()
    batches = pack(lengths, fits=lambda n, longest, _: n * longest <= most, parts=parts)
    return [sorted(batch) for batch in batches]


class _Ablated:
    """The activations that ablated nodes have."""

    def __init__(self, model: Model, pairs: Pairs, ablation: EdgeAblation) -> None:
        self.model, self.pairs, self.ablation = model, pairs, ablation
        self.means = {}
        if ablation == "mean":
            theirs = pairs.corrupted_roles or pairs.roles
            layers = range(model.config.n_layers)
            for site, some in ((Site.Z, layers), (Site.MLP_POST, layers), (Site.RESID_PRE, [0])):
                self.means[site] = mean_values(
                    model, site, list(some), pairs.clean, pairs.roles, pairs.corrupted, theirs
                )

    def of(self, some: Sequence[int]) -> dict[tuple[Site, int], Tensor]:
        """(batch, pos, …) by site and layer, for some prompts; padding is arbitrary."""
        model, config = self.model, self.model.config
        wanted = [(site, layer) for site in _SITES for layer in range(config.n_layers)]
        wanted.append((Site.RESID_PRE, 0))
        if self.ablation == "zero":
            zero = torch.zeros((), dtype=model.dtype, device=model.device)
            return dict.fromkeys(wanted, zero)
        if self.ablation == "corrupted":
            tokens = self.pairs.corrupted[list(some)].to(model.device)
            trace = run(model, tokens, keep=[*_SITES, Site.RESID_PRE.at(0)])
            return {(site, layer): trace[site, layer] for site, layer in wanted}
        width = int(self.pairs.clean.lengths[list(some)].max())
        rows = torch.tensor(some)[:, None].expand(-1, width)
        ends = self.pairs.clean.lengths[list(some)][:, None] - 1
        positions = torch.minimum(torch.arange(width)[None].expand(len(some), -1), ends)
        return {
            (site, layer): self.means[site](site, layer, rows, positions) for site, layer in wanted
        }


class _Block:
    """Some prompts with their ablated activations."""

    def __init__(
        self, ablated: _Ablated, pairs: Pairs, metric: Contrast | Metric, some: list[int]
    ) -> None:
        self.model, self.some = ablated.model, some
        self.clean: Tokens = pairs.clean[some].to(self.model.device)
        self.ablated = ablated.of(some)
        self.readout = Readout(self.model, metric, len(some))

    def run(self, sets: Sequence[NodeSet]) -> Float[Tensor, "set batch"]:
        """The metric of each set, in one run of all sets' rows."""
        n, device = len(self.some), self.model.device
        rows = list(range(n)) * len(sets)
        edits = []
        for layer in range(self.model.config.n_layers):
            heads = np.stack([one.heads[layer] for one in sets])
            neurons = np.stack([one.neurons[layer] for one in sets])
            edits += self.edit(Site.Z, layer, heads[:, None, :, None], device)
            edits += self.edit(Site.MLP_POST, layer, neurons[:, None, :], device)
        embed = np.array([one.embed for one in sets])[:, None, None]
        edits += self.edit(Site.RESID_PRE, 0, embed, device)
        keep = Site.FINAL_RESID.at(last=True)
        trace = run(self.model, self.clean[rows], keep=keep, edit=edits)
        prompts = torch.tensor(rows, device=device)
        return self.readout(trace.lasts[Site.FINAL_RESID, None], prompts).view(len(sets), n)

    def edit(self, site: Site, layer: int, live: Mask, device: torch.device) -> list[Edit]:
        """Ablate a site where nodes are not live, (set, …); nothing where all are."""
        if live.all():
            return []
        mask = torch.tensor(live, device=device)[:, None]  # set 1 pos …
        value = self.ablated[site, layer]

        def put(x: Tensor) -> Tensor:
            by_set = x.view(len(mask), -1, *x.shape[1:])
            return torch.where(mask, by_set, value).view_as(x)

        return [Edit(site, layer, put)]
