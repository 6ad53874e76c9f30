"""For which prompts are all positions shown?

Averages do not show single prompts, and the values at every position of every layer are large. So a
study shows the first few prompts of the behaviour that are short enough. The choice depends only on
the behaviour, not on batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from casestudy.engine.batch import Batch
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens

EXAMPLES = 5
EXAMPLE_TOKENS = 64
KEPT_BYTES = 128 << 20
"""Bytes: up to this size a batch's run keeps activations at every position; beyond it, the prompts
that need them are run again."""


def example_rows(index: Sequence[int], tokens: Tokens) -> list[int]:
    """Which of a batch's prompts are examples, by row.

    Args:
        index: of the prompts in the behaviour.
        tokens: of the prompts.
    """
    short = (tokens.lengths <= EXAMPLE_TOKENS).tolist()
    return [row for row, number in enumerate(index) if number < EXAMPLES and short[row]]


def examples(batch: Batch) -> Iterator[tuple[int, int, Tokens]]:
    """The batch's example prompts: row, index in the behaviour, and tokens without padding."""
    for row in example_rows(batch.index, batch.tokens):
        yield row, batch.index[row], batch.tokens[[row]]


def position_labels(model: Model, tokens: Tokens) -> tuple[str, ...]:
    """Labels of one prompt's positions: "0:<|endoftext|>", "1:This", …"""
    (row,) = tokens.rows()
    return tuple(f"{i}:{text}" for i, text in enumerate(model.tokenizer.labels(row)))
