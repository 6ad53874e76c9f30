"""What is said for and against a circuit: areas, knockouts, controls and the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.ablated import EdgeAblation
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.card import Card, circuit_card, read_card
from casestudy.circuits.cost import Costs, Extent, Line, make_plan
from casestudy.circuits.curves import PROPORTIONS, curve, curve_circuits, smallest
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import METHODS, Method, attribute_edges
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.evidence import CARD_STEPS, Choices, Question, gather
from casestudy.circuits.graph import Graph, Rank
from casestudy.circuits.knockouts import Knockouts, knock_out
from casestudy.circuits.packed import Packed, pack, unpack
from casestudy.cli.circuit import _figure_row
from casestudy.engine.packing import Budget, Planned, Progress
from casestudy.errors import MeasureError, SiteError, StudyError
from casestudy.measure.halves import Half, split
from casestudy.measure.metrics import metric_of
from casestudy.model.model import Model
from casestudy.results.result import Grid, Table
from tests.circuits.test_edge_scores import pair_of, world
from tests.measure.worlds import contrast

pytestmark = pytest.mark.slow


def small(**options: int) -> Model:
    """Two layers: a card evaluates every node without every other."""
    return world("gpt2", n_layers=2, **options)


LENGTHS = [5, 6, 5, 6, 7, 5, 6, 5]
QUICK = Choices(random_circuits=3, exact_edges=20, faithful=0.9)


@pytest.fixture(scope="module")
def scored() -> EdgeScores:
    return attribute_edges(small(), pair_of(LENGTHS), contrast(8))


@pytest.fixture(scope="module")
def whole(scored: EdgeScores) -> Knockouts:
    """The whole model's own knockouts."""
    full = scored.graph.full
    return knock_out(small(), pair_of(LENGTHS), contrast(8), full, random_sets=4, greedy_steps=2)


@pytest.fixture(scope="module")
def made() -> Card:
    return circuit_card(small(), pair_of(LENGTHS), contrast(8), QUICK)


@pytest.fixture(scope="module")
def once_more() -> tuple[Card, dict[str, object]]:
    """The same search a second time, and the value of each of its steps."""
    taken: dict[str, object] = {}
    asked = small(), pair_of(LENGTHS), contrast(8), QUICK
    return circuit_card(*asked, keep=taken.__setitem__), taken


def test_areas_are_linear_trapezoids_over_the_shares(scored: EdgeScores) -> None:
    model, both, values = small(), pair_of(LENGTHS), contrast(8)
    found = curve(model, both, values, scored)
    f = found.evaluation.faithfulness
    assert f[-1] == pytest.approx(1)
    widths = np.diff(PROPORTIONS)
    assert found.cpr == pytest.approx(float((widths * (f[1:] + f[:-1]) / 2).sum()))
    away = np.abs(1 - f)
    assert found.cmd == pytest.approx(float((widths * (away[1:] + away[:-1]) / 2).sum()))
    assert found.shown.values[-1] == pytest.approx(1)
    assert "<svg" in found._repr_html_()
    for name, (low, high) in found.intervals().items():
        assert low <= getattr(found, name) <= high
    assert found.intervals()["cmd"][0] >= 0, "an area of absolute values"


@pytest.mark.parametrize("method", METHODS)
def test_swapping_answer_and_counterpart_changes_no_circuit(method: Method) -> None:
    model, both, values = small(), pair_of(LENGTHS), contrast(8)
    swapped = replace(values, weights=-values.weights, constant=-values.constant)
    scores = [
        attribute_edges(model, both, v, method, steps=2, direction="noising")
        for v in (values, swapped)
    ]
    assert {s.towards for s in scores} == {1.0, -1.0}
    ranks: tuple[Rank, ...] = get_args(Rank)
    for rank in ranks:
        ours, theirs = (
            curve_circuits(s.graph, s.ranked, rank=rank, proportions=(0.05, 0.2, 0.6))
            for s in scores
        )
        assert ours == theirs, rank
        exact = [
            patch_edges(model, both, v, ours[0].edges, direction="noising")
            for v in (values, swapped)
        ]
        np.testing.assert_allclose(exact[0].ranked, exact[1].ranked, atol=1e-9)


def test_signed_circuits_of_a_metric_that_is_least_for_the_clean_run() -> None:
    model, both = small(), pair_of(LENGTHS)
    kl = metric_of(model, contrast(8), "kl", both.clean)
    assert not isinstance(kl, Contrast)
    close = [attribute_edges(model, both, m) for m in (kl, lambda *of: -kl(*of))]
    assert [s.towards for s in close] == [-1, 1]
    np.testing.assert_array_equal(close[0].ranked, close[1].ranked)


