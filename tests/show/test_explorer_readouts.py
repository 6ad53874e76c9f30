"""Does the live page read where it is asked to, and compare answers of any length?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from casestudy.behaviour.files import load_behaviour
from casestudy.behaviour.prompts import Prompt
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.measure.whole_answers import whole_answers
from casestudy.model.model import Model
from casestudy.show.explorer.app import Explorer
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.worker import Worker
from casestudy.show.text import number, signed
from tests.show.pages import Page
from tests.show.test_explorer import PAIR, figure, lines


@pytest.fixture(scope="module")
def client(toy_model: Model) -> Iterator[TestClient]:
    app = Explorer(Questions(toy_model), Worker()).application(["testserver"])
    with TestClient(app) as client:
        yield client


def unlinked(html: str) -> str:
    """A panel without its links' addresses, which hold the page's whole state."""
    return re.sub(r' href="[^"]*"', "", html)


def test_a_token_of_the_prompt_can_be_read_at(
    client: TestClient, toy_model: Model, tmp_path: Path
) -> None:
    asked = {**PAIR, "answer": " It", "counterpart": " it"}
    cut = {"prompt": "It was late.", "corrupted": "It was late,"}
    ids = toy_model.tokenize(cut["prompt"]).rows()[0]
    shown = Page(client.get("/panels", params=asked).json()["html"]["tokens-0"])
    buttons = {b["value"]: b for b in shown.all("button")}
    assert next(iter(buttons)) == "1"  # not BOS
    assert list(buttons)[-1] == ""  # the last token, whatever its position
    at = asked | {"readout": str(len(ids) - 1)}
    html, plain = (client.get("/panels", params=one).json()["html"] for one in (at, asked | cut))
    for place in ("predictions", "classes", "ledger", "lens", "heads", "attention"):
        assert unlinked(html[place]) == unlinked(plain[place]), place
    tokens = Page(html["tokens-0"])
    pressed = [b["value"] for b in tokens.all("button") if b["aria-pressed"] == "true"]
    assert pressed == [at["readout"]]
    assert [b["value"] for b in tokens.all("button")] == list(buttons)
    assert f"read at position {at['readout']}" in tokens.text
    grids = [lines(client, **one)[-1]["html"] for one in (at, asked | cut)]
    assert grids[0] == grids[1]
    patterns = [
        client.get("/pattern", params=o | {"head": "1.2"}).json() for o in (at, asked | cut)
    ]
    assert patterns[0] == patterns[1]
    file = tmp_path / "explored.toml"
    file.write_bytes(client.get("/study.toml", params=at).content)
    (prompt,) = load_behaviour(file).prompts
    assert (prompt.text, prompt.corrupted, prompt.readout) == (*PAIR.values(), len(ids) - 1)
    wrong = client.get("/panels", params=asked | {"readout": "99"}).json()
    assert "no readout 99" in wrong["problem"]
    assert "(0 is BOS)" in client.get("/panels", params=asked | {"readout": "0"}).json()["problem"]
    page = Page(client.get("/", params=asked | {"readout": "99"}).text)
    (back,) = [b for b in page.all("button") if b.get("id") == "last"]
    assert "hidden" not in back  # a way back, even so


def test_edits_are_of_what_is_read(client: TestClient) -> None:
    asked = {"prompt": "It was late. He slept. She", "readout": "4"}
    found = client.get("/panels", params=asked).json()["html"]["edits"]
    offered = [b["value"] for b in Page(found).all("button")]
    assert "It was late, He slept. She" in offered
    assert all(text.endswith(" He slept. She") for text in offered)


def test_answers_of_several_tokens_are_compared_whole(
    client: TestClient, toy_model: Model, tmp_path: Path
) -> None:
    asked = {**PAIR, "answer": " It was late", "counterpart": " It is"}
    prompts = [Prompt(text, asked["answer"], asked["counterpart"]) for text in PAIR.values()]
    whole = whole_answers(toy_model, prompts)
    for row, view in enumerate(("clean", "corrupted")):
        found = client.get("/panels", params=asked | {"view": view}).json()
        html = found["html"]
        drawn = figure(html["ledger"])["columns"]["value"]
        terms = whole.ledger.values[:, row]
        expected = [*terms[np.isfinite(terms)], whole.value.values[row]]
        np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-5)
        assert figure(html["heads"])["unit"] == figure(html["lens"])["unit"] == "nats"
        said = Page(html["outcome"]).text
        assert f"is {signed(float(whole.value.values[0]))} nats." in said
        for step in whole.steps.rows():
            if step["prompt"] == row:
                kept = [step[f"{side}_log_prob"] for side in ("answer", "counterpart")]
                assert all(number(log_p) in said for log_p in kept if log_p is not None)
        assert "shared" in said
        assert figure(html["classes"])
    last = lines(client, **asked)[-1]
    prompt = replace(prompts[0], corrupted=PAIR["corrupted"])
    grid = patch_prompts(toy_model, [prompt], "resid_pre").normalised
    np.testing.assert_allclose(
        figure(last["html"])["columns"]["value"], grid.values.ravel(), rtol=1e-4, atol=1e-5
    )
    assert "nats" in last["html"]
    assert lines(client, **asked, site="z")[-1]["finished"]
    assert lines(client, **asked, by="last")[-1]["finished"]
    file = tmp_path / "explored.toml"
    file.write_bytes(client.get("/study.toml", params=asked).content)
    (saved,) = load_behaviour(file).prompts
    assert (saved.answer, saved.counterpart) == (asked["answer"], asked["counterpart"])


def test_strict_tokens_refuse_an_answer_on_the_page(toy_model: Model) -> None:
    asked = {"prompt": "hello wor", "answer": "ld", "counterpart": " it"}
    said = "with strict tokens, answers that leave the prompt's tokens as they are"
    for model, refused in ((toy_model, False), (toy_model.with_strict_tokens(), True)):
        app = Explorer(Questions(model), Worker()).application(["testserver"])
        with TestClient(app) as client:
            found = client.get("/panels", params=asked).json()
        text = " ".join(" ".join(Page(html).text for html in found["html"].values()).split())
        assert (said in text) == refused
        assert found["state"]["weighed"] != refused
