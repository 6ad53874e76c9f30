"""How do messages become a prompt? By the checkpoint's own chat template.

A conversation is a list of messages, each with a role and a text. The template is Jinja, comes with
the checkpoint, and writes the conversation with the model's special tokens, as transformers'
`apply_chat_template` does: the same text, and the same ids once special tokens are parsed. It runs
in a sandbox in a separate process (`chat_sandbox`) with limits on time, memory and length.

Cost: starting that process, about 0.1 s for any number of conversations.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casestudy.errors import PromptError
from casestudy.model import chat_sandbox
from casestudy.model.chat_template import DEFAULT

if TYPE_CHECKING:
    from casestudy.model.tokens import Tokenizer

Message = dict[str, Any]
"""A `role` and a `content`, and what else a template may read ("name", "reasoning_content")."""
Messages = str | Sequence[Mapping[str, Any]]
"""A conversation: messages, their JSON, or the one text that a user says."""

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST = 1_000_000
"""Characters of one rendered conversation: more than any context holds."""
SECONDS = 2.0
"""Processor time of a template, for all conversations of a call; each adds `SECONDS_EACH`."""
SECONDS_EACH = 0.02
WAIT = 60.0
"""Seconds to wait for it where the machine is busy, or processor time cannot be bounded."""

MOST_LISTED = 1000
"""Conversations that a manifest lists; a study's table of prompts has every text."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names under which an assistant's thoughts are given, as transformers reads them."""
_JSON = re.compile(r"\s*\[\s*(\{|\]\s*\Z)")
NO_TEMPLATE = "Give one: --chat-template FILE (chat_template= in Python, template in a file)"


@dataclass(frozen=True)
class Chat:
    """How conversations are written, beside what they say.

    Attributes:
        assistant_prefix: the start of the assistant's turn; the model goes on after it.
        template: Jinja, in place of the checkpoint's own.
        variables: what else the template is given (`{"enable_thinking": False}`), as JSON values.
        template_name: which of the checkpoint's templates, where it has several; "" for the one
            named "default".
    """

    assistant_prefix: str = ""
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    template_name: str = ""

    def __post_init__(self) -> None:
        own = ("messages", "tools", "documents", "add_generation_prompt")
        for name in self.variables:
            if name in own or not name.isidentifier():
                raise PromptError(
                    f"the chat variable {name!r}", allowed=f"a name other than {', '.join(own)}"
                )

    def source(self, tokenizer: Tokenizer) -> str:
        """The template.

        Raises: PromptError where there is none, or none of this name.
        """
        if self.template is not None:
            return self.template
        own = () if tokenizer.chat_template is None else ((DEFAULT, tokenizer.chat_template),)
        named: dict[str, str] = dict((*own, *tokenizer.more_templates))
        if not named:
            raise PromptError("this checkpoint has no chat template", hint=NO_TEMPLATE)
        name = self.template_name or DEFAULT
        if name not in named:
            raise PromptError(
                f"this checkpoint has no chat template {name!r}",
                allowed=", ".join(named),
                hint="Name one: --chat-template NAME (template_name in Python and in a file)",
            )
        return named[name]

    def render(self, tokenizer: Tokenizer, conversations: Sequence[Messages]) -> list[str]:
        """Each conversation as the text that the model reads, up to where the assistant speaks.

        Raises: PromptError for messages that are not well formed, a template that is missing, is
            not Jinja, refuses the messages, or does not end.
        """
        named = {
            name: tokenizer.backend.id_to_token(id)
            for name, id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
            if id is not None
        }
        jobs = [
            {
                **named,
                **self.variables,
                "messages": [_with_reasoning(one) for one in messages_of(conversation)],
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
            }
            for conversation in conversations
        ]
        texts = _run(self.source(tokenizer), jobs)
        return [text + self.assistant_prefix for text in texts]


@dataclass(frozen=True)
class Written:
    """What texts were written from, once a template has written them.

    Attributes:
        chat: how.
        template: SHA-256 of the template.
        messages: by text, its conversation as it was given: what a user says, or messages as JSON.
    """

    chat: Chat
    template: str
    messages: Mapping[str, str] = field(compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For a manifest, with the messages where they are few enough to read."""
        told: dict[str, Any] = {"template_sha256": self.template}
        told["assistant_prefix"] = self.chat.assistant_prefix
        told["variables"] = dict(self.chat.variables)
        if self.chat.template_name:
            told["template_name"] = self.chat.template_name
        if len(self.messages) <= MOST_LISTED:
            told["messages"] = list(self.messages.values())
        return told


