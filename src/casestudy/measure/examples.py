"""For which prompts are all positions shown?

Averages do not show single prompts, and the values at every position of every layer are large. So a
study shows the first few prompts of the behaviour that are short enough. The choice depends only on
the behaviour, not on batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from casestudy.engine.batch import Batch
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens

EXAMPLES = 5
EXAMPLE_TOKENS = 64


def examples(batch: Batch) -> Iterator[tuple[int, Tokens]]:
    """The batch's example prompts: index in the behaviour, and tokens without padding."""
    for row, index in enumerate(batch.index):
        if index < EXAMPLES and int(batch.tokens.lengths[row]) <= EXAMPLE_TOKENS:
            yield index, batch.tokens[[row]]


def position_labels(model: Model, tokens: Tokens) -> tuple[str, ...]:
    """Labels of one prompt's positions: "0:<|endoftext|>", "1:This", …"""
    (row,) = tokens.rows()
    return tuple(f"{i}:{text}" for i, text in enumerate(model.tokenizer.labels(row)))
