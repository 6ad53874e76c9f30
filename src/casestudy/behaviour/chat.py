"""How does a behaviour whose prompts are conversations get its texts?

In a file, and before a model is chosen, its texts are messages: JSON, or what a user says.
`written` has the model's chat template write them, corrupted prompts included, and keeps what they
were written from. Whatever takes a model and a behaviour calls it first.

Cost: one process of the sandbox for all prompts, one more where there are corrupted prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError, PromptError, unknown
from casestudy.model.chat import Chat, Messages, Written, messages_of
from casestudy.model.chat_template import template_hash
from casestudy.model.model import Model


def chat(
    model: Model,
    prompts: Behaviour | Prompt | Messages | Sequence[Prompt | Messages],
    *,
    assistant_prefix: str = "",
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    template_name: str = "",
) -> Behaviour:
    """Conversations as a behaviour, written by the model's chat template.

    Every measurement takes it: special tokens are parsed, and no text gets a second BOS. A single
    text is `result.prompts[0].text`, and `result.read_by(model)` the model that reads it so.

    Args:
        model: whose template it is; nothing is run.
        prompts: messages (`[{"role": "user", "content": …}]`, their JSON, or what a user
            says), several such, or prompts or a behaviour whose texts are these. A corrupted prompt
            is messages too, or a text that takes the place of the last user message.
        assistant_prefix: the start of the assistant's turn, after which answers are read.
        template: Jinja, in place of the checkpoint's own.
        variables: what else the template reads, such as `{"enable_thinking": False}`.
        template_name: which of the checkpoint's templates, where it has several; by default the one
            named "default". Without these four, a behaviour keeps its own.

    Raises: PromptError without a template or one of this name, for messages that are not well
        formed, and for a template that refuses them or does not end.
    """
    given = prompts
    if not isinstance(given, Behaviour):
        given = Behaviour("chat", prompts=tuple(_prompt(one) for one in _several(given)))
    given = unwritten(given)
    how = Chat(assistant_prefix, template, variables or {}, template_name)
    if how == Chat() and isinstance(given.chat, Chat):
        how = given.chat
    return written(model, replace(given, chat=how))


def _several(given: Any) -> Sequence[Any]:
    """Each conversation of what may be one."""
    if isinstance(given, str | Prompt):
        return [given]
    if not isinstance(given, Sequence):
        raise PromptError(f"messages {given!r}"[:100], allowed="messages, a text, or several")
    one = not given or all(isinstance(message, Mapping) for message in given)
    return [given] if one else given


def _prompt(given: Prompt | Messages) -> Prompt:
    return given if isinstance(given, Prompt) else Prompt(as_text(given))


def as_text(messages: Messages) -> str:
    """A conversation as a prompt's text holds it before a template has written it."""
    messages_of(messages)
    if isinstance(messages, str):
        return messages
    return json.dumps([dict(one) for one in messages], ensure_ascii=False)


def written(model: Model, behaviour: Behaviour) -> Behaviour:
    """A behaviour whose texts are what this model reads; anything but messages is left as it is.

    Texts that another model's template wrote are written again by this one's.

    Raises: as `chat`.
    """
    if behaviour.chat is None:
        return behaviour
    tokenizer = model.tokenizer
    how = behaviour.chat if isinstance(behaviour.chat, Chat) else behaviour.chat.chat
    source = template_hash(how.source(tokenizer))
    if isinstance(behaviour.chat, Written) and behaviour.chat.template == source:
        return behaviour
    behaviour = unwritten(behaviour)
    given = (*behaviour.prompts, *behaviour.circuit_prompts)
    texts = how.render(tokenizer, [prompt.text for prompt in given])
    partners = {
        i: _partner(prompt.text, prompt.corrupted)
        for i, prompt in enumerate(given)
        if prompt.corrupted is not None
    }
    rendered = how.render(tokenizer, list(partners.values())) if partners else []
    corrupted = dict(zip(partners, rendered, strict=True))
    made = tuple(
        replace(prompt, text=text, corrupted=corrupted.get(i))
        for i, (prompt, text) in enumerate(zip(given, texts, strict=True))
    )
    messages = {corrupted[i]: given[i].corrupted or "" for i in partners}
    messages = dict(zip(texts, (prompt.text for prompt in given), strict=True)) | messages
    return _with_prompts(behaviour, made, Written(how, source, messages))


def _with_prompts(
    behaviour: Behaviour, prompts: tuple[Prompt, ...], chat: Chat | Written
) -> Behaviour:
    """The behaviour with other texts for its prompts and, behind them, its circuit prompts."""
    n = len(behaviour.prompts)
    return replace(behaviour, prompts=prompts[:n], circuit_prompts=prompts[n:], chat=chat)


