"""The cards of a study's strongest parts: which, of what, and where the report links them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from casestudy.errors import StudyError
from casestudy.measure.part_card import CardSettings, part, part_cards
from casestudy.results import names
from casestudy.results.part_card import PAGE, PartCard
from casestudy.results.result import Axis, Grid
from casestudy.show.part_card import write_part_card
from casestudy.show.report import write_report
from casestudy.study.part_cards import check_same, make_cards, top_parts
from casestudy.study.study import Study, study
from tests.measure.cards import behaviour, corpus, speaking


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Study:
    only = ["predictions", "ledger", "attribution"]
    return study(speaking("gpt2"), behaviour(), out=tmp_path_factory.mktemp("s"), only=only)


def test_without_patching_the_largest_contributions_are_chosen(stored: Study) -> None:
    found = top_parts(stored, heads=2, neurons=3)
    grid = stored.grids[names.mean(names.HEAD_SHARES)]
    (contrast, *_) = grid.axis("contrast").labels
    heads = grid.select(contrast=contrast).values[:, :-1]  # without the biases
    layer, head = np.unravel_index(np.abs(heads).argmax(), heads.shape)
    assert found[0].name == f"head {layer}.{head}"
    assert found[0].value == heads[layer, head]
    assert [top.name.split()[0] for top in found] == ["head"] * 2 + ["neuron"] * 3
    best = stored.tables[names.NEURON_SHARES].rows()[0]
    assert found[2].name == f"neuron {best['layer']}.{best['neuron']}"
    sizes = [abs(top.value) for top in found]
    assert sizes == sorted(sizes[:2], reverse=True) + sorted(sizes[2:], reverse=True)


def test_exact_effects_are_chosen_before_contributions(stored: Study) -> None:
    values = np.array([[0.1, -0.5, np.nan, 0.0]])
    heads = Grid(
        "patching.z.all.effect", values, (Axis.count("layer", 1), Axis.count("head", 4)), ""
    )
    neurons = Grid(
        "patching.neurons.all.effect", np.array([0.2, -0.3]), (Axis("neuron", ("1.5", "2.7")),), ""
    )
    patched = replace(stored, grids={**stored.grids, heads.name: heads, neurons.name: neurons})
    found = top_parts(patched, heads=9, neurons=1)
    assert [(top.name, top.value) for top in found] == [
        *(("head 0.1", -0.5), ("head 0.0", 0.1), ("head 0.3", 0.0)),
        ("neuron 2.7", -0.3),
    ]


def test_nothing_to_choose_from_is_said(stored: Study) -> None:
    bare = replace(stored, grids={}, tables={})
    with pytest.raises(StudyError, match="attribution, or name parts"):
        top_parts(bare)
    with pytest.raises(StudyError, match="at least one part"):
        top_parts(stored, heads=0, neurons=0)


def test_cards_are_of_the_studys_own_model_and_prompts(stored: Study) -> None:
    check_same(stored.store, speaking("gpt2"), behaviour())
    with pytest.raises(StudyError, match=r"is a study of random-gpt2, weights.*model="):
        check_same(stored.store, speaking("llama"), behaviour())
    with pytest.raises(StudyError, match=r"does not have the prompts of.*behaviour="):
        check_same(stored.store, speaking("gpt2"), behaviour(3))


def test_the_report_links_the_cards_that_are_there(stored: Study) -> None:
    bare = write_report(stored.store).read_text("utf-8")
    assert "casestudy parts DIR --part &#34;head 0.2&#34;" in bare
    assert 'class="part"' not in bare
    settings = CardSettings(k=3, window=9, loss_windows=3)
    chosen = ["head 1.2", "neuron 1.5"]
    made = list(
        make_cards(
            stored, speaking("gpt2"), behaviour(), chosen, corpus=corpus(), settings=settings
        )
    )
    assert [folder.name for _, folder in made] == ["head-1.2", "neuron-1.5"]
    for card, folder in made:
        assert PartCard.read(folder).as_dict() == card.as_dict()
    # a card without its page is not linked
    write_part_card(made[0][0], made[0][1] / PAGE)
    report = write_report(stored.store)
    page = report.read_text("utf-8")
    links = re.findall(r'<a href="(parts/[^"]+)">([^<]+)</a>', page)
    assert links == [("parts/head-1.2/card.html", "head 1.2")]
    # a head's attention pattern, which its name opens, has the same address
    shared = json.loads(page.split('id="shared">')[1].split("</script>")[0])
    assert shared["cards"] == {"head 1.2": links[0][0]}
    assert (report.parent / links[0][0]).is_file()


def test_a_damaged_card_costs_its_row_alone(stored: Study) -> None:
    folder = stored.store.folder / "parts" / "head-0.0"
    folder.mkdir(parents=True)
    (folder / PAGE).write_text("")
    (folder / "card.json").write_text(json.dumps({"card": 1}))
    try:
        page = write_report(stored.store).read_text("utf-8")
        assert "A card could not be read and is left out" in page
    finally:
        (folder / PAGE).unlink()


def test_several_cards_are_those_of_one_part_each() -> None:
    model, texts = speaking("llama"), corpus()
    names_of = ["head 0.3", "neuron 2.1"]
    settings = CardSettings(k=3, window=9, loss_windows=3)
    together = list(part_cards(model, names_of, corpus=texts, settings=settings))
    for card in together:
        alone = part(model, card.part, corpus=texts, k=3, window=9, loss_windows=3)
        assert card.as_dict() == alone.as_dict()
