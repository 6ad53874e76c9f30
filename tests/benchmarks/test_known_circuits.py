"""Do the hand-made models do what they say, by the edges they say?

Everything about edges is checked against `by_hand`, a plain graph that shares nothing with the
measurements.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import combinations

import pytest
import torch
from benchmarks.known_circuits import (
    KNOWN,
    KnownCircuit,
    backup_head,
    cancelling_heads,
    decoy_head,
    threshold_decoy,
)
from torch import Tensor

import casestudy as cs
from casestudy.errors import BehaviourError, MeasureError
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from tests.measure import by_hand

pytestmark = pytest.mark.slow

EXACT = 1e-12  # float64, sums of a few dozen terms of size 10
FIRST, SECOND = (0, 0), (1, 0)
CANCELLING = {f"embed->head 0.{h}<v>" for h in (1, 2)} | {f"head 0.{h}->logits" for h in (1, 2)}


@cache
def circuit(name: str) -> KnownCircuit:
    return KNOWN[name]()


@cache
def effects(name: str) -> dict[str, float]:
    return by_hand.effects(circuit(name))


@cache
def whole(name: str) -> float:
    """How far apart clean and corrupted prompts are, on average."""
    known = circuit(name)
    clean, corrupted = (value(known, side) for side in (known.pairs.clean, known.pairs.corrupted))
    return float((clean - corrupted).mean())


def value(known: KnownCircuit, tokens: Tokens, silent: Iterable[tuple[int, int]] = ()) -> Tensor:
    """The contrast, with some heads silent."""
    edits = [Edit.zero("z", layer, head=head) for layer, head in silent]
    logits = run(known.model, tokens, logits="last", edit=edits).logits
    assert logits is not None
    return known.contrast.value(logits)


def corrupting(known: KnownCircuit, edges: Iterable[str]) -> float:
    """The mean difference where these edges carry what the corrupted run wrote."""
    theirs, _, _ = by_hand.forward(known.model, known.pairs.corrupted.ids)
    carried = {edge: theirs[edge.split("->")[0]] for edge in edges}
    _, _, logits = by_hand.forward(known.model, known.pairs.clean.ids, carried)
    return float(by_hand.difference(known, logits).mean())


def some_of(edges: Iterable[str], *, at_least: int = 0) -> list[frozenset[str]]:
    """Every subset of so many edges."""
    known = sorted(edges)
    sizes = range(at_least, len(known) + 1)
    return [frozenset(some) for k in sizes for some in combinations(known, k)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", KNOWN)
def test_known_circuit_answers_right(name: str, seed: int) -> None:
    known = KNOWN[name](40, seed=seed)
    for tokens, right in zip((known.pairs.clean, known.pairs.corrupted), (0, 1), strict=True):
        logits = run(known.model, tokens, logits="last").logits
        assert logits is not None
        assert logits.argmax(1).tolist() == known.contrast.ids[:, right].tolist()


@pytest.mark.parametrize("name", KNOWN)
def test_known_circuit_pairs_are_aligned_and_drawn_by_seed(name: str) -> None:
    known, again, other = KNOWN[name](), KNOWN[name](), KNOWN[name](seed=1)
    assert known.behaviour == again.behaviour
    assert known.model.weight_hash == again.model.weight_hash
    assert known.behaviour != other.behaviour
    assert known.model.weight_hash != other.model.weight_hash
    assert known.pairs.clean.lengths.equal(known.pairs.corrupted.lengths)
    assert len(set(known.pairs.clean.lengths.tolist())) > 1, "prompts of one length are easy"
    assert (known.pairs.clean.ids != known.pairs.corrupted.ids).any(1).all()
    with pytest.raises(BehaviourError, match="no prompts"):
        KNOWN[name](0)


@pytest.mark.parametrize("name", KNOWN)
def test_known_circuit_runs_by_hand_to_the_same_logits(name: str) -> None:
    known = circuit(name)
    _, _, by_edge = by_hand.forward(known.model, known.pairs.clean.ids)
    logits = run(known.model, known.pairs.clean, logits="all").logits
    assert logits is not None
    torch.testing.assert_close(by_edge, logits, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", KNOWN)
def test_known_circuit_edges_exist(name: str) -> None:
    known = circuit(name)
    assert known.necessary <= known.edges <= set(by_hand.edges(known.model))


@pytest.mark.parametrize("name", KNOWN)
def test_known_circuit_necessary_edges_each_undo_the_behaviour(name: str) -> None:
    """A third of the way and more; no other edge as much as a tenth, but for those that cancel."""
    necessary = circuit(name).necessary
    for edge, effect in effects(name).items():
        if name == "cancelling_heads" and edge in CANCELLING:
            assert abs(effect) > whole(name), edge
        elif edge in necessary:
            assert effect < -whole(name) / 3, edge
        else:
            assert effect > -whole(name) / 10, edge


@pytest.mark.parametrize("name", KNOWN)
def test_known_circuit_is_enough_and_all_of_it_matters(name: str) -> None:
    """The circuit alone answers; each edge matters, where not alone then besides others."""
    known, clean = circuit(name), float(value(circuit(name), circuit(name).pairs.clean).mean())
    others = set(by_hand.edges(known.model)) - known.edges
    assert corrupting(known, others) == pytest.approx(clean, abs=whole(name) / 10)
    assert corrupting(known, known.edges) < clean - 0.9 * whole(name)

    doubtful = sorted(known.edges - known.necessary)
    if not doubtful:  # no part of it does
        for left_out in some_of(known.edges, at_least=1):
            assert corrupting(known, others | left_out) < clean - whole(name) / 3, left_out
    left = {subset: corrupting(known, subset) for subset in some_of(doubtful)}
    for edge in doubtful:
        steps = [abs(left[some | {edge}] - at) for some, at in left.items() if edge not in some]
        assert max(steps) > whole(name) / 3, edge


@pytest.mark.parametrize("name", KNOWN)
def test_known_circuit_works_with_the_ordinary_api(name: str) -> None:
    known = circuit(name)
    prompts = known.behaviour.prompts[:2]
    tokens = known.model.tokenize([prompt.text for prompt in prompts])
    assert tokens.rows() == known.pairs.clean[:2].rows()
    ledger = cs.ledger(known.model, known.behaviour)
    assert ledger.error["gap"] < 1e-9
    assert len(ledger.axis("prompt")) == len(known.behaviour)


def test_known_circuit_grades_rankings() -> None:
    known = circuit("induction_pair")
    names, n = by_hand.edges(known.model), len(known.edges)
    perfect = {name: float(name in known.edges) for name in names}
    upside_down = {name: -score for name, score in perfect.items()}
    nothing = dict.fromkeys(names, 0.0)
    assert known.auroc(perfect) == known.auroc(upside_down) == 1.0
    assert known.auroc(upside_down, signed=True) == 0.0
    assert known.auroc(nothing) == 0.5
    assert known.found(perfect) == known.found(upside_down) == n
    assert known.found(nothing) == pytest.approx(n * n / len(names))
    # an edge that the circuit lacks is worth nothing, or a rounding error: all the same
    dust = {name: -1.0 if name == "head 1.0->logits" else 1e-12 for name in names}
    assert known.auroc(dust) == pytest.approx(0.5 + 0.5 / n)
    one_missed = perfect | {"head 1.0->logits": 0.0, "embed->mlp 0": 2.0}
    assert known.found(one_missed) == n - 1
    del nothing["embed->mlp 0"]
    with pytest.raises(MeasureError, match="embed->mlp 0"):
        known.auroc(nothing)
    with pytest.raises(MeasureError, match="input->mlp 0"):
        known.found(perfect | {"input->mlp 0": 1.0})
    with pytest.raises(MeasureError, match="1 edges that were not scored"):
        known.found(perfect | {"embed->mlp 0": float("nan")})


def test_known_circuit_decoy_is_as_attentive_and_louder_and_nothing_depends_on_it() -> None:
    known = decoy_head(noise=0.0)
    keep = ("pattern", "result")
    clean, corrupted = (
        run(known.model, tokens, keep=keep) for tokens in (known.pairs.clean, known.pairs.corrupted)
    )
    pattern = clean["pattern", 0]
    assert pattern[:, 0].equal(pattern[:, 1])
    change = (clean["result", 0] - corrupted["result", 0]).norm(dim=-1).amax(1)  # batch head
    assert (change[:, 1] > 2.9 * change[:, 0]).all()
    for tokens in (known.pairs.clean, known.pairs.corrupted):
        silenced = value(known, tokens, silent=[(0, 1), (1, 1)])
        torch.testing.assert_close(silenced, value(known, tokens), rtol=0, atol=EXACT)
    for edge, effect in by_hand.effects(known).items():
        if "head 0.1" in edge or "head 1.1" in edge:
            assert abs(effect) < EXACT, edge


def test_known_circuit_threshold_decoy_has_a_slope_far_beyond_its_effect() -> None:
    known, edge, step = threshold_decoy(noise=0.0), "head 0.1->mlp 1", 1e-3
    ours, theirs = (
        by_hand.forward(known.model, tokens.ids)[0]["head 0.1"]
        for tokens in (known.pairs.clean, known.pairs.corrupted)
    )

    def carrying(told: Tensor) -> Tensor:
        _, _, logits = by_hand.forward(known.model, known.pairs.clean.ids, {edge: told})
        return by_hand.difference(known, logits)

    before = carrying(ours)
    whole = carrying(theirs) - before
    slope = (carrying(ours + step * (theirs - ours)) - before) / step
    torch.testing.assert_close(whole, torch.full_like(whole, -0.2), rtol=0, atol=0.01)
    # 2 x 6 logits, times the attention that the name gets
    torch.testing.assert_close(slope, torch.full_like(slope, -12.0), rtol=0, atol=0.1)


def test_known_circuit_cancelling_heads_do_nothing_together() -> None:
    known = cancelling_heads(noise=0.0)
    clean = float(value(known, known.pairs.clean).mean())
    assert corrupting(known, CANCELLING) == pytest.approx(clean, abs=EXACT)
    for tokens in (known.pairs.clean, known.pairs.corrupted):
        silenced = value(known, tokens, silent=[(0, 1), (0, 2)])
        torch.testing.assert_close(silenced, value(known, tokens), rtol=0, atol=EXACT)


def test_known_circuit_backup_takes_over() -> None:
    known = backup_head()
    clean = value(known, known.pairs.clean)
    without_first = value(known, known.pairs.clean, silent=[FIRST])
    without_backup = value(known, known.pairs.clean, silent=[SECOND])
    without_both = value(known, known.pairs.clean, silent=[FIRST, SECOND])
    drop = (clean - without_both).mean()
    assert (clean > 1).all()
    assert (without_both < -1).all()
    for one in (without_first, without_backup):
        assert ((clean - one).abs() < 0.1 * drop).all()


def test_known_circuit_linear_model_attends_the_same_whatever_it_reads() -> None:
    known = circuit("linear_model")
    n = 5
    tokens = Tokens.of([[0, 1, 2, 3, 1], [2, 2, 2, 4, 5]])
    trace = run(known.model, tokens, keep=[Site.PATTERN])
    even = torch.ones(n, n, dtype=torch.float64).tril()
    even /= even.sum(1, keepdim=True)
    for layer in range(known.model.config.n_layers):
        pattern = trace[Site.PATTERN, layer]
        torch.testing.assert_close(pattern, even.expand_as(pattern), rtol=0, atol=EXACT)


def test_known_circuit_linear_model_undoes_by_noising_what_it_restores_by_denoising() -> None:
    known = circuit("linear_model")
    restored = by_hand.effects(known, noising=False)
    for edge, effect in effects("linear_model").items():
        assert effect == pytest.approx(-restored[edge], abs=EXACT), edge
