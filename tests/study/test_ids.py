"""Is a token the same id from the choice to the report, whatever its text?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import torch

from casestudy.behaviour.files import load_behaviour, write_behaviour
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.show.explorer.study_prompts import study_prompts_of
from casestudy.study.study import open_study, study
from tests.model.vocabularies import byte_level, tokenizer_of

PROMPT = "It was He."


@pytest.fixture(scope="module")
def model(toy_model: Model) -> Model:
    """Random weights over a byte-level vocabulary with parts of characters."""
    tokenizer = tokenizer_of(byte_level).fitted(toy_model.config.d_vocab, "the test's vocabulary")
    return Model(toy_model.config, toy_model.weights, tokenizer, name="bytes")


def pieces(model: Model) -> dict[str, int]:
    """An id of each kind: part of a character, one of several with its text, plain, unused."""
    id = model.tokenizer.backend.token_to_id
    found = {"part": id("ðŁ"), "repeated": id("ï¿½"), "plain": id("ĠHe"), "spare": 8000}
    assert None not in found.values()
    return found


def reported(page: str, *names: str) -> list[int]:
    """The one prompt's cells in these columns of the report's data."""
    tables = re.findall(r'<script type="application/json" class="cells-data">(.*?)</script>', page)
    (table,) = [found for found in map(json.loads, tables) if set(names) <= found.keys()]
    return [int(table[name][0]) for name in names]


@pytest.mark.parametrize("kind", ["part", "repeated", "plain", "spare"])
def test_a_chosen_id_is_stored_reopened_and_reported(
    model: Model, tmp_path: Path, kind: str
) -> None:
    id, other = pieces(model)[kind], model.tokenizer.single("h")
    written = model.tokenizer.written(id, after=PROMPT)
    asked = Behaviour("ids", "?", (Prompt(PROMPT, written, f"id:{other}"),), answers="given")
    write_behaviour(asked, tmp_path / "ids.toml")
    behaviour = load_behaviour(tmp_path / "ids.toml")
    study(model, behaviour, out=tmp_path / "s", only=["predictions"])
    stored = open_study(tmp_path / "s")
    assert stored.tables["answers"].columns["id"] == [id, other]
    page = stored.report().read_text(encoding="utf-8")
    assert reported(page, "answer id", "counterpart id") == [id, other]
    ((_, query),) = study_prompts_of(tmp_path / "s").prompts
    asks = parse_qs(query)
    assert (asks["answer"], asks["counterpart"]) == ([f"id:{id}"], [f"id:{other}"])


def test_the_likeliest_of_a_class_is_its_id(model: Model, tmp_path: Path) -> None:
    """Of the many ids whose text is U+FFFD, the one with the largest logit is the answer."""
    vocabulary = model.tokenizer.vocabulary()
    same = [id for id, text in enumerate(vocabulary) if text == "\ufffd"]
    assert len(same) > 50
    prompt = Prompt(PROMPT, answer_class="^\ufffd$", counterpart_class="^[a-z]$")
    run_of_one = run(model, model.tokenize(PROMPT), logits="last")
    assert run_of_one.logits is not None
    logits = run_of_one.logits[0]
    best = same[int(logits[torch.tensor(same)].argmax())]
    behaviour = Behaviour("ids", "?", (prompt,), answers="classes", class_contrast=None)
    done = study(model, behaviour, out=tmp_path / "s", only=["predictions"])
    answers = done.tables["answers"]
    assert answers.columns["id"][0] == best
    assert answers.columns["logit"][0] == pytest.approx(float(logits[best]), abs=1e-4)
    assert answers.columns["token"][0] == model.tokenizer.label(best) != "\ufffd"