def test_the_smallest_circuit_is_as_faithful_as_asked_and_shrinks_with_the_demand(
    scored: EdgeScores,
) -> None:
    model, both, values = small(), pair_of(LENGTHS), contrast(8)
    sizes = []
    for faithful in (0.3, 0.9):
        circuit = smallest(model, both, values, scored, faithful=faithful)
        assert evaluate_circuit(model, both, values, [circuit]).faithfulness[0] >= faithful
        sizes.append(circuit.n_edges)
    assert sizes[0] < sizes[1] < scored.graph.n_edges
    with pytest.raises(MeasureError, match="reaches a faithfulness of 99"):
        smallest(model, both, values, scored, faithful=99.0)


def test_the_whole_model_is_complete_and_knockouts_are_those_of_its_nodes(
    scored: EdgeScores, whole: Knockouts
) -> None:
    model, both, values, graph = small(), pair_of(LENGTHS), contrast(8), scored.graph
    found = whole
    np.testing.assert_allclose(found.incompleteness, 0, atol=1e-12)
    assert found.sets.shape == (1 + 10 + 4 + 1, 10)  # nothing is worse than complete
    without = evaluate_circuit(model, both, values, [graph.full.without([graph.node("mlp 1")])])
    place = found.nodes.index("mlp 1")
    assert found.circuit[1 + place] == pytest.approx(without.faithfulness[0])
    assert found.minimality[place] >= abs(without.faithfulness[0] - 1) - 1e-12
    part = graph.top(scored.values, 40).pruned()
    less = knock_out(model, both, values, part, random_sets=4, greedy_steps=3)
    # the greedy search only ever makes the worst single set worse
    assert less.incompleteness[-1] >= less.incompleteness[1 : len(less.nodes) + 1].max() - 1e-12
    with pytest.raises(MeasureError, match="no node"):
        knock_out(model, both, values, graph.empty)


def test_a_card_says_what_was_found_and_against_what(made: Card) -> None:
    grid = made["circuit.faithfulness"]
    assert isinstance(grid, Grid)
    assert grid.axis("proportion").labels[0] == "0.001"
    names = grid.axis("method").labels
    assert names[:2] == ("eap-ig-inputs, absolute", "eap-ig-inputs, signed")
    assert {"random circuits of the same size", "signs flipped at random"} < set(names)
    assert any("zero ablation" in name for name in names)
    np.testing.assert_allclose(grid.values[:2, -1], 1)
    table = made["circuit.edges"]
    assert isinstance(table, Table)
    assert len(table.rows()) == made.circuit.n_edges
    scores = np.abs(table.columns["score"])
    assert (np.diff(scores) <= 0).all()
    summary = made.summary()
    assert summary["edges"]["value"] == made.circuit.n_edges
    assert summary["faithfulness where it was looked for"]["value"] >= QUICK.faithful
    held = summary["faithfulness on pairs held out"]
    assert held["lower"] <= held["value"] <= held["upper"]
    assert held["n"] == 4
    rank = summary["rank correlation with exact patching"]
    assert -1 <= rank["value"] <= 1
    assert "20 edges" in rank["about"]
    with pytest.raises(MeasureError, match=r"no 'circuit[.]nothing'"):
        made["circuit.nothing"]


def test_a_card_is_the_same_again(made: Card, once_more: tuple[Card, dict[str, object]]) -> None:
    again, _ = once_more
    assert again.circuit == made.circuit
    assert again.summary() == made.summary()


def stored(value: object, folder: Path) -> Packed:
    """Written to files without pickles and read again."""
    packed = pack(value)
    np.savez(folder / "arrays.npz", **packed.arrays)  # type: ignore[arg-type]
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return Packed(dict(arrays), json.loads(json.dumps(packed.plain)))


def test_steps_that_were_stored_are_not_taken_again(
    made: Card, once_more: tuple[Card, dict[str, object]], tmp_path: Path
) -> None:
    model, asked = small(), (pair_of(LENGTHS), contrast(8), QUICK)
    _, taken = once_more
    question = Question.of(model, Half(*asked[:2]), QUICK)
    assert list(taken) == [step.name for step in CARD_STEPS]
    known = {
        name: unpack(stored(value, tmp_path), Graph(model.config)) for name, value in taken.items()
    }
    began: list[str] = []
    again = circuit_card(model, *asked, known=known, progress=lambda p: began.append(p.note))
    assert began == ["writing it up"]
    assert again.summary() == made.summary()
    for result, first in zip(again.results, made.results, strict=True):
        if isinstance(result, Grid):
            np.testing.assert_array_equal(result.values, first.values)  # type: ignore[union-attr]
    # continued in the middle, the rest is taken and is the same
    half = {name: known[name] for name in ("scores", "plan", "exact", "curves")}
    rest: dict[str, object] = {}
    assert (
        circuit_card(model, *asked, known=half, keep=rest.__setitem__).summary() == made.summary()
    )
    assert list(rest) == ["controls", "circuit", "faithfulness", "knockouts"]
    with pytest.raises(MeasureError, match="no step is named 'score'"):
        gather(question, {"score": None})


