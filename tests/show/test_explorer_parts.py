"""The live page's cards of parts: the measurements' own numbers, in bounds, stored as stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.part_card import part
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.part_card import PartCard, card_folder, stored_cards
from casestudy.results.result import Grid
from casestudy.show.explorer.app import Explorer
from casestudy.show.explorer.page_state import PageState
from casestudy.show.explorer.part_cards import KEPT, NO_CORPUS, PartCards
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.worker import Stopped, Worker
from casestudy.show.text import signed

PROMPT, HOSTILE = "It was late.", "<b>It</b> was late."
TEXT = "It was late, so she left. Then Mr. Fox came in, and the day ended at 3.5. " * 8


@pytest.fixture(scope="module")
def client(toy_model: Model) -> Iterator[TestClient]:
    explorer = Explorer(Questions(toy_model), Worker())
    with TestClient(explorer.application(["testserver"])) as client:
        yield client


def last(client: TestClient, **asked: str) -> dict[str, Any]:
    """The last line of the card's answer."""
    answer = client.get("/part", params={"prompt": PROMPT} | asked)
    assert answer.status_code == 200
    line: dict[str, Any] = json.loads(answer.text.splitlines()[-1])
    return line


def made(questions: Questions, **asked: str) -> str:
    """The panel of a card, without a server."""
    line = questions.part(PageState(prompt=PROMPT, **asked), lambda: None, lambda line: None)
    return str(line["html"])


def test_a_card_has_the_figures_of_the_measurement_on_the_page_s_prompt(
    client: TestClient, toy_model: Model
) -> None:
    line = last(client, part="neuron 1.5", answer=" He", counterpart=" he")
    assert line["finished"]
    prompts = Behaviour("this prompt", prompts=(Prompt(PROMPT, " He", " he"),), answers="given")
    card = part(toy_model, "neuron 1.5", behaviour=prompts)
    ablated, share = (card[names.mean(n)] for n in (names.PART_ABLATION, names.PART_SHARE))
    assert isinstance(ablated, Grid)
    assert isinstance(share, Grid)
    zero = signed(float(ablated.select(kind="zero").values))
    assert f"by zero changes the logit difference of this prompt by {zero} logits" in line["html"]
    assert f"It writes {signed(float(share.values[0]))} logits" in line["html"]
    assert NO_CORPUS in line["html"]
    assert "no corpus was given" in line["html"]
    assert "its mean over the prompts is its own output" in line["html"]


def test_every_name_in_the_panels_opens_a_card_and_without_script_its_page(
    client: TestClient,
) -> None:
    html = client.get("/panels", params={"prompt": PROMPT, "corrupted": "it was late."}).json()
    labels = re.findall(r'<tspan class="part" data-part="([^"]+)"', html["html"]["ledger"])
    assert set(labels) >= {"mlp 0", "mlp 1"}
    card = last(client, part="head 1.2")["html"]
    heads = re.findall(r'<a class="part" href="([^"]+)" data-part="head 1.2"', card)
    page = client.get(heads[0].replace("&amp;", "&"))
    assert page.status_code == 200
    assert "<title>Head 1.2 of" in page.text
    # the page may run its own script, and nothing may frame it
    policy = page.headers["content-security-policy"]
    assert "script-src 'sha256-" in policy
    assert "frame-ancestors 'none'" in policy


def test_a_layer_lists_its_neurons_in_order(client: TestClient) -> None:
    html = last(client, part="mlp 1", answer=" He", counterpart=" he")["html"]
    rows = re.findall(r'data-part="(neuron 1\.\d+)">.*?<td class=num>([^<]+)', html, re.DOTALL)
    sizes = [abs(float(value.replace("−", "-"))) for _, value in rows]
    assert len(rows) == 20
    assert sizes == sorted(sizes, reverse=True)
    assert client.get("/card", params={"prompt": PROMPT, "part": "mlp 1"}).status_code == 404


def test_a_layer_s_neurons_are_of_the_first_tokens_and_not_zero_where_these_are_the_same(
    client: TestClient,
) -> None:
    html = last(client, part="mlp 1", answer=" He slept", counterpart=" She sat")["html"]
    assert "write most of the difference of the answers’ first tokens" in html
    assert re.search(r"mlp 1</a>? writes [+−]\d|mlp 1 writes [+−]\d", html)
    html = last(client, part="mlp 1", answer=" He slept", counterpart=" He went")["html"]
    assert "Not measured: both answers begin with the same token." in html
    assert not re.search(r"writes \S+ logits", html)


