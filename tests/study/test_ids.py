"""Is a token the same id from the choice to the report, whatever its text?"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import torch

from casestudy.behaviour.files import load_behaviour
from casestudy.behaviour.files_written import write_behaviour
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.measure.predictions import score_answer
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.show.explorer.study_prompts import study_prompts_of
from casestudy.study.study import open_study, study
from tests.model.test_token_texts import KINDS
from tests.model.vocabularies import byte_level, tokenizer_of

PROMPT = "It was He."


@pytest.fixture(scope="module")
def model(toy_model: Model) -> Model:
    """Random weights over a byte-level vocabulary with parts of characters."""
    tokenizer = tokenizer_of(byte_level).fitted(toy_model.config.d_vocab, "the test's vocabulary")
    return Model(toy_model.config, toy_model.weights, tokenizer, name="bytes")


@pytest.fixture(scope="module")
def sentencepiece(toy_model: Model) -> Model:
    """The same weights over a sentencepiece vocabulary, which has a token for every byte."""
    tokenizer = tokenizer_of(KINDS["llama"], bos="<s>", eos="</s>")
    fitted = tokenizer.fitted(toy_model.config.d_vocab, "the test's vocabulary")
    return Model(toy_model.config, toy_model.weights, fitted, name="pieces")


def last_logits(model: Model, prompt: str) -> torch.Tensor:
    """(d_vocab,) after a prompt."""
    logits = run(model, prompt, logits="last").logits
    assert logits is not None
    return logits[0]


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


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_the_likeliest_of_a_class_is_its_id(
    model: Model, sentencepiece: Model, tmp_path: Path, kind: str
) -> None:
    """Of the many ids whose text is U+FFFD, the one with the largest logit is the answer that is
    stored, contrasted and patched, where the vocabulary has a token of that text besides or not."""
    model = model if kind == "byte-level" else sentencepiece
    vocabulary = model.tokenizer.vocabulary()
    same = [id for id, text in enumerate(vocabulary) if text == "\ufffd"]
    assert len(same) > 50
    logits = last_logits(model, PROMPT)
    best = same[int(logits[torch.tensor(same)].argmax())]
    prompt = Prompt(PROMPT, answer_class="^\ufffd$", counterpart_class="^[a-z]$")
    behaviour = Behaviour("ids", "?", (prompt,), answers="classes", class_contrast=None)
    done = study(model, behaviour, out=tmp_path / "s", only=["predictions", "ledger"])
    answers = done.tables["answers"]
    assert answers.columns["id"][0] == best
    assert answers.columns["logit"][0] == pytest.approx(float(logits[best]), abs=1e-4)
    assert answers.columns["token"][0] == model.tokenizer.label(best) != "\ufffd"
    other = answers.columns["id"][1]
    difference = float(logits[best] - logits[other])
    contrasts = done.grids["logit_difference"].select(contrast="counterpart")
    assert float(contrasts.values[0]) == pytest.approx(difference, abs=1e-4)
    asked = Prompt(PROMPT, f"id:{best}", f"id:{other}", corrupted="It was I.")
    patched = patch_prompts(model, [asked], "resid_pre", by="last", direction="noising")
    assert [(a.id, b.id) for (a,), (b,) in patched.weighed] == [(best, other)]
    unpatched = patched.baselines.select(run="unpatched").values[0]
    assert float(unpatched) == pytest.approx(difference, abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("It was late.", " He"), ("It was late.", "He"), ("", "He"), ("It was late.", " He it")],
)
def test_an_answer_is_scored_as_the_one_text_with_its_prompt(
    sentencepiece: Model, prompt: str, answer: str
) -> None:
    """A vocabulary with a prefix space reads " He" as one token there, alone as two."""
    tokenizer = sentencepiece.tokenizer.with_bos(True)
    model = replace(sentencepiece, tokenizer=tokenizer)
    head, whole = (tokenizer.tokenize(text).rows()[0] for text in (prompt, prompt + answer))
    log_probs = run(model, whole, logits="all").logits
    assert log_probs is not None
    log_probs = log_probs[0].double().log_softmax(-1)
    places = range(len(head), len(whole))
    score = score_answer(model, prompt, answer)
    assert list(score.ids) == whole[len(head) :]
    assert score.log_prob == pytest.approx(
        float(sum(log_probs[i - 1, whole[i]] for i in places)), abs=1e-4
    )
    assert score.notices == ()
