"""How is a ledger of a deep model read?

A ledger of sixty terms is no picture. The largest terms stay single, the others are summed by kind,
per prompt where prompts are known, so that a sum has its own interval; the sum of all is unchanged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from casestudy.results.components import layer_kind
from casestudy.results.result import Array, Axis, Grid
from casestudy.show.wording import Mean

MOST_TERMS = 32
"""A ledger of more terms is grouped."""
SINGLE = 16
"""The largest terms of a grouped one, which stay single."""
KINDS = ("attn", "mlp")
"""Of the terms that may be summed: the kinds of layers."""


def grouped(terms: Grid, by_prompt: Array | None = None) -> Grid:
    """A ledger with its smaller terms summed by kind; a short one as it is.

    Args:
        terms: over the axis term: means, or one prompt's values.
        by_prompt: (term, prompt) values behind the means, for the sums' intervals.
    """
    labels = terms.axis("term").labels
    if len(labels) <= MOST_TERMS:
        return terms
    kinds = list(map(layer_kind, labels))
    layers = [i for i, kind in enumerate(kinds) if kind is not None]
    single = set(sorted(layers, key=lambda i: -abs(terms.values[i]))[:SINGLE])
    places = [[i] for i in range(len(labels)) if i in single or i not in layers]
    # a sum stands where its kind's layers do: after the single layers, before the biases
    at = 1 + max(k for k, (i,) in enumerate(places) if i in layers)
    sums = [[i for i in layers if i not in single and kinds[i] == k] for k in KINDS]
    places[at:at] = [rows for rows in sums if rows]
    cells = [_cell(terms, rows, by_prompt) for rows in places]
    names = tuple(
        labels[rows[0]] if len(rows) == 1 else f"{len(rows)} other {kinds[rows[0]]}"
        for rows in places
    )
    values = np.array([cell.value for cell in cells])
    axes = (Axis("term", names),)
    return replace(
        terms,
        values=values,
        axes=axes,
        lower=None if terms.lower is None else np.array([cell.lower for cell in cells]),
        upper=None if terms.upper is None else np.array([cell.upper for cell in cells]),
        n=None if terms.n is None else np.array([cell.n for cell in cells]),
    )


def _cell(terms: Grid, rows: list[int], by_prompt: Array | None) -> Mean:
    """One term as it is, or the sum of several with the interval of their sum per prompt."""
    total = float(terms.values[rows].sum())
    if len(rows) == 1:
        lower, upper = (
            np.nan if a is None else float(a[rows[0]]) for a in (terms.lower, terms.upper)
        )
        return Mean(total, lower, upper, 0 if terms.n is None else int(terms.n[rows[0]]))
    if by_prompt is None:
        return Mean(total, np.nan, np.nan, 0)
    return replace(Mean.over(by_prompt[rows].sum(0)), value=total)
