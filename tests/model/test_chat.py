"""Do messages become the text and the ids that transformers makes of them, and does no template
get away with more?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import casestudy as cs
from casestudy.errors import ModelError, PromptError
from casestudy.model import chat as chatting
from casestudy.model import chat_sandbox
from casestudy.model.chat import Chat, messages_of
from casestudy.model.chat_template import named_templates, templates_in
from casestudy.model.model import Model
from tests.helpers import write_gpt2
from tests.model.chat_templates import (
    BOS,
    CHATML,
    EOS,
    GEMMA,
    SYSTEM,
    TEMPLATES,
    TURNS,
    USER,
    WRITES_BOS,
    backend,
    tokenizer,
)


def theirs(template: str | None) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token=BOS, eos_token=EOS, chat_template=template
    )


@pytest.fixture(scope="module")
def model(toy: Callable[..., Model]) -> Model:
    """A model whose tokenizer has the special tokens of the five families."""
    return replace(toy(n_positions=256), tokenizer=tokenizer(CHATML))


@pytest.mark.parametrize("family", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(family: str, model: Model) -> None:
    conversations = [USER, TURNS, *([] if family == "Gemma" else [SYSTEM])]
    other = theirs(TEMPLATES[family])
    for prepends in (True, False):
        reader = replace(model, tokenizer=tokenizer(TEMPLATES[family], prepend_bos=prepends))
        texts = Chat().render(reader.tokenizer, conversations)
        for text, messages in zip(texts, conversations, strict=True):
            expected = other.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            assert text == expected
            rows = other.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
            tokens = reader.with_chat(text).tokenize(text)
            assert tokens.rows() == [rows]
            assert rows.count(reader.tokenizer.bos_id) == (family in WRITES_BOS)


def test_variables_and_a_prefix_of_the_assistants_turn(model: Model) -> None:
    said = theirs(CHATML).apply_chat_template(
        USER, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    prefix = "The answer is"
    ours = model.chat(USER, assistant_prefix=prefix, variables={"enable_thinking": False})
    assert ours == said + prefix
    assert "</think>" in said


def test_thoughts_are_given_by_every_name_that_templates_read(model: Model) -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }};{% endfor %}"
    messages = [{"role": "assistant", "content": "4", "reasoning": "2 and 2"}, *USER]
    expected = theirs(template).apply_chat_template(messages, tokenize=False)
    assert model.chat(messages, template=template) == expected
    assert expected.startswith("2 and 2|2 and 2;")


def test_a_text_a_list_and_its_json_are_one_conversation(model: Model) -> None:
    text = USER[0]["content"]
    assert model.chat(text) == model.chat(USER) == model.chat(json.dumps(USER))
    # a list that is no messages is what somebody may say
    assert messages_of("[1, 2]") == ({"role": "user", "content": "[1, 2]"},)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "without messages"),
        ("[]", "without messages"),
        ("", "empty message"),
        ('[{"role": "user", "content": "a"', "not JSON"),
        ([{"role": "narrator", "content": "a"}], "role 'narrator'. Allowed: system, developer"),
        ([{"content": "a"}], "role None"),
        ([{"role": "user", "content": ["a"]}], "content of message 0"),
        ([{"role": "user"}], "content of message 0 is None"),
        ([{"role": "user", "content": "a", "name": object()}], "not JSON"),
    ],
)
def test_messages_that_are_none_are_refused(model: Model, messages: Any, why: str) -> None:
    with pytest.raises(PromptError, match=why.replace("[", r"\[")):
        model.chat(messages)


def test_a_checkpoint_without_a_template_names_the_option(toy_model: Model) -> None:
    with pytest.raises(PromptError, match=r"no chat template\. Give one: --chat-template"):
        toy_model.chat("Hello")
    assert toy_model.chat("Hello", template="{{ messages[0].content }}!") == "Hello!"


def test_what_a_template_says_of_the_messages_is_said(model: Model) -> None:
    with pytest.raises(PromptError, match="refuses these messages: System role not supported"):
        model.chat(SYSTEM, template=GEMMA)
    with pytest.raises(PromptError, match=r"alternate user/assistant \(conversation 1\)"):
        Chat(template=GEMMA).render(model.tokenizer, [USER, [*USER, *USER]])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for %}", "not Jinja: line 1"),
        ("{{ messages[0].content.nothing.more }}", "fails on these messages: UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ namespace().__init__.__globals__ }}", "fails on these messages"),
        ("{{ namespace(_x=1) }}", "SecurityError"),
        ("{% for i in range(10**9) %}a{% endfor %}", "OverflowError"),
        ("{% include '/etc/passwd' %}", "fails on these messages: TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(90000) %}{{ 'twelve chars' }}{% endfor %}", "more than 1,000,000"),
        ("{{ 'a' * 10**12 }}", "did not end within|fails on these messages: MemoryError"),
    ],
)
def test_a_template_gets_away_with_nothing(model: Model, template: str, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        model.chat(USER, template=template)


def test_a_template_that_loops_is_ended(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatting, "SECONDS", 0.3)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(PromptError, match=r"did not end within 0\.3 s of processor time"):
        model.chat(USER, template=loop)


def test_the_tests_own_process_runs_no_template(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_sandbox, "sandbox", lambda: pytest.fail("rendered here"))
    assert model.chat(USER).endswith("<|im_start|>assistant\n")


def test_a_text_with_special_tokens_is_noticed_with_what_to_add(
    model: Model, toy_model: Model
) -> None:
    text = model.chat("Hi")
    (notice,) = model.tokenizer.notices(text)
    plain = len(model.tokenizer.ids(text, parse_special=False))
    parsed = model.tokenizer.ids(text, parse_special=True)
    found = sum(id in model.tokenizer.special for id in parsed)
    assert f"{found} special tokens (<|im_start|>, <|im_end|>)" in notice.text
    assert f"{plain - len(parsed) + found} tokens; --parse-special" in notice.text
    assert notice.text.endswith("--chat writes messages with them")
    assert model.with_chat(text).tokenizer.notices(text) == ()
    (without,) = toy_model.tokenizer.notices("<|endoftext|>")
    assert "--chat" not in without.text, "this checkpoint has no template"


def test_where_a_checkpoint_keeps_its_templates(tmp_path: Path) -> None:
    assert templates_in(tmp_path, {}) == {}
    assert templates_in(tmp_path, {"chat_template": "one"}) == {"default": "one"}
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    both = {"tool_use": "t", "default": "d"}
    assert templates_in(tmp_path, {"chat_template": named}) == both
    assert named_templates({"tool_use": "t", "broken": 3}) == {"tool_use": "t"}
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    # as transformers has it
    assert templates_in(tmp_path, {"chat_template": "one"}) == {"default": "file"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("r", encoding="utf-8")
    assert templates_in(tmp_path, {}) == {"default": "file", "rag": "r"}
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="cannot be read"):
        templates_in(tmp_path, {})


def test_a_template_is_chosen_by_name(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text()) if file.is_file() else {}
    named = [
        {"name": "tool_use", "template": "t {{ messages[0].content }}"},
        {"name": "default", "template": "d {{ messages[0].content }}"},
    ]
    file.write_text(json.dumps(entries | {"chat_template": named}))
    model = cs.load(folder)
    assert model.chat("Hi") == "d Hi"
    assert model.chat("Hi", template_name="tool_use") == "t Hi"
    assert cs.chat(model, "Hi", template_name="tool_use").prompts[0].text == "t Hi"
    assert model.chat("Hi", template="x", template_name="tool_use") == "x"
    with pytest.raises(PromptError, match=r"'tools'\. Allowed: default, tool_use"):
        model.chat("Hi", template_name="tools")
    file.write_text(json.dumps(entries | {"chat_template": named[:1]}))
    with pytest.raises(PromptError, match=r"'default'\. Allowed: tool_use"):
        cs.load(folder).chat("Hi")