def messages_of(given: Messages) -> tuple[Message, ...]:
    """A conversation's messages, checked.

    Args:
        given: messages; a text that begins as a JSON list of objects does is read as that, any
            other text is what a user says.

    Raises: PromptError for no message, an unknown role, a content that is not text, bad JSON.
    """
    rows: object = given
    if isinstance(given, str):
        rows = _from_text(given)
    if not isinstance(rows, Sequence) or not all(isinstance(one, Mapping) for one in rows):
        raise PromptError(
            f"messages {given!r}"[:100], allowed='a text, or a list of {"role": …, "content": …}'
        )
    if not rows:
        raise PromptError("a conversation without messages", allowed="at least one message")
    return tuple(_checked(i, dict(one)) for i, one in enumerate(rows))


def _from_text(text: str) -> object:
    if not _JSON.match(text):
        if not text:
            raise PromptError("an empty message", allowed="at least one character")
        return [{"role": "user", "content": text}]
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"the messages are not JSON: {error}",
            allowed='a text, or [{"role": "user", "content": "…"}, …]',
        ) from error


def _checked(i: int, message: Message) -> Message:
    role = message.get("role")
    if role not in ROLES:
        raise PromptError(f"message {i} has the role {role!r}", allowed=", ".join(ROLES))
    if not isinstance(message.get("content"), str):
        raise PromptError(
            f"the content of message {i} is {message.get('content')!r}"[:100], allowed="text"
        )
    return message


def _with_reasoning(message: Message) -> Message:
    said = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if said is None else {"thinking": said, **message, "reasoning_content": said}


def _run(template: str, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of one run of the sandbox's process."""
    try:
        request = json.dumps(
            {
                "path": sys.path,
                "template": template,
                "jobs": jobs,
                "most": MOST,
                "seconds": SECONDS + SECONDS_EACH * len(jobs),
            }
        ).encode()
    except (TypeError, ValueError) as error:
        raise PromptError(f"the messages are not JSON: {error}", allowed="texts") from error
    return list(_answer(request, len(jobs)))


@lru_cache(maxsize=32)
def _answer(request: bytes, n: int) -> tuple[str, ...]:
    """What the process answers; a page asks the same again for each of its panels."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(chat_sandbox.__file__))],
            input=request,
            capture_output=True,
            timeout=WAIT,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    except (subprocess.TimeoutExpired, ValueError):
        answer = {}
    except OSError as error:
        raise PromptError(f"the chat template could not be run: {error.strerror}") from error
    if "texts" in answer:
        return tuple(answer["texts"])
    raise _refusal(answer, n)


def _refusal(answer: Mapping[str, Any], n: int) -> PromptError:
    """What was wrong, as an error."""
    why, kind = str(answer.get("problem", "")), answer.get("kind")
    where = f" (conversation {answer['at']})" if n > 1 and "at" in answer else ""
    hint = "Give another one: --chat-template FILE (chat_template= in Python)"
    if kind == "syntax":
        return PromptError(f"the chat template is not Jinja: {why}", hint=hint)
    if kind == "raised":
        return PromptError(
            f"the chat template refuses these messages: {why}{where}",
            hint="Change the messages, or give another template: --chat-template FILE",
        )
    if kind == "length":
        return PromptError(
            f"the chat template wrote more than {MOST:,} characters{where}", hint=hint
        )
    if kind == "failed":
        return PromptError(f"the chat template fails on these messages: {why}{where}", hint=hint)
    mebibytes = chat_sandbox.MEMORY // 2**20
    return PromptError(
        f"the chat template did not end within {SECONDS:g} s of processor time and {mebibytes:,} "
        f"MiB of memory{where}",
        hint=hint,
    )
