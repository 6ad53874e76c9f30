"""What should a user know of how a behaviour's texts are read, before anything is measured?

Special tokens' texts that stay plain characters, answers that change their prompt's tokens where
both are read as one text, a BOS that nobody uses. Cost: each text is tokenised once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from casestudy.behaviour.prompts import Prompt
from casestudy.errors import CasestudyError
from casestudy.model.notices import Notice, one_per_kind
from casestudy.model.tokens import Tokenizer


def prompt_notices(tokenizer: Tokenizer, prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """A line for each kind of remark on these prompts, their partners and the answers they bring.

    Args:
        tokenizer: which reads them.
        prompts: those that cannot be read are left alone: they have an error of their own.
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
    for answer in (prompt.answer, prompt.counterpart):
        if answer is not None:
            yield from tokenizer.continuation(prompt.text, answer).notices