def test_a_step_needs_only_what_came_before_it() -> None:
    names = [step.name for step in CARD_STEPS]
    for i, step in enumerate(CARD_STEPS):
        assert set(step.needs) <= set(names[:i])


def test_what_no_step_stores_is_refused(tmp_path: Path) -> None:
    graph = Graph(small().config)
    assert unpack(stored(None, tmp_path), graph) is None
    with pytest.raises(MeasureError, match=r"cannot be stored[.] Allowed: EdgeScores"):
        pack(tmp_path)
    for plain in ({}, {"Path": {}}, {"Circuit": {}}, {"array": "x"}, {"a": 1, "b": 2}):
        with pytest.raises(MeasureError, match="no stored step"):
            unpack(Packed({}, plain), graph)


def test_a_card_that_cannot_be_written_says_where_and_why(made: Card, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StudyError, match=r"file/card\.json could not be written: "):
        made.save(tmp_path / "file" / "card.json")


def test_a_saved_card_belongs_to_its_model(made: Card, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    made.save(path)
    circuit, scores = read_card(path, small())
    assert circuit == made.circuit
    np.testing.assert_array_equal(scores, made.scores.values)
    with pytest.raises(MeasureError, match=r"weights [0-9a-f]{12}"):
        read_card(path, small(seed=1))
    data = json.loads(path.read_text())
    data["circuit"].append("head 0.0->head 0.1<q>")
    path.write_text(json.dumps(data))
    with pytest.raises(SiteError, match="no edge"):
        read_card(path, small())
    path.write_text("{}")
    with pytest.raises(MeasureError, match="no circuit card"):
        read_card(path, small())


def test_knocking_out_is_bounded_and_its_cost_is_stored(whole: Knockouts) -> None:
    model, both, values = small(), pair_of(LENGTHS), contrast(8)
    full = Graph(model.config).full
    assert whole.nodes == whole.members
    some = knock_out(
        model,
        both,
        values,
        full,
        most_nodes=2,
        random_sets=4,
        greedy_steps=2,
        budget=Budget(200_000),
    )
    assert len(some.nodes) == 2
    assert some.sets.shape[1] == len(some.members) == len(whole.members)
    assert some.evaluations < whole.evaluations / 3
    at = [whole.nodes.index(name) for name in some.nodes]
    np.testing.assert_allclose(some.minimality, whole.minimality[at], atol=1e-9)
    np.testing.assert_allclose(some.circuit[1:3], whole.circuit[1:][at], atol=1e-9)
    weight = np.zeros(len(full.graph.senders))
    weight[full.graph.node("mlp 1")] = -2.0
    one = knock_out(model, both, values, full, importance=weight, most_nodes=1, random_sets=0)
    assert one.nodes == ("mlp 1",)


def test_a_card_has_the_strong_control_and_zero_ablation_at_the_circuits_own_size(
    made: Card,
) -> None:
    rows = made.summary()
    flipped = rows["faithfulness on pairs held out, signs flipped at random"]
    assert made.about["signs_flipped"] == flipped["value"]
    assert flipped["lower"] <= flipped["value"] <= flipped["upper"]
    zero = rows["faithfulness on pairs held out, zero ablation"]
    assert made.about["zero_ablation"] == zero["value"]
    assert made.about["knockout_evaluations"] > 0


def test_a_plan_states_its_cost_and_is_cut_down_until_it_fits(made: Card) -> None:
    assert made.about["plan"]["limited"] == []
    assert made.about["plan"]["evaluations"] > 150
    ends = (100.0, 200.0)
    kinds: tuple[EdgeAblation, ...] = get_args(EdgeAblation)
    rows = dict.fromkeys(kinds, ends)
    costs = Costs(1000, 16, (200.0, 200.0), rows, kinds, kinds[:2], (0, 10, 100, 1000), 12,
                  (0, 1000), (0.0, 0.1), *(Line(ends, (0.1, long)) for long in (0.2, 0.3)),
                  opening=0.001, whole=0.1, check=0.1, edges=(1.0, 0.02))  # fmt: skip
    asked = Extent(10, 200)
    whole = make_plan(costs, asked)
    assert (whole.extent.random_circuits, whole.extent.exact_edges) == (10, 200)
    assert whole.fits
    assert not whole.limited
    before = whole.seconds
    for part in (1.0, 0.8, 0.6, 0.5):
        plan = make_plan(costs, asked, whole.seconds * part)
        assert plan.fits
        assert plan.seconds <= before
        before = plan.seconds
        assert bool(plan.limited) == (part < 1)
        assert all(name in str(plan) for name in plan.limited)
    least = make_plan(costs, asked, 0.001)
    assert not least.fits
    assert least.extent.pairs == 6
    assert least.extent.exact_edges == 20
    assert make_plan(costs, Extent(1, 0), 0.001).extent.exact_edges == 0  # never more than asked


def test_a_time_grows_with_the_tokens_as_it_was_measured() -> None:
    assert Line((10.0, 110.0), (2.0, 4.0)).at(60.0) == pytest.approx(3.0)
    assert Line((10.0, 110.0), (2.0, 1.0)).at(60.0) == pytest.approx(2.0)  # noise: no slope
    assert Line((10.0, 110.0), (2.0, 4.0)).at(220.0) == pytest.approx(8.0)  # in proportion
    assert Line((10.0, 12.0), (2.0, 9.0)).at(30.0) == pytest.approx(6.0)  # too close for a slope


def test_a_circuit_under_a_limit_says_what_is_smaller(
    made: Card, once_more: tuple[Card, dict[str, object]]
) -> None:
    said: list[str] = []

    def tell(progress: Progress) -> None:
        if isinstance(progress, Planned):
            said.append(progress.words)

    asked = small(), pair_of(LENGTHS), contrast(8), QUICK
    _, taken = once_more
    known = {name: taken[name] for name in ("scores", "curves", "circuit", "faithfulness")}
    limited = circuit_card(*asked, budget=Budget(seconds=1e-3), progress=tell, known=known)
    (sentence,) = said
    assert sentence.startswith("circuit: planned ")
    assert "randomly drawn edges patched exactly" not in sentence  # as few as were asked for
    assert "random circuits of each size: 1 of 3" in sentence
    assert limited.about["knockout_evaluations"] < made.about["knockout_evaluations"] / 2
    assert limited.about["plan"]["limited"]
    assert limited.about["plan"]["words"] == sentence.removeprefix("circuit: ")


def test_a_spike_is_called_one(made: Card) -> None:
    rows = made.summary()
    own = rows["faithfulness on pairs held out"]["value"]
    least = rows["least faithfulness at larger sizes"]
    assert made.about["holds_at_larger_sizes"] == (least["value"] >= 0.8 * own)
    assert ("a spike" in least["about"]) != made.about["holds_at_larger_sizes"]


def test_pairs_are_parted_by_document_or_not_at_all() -> None:
    found, held = split(8, None, 0)
    assert sorted(found + held) == list(range(8))
    assert len(held) == 4
    documents = ["a", "a", "a", "b", "b", "c", "c", "c"]
    found, held = split(8, documents, 0)
    assert not {documents[i] for i in found} & {documents[i] for i in held}
    assert held
    assert found
    assert split(5, None, 0) == (list(range(5)), list(range(5)))
    few = circuit_card(
        small(),
        pair_of(LENGTHS)[[0, 1, 2]],
        contrast(3),
        Choices(random_circuits=1, exact_edges=10),
    )
    assert "faithfulness on the same pairs: too few to hold any out" in few.summary()


def test_a_constant_metric_is_an_error() -> None:
    everything = Half(pair_of(LENGTHS), lambda logits, prompts: 0 * logits.double().sum(1) + 3)
    question = Question.of(small(), everything, QUICK)
    with pytest.raises(MeasureError, match="no difference that a circuit could carry"):
        gather(question)


def test_two_pairs_have_no_interval_and_say_so() -> None:
    two = circuit_card(
        small(), pair_of(LENGTHS)[[0, 1]], contrast(2), Choices(random_circuits=1, exact_edges=10)
    )
    rows = {name: row for name, row in two.summary().items() if "signs flipped" not in name}
    found = [row for name, row in rows.items() if name.startswith("faithfulness")]
    assert len(found) >= 2
    for row in found:
        assert row["about"] == "1 is the whole model; no interval, n = 2"
    figure = {"figure": "faithfulness where it was looked for", "value": 0.5, "n": 2}
    assert _figure_row(figure | {"lower": None, "upper": None})[2] == "none, n = 2"
    assert _figure_row(figure | {"lower": 0.25, "upper": 0.75})[2] == "0.250 to 0.750"
    counted = figure | {"figure": "edges", "value": 3620.0, "lower": None, "upper": None}
    assert _figure_row(counted) == ("edges", "3,620", "", "2")
