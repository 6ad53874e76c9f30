"""A prompt read at a position is the text that ends there, whatever is measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.classes import CAPITAL_MASS
from casestudy.behaviour.files import load_behaviour
from casestudy.behaviour.files_written import write_behaviour
from casestudy.behaviour.prompts import Behaviour, Prompt, Role
from casestudy.behaviour.readouts import row_of, text_of, tokens_of
from casestudy.behaviour.roles import roles_of
from casestudy.errors import BehaviourError, PromptError, TokenError
from casestudy.measure.ledger import ledger
from casestudy.measure.predictions import predictions
from casestudy.model.model import Model
from casestudy.study.chosen import OF_CHUNKS
from casestudy.study.study import study

TEXT = "The cat sat. It was late. She ran"
SUBJECT = Role("subject", r"It|She", which="last")


@given(st.integers(min_value=1, max_value=11))
def test_reading_at_a_position_is_reading_the_text_that_ends_there(
    toy_model: Model, position: int
) -> None:
    tokenizer = toy_model.tokenizer
    whole = tokenizer.tokenize(TEXT).rows()[0]
    position = min(position, len(whole) - 1)
    for readout in (position, position - len(whole)):
        prompt = Prompt(TEXT, readout=readout)
        cut = Prompt(text_of(tokenizer, prompt))
        assert row_of(tokenizer, prompt) == row_of(tokenizer, cut) == whole[: position + 1]
        row = row_of(tokenizer, prompt)
        assert roles_of(tokenizer, prompt, row) == roles_of(tokenizer, cut, row)


def test_a_study_of_a_readout_is_the_study_of_the_text_cut_there(
    toy_model: Model, tmp_path: Path
) -> None:
    tokenizer = toy_model.tokenizer
    read = [Prompt(TEXT, " He", " he", readout="final full stop", corrupted=TEXT.lower())]
    read = [
        replace(read[0], readout=len(tokenizer.tokenize("The cat sat. It was late.").rows()[0]) - 1)
    ]
    read.append(
        replace(
            read[0],
            text="A dog ran off. It was late. She ran",
            corrupted="a dog ran off. It was late. She ran",
        )
    )
    lengths = [len(row_of(tokenizer, p)) for p in read]
    assert lengths[0] < len(tokenizer.tokenize(TEXT).rows()[0])
    cut = [
        replace(
            p, text=text_of(tokenizer, p), readout=None,
            corrupted=text_of(tokenizer, replace(p, text=str(p.corrupted))),
        )
        for p in read
    ]  # fmt: skip
    stages = [*OF_CHUNKS, "patching"]
    one, other = (
        study(
            toy_model, Behaviour(prompts=tuple(p), answers="given"), only=stages, out=tmp_path / n
        )
        for p, n in ((read, "read"), (cut, "cut"))
    )
    assert set(one.grids) == set(other.grids)
    for name, grid in one.grids.items():
        np.testing.assert_array_equal(grid.values, other.grids[name].values, err_msg=name)


def test_a_role_says_where_to_read(toy_model: Model) -> None:
    behaviour = Behaviour(prompts=(Prompt(TEXT, readout="subject"),), roles=(SUBJECT,))
    tokenizer = toy_model.tokenizer
    assert text_of(tokenizer, behaviour.prompts[0]) == "The cat sat. It was late. She"
    assert text_of(tokenizer, Prompt(TEXT, readout="first word")) == "The"
    own = Prompt(TEXT, readout="verb", roles={"verb": (3,)})
    assert row_of(tokenizer, own) == tokenizer.tokenize(TEXT).rows()[0][:4]
    with pytest.raises(BehaviourError, match="'object' is no role"):
        row_of(tokenizer, Prompt(TEXT, readout="object"))


@pytest.mark.parametrize("readout", [99, -99, 0])
def test_a_readout_beyond_the_prompt_or_at_BOS_is_refused(toy_model: Model, readout: int) -> None:
    model = toy_model.with_bos(True)
    with pytest.raises(BehaviourError, match=f"no readout {readout} in") as error:
        row_of(model.tokenizer, Prompt("One two three.", readout=readout))
    assert "0 is BOS" in str(error.value)
    found = predictions(model, [Prompt("One two three.", readout=1)], top_k=1)
    assert found.columns == predictions(model, ["One"], top_k=1).columns


def test_given_ids_are_read_as_they_are(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    text = "The cat sat."
    row = tokenizer.tokenize(text).rows()[0]
    apart = [*row[:-1], *(tokenizer.ids(c)[0] for c in "sat.")][: len(row) + 2]
    for ids in (row, apart):
        prompt = Prompt(text, ids=tuple(ids))
        assert row_of(tokenizer, prompt) == ids
        assert roles_of(tokenizer, prompt, ids)["first word"]
    same = ledger(toy_model, [Prompt(text, " He", " he", ids=tuple(row))])
    np.testing.assert_array_equal(
        same.values, ledger(toy_model, [Prompt(text, " He", " he")]).values
    )
    assert tokens_of(toy_model, [Prompt(text, ids=tuple(row))]).rows() == [row]
    with pytest.raises(TokenError):
        row_of(tokenizer, Prompt(text, ids=(10**9,)))
    with pytest.raises(PromptError, match="tokens long"):
        row_of(tokenizer, Prompt(text, ids=(row[-1],) * (tokenizer.n_ctx + 1)))
    with pytest.raises(BehaviourError, match="empty list of ids"):
        Prompt(text, ids=())


@pytest.mark.parametrize("suffix", [".toml", ".jsonl", ".csv"])
def test_files_hold_readouts_and_ids(tmp_path: Path, suffix: str) -> None:
    prompts = (
        Prompt("One two.", readout=-2),
        Prompt("One two three.", readout="first word"),
        Prompt("One.", ids=(5, 6, 7)),
    )
    path = tmp_path / f"prompts{suffix}"
    write_behaviour(Behaviour("prompts", prompts=prompts, class_contrast=CAPITAL_MASS), path)
    assert load_behaviour(path).prompts == prompts


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"readout": 1.5}, "readout is 1.5"),
        ({"readout": True}, "readout is True"),
        ({"ids": "x y"}, "ids is 'x y'"),
        ({"ids": [1, 2.5]}, "ids is"),
    ],
)
def test_a_file_says_what_a_readout_may_be(
    tmp_path: Path, entry: dict[str, object], said: str
) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps({"text": "One."} | entry) + "\n", encoding="utf-8")
    with pytest.raises(BehaviourError, match=said):
        load_behaviour(path)
