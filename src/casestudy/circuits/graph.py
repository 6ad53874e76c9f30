"""Which components of a model read which others, and which of these edges form a circuit?

The computation graph of the circuits papers: nodes are the embeddings, every head, every MLP (or
chosen neurons of one) and the logits. An edge runs from a node's output to a later node's input
through the residual stream; a head has three inputs, q, k and v, the latter two shared where
queries are grouped. GPT-2 small has 32,491 edges. A `Circuit` is a subset of them.

Names are those of `results/components` ("head 3.2", "mlp 4", "head 0.1->head 3.2<q>"); MIB's are
also accepted, and are written only in importances.json. Assumes nothing about weights; needs no
torch. Cost: a table of senders by receivers.
Sources: Elhage et al. 2021 (the stream as a sum); Hanna et al. 2024, "Have Faith in Faithfulness"
(greedy growth, pruning); Mueller et al. 2025, "MIB".
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from casestudy.errors import MeasureError, SiteError, unknown
from casestudy.model.config import ModelConfig, mlp_after_attention
from casestudy.model.sites import check_layer
from casestudy.results.components import Component, respelled

Mask = NDArray[np.bool_]
"""(sender, receiver): True at the chosen edges."""

Scores = NDArray[np.float64]
"""(sender, receiver): a score per edge; NaN if there is no edge or it was not measured."""

Rank = Literal["absolute", "signed"]
"""Rank by absolute or by signed score. The two give different circuits."""


@dataclass(frozen=True)
class Sender:
    """A node that writes into the residual stream.

    Attributes:
        kind: "embed" is the sum of token and position embeddings; an "mlp" of which some neurons
            are nodes is the rest of the MLP, with its bias.
        layer: None for the embeddings.
        head: its index, for a head.
        neuron: its index, for a neuron.
    """

    kind: Literal["embed", "head", "mlp", "neuron"]
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None

    @property
    def component(self) -> Component:
        """The component, for its spelling."""
        return Component(self.kind, self.layer, self.neuron if self.head is None else self.head)

    def __str__(self) -> str:
        """The node's name in an edge: "head 3.1"."""
        return str(self.component)


@dataclass(frozen=True)
class Receiver:
    """A node's input that reads the residual stream.

    Attributes:
        kind: the query, key or value of a head, an MLP's or a neuron's input, or the final residual
            stream for the logits.
        layer: None for the logits.
        head: for q; for k and v the key/value head, which grouped queries share.
        neuron: of a neuron.
        shared: whether several heads share this key/value head.
    """

    kind: Literal["q", "k", "v", "mlp", "neuron", "logits"]
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None
    shared: bool = False

    @property
    def component(self) -> Component:
        """The component, for its spelling; a shared key/value head is a kv_head."""
        if self.kind in ("logits", "mlp", "neuron"):
            return Component(self.kind, self.layer, self.neuron)
        return Component("kv_head" if self.shared else "head", self.layer, self.head, self.kind)

    def __str__(self) -> str:
        """The node's name with its input: "head 3.2<q>"."""
        return str(self.component)

    @property
    def node(self) -> str:
        """The node's name without its input: "head 3.2"."""
        return str(replace(self.component, side=""))


LOGITS = Receiver("logits")


def checked_receiver(config: ModelConfig, receiver: Receiver) -> Receiver:
    """The receiver with its layer counted from the start.

    Raises: SiteError if the model does not have it.
    """
    if receiver.kind == "logits":
        return LOGITS
    if receiver.layer is None:
        raise SiteError(f"the receiver {receiver.kind} names no layer")
    layer = check_layer(receiver.layer, config.n_layers)
    if receiver.kind in ("mlp", "neuron"):
        return replace(receiver, layer=layer)
    count = config.n_heads if receiver.kind == "q" else config.n_kv_heads
    if receiver.head is None or not 0 <= receiver.head < count:
        raise SiteError(f"head {receiver.head} of {receiver.kind}", allowed=f"0 to {count - 1}")
    shared = receiver.kind != "q" and config.n_kv_heads < config.n_heads
    return replace(receiver, layer=layer, shared=shared)


