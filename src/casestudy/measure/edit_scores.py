"""How much does each family of edits change the contrast?

Every clean and every edited prompt is run, and the contrast is read at its last token. Assumes
`propose`'s pairs. Cost: a forward pass for each different prompt; prompts of similar length run
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import Proposals, Score, scored, without_contrast
from casestudy.behaviour.readouts import row_of
from casestudy.engine.batch import of_last_logits
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens

Row = tuple[int, ...]
"""The tokens of a prompt."""


def score(
    model: Model,
    proposals: Proposals,
    contrast: Contrast,
    *,
    values: NDArray[np.float64] | None = None,
) -> tuple[Score, ...]:
    """Score the effect of every family on the contrast, families in order.

    Args:
        model: the decoder.
        proposals: from `propose`.
        contrast: one row for each prompt given to `propose`; prompts with NaN weights have no
            contrast and are excluded.
        values: from `pair_values`, if already computed.

    Unit: logits, at each prompt's last token.
    """
    values = pair_values(model, proposals, contrast) if values is None else values
    return scored(proposals, values, without_contrast(proposals, contrast))


def pair_values(model: Model, proposals: Proposals, contrast: Contrast) -> NDArray[np.float64]:
    """The contrast of every pair's clean and corrupted prompt; NaN if the prompt has none.

    Shape: (2, pair).
    Unit:  logits, at each prompt's last token.
    """
    pairs, tokenizer = proposals.pairs, model.tokenizer
    clean = {pair.index: pair.clean for pair in pairs}
    rows = {index: tuple(row_of(tokenizer, prompt)) for index, prompt in clean.items()}
    asked = [(rows[pair.index], pair.index) for pair in pairs]
    asked += [(tuple(row_of(tokenizer, pair.corrupted)), pair.index) for pair in pairs]
    values = _values(model, asked, contrast)
    return np.array([values[one] for one in asked], dtype=np.float64).reshape(2, len(pairs))


def _values(
    model: Model, asked: Sequence[tuple[Row, int]], contrast: Contrast
) -> dict[tuple[Row, int], float]:
    """Rows of tokens, each with the row of the contrast to read; a row is run once, whoever asks
    for it: several families can make one edit, or make one prompt of another."""
    readers: dict[Row, list[int]] = {}
    for row, index in dict.fromkeys(asked):
        readers.setdefault(row, []).append(index)
    rows = list(readers)

    def values(logits: Tensor, some: list[int]) -> dict[tuple[Row, int], float]:
        read = [(i, index) for i, row in enumerate(some) for index in readers[rows[row]]]
        places, weighed = zip(*read, strict=True)
        found = contrast[list(weighed)].value(logits[list(places)]).tolist()
        keys = [(rows[some[i]], index) for i, index in read]
        return dict(zip(keys, found, strict=True))

    found: dict[tuple[Row, int], float] = {}
    if rows:
        for _, part in of_last_logits(model, Tokens.of(rows), values):
            found |= part
    return found
