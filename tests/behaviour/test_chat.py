"""Is a behaviour of conversations what its rendered texts would be by hand, in every door?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import casestudy as cs
from casestudy.behaviour.chat import edited_message, unwritten, written
from casestudy.behaviour.files import load_behaviour
from casestudy.behaviour.files_written import write_behaviour
from casestudy.behaviour.presets import preset
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError, PromptError
from casestudy.model.chat import Chat, Written
from casestudy.model.chat_template import template_hash
from casestudy.model.model import Model
from tests.model.chat_templates import CHATML, GEMMA, PHI, TURNS, USER, tokenizer

QUESTION, OTHER = "What is 2?", "What is 3?"
PROMPTS = (
    Prompt(QUESTION, answer=" the", counterpart=" a", corrupted=OTHER),
    Prompt(json.dumps(TURNS), answer=" the", counterpart=" a"),
)


@pytest.fixture(scope="module")
def model(toy: Callable[..., Model]) -> Model:
    return replace(toy(n_positions=256), tokenizer=tokenizer(CHATML))


def asked(**options: object) -> Behaviour:
    """A behaviour as a file holds it."""
    chat = Chat(assistant_prefix="It is")
    return Behaviour("asked", prompts=PROMPTS, answers="given", chat=chat, **options)  # type: ignore[arg-type]


def by_hand(model: Model) -> Behaviour:
    """The same with its texts rendered one by one."""
    texts = [model.chat(p.text, assistant_prefix="It is") for p in PROMPTS]
    corrupted = model.chat(OTHER, assistant_prefix="It is")
    made = [replace(p, text=t) for p, t in zip(PROMPTS, texts, strict=True)]
    return Behaviour("asked", prompts=(replace(made[0], corrupted=corrupted), made[1]),
                     answers="given")  # fmt: skip


def same(ours: cs.Grid, theirs: cs.Grid) -> None:
    np.testing.assert_array_equal(ours.values, theirs.values)


def test_every_door_that_takes_a_behaviour_renders_it(model: Model, tmp_path: Path) -> None:
    reader, plain = model.with_chat("no BOS here"), by_hand(model)
    for measure in (cs.ledger, cs.logit_difference, cs.class_mass, cs.head_attribution):
        same(measure(model, asked()), measure(reader, plain))
    for tables in (cs.predictions, cs.logit_lens):
        assert tables(model, asked()).columns == tables(reader, plain).columns
    only = ["predictions"]
    ours = cs.study(model, asked(), out=tmp_path / "chat", only=only)
    theirs = cs.study(reader, plain, out=tmp_path / "hand", only=only)
    assert ours["prompts"].columns == theirs["prompts"].columns
    same(ours["logit_difference"], theirs["logit_difference"])  # type: ignore[arg-type]
    about = ours.manifest["behaviour"]["chat"]
    assert about["template_sha256"] == template_hash(CHATML)
    assert about["assistant_prefix"] == "It is"
    assert about["messages"] == [QUESTION, json.dumps(TURNS), OTHER]
    assert "chat" not in theirs.manifest["behaviour"]


def test_conversations_from_python(model: Model) -> None:
    one = cs.chat(model, USER, assistant_prefix="It is")
    assert [p.text for p in one.prompts] == [model.chat(USER, assistant_prefix="It is")]
    several = cs.chat(model, [USER, TURNS, "Hello"])
    assert [p.text for p in several.prompts] == [model.chat(m) for m in (USER, TURNS, "Hello")]
    ready = cs.chat(model, asked())
    assert written(model, ready) is ready  # once written, it stays
    assert isinstance(ready.chat, Written)
    assert ready.prompts[0].text == model.chat(QUESTION, assistant_prefix="It is")
    assert cs.chat(model, ready, assistant_prefix="So").prompts[0].text.endswith("assistant\nSo")


def test_circuit_prompts_are_written_as_the_others_are(model: Model) -> None:
    for name in ("ioi", "greater-than"):
        plain = preset(name)
        ready = cs.chat(model, plain, assistant_prefix="So")
        assert len(ready.circuit_prompts) == len(plain.circuit_prompts) > 0
        for one, said in zip(ready.circuit_prompts[:3], plain.circuit_prompts, strict=False):
            assert one.text == model.chat(said.text, assistant_prefix="So")
            assert one.corrupted == (
                None
                if said.corrupted is None
                else model.chat(said.corrupted, assistant_prefix="So")
            )
        assert unwritten(ready) == replace(plain, chat=Chat("So"))
        assert ready.with_circuit_prompts.read_by(model) == ready.read_by(model)


def test_a_corrupted_text_takes_the_place_of_the_last_user_message(model: Model) -> None:
    ready = cs.chat(model, Prompt(json.dumps(TURNS), corrupted="Autre chose."))
    changed = [*TURNS[:2], {"role": "user", "content": "Autre chose."}]
    assert ready.prompts[0].corrupted == model.chat(changed)
    with pytest.raises(BehaviourError, match="no user speaks"):
        cs.chat(model, Prompt('[{"role": "assistant", "content": "a"}]', corrupted="b"))


def test_an_edit_of_the_text_is_an_edit_of_the_message_where_it_changes_nothing_else() -> None:
    messages, text = json.dumps(TURNS), "<user>Écris « salut ».<end>"
    assert edited_message(messages, text, "<user>Lis « salut ».<end>") == "Lis « salut »."
    assert edited_message(messages, text, "<USER>Écris « salut ».<end>") is None
    assert edited_message(messages, text, "<user><end>") is None
    assert edited_message(" a ", "<a><", "<b><") == " b "
    assert edited_message("a", "aa", "ba") is None


def test_another_models_template_writes_the_messages_again(model: Model) -> None:
    other = replace(model, tokenizer=tokenizer(PHI))
    assert written(other, cs.chat(model, asked())) == cs.chat(other, asked())


def test_messages_are_never_read_as_they_are(model: Model) -> None:
    with pytest.raises(BehaviourError, match="prompts of 'asked' are messages"):
        asked().read_by(model)
    with pytest.raises(PromptError, match="System role"):
        cs.chat(model, [{"role": "system", "content": "a"}, *USER], template=GEMMA)


@pytest.mark.parametrize("suffix", [".toml", ".jsonl"])
def test_a_file_holds_messages_and_reads_them_back(
    model: Model, tmp_path: Path, suffix: str
) -> None:
    chat = Chat("It is", "{{ messages }}", {"enable_thinking": False, "n": 3})
    behaviour = replace(asked(), chat=chat)
    path = tmp_path / f"asked{suffix}"
    write_behaviour(behaviour, path)
    assert load_behaviour(path) == behaviour
    ready = cs.chat(model, asked())
    write_behaviour(ready, path)  # what a model's template wrote goes back as messages
    assert load_behaviour(path) == unwritten(ready) == asked()


def test_messages_in_a_file_need_no_setting(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(
        '[[prompts]]\nmessages = [{role = "user", content = "Hi"}]\n[[prompts]]\ntext = "Ho"\n'
    )
    found = load_behaviour(path)
    assert found.chat == Chat()
    assert [p.text for p in found.prompts] == ['[{"role": "user", "content": "Hi"}]', "Ho"]


ONE = '[[prompts]]\ntext = "a"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'chat = "yes"\n{ONE}', r"chat is 'yes'\. Allowed: true, false or a table"),
        (f'chat = {{prefix = "a"}}\n{ONE}', "chat has the key 'prefix'"),
        (f"chat = {{template = 1}}\n{ONE}", r"template is 1\. Allowed: text"),
        (f"chat = {{variables = {{messages = 1}}}}\n{ONE}", "chat variable 'messages'"),
        ("chat = false\n[[prompts]]\nmessages = []", "prompt 0 has messages"),
        ("[[prompts]]\nmessages = 'a'", "messages is 'a'"),
        ("[[prompts]]\nmessages = []", "prompt 0: a conversation without messages"),
        (
            '[[prompts]]\nmessages = [{role = "x", content = ""}]',
            "prompt 0: message 0 has",
        ),
        (f'{ONE}messages = [{{role = "user", content = "b"}}]', "has text and messages"),
    ],
)
def test_a_file_that_is_not_well_formed(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BehaviourError, match=why):
        load_behaviour(path)