def reaches(config: ModelConfig, sender: Sender, receiver: Receiver) -> bool:
    """Whether the receiver reads the sender's output from the residual stream.

    Raises: SiteError if the model does not have the sender.
    """
    if sender.kind == "embed":
        return True
    if sender.layer is None or not 0 <= sender.layer < config.n_layers:
        raise SiteError(f"layer {sender.layer}", allowed=f"0 to {config.n_layers - 1}")
    if sender.kind == "head" and (sender.head is None or not 0 <= sender.head < config.n_heads):
        raise SiteError(f"head {sender.head}", allowed=f"0 to {config.n_heads - 1}")
    if receiver.layer is None:
        return True
    at_mlp = receiver.kind in ("mlp", "neuron")
    in_its_layer = at_mlp and sender.kind == "head" and mlp_after_attention(config)
    return sender.layer < receiver.layer or (in_its_layer and sender.layer == receiver.layer)


def senders_before(config: ModelConfig, receiver: Receiver) -> tuple[Sender, ...]:
    """All senders that the receiver reads: embeddings, heads and MLPs, layer by layer."""
    receiver = checked_receiver(config, receiver)
    return tuple(s for s in Graph(config).senders if reaches(config, s, receiver))


@dataclass(frozen=True)
class Graph:
    """A model's nodes and edges.

    Attributes:
        config: the model's shape.
        neurons: by layer, the neurons of its MLP that are nodes of their own.

    Raises: SiteError for neurons the model does not have.
    """

    config: ModelConfig
    neurons: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer, chosen in self.neurons.items():
            check_layer(layer, self.config.n_layers)
            wrong = [n for n in chosen if not 0 <= n < self.config.d_mlp]
            if wrong or len(set(chosen)) != len(chosen):
                raise SiteError(
                    f"neurons {list(chosen)} of layer {layer}",
                    allowed=f"different ones from 0 to {self.config.d_mlp - 1}",
                )

    @cached_property
    def senders(self) -> tuple[Sender, ...]:
        """All senders: embeddings, then layer by layer heads, chosen neurons and the MLP."""
        found = [Sender("embed")]
        for layer in range(self.config.n_layers):
            found += [Sender("head", layer, head) for head in range(self.config.n_heads)]
            found += [Sender("neuron", layer, neuron=n) for n in self.neurons.get(layer, ())]
            found.append(Sender("mlp", layer))
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """All receivers: layer by layer q, k, v, chosen neurons and the MLP; then the logits."""
        config, found = self.config, []
        shared = config.n_kv_heads < config.n_heads
        for layer in range(config.n_layers):
            found += [Receiver("q", layer, head) for head in range(config.n_heads)]
            for kind in ("k", "v"):
                heads = range(config.n_kv_heads)
                found += [Receiver(kind, layer, head, shared=shared) for head in heads]
            found += [Receiver("neuron", layer, neuron=n) for n in self.neurons.get(layer, ())]
            found.append(Receiver("mlp", layer))
        return (*found, LOGITS)

    @cached_property
    def real(self) -> Mask:
        """(sender, receiver): True for an edge. A receiver reads the first `limit` senders."""
        limits = [self.limit(receiver) for receiver in self.receivers]
        return np.asarray(np.arange(len(self.senders))[:, None] < np.array(limits)[None])

    def limit(self, receiver: Receiver) -> int:
        """The number of senders, from the first, that a receiver reads."""
        if receiver.layer is None:
            return len(self.senders)
        if receiver.kind in ("mlp", "neuron") and mlp_after_attention(self.config):
            return self.first_sender(receiver.layer) + self.config.n_heads
        return self.first_sender(receiver.layer)

    def first_sender(self, layer: int) -> int:
        """The index of a layer's first sender; the order is heads, neurons, MLP."""
        before = sum(len(self.neurons.get(i, ())) for i in range(layer))
        return 1 + layer * (self.config.n_heads + 1) + before

    def first_receiver(self, layer: int) -> int:
        """The index of a layer's first receiver; the order is q, k, v, neurons, MLP."""
        before = sum(len(self.neurons.get(i, ())) for i in range(layer))
        return layer * (self.config.n_heads + 2 * self.config.n_kv_heads + 1) + before

    @cached_property
    def feeds(self) -> Mask:
        """(receiver, sender): whether the receiver is an input of the sender's node."""
        found = np.zeros((len(self.receivers), len(self.senders)), dtype=bool)
        place = {sender: i for i, sender in enumerate(self.senders)}
        group = self.config.n_heads // self.config.n_kv_heads
        for r, receiver in enumerate(self.receivers):
            match receiver.kind:
                case "logits":
                    continue
                case "mlp":
                    found[r, place[Sender("mlp", receiver.layer)]] = True
                case "neuron":
                    found[r, place[Sender("neuron", receiver.layer, None, receiver.neuron)]] = True
                case _:
                    assert receiver.head is not None
                    heads = [receiver.head]
                    if receiver.shared:
                        heads = list(range(receiver.head * group, (receiver.head + 1) * group))
                    for head in heads:
                        found[r, place[Sender("head", receiver.layer, head)]] = True
        return found

    @cached_property
    def inputs(self) -> tuple[NDArray[np.int64], ...]:
        """Of each sender's node, the receivers that are its inputs."""
        return tuple(np.flatnonzero(column) for column in self.feeds.T)

    @property
    def n_edges(self) -> int:
        """The number of edges."""
        return int(self.real.sum())

    @cached_property
    def _place(self) -> dict[str, tuple[int, int]]:
        places = zip(*np.nonzero(self.real), strict=True)
        return {self.name(int(s), int(r)): (int(s), int(r)) for s, r in places}

    def name(self, sender: int, receiver: int) -> str:
        """An edge's name: "head 0.1->head 3.2<q>"."""
        return f"{self.senders[sender]}->{self.receivers[receiver]}"

    def names(self, mask: Mask | None = None) -> list[str]:
        """The names of some edges (all by default), sender by sender."""
        where = np.nonzero(self.real if mask is None else mask)
        return [self.name(int(s), int(r)) for s, r in zip(*where, strict=True)]

    def edge(self, name: str) -> tuple[int, int]:
        """The (sender, receiver) of an edge's name, in this spelling or MIB's.

        Raises: SiteError with the most similar names.
        """
        spelled = respelled(name)
        if spelled not in self._place:
            described = "sender->receiver, as embed->head 0.1<q>, head 0.1->mlp 3 or mlp 5->logits"
            came = f"this model has no edge {name!r}"
            raise unknown(SiteError, came, spelled, self._place, described=described)
        return self._place[spelled]

    def node(self, name: str) -> int:
        """The sender of a node's name, in this spelling or MIB's.

        Raises: SiteError listing the kinds of names.
        """
        spelled = respelled(name)
        for i, sender in enumerate(self.senders):
            if str(sender) == spelled:
                return i
        layers, heads = self.config.n_layers - 1, self.config.n_heads - 1
        raise SiteError(
            f"this model has no node {name!r}",
            allowed=f"embed, head 0.0 to head {layers}.{heads}, mlp 0 to mlp {layers}",
        )

    def mask(self, names: Iterable[str]) -> Mask:
        """The edges of these names.

        Raises: SiteError for one the model does not have.
        """
        found = np.zeros_like(self.real)
        for name in names:
            found[self.edge(name)] = True
        return found

    # Circuits.

    @property
    def full(self) -> Circuit:
        """Every edge: the model itself."""
        return Circuit(self, self.real)

    @property
    def empty(self) -> Circuit:
        """No edge: everything ablated."""
        return Circuit(self, np.zeros_like(self.real))

    def circuit(self, names: Iterable[str]) -> Circuit:
        """A circuit from its edges' names.

        Raises: SiteError for an edge the model does not have.
        """
        return Circuit(self, self.mask(names))

    def order(self, scores: Scores, rank: Rank = "absolute") -> NDArray[np.int64]:
        """Measured edges as indices of the flattened table, largest score first."""
        if scores.shape != self.real.shape:
            raise MeasureError(
                f"scores {scores.shape} for {self.real.shape} senders and receivers",
                hint="Were they made for another model or another choice of neurons?",
            )
        flat = np.abs(scores).ravel() if rank == "absolute" else scores.ravel()
        there = np.flatnonzero(self.real.ravel() & ~np.isnan(flat))
        return np.asarray(there[np.argsort(-flat[there], kind="stable")], dtype=np.int64)

    def top(self, scores: Scores, n: int, rank: Rank = "absolute") -> Circuit:
        """The n edges with the largest scores; some may lead nowhere (see `pruned`)."""
        return self.prefix(self.order(scores, rank), n)

    def greedy(self, scores: Scores, n: int, rank: Rank = "absolute") -> Circuit:
        """Grow a circuit from the logits: add the largest edge into one of its nodes, n times.

        Every edge leads to the logits, but not every node is reached from the embeddings (see
        `pruned`).
        Source: Hanna et al. 2024, section 3.
        """
        return self.prefix(self.greedy_order(scores, rank), n)

    def greedy_order(self, scores: Scores, rank: Rank = "absolute") -> NDArray[np.int64]:
        """The order in which greedy growth adds edges."""
        return np.fromiter(self._grown(scores, rank), dtype=np.int64)

    def _grown(self, scores: Scores, rank: Rank = "absolute") -> Iterator[int]:
        """The edges that greedy growth adds, one by one."""
        n_receivers = len(self.receivers)
        order = self.order(scores, rank)
        place = np.full(self.real.shape, -1)  # rank in the order; -1 if not measured
        place.ravel()[order] = np.arange(len(order))
        closed_receivers, closed = set(range(n_receivers)), set(range(len(self.senders)))
        queue: list[int] = []

        def join(receivers: Iterable[int]) -> None:
            for r in receivers:
                if r in closed_receivers:
                    closed_receivers.remove(r)
                    for rank in place[place[:, r] >= 0, r].tolist():
                        heapq.heappush(queue, rank)

        join([n_receivers - 1])
        edges = order.tolist()
        while queue:
            edge = edges[heapq.heappop(queue)]
            yield edge
            sender = edge // n_receivers
            if sender in closed:
                closed.remove(sender)
                join(self.inputs[sender].tolist())

    def random(self, n: int, seed: int) -> Circuit:
        """A circuit of n edges, grown greedily by random scores and pruned.

        A control for circuits of the same size. Edges drawn at random would hardly be connected.
        Growth continues until at least n edges are left after pruning.
        """
        grown = self._grown(np.random.default_rng(seed).random(self.real.shape))
        order: list[int] = []

        def pruned(size: int) -> Circuit:
            return self.prefix(np.array(order[:size], dtype=np.int64), size).pruned()

        # The pruned size grows with the prefix: first far enough, then back to the smallest.
        low = n
        while len(order) < n or pruned(len(order)).n_edges < n:
            low = len(order) + 1
            more = list(islice(grown, max(n - len(order), n // 4, 1)))
            if not more:
                return pruned(len(order))
            order += more
        sizes = range(max(n, low), len(order) + 1)
        smallest = bisect_left(sizes, n, key=lambda size: pruned(size).n_edges)
        return pruned(sizes[smallest])

    def prefix(self, order: NDArray[np.int64], n: int) -> Circuit:
        """The circuit of the first n edges of an order."""
        mask = np.zeros(self.real.size, dtype=bool)
        mask[order[:n]] = True
        return Circuit(self, mask.reshape(self.real.shape))


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some of a graph's edges.

    Attributes:
        graph: the model's.
        mask: (sender, receiver).

    Raises: MeasureError for a mask of another graph.
    """

    graph: Graph
    mask: Mask

    def __post_init__(self) -> None:
        if self.mask.shape != self.graph.real.shape or (self.mask & ~self.graph.real).any():
            raise MeasureError("a mask with edges that the graph does not have")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and bool(np.array_equal(self.mask, other.mask))

    def __hash__(self) -> int:
        return hash(self.mask.tobytes())

    def __repr__(self) -> str:
        return f"Circuit({self.n_edges} of {self.graph.n_edges} edges, {len(self.nodes)} nodes)"

    @property
    def n_edges(self) -> int:
        """The number of its edges."""
        return int(self.mask.sum())

    @property
    def edges(self) -> list[str]:
        """Their names."""
        return self.graph.names(self.mask)

    @property
    def senders(self) -> Mask:
        """(sender,): True for senders with an outgoing edge."""
        return np.asarray(self.mask.any(1))

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes with an edge, without the logits."""
        entered = self.graph.feeds[self.mask.any(0)].any(0)
        there = np.flatnonzero(np.logical_or(self.senders, entered))
        return [str(self.graph.senders[i]) for i in there]

    def pruned(self) -> Circuit:
        """Without edges that lead nowhere: each node is on a path from embeddings to logits.

        A path may enter a head through any of its inputs.
        """
        graph, mask = self.graph, self.mask.copy()
        entering = mask.sum(0)  # edges by receiver
        for s in np.flatnonzero(mask.any(1)).tolist():  # in the order they are computed
            if s and not entering[graph.inputs[s]].any():
                entering -= mask[s]
                mask[s] = False
        useful = np.zeros(len(graph.receivers), dtype=bool)
        useful[-1] = True
        for s in np.flatnonzero(mask.any(1))[::-1].tolist():
            mask[s] &= useful
            if s and mask[s].any():
                useful[graph.inputs[s]] = True
        mask[0] &= useful
        mask &= useful[None]
        return Circuit(graph, mask)

    def without(self, nodes: Sequence[int]) -> Circuit:
        """Without the edges of these senders; edges into keys and values that another head of the
        circuit shares stay."""
        mask = self.mask.copy()
        mask[list(nodes)] = False
        gone = np.zeros(len(self.graph.senders), dtype=bool)
        gone[list(nodes)] = True
        feeds = self.graph.feeds
        closed = feeds[:, gone].any(1) & ~feeds[:, ~gone].any(1)
        mask[:, closed] = False
        return Circuit(self.graph, mask)

    def overlap(self, other: Circuit) -> float:
        """Shared edges over all edges of the two (Jaccard); NaN for two empty circuits."""
        union = int((self.mask | other.mask).sum())
        return int((self.mask & other.mask).sum()) / union if union else float("nan")

    def importances(self, scores: Scores) -> dict[str, Any]:
        """The content of MIB's importances.json: every edge with its score, and whether it is in
        the circuit.

        The format has no neurons. Keys and values that several heads share are written once per
        head, as in MIB.

        Raises: MeasureError for a graph with neurons, or for scores that leave edges out.
        """
        graph, config = self.graph, self.graph.config
        if any(graph.neurons.values()):
            raise MeasureError("a circuit with neurons", allowed="heads and MLPs in this format")
        if np.isnan(scores[graph.real]).any():
            raise MeasureError("edges without a score", allowed="a score for every edge")
        inside = set(self.nodes) | {"logits"}
        nodes = {sender.component.mib: str(sender) in inside for sender in graph.senders}
        nodes["logits"] = True
        group = config.n_heads // config.n_kv_heads
        edges: dict[str, Any] = {}
        for s, r in zip(*np.nonzero(graph.real), strict=True):
            sender, receiver = graph.senders[s], graph.receivers[r]
            targets = [receiver.component]
            if receiver.shared and receiver.head is not None:
                heads = range(receiver.head * group, (receiver.head + 1) * group)
                targets = [replace(receiver.component, kind="head", index=h) for h in heads]
            for target in targets:
                edges[f"{sender.component.mib}->{target.mib}"] = {
                    "score": float(scores[s, r]),
                    "in_graph": bool(self.mask[s, r]),
                }
        return {
            "cfg": {
                "n_layers": config.n_layers,
                "n_heads": config.n_heads,
                "parallel_attn_mlp": config.parallel,
                "d_model": config.d_model,
            },
            "nodes": {name: {"in_graph": there} for name, there in nodes.items()},
            "edges": edges,
        }
