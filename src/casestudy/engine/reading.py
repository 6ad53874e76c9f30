"""What does one run say at several places of each row?

A causal decoder predicts each token from what stands before it, so one forward pass over a text has
what a run of each of its beginnings would have at its last token. Cost: the rows' forward pass, with
the kept sites at every position in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from casestudy.model.decoder import run, unembed
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace


def read_at(
    model: Model,
    rows: Sequence[Sequence[int]],
    where: Sequence[tuple[int, int]],
    keep: Sequence[Keep],
) -> Trace:
    """The trace of each row's beginning up to each place, from one run of the rows.

    Args:
        model: the decoder.
        rows: ids, BOS included.
        where: (row, position) of each reading.
        keep: sites at the last token (`Site.at(last=True)`), none of them with a key axis.

    Returns: a trace with one prompt per reading: `tokens` are the row up to the position, `lasts`
        and `logits` what is there.
    Raises: as `run`.
    """
    everywhere = [replace(one, last=False) for one in (*keep, Site.FINAL_NORMED.at(last=True))]
    text = run(model, [list(row) for row in rows], keep=everywhere)
    which = torch.tensor([row for row, _ in where], device=model.device)
    at = torch.tensor([position for _, position in where], device=model.device)
    lasts = {address: x[which, at] for address, x in text.values.items()}
    logits = unembed(model.config, model.weights, lasts[Site.FINAL_NORMED, None])
    tokens = Tokens.of([list(rows[row][: position + 1]) for row, position in where])
    return Trace(tokens.to(model.device), {}, lasts, logits, model.config.n_layers)
