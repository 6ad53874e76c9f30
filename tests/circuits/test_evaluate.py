"""Circuits: what any evaluation must satisfy, and that the fast way is the plain one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.circuits.agreement import agreement
from casestudy.circuits.by_edges import ByEdges
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.evaluate import Evaluator, evaluate_circuit
from casestudy.circuits.graph import Circuit, Graph, Receiver, Sender
from casestudy.circuits.paths import path_patch
from casestudy.engine.packing import Budget
from casestudy.errors import MeasureError, SiteError
from casestudy.measure.patching import Pairs
from casestudy.model.decoder import run
from tests.circuits.test_edge_scores import FAMILIES, pair_of, world
from tests.measure.worlds import contrast, decoder

ABLATIONS = ("corrupted", "mean", "zero")


def random_circuits(graph: Graph, shares: tuple[float, ...] = (0.05, 0.3, 0.8)) -> list[Circuit]:
    rng = np.random.default_rng(0)
    return [Circuit(graph, graph.real & (rng.random(graph.real.shape) < p)) for p in shares]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("variant", FAMILIES)
def test_every_circuit_equals_a_forward_pass_with_edited_inputs(
    variant: str, ablation: str
) -> None:
    model = world(variant)
    graph = Graph(model.config)
    circuits = [*random_circuits(graph), graph.full, graph.empty]
    found = evaluate_circuit(
        model,
        pair_of(),
        contrast(3),
        circuits,
        ablation=ablation,
        budget=Budget(check=1000),  # type: ignore[arg-type]
    )
    assert found.error["checked"] == len(set(found.circuits)) * 3
    assert found.error["gap"] < 1e-8
    full = run(model, pair_of().clean, logits="last").logits
    assert full is not None
    np.testing.assert_allclose(found.full, contrast(3).value(full).numpy(), atol=1e-9)
    assert len({tuple(row) for row in found.values.round(9).tolist()}) >= 4
    np.testing.assert_allclose(found.faithfulness[-2:], [1, 0], atol=1e-12)


@pytest.mark.parametrize("variant", ["gpt2", "neox", "llama", "olmo2"])
def test_the_model_without_nodes_equals_forward_passes_with_edited_inputs(variant: str) -> None:
    model = world(variant)
    graph = Graph(model.config)
    rng = np.random.default_rng(0)
    sets = [rng.choice(np.arange(1, len(graph.senders)), n, False).tolist() for n in (1, 1, 3, 8)]
    sets += [sets[0] + sets[1], [len(graph.senders) - 1]]
    circuits = [graph.full.without(some) for some in sets]
    for ablation in ("corrupted", "mean"):
        found = evaluate_circuit(
            model,
            pair_of(),
            contrast(3),
            circuits,
            ablation=ablation,  # type: ignore[arg-type]
            budget=Budget(check=1000),
        )
        assert found.error["gap"] < 1e-8
        assert len({tuple(row) for row in found.values.round(9).tolist()}) == len(sets)


@pytest.mark.parametrize("variant", ["llama", "olmo2"])
def test_what_circuits_share_is_computed_once_and_is_what_each_has_alone(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = world(variant)
    graph = Graph(model.config)
    (base,) = (circuit.pruned() for circuit in random_circuits(graph, (0.4,)))
    circuits = [base, *(base.without([i]) for i in range(1, len(graph.senders), 6))]
    computed: list[int] = []
    climb = ByEdges.climb

    def counted(self: ByEdges) -> torch.Tensor:
        found = climb(self)
        computed.append(self.filled)
        return found

    monkeypatch.setattr(ByEdges, "climb", counted)
    together = evaluate_circuit(model, pair_of(), contrast(3), circuits)
    shared, computed[:] = sum(computed), []
    alone = [evaluate_circuit(model, pair_of(), contrast(3), [c]).values[0] for c in circuits]
    np.testing.assert_allclose(together.values, alone, atol=1e-9)
    assert shared < 0.8 * sum(computed)


def test_what_an_evaluator_keeps_changes_no_value_and_stays_within_its_limit() -> None:
    model = world("gpt2")
    graph = Graph(model.config)
    circuits = random_circuits(graph)
    on = model, graph, pair_of(), contrast(3), "corrupted", 10**8
    keeping, forgetting = Evaluator(*on), Evaluator(*on)
    forgetting.most_kept = 0
    first = keeping.evaluate(circuits, Budget())
    assert 0 < sum(block.nbytes for block in keeping.kept.values()) <= 10**8 / 8
    again, other = (one.evaluate(circuits, Budget()) for one in (keeping, forgetting))
    assert not forgetting.kept
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.values, other.values)


def test_everything_corrupted_is_the_corrupted_run() -> None:
    model = world("gpt2")
    both, values = pair_of(), contrast(3)
    found = evaluate_circuit(model, both, values, [Graph(model.config).empty])
    corrupted = run(model, both.corrupted, logits="last").logits
    assert corrupted is not None
    np.testing.assert_allclose(found.empty, values.value(corrupted).numpy(), atol=1e-9)


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_neurons_as_nodes(variant: str) -> None:
    model = world(variant)
    graph = Graph(model.config, {0: (3, 8), 2: (0,)})
    found = evaluate_circuit(
        model, pair_of(), contrast(3), random_circuits(graph), budget=Budget(check=1000)
    )
    assert found.error["gap"] < 1e-8
    # with all their edges the neurons and the rest are the MLP again
    parts = [graph.full.without([i]) for i, s in enumerate(graph.senders) if str(s) == "head 1.0"]
    whole = Graph(model.config)
    same = [whole.full.without([i]) for i, s in enumerate(whole.senders) if str(s) == "head 1.0"]
    one = evaluate_circuit(model, pair_of(), contrast(3), parts).values
    two = evaluate_circuit(model, pair_of(), contrast(3), same).values
    np.testing.assert_allclose(one, two, atol=1e-9)


@pytest.mark.parametrize("variant", ["gpt2", "neox", "llama", "olmo2"])
def test_an_exact_edge_is_the_model_without_it(variant: str) -> None:
    """Noising one edge and evaluating the circuit of all the others are one experiment."""
    model = world(variant)
    graph = Graph(model.config)
    both, values = pair_of(), contrast(3)
    exact = patch_edges(model, both, values, direction="noising")
    names = graph.names()[::17]
    without = [Circuit(graph, graph.real & ~graph.mask([name])) for name in names]
    found = evaluate_circuit(model, both, values, without)
    expected = (found.full - found.values).mean(1)
    np.testing.assert_allclose([exact[name] for name in names], expected, atol=1e-9)
    assert exact.error["gap"] < 1e-9


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_exact_edges_are_direct_paths(direction: str) -> None:
    model = world("gpt2")
    both, values = pair_of(), contrast(3)
    exact = patch_edges(model, both, values, direction=direction)  # type: ignore[arg-type]
    receiver = Receiver("v", 2, 1)
    path = path_patch(
        model,
        both,
        values,
        receiver,
        mode="direct",
        direction=direction,  # type: ignore[arg-type]
    )
    change = (path.raw.values - path.baselines.values[0]).mean(1)
    sign = -1 if direction == "noising" else 1
    column = exact.graph.receivers.index(receiver)
    expected = exact.values[:, column][~np.isnan(exact.values[:, column])]
    np.testing.assert_allclose(sign * change, expected, atol=1e-9)


def test_exact_edges_of_a_shortlist_in_little_memory() -> None:
    model = world("gpt2")
    both, values = pair_of([6, 4, 7, 5] * 2), contrast(8)
    whole = patch_edges(model, both, values, direction="noising")
    names = [
        "embed->head 0.1<q>",
        "a0.h1->m2",  # MIB's spelling is read too
        "mlp 0->head 1.3<v>",
        "mlp 1->logits",
        "embed->logits",
    ]
    few = patch_edges(
        model, both, values, names, direction="noising", budget=Budget(memory=1_000_000)
    )
    assert int((~np.isnan(few.values)).sum()) == len(names)
    for name in names:
        assert abs(few[name] - whole[name]) < 1e-9
    rho, n = agreement(few.values, whole.values)
    assert (rho, n) == (pytest.approx(1), 5)


def test_values_do_not_depend_on_blocks() -> None:
    model = world("gpt2")
    both, values = pair_of([6, 4, 7, 5] * 4), contrast(16)
    circuits = random_circuits(Graph(model.config))
    whole = evaluate_circuit(model, both, values, circuits)
    small = evaluate_circuit(model, both, values, circuits, budget=Budget(memory=200_000))
    np.testing.assert_allclose(small.values, whole.values, atol=1e-9)
    mean, lower, upper = whole.interval()
    assert ((lower <= mean) & (mean <= upper)).all()


def test_float32_keeps_its_bound_and_bfloat16_promises_nothing() -> None:
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, None)):
        model = world("gpt2", dtype=dtype)
        found = evaluate_circuit(
            model, pair_of(), contrast(3), random_circuits(Graph(model.config))
        )
        assert found.error.get("bound") == bound
        assert bound is None or found.error["gap"] <= bound


# The graph itself.


def test_gpt2_small_has_its_edges() -> None:
    config = decoder("gpt2").config
    graph = Graph(replace(config, n_layers=12, n_heads=12, n_kv_heads=12, attn_scale=(1.0,) * 12))
    assert graph.n_edges == 32_491
    assert len(graph.senders) + 1 == 158  # nodes, the logits among them
    assert graph.name(1, graph.receivers.index(Receiver("k", 3, 2))) == "head 0.0->head 3.2<k>"


def test_parallel_blocks_and_grouped_queries_have_their_own_edges() -> None:
    parallel = Graph(decoder("neox").config)
    with pytest.raises(SiteError, match="no edge"):
        parallel.edge("head 0.1->mlp 0")
    assert parallel.edge("head 0.1->mlp 1")
    grouped = Graph(decoder("llama").config)
    assert "embed->kv_head 0.1<v>" in grouped.names()
    with pytest.raises(SiteError, match=r"kv_head 0.1<v>"):
        grouped.edge("embed->head 0.1<v>")
    # two heads read one key/value head; without one of them it stays
    heads = [i for i, s in enumerate(grouped.senders) if str(s) in ("head 1.0", "head 1.1")]
    left = grouped.full.without(heads[:1])
    assert grouped.edge("embed->kv_head 1.0<k>") in list(zip(*np.nonzero(left.mask), strict=True))
    gone = grouped.full.without(heads)
    assert not gone.mask[:, grouped.edge("embed->kv_head 1.0<k>")[1]].any()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    share=st.floats(0.005, 0.5),
    variant=st.sampled_from(["gpt2", "neox", "llama"]),
)
def test_pruning_keeps_exactly_what_lies_between(seed: int, share: float, variant: str) -> None:
    graph = Graph(decoder(variant).config)
    rng = np.random.default_rng(seed)
    circuit = Circuit(graph, graph.real & (rng.random(graph.real.shape) < share))
    pruned = circuit.pruned()
    assert not (pruned.mask & ~circuit.mask).any()
    assert pruned.pruned() == pruned
    # an edge survives if and only if a way from the embeddings to the logits uses it
    step = (circuit.mask.astype(int) @ graph.feeds.astype(int)) > 0  # sender to sender
    reach = np.linalg.matrix_power((step + np.eye(len(step))).astype(float), len(step)) > 0
    forward = reach[0]  # from the embeddings
    ends = circuit.mask[:, -1]
    backward = (reach & ends[None]).any(1)
    useful = (graph.feeds & backward[None]).any(1)
    useful[-1] = True
    expected = circuit.mask & forward[:, None] & useful[None]
    np.testing.assert_array_equal(pruned.mask, expected)


def test_top_and_greedy_take_what_they_say() -> None:
    graph = Graph(decoder("gpt2").config)
    scores = np.where(graph.real, np.random.default_rng(1).normal(size=graph.real.shape), np.nan)
    top = graph.top(scores, 10)
    inside, outside = np.abs(scores[top.mask]), np.abs(scores[graph.real & ~top.mask])
    assert inside.min() >= outside.max()
    signed = graph.top(scores, 10, "signed")
    assert scores[signed.mask].min() >= scores[graph.real & ~signed.mask].max()
    assert signed != top
    greedy = graph.greedy(scores, 25)
    assert greedy.n_edges == 25
    # from the logits backwards every sender's own inputs may be open, never a stranger's
    reached = {"logits"}
    for _ in range(len(graph.senders)):
        for s, r in zip(*np.nonzero(greedy.mask), strict=True):
            if graph.receivers[r].node in reached:
                reached.add(str(graph.senders[s]))
    assert {edge.split("->")[0] for edge in greedy.edges} <= reached
    assert graph.greedy(scores, graph.n_edges).n_edges == graph.n_edges


def test_random_controls_are_connected_and_of_the_size_asked_for() -> None:
    graph = Graph(decoder("gpt2").config)
    for n in (5, 40, 200):
        control = graph.random(n, seed=3)
        assert control == control.pruned()
        assert n <= control.n_edges <= n + 30
    assert graph.random(40, 1) != graph.random(40, 2)
    assert graph.random(40, 1) == graph.random(40, 1)


def test_importances_in_the_form_of_mib() -> None:
    model = world("gpt2")
    graph = Graph(model.config)
    scores = patch_edges(model, pair_of(), contrast(3), direction="noising")
    circuit = graph.top(scores.values, 20).pruned()
    found = circuit.importances(scores.values)
    assert set(found) == {"cfg", "nodes", "edges"}
    assert found["cfg"] == {"n_layers": 3, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 8}
    assert len(found["edges"]) == graph.n_edges
    assert found["edges"]["input->a0.h1<q>"]["score"] == scores["embed->head 0.1<q>"]
    assert sum(edge["in_graph"] for edge in found["edges"].values()) == circuit.n_edges
    assert set(found["nodes"]) == {"input", "logits", *(s.component.mib for s in graph.senders[1:])}
    few = patch_edges(model, pair_of(), contrast(3), ["mlp 0->logits"], direction="noising")
    with pytest.raises(MeasureError, match="without a score"):
        circuit.importances(few.values)
    # grouped queries: once per head
    llama = Graph(decoder("llama").config)
    table = llama.full.importances(np.where(llama.real, 1.0, np.nan))
    assert len(table["edges"]) == graph.n_edges
    assert "input->a0.h3<k>" in table["edges"]


def test_bad_input_is_named() -> None:
    model = world("gpt2")
    graph = Graph(model.config)
    both, values = pair_of(), contrast(3)
    with pytest.raises(MeasureError, match="no circuit"):
        evaluate_circuit(model, both, values, [])
    with pytest.raises(MeasureError, match="another model"):
        evaluate_circuit(world("llama"), both, values, [graph.full])
    with pytest.raises(MeasureError, match="different graphs"):
        evaluate_circuit(model, both, values, [graph.full, Graph(model.config, {0: (1,)}).full])
    with pytest.raises(MeasureError, match="identical"):
        evaluate_circuit(model, Pairs(both.clean, both.clean), values, [graph.full])
    with pytest.raises(SiteError, match=r"Did you mean .*head 0.1<q>"):
        graph.circuit(["embed->head 0.1<p>"])
    with pytest.raises(SiteError, match="neurons"):
        Graph(model.config, {0: (99,)})
    with pytest.raises(SiteError, match="no node"):
        graph.node("head 9.9")
    with pytest.raises(MeasureError, match="another model"):
        graph.top(np.zeros((2, 2)), 1)
    with pytest.raises(SiteError, match="neuron"):
        path_patch(model, both, values, Receiver("neuron", 0, neuron=1))
    with pytest.raises(SiteError, match="neuron"):
        path_patch(model, both, values, senders=[Sender("neuron", 0, neuron=1)])
