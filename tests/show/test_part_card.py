"""Does the page of a card show what was measured, escaped, and nothing that could run?"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.part_card import part
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.part_card import PAGE, PartCard, card_folder
from casestudy.results.result import Grid, Table
from casestudy.show.part_card import (
    context_markup,
    part_card_html,
    write_part_card,
    write_study_cards,
)
from casestudy.show.text import signed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>window.ran = 1</script> {{ 7 * 7 }}"
TEXT = f"It was late, so she left. Then Mr. Fox said: {HOSTILE} and it ended. " * 12


@pytest.fixture(scope="module")
def cards(toy: Callable[..., Model]) -> dict[str, PartCard]:
    model = toy(seed=5)
    prompts = [Prompt(f"It was {word}.", " He", " he") for word in ("late", "so", HOSTILE)]
    asked = Behaviour("<b>mine</b>", "Why?", tuple(prompts), answers="given")
    corpus = {f"<i>doc {i}</i>": TEXT for i in range(2)}
    return {
        kind: part(model, name, behaviour=asked, corpus=corpus, k=12, window=24, loss_windows=3)
        for kind, name in (("head", "head 1.2"), ("neuron", "neuron 1.30"))
    }


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_the_main_figures_are_those_that_were_measured(
    cards: dict[str, PartCard], kind: str
) -> None:
    card = cards[kind]
    page = part_card_html(card)
    assert re.findall(r"<h2 id=\"(\w+)-h\"", page)[:5] == [
        *("answer", "active", "writes", "reads", "needed")
    ]
    ablation = card[names.mean(names.PART_ABLATION)]
    assert isinstance(ablation, Grid)
    zero = float(ablation.select(kind="zero").values)
    assert (
        f"by zero changes the logit difference of &lt;b&gt;mine&lt;/b&gt; by {signed(zero)}" in page
    )
    for row in card.rows(names.PART_LOSS)[:2]:
        assert f"next-token loss over the corpus by {signed(row['difference'], 3)} nats" in page
    first = card.rows(names.PART_CONTEXTS)[0]
    assert str(context_markup(first)) in page
    assert page.count('class="context"') == len(card.rows(names.PART_CONTEXTS))


def test_texts_are_escaped(cards: dict[str, PartCard]) -> None:
    for card in cards.values():
        named = {**card.about["model"], "name": "<u>model</u>"}
        page = part_card_html(replace(card, about={**card.about, "model": named}))
        assert "<script>window" not in page
        assert "<i>doc" not in page
        assert "<b>mine" not in page
        assert "<u>model" not in page
        assert "49" not in re.findall(r"\{\{.*?\}\}", page)


def test_a_context_has_its_position_and_its_key() -> None:
    row: dict[str, Any] = {"tokens": ["<a>", " b\n", "c"], "at": 2, "key": 1}
    assert str(context_markup(row)) == (
        '<bdi class="context">&lt;a&gt;<u> b↵</u><mark>c</mark></bdi>'
    )
    assert "<u>" not in str(context_markup(row | {"key": None}))


def test_what_was_not_measured_is_listed(toy: Callable[..., Model]) -> None:
    page = part_card_html(part(toy(), "neuron 1.3"))
    assert "no corpus was given" in page
    assert "no behaviour was given" in page
    assert 'id="needed"' not in page
    assert "Everything that a card has was measured" not in page


def test_the_cards_of_a_study_link_one_another(cards: dict[str, PartCard], tmp_path: Path) -> None:
    for card in cards.values():
        card.write(card_folder(tmp_path, card.part))
    pages = write_study_cards(tmp_path)
    assert list(pages) == ["head 1.2", "neuron 1.30"]
    read = pages["neuron 1.30"].read_text("utf-8")
    assert '<tspan class="part" data-part="head 1.2">head 1.2</tspan>' in read
    shared = re.findall(r'<script type="application/json" id="shared">(.+?)</script>', read)
    address = json.loads(shared[0])["cards"]["head 1.2"]
    assert 'data-part="neuron 1.30"' not in read
    assert (pages["neuron 1.30"].parent / address).resolve() == pages["head 1.2"].resolve()


def test_a_card_of_a_study_before_a_result_was_added_is_still_shown(
    cards: dict[str, PartCard],
) -> None:
    for card in cards.values():
        for name in {result.name.removesuffix(names.MEAN) for result in card.results}:
            left = tuple(r for r in card.results if r.name not in (name, names.mean(name)))
            assert f">{card.part.capitalize()} of" in part_card_html(replace(card, results=left))


def test_the_page_is_made_from_the_stored_card(cards: dict[str, PartCard], tmp_path: Path) -> None:
    card = cards["head"]
    card.write(tmp_path)
    written = write_part_card(PartCard.read(tmp_path), tmp_path / PAGE).read_text("utf-8")
    assert written == part_card_html(card)
    table = card[names.PART_CONTEXTS]
    assert isinstance(table, Table)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_it_fits_a_narrow_screen_and_runs_nothing(
    cards: dict[str, PartCard], tmp_path: Path
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    address = write_part_card(cards["head"], tmp_path / PAGE).resolve().as_uri()
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(address)
        assert page.evaluate("window.ran") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert said == []
        browser.close()
