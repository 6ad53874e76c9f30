"""A study's circuit of heads and neurons: asked for, made once, and shown where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.circuits.neuron_circuit import NeuronChoices
from casestudy.engine.packing import Budget
from casestudy.errors import StudyError
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show.report import write_report
from casestudy.show.sections.grounds import no_neurons
from casestudy.show.sections.neurons import sentence
from casestudy.show.stored import StoredStudy
from casestudy.study import neurons
from casestudy.study.searches import behaviour_neurons
from casestudy.study.settings import Execution, NeuronSearch, Settings
from casestudy.study.study import Study, study

WORDS = ("late", "so", "mine", "here", "cold", "true")
PROMPTS = tuple(Prompt(f"It was {w}.", " He", " he", f"It was {w},") for w in WORDS)
BEHAVIOUR = Behaviour("mine", "Why?", PROMPTS, answers="given")
CHOICES = NeuronChoices(random_sets=1)
SEARCH = Settings(neurons=NeuronSearch(CHOICES))


@pytest.fixture(scope="module")
def model(toy: Callable[..., Model]) -> Model:
    return toy(n_layer=1)


def made(model: Model, out: Path, settings: Settings | None = SEARCH) -> Study:
    return study(model, BEHAVIOUR, out=out, only=["predictions"], settings=settings)


@pytest.fixture(scope="module")
def stored(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study that was continued with the neurons."""
    folder = tmp_path_factory.mktemp("neurons")
    before = made(model, folder, None)
    assert names.NEURON_CIRCUIT_SUMMARY not in before.tables
    assert "each at every position" not in write_report(folder).read_text("utf-8")
    return made(model, folder)


def test_a_finished_study_is_continued_with_the_circuit_of_the_search(
    stored: Study, model: Model
) -> None:
    card = behaviour_neurons(model, BEHAVIOUR, CHOICES)
    summary, curve = card.results[:2]
    assert stored.tables[summary.name].rows() == summary.rows()  # type: ignore[union-attr]
    assert isinstance(curve, Grid)
    assert stored.grids[curve.name].values.tolist() == curve.values.tolist()
    assert stored.manifest["neurons_about"] == card.about
    assert (stored.store.folder / neurons.CARD_FILE).is_file()


def test_it_is_made_once_and_stays_where_it_is_not_asked_for(
    stored: Study, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: object, **__: object) -> None:
        pytest.fail("the circuit was looked for again")

    monkeypatch.setattr(neurons, "behaviour_neurons", again)
    for settings in (SEARCH, None):
        found = made(model, stored.store.folder, settings)
        assert names.NEURON_CIRCUIT_SUMMARY in found.tables


def test_another_search_is_another_study(stored: Study, model: Model) -> None:
    other = Settings(neurons=NeuronSearch(replace(CHOICES, seed=7)))
    with pytest.raises(StudyError, match=r"in another way \(choices.seed: 0, now 7\)"):
        made(model, stored.store.folder, other)


def test_the_report_shows_its_size_its_faithfulness_and_its_nodes(stored: Study) -> None:
    page = write_report(stored.store).read_text("utf-8")
    rows = {row["figure"]: row for row in stored.tables[names.NEURON_CIRCUIT_SUMMARY].rows()}
    n = int(rows["neurons"]["value"])
    assert f"<b>{n:,} neuron{'s' * (n != 1)}</b> ({rows['neurons']['about']})" in page
    assert sentence(StoredStudy.read(stored.store)) in page
    nodes = stored.tables[names.NEURON_CIRCUIT_NODES].rows()
    inside = [row for row in nodes if row["faithfulness_lost"] is not None]
    table = page[page.index("Its first heads and neurons") :]
    assert table.index(inside[0]["node"]) < table.index("nodes drawn at random")
    for name in (names.NEURON_CIRCUIT_SUMMARY, names.NEURON_CIRCUIT_CURVE):
        assert f">{name}<" not in page  # nothing of it is left for the appendix


def test_pairs_that_do_not_exist_are_said_and_not_raised(model: Model, tmp_path: Path) -> None:
    alone = replace(BEHAVIOUR, prompts=PROMPTS[:1])
    found = study(model, alone, out=tmp_path, only=["predictions"], settings=SEARCH)
    assert neurons.WHAT in [entry["what"] for entry in found.manifest["not_measured"]]
    said = no_neurons(StoredStudy.read(found.store))
    assert said.startswith("No circuit of heads and neurons was found: ")
    assert found.manifest["state"] == "complete"


def test_without_time_it_is_left_out_and_continued_later(model: Model, tmp_path: Path) -> None:
    hurried = Execution(budget=Budget(seconds=1e-9))
    found = study(
        model, BEHAVIOUR, out=tmp_path, only=["predictions"], settings=SEARCH, execution=hurried
    )
    assert found.manifest["state"] == "running"
    assert names.NEURON_CIRCUIT_SUMMARY not in found.tables
    assert names.NEURON_CIRCUIT_SUMMARY in made(model, tmp_path).tables
