"""Which prompts are shown whole?

Averages hide what a single prompt looks like, and whole prompts are large: every position of every
layer. So a study shows the first few prompts of the behaviour that are short enough. Which they are
follows from the behaviour alone, not from how its prompts were packed.
"""

from __future__ import annotations

from collections.abc import Iterator

from casestudy.engine.batch import Batch
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens

EXAMPLES = 5
EXAMPLE_TOKENS = 64


def examples(batch: Batch) -> Iterator[tuple[int, Tokens]]:
    """The batch's example prompts: their place in the behaviour and their tokens alone."""
    for row, index in enumerate(batch.index):
        if index < EXAMPLES and int(batch.tokens.lengths[row]) <= EXAMPLE_TOKENS:
            yield index, batch.tokens[[row]]


def position_labels(model: Model, tokens: Tokens) -> tuple[str, ...]:
    """Labels of one prompt's positions: "0:<|endoftext|>", "1:This", …"""
    (row,) = tokens.rows()
    return tuple(f"{i}:{text}" for i, text in enumerate(model.tokenizer.labels(row)))