@pytest.mark.parametrize(
    "asked",
    ["trained.safetensors", "../x", "head 1", "attn 1", "head 1.2<q>", "mlp " + 5000 * "9"],
)
def test_no_file_and_no_other_name_is_read(client: TestClient, asked: str) -> None:
    for address in ("/part", "/card", "/"):
        answer = client.get(address, params={"prompt": PROMPT, "part": asked})
        assert answer.status_code == 400
        assert "Allowed: head 3.1" in answer.text


@pytest.mark.parametrize("address", ["/part", "/card"])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("head 1.99", "has no head 1.99. Allowed: layers 0 to 1, heads 0 to 3."),
        ("neuron 1.9999", "has no neuron 1.9999. Allowed: layers 0 to 1"),
        ("mlp 9", "layer 9. Allowed: 0 to 1"),
        ("", "No part is named. Allowed: part=head 3.1"),
    ],
)
def test_a_part_that_the_model_lacks_is_refused_with_what_there_is(
    client: TestClient, address: str, asked: str, said: str
) -> None:
    answer = client.get(address, params={"prompt": PROMPT, "part": asked})
    assert answer.status_code == 400
    assert said in answer.json()["problem"]


@pytest.mark.parametrize(
    ("spelled", "part"),
    [("a1.h2", "head 1.2"), ("L1H2", "head 1.2"), ("m1.n5", "neuron 1.5"), ("m1", "mlp 1")],
)
def test_a_part_may_be_spelled_as_elsewhere(client: TestClient, spelled: str, part: str) -> None:
    assert last(client, part=spelled) == last(client, part=part)


def test_what_is_typed_is_escaped(client: TestClient) -> None:
    html = last(client, prompt=HOSTILE, part="head 1.2")["html"]
    assert "&lt;b&gt;It&lt;/b&gt; was late." in html
    assert "<b>It" not in html
    page = client.get("/card", params={"prompt": HOSTILE, "part": "head 1.2"})
    assert "<b>It" not in page.text


def test_a_study_s_card_is_shown_as_it_is_stored(toy_model: Model, tmp_path: Path) -> None:
    prompts = Behaviour("mine", prompts=(Prompt("She left.", " He", " he"),) * 2, answers="given")
    card = part(toy_model, "head 1.2", behaviour=prompts)
    card.write(card_folder(tmp_path, card.part))
    (tmp_path / "parts" / "damaged").mkdir()
    (tmp_path / "parts" / "damaged" / "card.json").write_text("{}")
    stored = {card.part: card for card in stored_cards(tmp_path).values()}
    assert list(stored) == ["head 1.2"]
    questions = Questions(toy_model, PartCards(stored=stored, study="mine"))
    html = made(questions, part="head 1.2")
    assert "Of the study mine: its prompts" in html
    assert "the logit difference of mine by" in html
    assert "Of the prompt" in made(questions, part="head 0.1")
    # a card of other weights is not this model's
    other = PartCard(card.part, card.kind, {**card.about, "model": {"weight_hash": "x"}}, ())
    questions = Questions(toy_model, PartCards(stored={card.part: other}))
    assert "Of the prompt" in made(questions, part="head 1.2")


def test_with_text_a_card_has_contexts_and_stops_when_it_is_withdrawn(
    toy_model: Model, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text(TEXT)
    cards = PartCards(corpus=(tmp_path / "book.txt",))
    questions = Questions(toy_model, cards)
    steps: list[dict[str, Any]] = []
    state = PageState(prompt=PROMPT, part="neuron 0.3")
    html = questions.part(state, lambda: None, steps.append)["html"]
    assert "and the text in book.txt" in html
    assert html.count('class="context"') > 3
    assert "corpus" in [step["note"] for step in steps]
    # opened again, it is there at once
    assert questions.part(state, withdrawn, steps.append)["html"] == html
    with pytest.raises(Stopped):
        questions.part(PageState(prompt=PROMPT, part="neuron 0.4"), withdrawn, steps.append)


def withdrawn() -> None:
    """As a request that nobody wants any more."""
    raise Stopped


def test_only_the_newest_cards_are_kept(toy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = PartCards()
    known = PartCard("head 0.0", "head", {"model": {"weight_hash": ""}}, ())
    monkeypatch.setattr(PartCards, "_make", lambda *_: known)
    for i in range(KEPT + 3):
        state = PageState(prompt=PROMPT, part=f"neuron 0.{i}")
        cards.card(toy_model, Prompt(PROMPT), state, lambda: None, lambda line: None)
    assert len(cards._made) == KEPT
    assert "neuron 0.0" not in [part for part, _ in cards._made]