def _partner(clean: str, corrupted: str) -> Messages:
    """A corrupted prompt's messages: its own, or the clean ones with another last user message."""
    messages = messages_of(corrupted)
    if corrupted != messages[0]["content"]:
        return messages
    own = list(messages_of(clean))
    last = max((i for i, m in enumerate(own) if m["role"] == "user"), default=None)
    if last is None:
        raise BehaviourError(
            f"the corrupted prompt {corrupted[:40]!r} is one text, and no user speaks in its "
            "conversation",
            allowed="messages",
        )
    own[last] = {**own[last], "content": corrupted}
    return own


def edited_message(messages: str, text: str, edited: str) -> str | None:
    """What the last user message became, where an edit of a rendered text changed that alone.

    Args:
        messages: the conversation, as a file holds it.
        text: what the template wrote of it.
        edited: that text, edited.
    """
    said = [str(m["content"]) for m in messages_of(messages) if m["role"] == "user"][-1:]
    own = said[0].strip() if said else ""  # templates may trim it
    if not own or text.count(own) != 1:
        return None
    before, after = text.split(own)
    whole = len(edited) > len(before) + len(after)
    if not (whole and edited.startswith(before) and edited.endswith(after)):
        return None
    return said[0].replace(own, edited[len(before) : len(edited) - len(after)])


def unwritten(behaviour: Behaviour) -> Behaviour:
    """The behaviour with messages as its texts, as a file holds it."""
    chat = behaviour.chat
    if not isinstance(chat, Written):
        return behaviour

    def given(text: str) -> str:
        if text not in chat.messages:
            raise BehaviourError(
                f"the text {text[:60]!r} was not written from messages", hint="Set chat=None"
            )
        return chat.messages[text]

    prompts = tuple(
        replace(
            prompt,
            text=given(prompt.text),
            corrupted=None if prompt.corrupted is None else given(prompt.corrupted),
        )
        for prompt in (*behaviour.prompts, *behaviour.circuit_prompts)
    )
    return _with_prompts(behaviour, prompts, chat.chat)


# In files.


def with_messages(
    rows: Iterator[tuple[str, dict[str, Any]]], settings: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file's prompts, each `messages` as a text; where there are any, the file's `chat` is true.

    Raises: BehaviourError for a prompt with text and messages, and for messages in a file that says
        it has none.
    """
    for where, row in rows:
        row = dict(row)
        messages = row.pop("messages", None)
        partner = row.get("corrupted")
        if messages is not None or isinstance(partner, list):
            if settings.get("chat") is None:
                settings["chat"] = True
            if settings["chat"] is False:
                raise BehaviourError(f"{where} has messages", allowed="text where chat = false")
        if messages is not None:
            if row.get("text") is not None:
                raise BehaviourError(f"{where} has text and messages", allowed="one of them")
            row["text"] = _from_file(where, messages)
        if isinstance(partner, list):
            row["corrupted"] = _from_file(where, partner)
        yield where, row


def _from_file(where: str, messages: Any) -> str:
    """A list of messages as a text, with its place in what is wrong with it."""
    try:
        if not isinstance(messages, list):
            raise PromptError(f"messages is {messages!r}"[:100], allowed="a list of tables")
        return as_text(messages)
    except PromptError as error:
        raise BehaviourError(f"{where}: {error.came}", allowed=error.allowed) from error


def chat_setting(value: object) -> Chat | None:
    """A file's `chat`: true or false, or a table of what `Chat` has.

    Raises: BehaviourError for anything else.
    """
    if value is None or isinstance(value, bool):
        return Chat() if value else None
    names = {"assistant_prefix": str, "template": str, "template_name": str, "variables": dict}
    if not isinstance(value, dict):
        raise BehaviourError(f"chat is {value!r}", allowed="true, false or a table")
    given = {key: entry for key, entry in value.items() if entry is not None}
    for key, entry in given.items():
        if key not in names:
            raise unknown(BehaviourError, f"chat has the key {key!r}", key, names)
        if not isinstance(entry, names[key]):
            raise BehaviourError(
                f"chat: {key} is {entry!r}", allowed="a table" if key == "variables" else "text"
            )
    try:
        return Chat(**given)
    except PromptError as error:
        raise BehaviourError(error.came, allowed=error.allowed) from error


def chat_entry(chat: Chat) -> bool | dict[str, Any]:
    """What `chat_setting` reads back."""
    return {
        key: value for key, value in asdict(chat).items() if value not in ("", None, {})
    } or True
