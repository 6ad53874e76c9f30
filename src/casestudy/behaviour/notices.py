"""What should a user know about how a behaviour's texts are tokenised?

Notices say that the text of a special token is read as plain characters, that prompt and answer as
one text have other tokens, or that a BOS exists but is not used. Cost: each text is tokenised once
more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from casestudy.behaviour.prompts import Prompt
from casestudy.behaviour.readouts import text_of
from casestudy.errors import CasestudyError
from casestudy.model.notices import Notice, one_per_kind
from casestudy.model.tokens import Tokenizer


def prompt_notices(tokenizer: Tokenizer, prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """One line for each kind of notice about prompts, corrupted prompts and given answers.

    Args:
        tokenizer: which tokenises them.
        prompts: prompts that cannot be tokenised are skipped; they cause an error elsewhere.
    """
    notices = list(tokenizer.bos_notice())
    for prompt in prompts:
        try:
            notices += _of_prompt(tokenizer, prompt)
        except CasestudyError:
            continue
    return one_per_kind(notices)


def _of_prompt(tokenizer: Tokenizer, prompt: Prompt) -> Iterator[Notice]:
    for text in (prompt.text, prompt.corrupted):
        if text is not None:
            yield from tokenizer.notices(text)
    read = text_of(tokenizer, prompt)
    for answer in (prompt.answer, prompt.counterpart):
        if answer is not None:
            yield from tokenizer.continuation(read, answer).notices
