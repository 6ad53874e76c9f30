"""Where in a prompt is the next token read?

At its last token, unless the prompt names a readout: a position or a role. A causal decoder never
looks right, so what it predicts there is what it predicts after the text that ends there. A prompt
is therefore cut behind its readout before anything is run: every measurement, patch and circuit
then reads "the last token", and no token behind the readout is computed.

`row_of` is the one place where a prompt becomes the tokens that are read. Prompts with ids of their
own (text that a model wrote, whose tokens another reading of the text might not give) keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casestudy.behaviour.prompts import Behaviour, Prompt, Role
from casestudy.behaviour.roles import roles_of, with_offsets
from casestudy.errors import BehaviourError, PromptError, TokenError
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer, Tokens


def row_of(tokenizer: Tokenizer, prompt: Prompt, *, number: int = 0) -> list[int]:
    """A prompt's ids as they are read: BOS included, up to its readout.

    Args:
        tokenizer: whose ids.
        prompt: its own ids are taken as they are; otherwise its text is tokenised.
        number: of the prompt, in messages.

    Raises: PromptError for a prompt without any token, or a too long one; TokenError for an id that
        no token has; BehaviourError for a readout that the prompt does not have.
    """
    row = whole_row(tokenizer, prompt, number=number)
    return row[: readout_of(tokenizer, prompt, row) + 1]


def whole_row(tokenizer: Tokenizer, prompt: Prompt, *, number: int = 0) -> list[int]:
    """A prompt's ids to its end, wherever it is read; otherwise as `row_of`."""
    if prompt.ids is None:
        return tokenizer.tokenize(prompt.text, first=number).rows()[0]
    for id in prompt.ids:
        tokenizer.string(id)  # raises for an id that no token has
    return tokenizer.check_length(list(prompt.ids), f"prompt {number}")


def tokens_of(model: Model, prompts: Sequence[Prompt]) -> Tokens:
    """Prompts as they are read, on the model's device; raises as `row_of`."""
    tokenizer = model.tokenizer
    rows = [row_of(tokenizer, prompt, number=i) for i, prompt in enumerate(prompts)]
    bos = tokenizer.prepend_bos and all(row[0] == tokenizer.bos_id for row in rows)
    return Tokens.of(rows, pad=tokenizer.eos_id or 0, bos=bos).to(model.device)


def readout_of(tokenizer: Tokenizer, prompt: Prompt, row: Sequence[int]) -> int:
    """The position at which a prompt is read, counted from its first token, BOS included.

    Args:
        row: the prompt's ids to its end (`whole_row`).

    Raises: BehaviourError for a position beyond the prompt or at BOS, and for a role it lacks.
    """
    where, n = prompt.readout, len(row)
    if where is None:
        return n - 1
    place = _role_end(tokenizer, prompt, row) if isinstance(where, str | Role) else where
    first = first_readout(tokenizer, row)
    if not -n <= place < n or place % n < first:
        raise BehaviourError(
            f"no readout {place} in {prompt.text[:60]!r}, a prompt of {n} tokens",
            allowed=f"{first} to {n - 1}, or {first - n} to -1 from the end"
            + (" (0 is BOS)" if first else ""),
        )
    return place % n


def first_readout(tokenizer: Tokenizer, row: Sequence[int]) -> int:
    """The first position of a prompt's ids at which it can be read: BOS only where it is alone."""
    return 1 if row[0] == tokenizer.bos_id and len(row) > 1 else 0


def readout_given(where: str) -> int | str | None:
    """A readout as a person writes it: a position, or else a role's name; None for no text."""
    try:
        return int(where) if where else None
    except ValueError:
        return where


def _role_end(tokenizer: Tokenizer, prompt: Prompt, row: Sequence[int]) -> int:
    """The last position of the role that a prompt is read at.

    Raises: BehaviourError where the prompt does not have it.
    """
    where = prompt.readout
    assert isinstance(where, str | Role)
    name, own = (where.name, (where,)) if isinstance(where, Role) else (where, ())
    found = roles_of(tokenizer, prompt, row, own)
    if name not in found:
        raise BehaviourError(
            f"the readout {name!r} is no role of {prompt.text[:60]!r}",
            allowed=", ".join(found) or "a position",
            hint="A role is found in the text by its pattern, or named by the prompt's own roles",
        )
    return found[name][-1]


def at_position(tokenizer: Tokenizer, prompt: Prompt) -> Prompt:
    """The prompt with a position for its role, so that a partner without that role is read there.

    Raises: BehaviourError for a readout that it does not have.
    """
    if prompt.readout is None:
        return prompt
    return replace(prompt, readout=readout_of(tokenizer, prompt, whole_row(tokenizer, prompt)))


def text_of(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The text that an answer follows: the prompt's, up to its readout."""
    if prompt.readout is None:
        return prompt.text
    whole = whole_row(tokenizer, prompt)
    behind = len(whole) - 1 - readout_of(tokenizer, prompt, whole)
    ends = [end for _, end in with_offsets(tokenizer, prompt)[1]]
    return prompt.text[: ends[-behind - 1]] if behind else prompt.text


def partner_of(prompt: Prompt, text: str) -> Prompt:
    """A corrupted partner: another text, read where the prompt is read."""
    return Prompt(text, readout=prompt.readout)


def check_roles(tokenizer: Tokenizer, behaviour: Behaviour) -> None:
    """Check that each role of the behaviour occurs in a prompt, and that the prompts' own positions
    exist. Prompts that cannot be run are skipped.

    Standard roles may be absent.

    Raises: BehaviourError naming a role that no prompt has, or a position out of range.
    """
    missing = {role.name: role for role in behaviour.roles}
    for prompt in behaviour.prompts:
        if not missing and not prompt.roles:
            continue
        try:
            ids = whole_row(tokenizer, prompt)
        except (PromptError, TokenError):
            continue
        for name in roles_of(tokenizer, prompt, ids, missing.values()):
            missing.pop(name, None)
    for name, role in missing.items():
        raise BehaviourError(
            f"role {name!r} is found in no prompt of {behaviour.name!r}",
            allowed="a role that at least one prompt has",
            hint=f"Its pattern is {role.pattern!r}; it is searched for in the text, without BOS",
        )
