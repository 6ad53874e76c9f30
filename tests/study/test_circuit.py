"""The circuit a study looks for: on which pairs, kept how, and what stands in its way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casestudy.behaviour.classes import ClassContrast
from casestudy.behaviour.counterfactual import Counterfactual, Score
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.circuits.card import read_card
from casestudy.circuits.evidence import Choices, choices_of
from casestudy.engine.batch import run_whole
from casestudy.errors import MeasureError, StudyError
from casestudy.measure.metrics import NAMES, Kind
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.results.result import Grid
from casestudy.study.circuit import CARD_FILE, IMPORTANCES_FILE, _units, circuit_pairs
from casestudy.study.settings import Search, Settings
from casestudy.study.study import open_study, study

pytestmark = pytest.mark.slow

TEXTS = ("The dog slept.", "A cat ran off.", "It was late.", "We sat down.", "She left early.")
QUICK = Settings(
    search=Search(Choices(random_circuits=1, exact_edges=5, replicates=0, faithful=0.5))
)
ONLY = ["predictions", "ledger", "circuit"]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load("tiny")


@pytest.fixture(scope="module")
def small(toy: Callable[..., Model]) -> Model:
    """A random model of few edges, for what does not depend on what a model has learned."""
    return toy(n_layer=1, n_head=2, n_embd=16)


def behaviour(texts: tuple[str, ...] = TEXTS) -> Behaviour:
    return Behaviour("stops", "A capital?", tuple(Prompt(text) for text in texts))


@pytest.fixture(scope="module")
def folder(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("circuit") / "study"
    study(behaviour(), tiny, out=out, only=ONLY, settings=QUICK)
    return out


def test_a_study_keeps_its_circuit_with_card_and_importances(folder: Path, tiny: Model) -> None:
    made = open_study(folder)
    grid = made["circuit.faithfulness"]
    assert isinstance(grid, Grid)
    assert grid.error["gap"] <= grid.error["bound"]
    edges = made.tables["circuit.edges"].rows()
    circuit, _ = read_card(folder / CARD_FILE, tiny)
    assert {f"{e['source']}->{e['target']}" for e in edges} == set(circuit.edges)
    importances = json.loads((folder / IMPORTANCES_FILE).read_text())
    assert sum(edge["in_graph"] for edge in importances["edges"].values()) == circuit.n_edges
    about = made.manifest["circuit_about"]
    assert about["mean_clean"] > about["mean_corrupted"]
    assert (about["metric_name"], about["unit"]) == ("logit difference", "logits")
    assert not any(what["what"] == "circuits" for what in made.manifest["not_measured"])
    assert "carries" in made.report().read_text()


def test_the_same_again_does_nothing_and_another_search_is_refused(
    folder: Path, tiny: Model
) -> None:
    before = (folder / CARD_FILE).stat().st_mtime_ns
    study(behaviour(), tiny, out=folder, only=ONLY, settings=QUICK)
    assert (folder / CARD_FILE).stat().st_mtime_ns == before
    other = Settings(search=Search(Choices(rank="signed")))
    with pytest.raises(StudyError, match=r"absolute.*signed"):
        study(behaviour(), tiny, out=folder, only=ONLY, settings=other)


def test_circuit_prompts_add_pairs_to_the_circuit_alone(small: Model, tmp_path: Path) -> None:
    few = Choices(random_circuits=0, exact_edges=0, replicates=0, faithful=0.3)
    settings = Settings(search=Search(few, family="all lowered"))
    asked = replace(behaviour(TEXTS[:2]), circuit_prompts=tuple(map(Prompt, TEXTS[2:])))
    made = study(asked, small, out=tmp_path / "s", only=ONLY, settings=settings)
    about = made.manifest["circuit_about"]
    assert about["further_pairs"] == 3
    assert about["n_found_on"] == about["n_judged_on"] == 5
    assert len(made["logit_difference"].axis("prompt")) == 2  # type: ignore[union-attr]
    assert "3 pairs are of further prompts of the same kind" in made.report().read_text().lower()
    other = replace(asked, circuit_prompts=asked.circuit_prompts[:1])
    with pytest.raises(StudyError, match="another study"):
        study(other, small, out=tmp_path / "s", only=ONLY, settings=settings)


def test_a_pair_and_its_mirror_are_on_one_side_of_the_split() -> None:
    texts = ("a b", "b a", "c d", "d c", "e f")
    pairs = tuple(
        Counterfactual("given", i, Prompt(text), Prompt(text[::-1]), 1, 2, "position")
        for i, text in enumerate(texts)
    )
    score = Score("given", pairs, np.ones(5), -np.ones(5), ())
    units = _units([Prompt(text) for text in texts], score)
    assert units is not None
    assert units[0] == units[1] != units[2] == units[3] != units[4]
    assert _units([Prompt(text) for text in texts[::2]], replace(score, pairs=pairs[::2])) is None
    named = [Prompt(text, document="book") for text in texts]
    assert _units(named, score) == ("book",) * 5


def test_where_there_is_none_a_study_says_so_and_a_search_fails(
    tiny: Model, tmp_path: Path
) -> None:
    one = behaviour(TEXTS[:1])
    made = study(one, tiny, out=tmp_path / "one", only=ONLY)
    assert any(
        what["what"] == "circuits" and "there is one pair" in what["why"]
        for what in made.manifest["not_measured"]
    )
    prompts = tuple(Prompt(text, "no such token") for text in TEXTS[:3])
    none = study(Behaviour("none", "Why?", prompts), tiny, out=tmp_path / "none", only=ONLY)
    (why,) = (e["why"] for e in none.manifest["not_measured"] if e["what"] == "circuits")
    assert why.startswith("no prompt has an answer and a counterpart: 'no such token' is 4 tokens")
    with pytest.raises(MeasureError, match="no two pairs"):
        study(
            behaviour(),
            tiny,
            out=tmp_path / "f",
            only=ONLY,
            settings=Settings(search=Search(family="names swapped")),
        )
    batch = run_whole(tiny, behaviour(TEXTS[:2]), [])
    with pytest.raises(MeasureError, match=r"no kind of edit .* is called 'swops'\. Allowed: "):
        circuit_pairs(batch, family="swops")
    with pytest.raises(MeasureError, match=r"one pair .* and a circuit needs two"):
        circuit_pairs(run_whole(tiny, one, []))
    with pytest.raises(MeasureError, match="rank 'best'"):
        choices_of(rank="best")


def test_a_circuit_may_carry_a_class_contrast(small: Model, tmp_path: Path) -> None:
    few = Choices(steps=1, random_circuits=0, exact_edges=0, replicates=0, faithful=0.5)
    asked = replace(
        behaviour(TEXTS[:2]),
        class_contrast=ClassContrast("capital mass", "space+Capital", "space+lower"),
    )
    made = study(
        asked,
        small,
        out=tmp_path / "s",
        only=ONLY,
        settings=Settings(search=Search(few, "class", "all lowered")),
    )
    about = made.manifest["circuit_about"]
    assert (about["unit"], about["family"]) == ("nats", "all lowered")
    with pytest.raises(MeasureError, match="no class contrast"):
        study(
            behaviour(),
            small,
            out=tmp_path / "c",
            only=ONLY,
            settings=Settings(search=Search(few, "class", "all lowered")),
        )


@pytest.mark.parametrize("kind", ["kl", "probability"])
def test_the_card_the_report_and_the_command_name_the_metric_and_its_means(
    small: Model, tmp_path: Path, kind: Kind
) -> None:
    few = Choices(steps=1, random_circuits=0, exact_edges=0, replicates=0, faithful=0.5)
    search = Search(few, kind, "all lowered")
    made = study(
        behaviour(TEXTS[:3]), small, out=tmp_path / "s", only=ONLY, settings=Settings(search=search)
    )
    about = made.manifest["circuit_about"]
    name, unit = NAMES[kind]
    assert (about["metric_name"], about["unit"]) == (name, unit)
    means = about["mean_clean"], about["mean_corrupted"]
    if kind == "kl":
        assert means[0] == pytest.approx(0, abs=1e-9)
        assert means[1] > 0
    else:
        assert 1 >= means[0] > means[1] >= -1
    for words in (made.report().read_text(), made.tables["circuit.summary"].about):
        assert f"{name} ({unit}" in words
    card = json.loads((tmp_path / "s" / CARD_FILE).read_text())
    assert card["about"]["mean_corrupted"] == means[1]
