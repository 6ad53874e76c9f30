"""Parts that run at the same time give what they give one after another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import attribute_edges
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.graph import Graph
from casestudy.circuits.node_sets import NodeSet, evaluate_nodes
from casestudy.engine.cells import Cell, Place
from casestudy.engine.packing import Budget, Progress
from casestudy.engine.sweep import Sweep, sweep
from casestudy.engine.workers import allowed, at_once, cores_set, mapped, together
from casestudy.errors import MeasureError
from casestudy.model.sites import Site
from tests.circuits.test_edge_scores import pair_of, world
from tests.circuits.test_evaluate import random_circuits
from tests.measure.worlds import contrast

CPU = torch.device("cpu")
LENGTHS = [6, 4, 7, 5, 7, 3]


def counted(n: int, fails_at: int | None = None) -> Iterator[int]:
    for i in range(n):
        if i == fails_at:
            raise MeasureError(f"item {i} of {n}")
        yield i


@given(st.lists(st.integers(0, 6), max_size=8), st.integers(1, 4))
def test_every_item_is_yielded_once_and_a_parts_own_in_order(
    sizes: list[int], workers: int
) -> None:
    found: dict[int, list[int]] = {number: [] for number in range(len(sizes))}
    for number, item in together([partial(counted, n) for n in sizes], workers):
        found[number].append(item)
    assert list(found.values()) == [list(range(n)) for n in sizes]


@given(st.lists(st.integers(0, 100), max_size=8), st.integers(1, 4))
def test_values_come_in_the_order_of_what_was_given(given_: list[int], workers: int) -> None:
    assert list(mapped(lambda n: n * n, given_, workers)) == [n * n for n in given_]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 4))
def test_the_error_is_that_of_the_first_part_that_fails(fails: list[bool], workers: int) -> None:
    parts = [partial(counted, 3 + i, 2 if bad else None) for i, bad in enumerate(fails)]
    if not any(fails):
        assert len(list(together(parts, workers))) == sum(3 + i for i in range(len(fails)))
        return
    with pytest.raises(MeasureError, match=f"item 2 of {3 + fails.index(True)}\\."):
        list(together(parts, workers))


def test_a_caller_that_stops_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with contextlib.closing(together([partial(counted, 10**6)] * 4, 3)) as items:
        assert next(items)[1] == 0
    assert threading.active_count() == before


def test_parts_run_in_other_threads_with_the_callers_gradients_and_a_share_of_the_cores() -> None:
    def part() -> Iterator[tuple[int, bool, int, int]]:
        yield threading.get_ident(), torch.is_grad_enabled(), allowed(), torch.get_num_threads()

    with cores_set(7), torch.no_grad():
        assert allowed() == 7
        assert at_once(CPU, 3) == 3
        assert at_once(CPU, 30) == 7
        assert at_once(torch.device("meta"), 30) == 1
        found = [item for _, item in together([part] * 3, 3)]
    assert allowed() == torch.get_num_threads()
    assert threading.get_ident() not in {thread for thread, *_ in found}
    assert {rest for _, *rest in map(tuple, found) for rest in [tuple(rest)]} == {(False, 2, 1)}


def test_a_sweep_is_the_same_and_tells_its_progress_in_the_callers_thread() -> None:
    model, both = world("llama"), pair_of(LENGTHS)
    cells = [
        Cell(site, layer, Place.everywhere(both.clean))
        for site in (Site.RESID_PRE, Site.Z, Site.MLP_OUT)
        for layer in range(model.config.n_layers)
    ]
    on = model, both.corrupted, both.clean, cells, contrast(len(LENGTHS))
    alone = sweep(*on, budget=Budget(check=1000))
    told: list[tuple[int, int]] = []
    seen: list[int] = []

    def tell(progress: Progress) -> None:
        told.append((threading.get_ident(), progress.done))

    def watch(so_far: Sweep) -> None:
        seen.append(int(np.isfinite(so_far.values).sum()))

    with cores_set(3):
        found = sweep(*on, budget=Budget(check=1000), progress=tell, watch=watch)
    assert len(found.plan.blocks) >= 3
    np.testing.assert_allclose(found.values, alone.values, atol=1e-12)
    np.testing.assert_array_equal(found.known, alone.known)
    np.testing.assert_allclose(found.base, alone.base, atol=1e-12)
    assert found.error["checked"] == alone.error["checked"]
    assert found.error["gap"] < 1e-9
    assert found.plan.operations == alone.plan.operations
    assert {thread for thread, _ in told} == {threading.get_ident()}
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[-1][1] == found.values.size
    assert seen == sorted(seen)


def test_a_small_memory_takes_fewer_workers_instead_of_failing() -> None:
    model, both = world("gpt2"), pair_of(LENGTHS)
    cells = [Cell(Site.MLP_OUT, 1, Place.everywhere(both.clean))]
    on = model, both.corrupted, both.clean, cells, contrast(len(LENGTHS))
    memory = 1 << 20
    while True:  # down to the least that one thread can do with
        try:
            alone = sweep(*on, budget=Budget(memory=memory // 2))
        except MeasureError:
            break
        memory //= 2
    alone = sweep(*on, budget=Budget(memory=memory))
    with cores_set(4):
        found = sweep(*on, budget=Budget(memory=memory))
    np.testing.assert_allclose(found.values, alone.values, atol=1e-12)


@pytest.mark.parametrize("ablation", ["corrupted", "mean"])
@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_circuits_edges_and_sets_of_nodes_are_the_same(variant: str, ablation: str) -> None:
    model, both, values = world(variant), pair_of(LENGTHS), contrast(len(LENGTHS))
    graph = Graph(model.config)
    circuits = [*random_circuits(graph), graph.full, graph.empty, graph.full.without([1, 4])]

    def measured() -> list[np.ndarray]:
        budget = Budget(check=1000)
        found = evaluate_circuit(
            model,
            both,
            values,
            circuits,
            ablation=ablation,
            budget=budget,  # type: ignore[arg-type]
        )
        assert found.error["gap"] < 1e-8
        scores = attribute_edges(model, both, values, direction="noising")
        exact = patch_edges(model, both, values, graph.names(graph.real)[::7], budget=budget)
        whole = NodeSet.of(model.config, True)
        fewer = replace(whole, heads=whole.heads & (np.indices(whole.heads.shape).sum(0) % 2 == 0))
        nodes = evaluate_nodes(model, both, values, [whole, fewer])
        edges = [scores.values, scores.clean, exact.values, exact.corrupted]
        return [found.values, *edges, nodes.values]

    alone = measured()
    with cores_set(3):
        again = measured()
    for one, other in zip(alone, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)
