"""Does the live page read conversations as the chat template writes them?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import casestudy as cs
from casestudy.behaviour.files import load_behaviour
from casestudy.model.chat import Chat
from casestudy.model.model import Model
from casestudy.show.explorer.app import Explorer
from casestudy.show.explorer.page_state import Refusal, read
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.worker import Worker
from tests.show.pages import Page

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"  # fmt: skip # noqa: E501
ASKED = {"prompt": "It was late.", "corrupted": "It was odd.", "chat": "messages", "prefix": " So"}


@pytest.fixture(scope="module")
def model(toy: Callable[..., Model]) -> Model:
    plain = toy(n_positions=256)
    return replace(plain, tokenizer=replace(plain.tokenizer, chat_template=TEMPLATE))


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[TestClient]:
    app = Explorer(Questions(model), Worker()).application(["testserver"])
    with TestClient(app) as client:
        yield client


def panels(client: TestClient, asked: dict[str, str]) -> dict[str, Any]:
    return dict(client.get("/panels", params=asked).json())


def test_panels_and_grids_are_of_the_rendered_texts(client: TestClient) -> None:
    by_hand = {
        key: f"<|endoftext|>user: {ASKED[key]}<|endoftext|> So" for key in ("prompt", "corrupted")
    }
    ours, theirs = panels(client, ASKED), panels(client, by_hand | {"special": "parsed"})
    for place in ("tokens-0", "tokens-1", "outcome", "predictions", "ledger", "attention"):
        assert ours["html"][place] == theirs["html"][place], place
    shown = Page(ours["html"]["tokens-0"]).text
    assert shown.count("<|endoftext|>") == 2  # BOS, and the end of the user's turn
    pair = {"answer": ours["state"]["answer"], "counterpart": ours["state"]["counterpart"]}
    grids = [
        client.get("/patch", params=asked | pair).text.splitlines()[-1]
        for asked in (ASKED, by_hand | {"special": "parsed"})
    ]
    assert grids[0] == grids[1]
    patterns = [
        client.get("/pattern", params=asked | {"head": "1.2"}).json()
        for asked in (ASKED, by_hand | {"special": "parsed"})
    ]
    assert patterns[0] == patterns[1]
    # edits are of what the user says
    assert "user:" not in Page(ours["html"]["edits"]).text


def test_it_is_saved_as_messages(client: TestClient, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "explored.toml"
    file.write_bytes(client.get("/study.toml", params=ASKED).content)
    behaviour = load_behaviour(file)
    assert behaviour.chat == Chat(" So")
    assert behaviour.prompts[0].text == ASKED["prompt"]
    total = panels(client, ASKED)["html"]["outcome"]
    difference = float(cs.logit_difference(model, behaviour).values[0, 0])
    assert f"{difference:+.2f}".replace("-", "−") in Page(total).text


def test_messages_and_what_is_wrong_with_them(client: TestClient) -> None:
    messages = json.dumps([{"role": "user", "content": ASKED["prompt"]}])
    asked = ASKED | {"prompt": messages}
    assert panels(client, asked)["html"]["ledger"] == panels(client, ASKED)["html"]["ledger"]
    assert "without messages" in panels(client, ASKED | {"prompt": "[]"})["problem"]
    with pytest.raises(Refusal, match="chat “yes”"):
        read([("chat", "yes")])


def test_the_switch_is_there_where_the_model_has_a_template(
    client: TestClient, toy_model: Model
) -> None:
    def hidden(text: str, name: str) -> bool:
        (found,) = [label for label in Page(text).all("label") if label.get("id") == name]
        return "hidden" in found

    page = client.get("/", params=ASKED).text
    assert (hidden(page, "chat"), hidden(page, "prefix")) == (False, False)
    assert hidden(client.get("/").text, "prefix")
    app = Explorer(Questions(toy_model), Worker()).application(["testserver"])
    with TestClient(app) as plain:
        assert hidden(plain.get("/").text, "chat")
