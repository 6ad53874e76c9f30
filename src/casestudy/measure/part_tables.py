"""What did a corpus show of a part, as tables: contexts, quantiles of its values, signs?

The strongest contexts come first, then a uniform sample for each band of quantiles. Cost: none to
speak of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from casestudy.measure.part_activity import Activity, Context
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Table
from casestudy.results.stats import Sums, share_ends

OF_A_BAND = 3
"""Contexts shown of each band of quantiles."""
BANDS = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
CONTEXT_COLUMNS = (
    *("shown", "group", "rank", "value", "tokens", "at", "document", "line"),
    *("key", "key_token", "key_share"),
)


def contexts_table(model: Model, found: Activity) -> Table:
    """The strongest contexts of each group, and some of each band of quantiles."""
    columns: dict[str, list[Any]] = {name: [] for name in CONTEXT_COLUMNS}
    for shown, group, rank, context in _shown(found):
        start, ids = context.excerpt()
        labels, key = model.tokenizer.labels(list(ids)), context.key
        key_token = None if key is None else model.tokenizer.label(context.ids[key])
        cells = (
            *(shown, group, rank, context.value, labels, context.at - start),
            *(context.document, context.line),
            *(None if key is None or key < start else key - start, key_token, context.key_share),
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return Table(
        names.PART_CONTEXTS,
        columns,
        f"Contexts of the corpus, the strongest first ({found.part.unit}), no two with the same "
        "last tokens; then a uniform sample for each band of quantiles of the values.",
    )


def _shown(found: Activity) -> Iterator[tuple[str, str, int, Context]]:
    for group, heap in zip(found.groups, found.strongest, strict=True):
        for rank, context in enumerate(heap.contexts(), 1):
            yield "strongest", group, rank, context
    sampled = [context for *_, context in sorted(found.sampled, key=lambda entry: -entry[0])]
    values = np.array([context.value for context in sampled])
    edges = np.quantile(values, BANDS)
    for low, high, first, last in zip(edges, edges[1:], BANDS, BANDS[1:], strict=False):
        inside = (values >= low) & ((values < high) | (last == 1))
        name = f"{100 * first:.0f} to {100 * last:.0f} %"
        some = [sampled[i] for i in np.flatnonzero(inside)[:OF_A_BAND]]
        for rank, context in enumerate(sorted(some, key=lambda c: -c.value), 1):
            yield name, found.groups[context.group], rank, context


def values_table(found: Activity) -> Table:
    """The distribution of the part's activity."""
    sample = found.everywhere.columns()[0]
    rows = [
        (f"{100 * q:.0f} %", float(v))
        for q, v in zip(QUANTILES, np.quantile(sample, QUANTILES), strict=True)
    ]
    rows += [("largest", found.largest), ("mean", found.total / found.n)]
    if found.sources is not None:
        rows.append(
            ("attention to the first position", found.sources.first / found.sources.queries)
        )
    return Table(
        names.PART_VALUES,
        {"quantile": [name for name, _ in rows], "value": [value for _, value in rows]},
        f"Quantiles ({len(sample):,} of {found.n:,} positions), largest value and mean of the "
        f"part's activity ({found.part.unit}).",
    )


def signs_table(found: Activity) -> Table:
    """How often each combination of the signs of a neuron's inputs occurs."""
    units, of, count = found.units()
    counts = np.stack(found.counts).astype(np.float64)
    sums = Sums(int(units.max()) + 1, counts.shape[1])
    np.add.at(sums.sums, units, counts)
    np.add.at(sums.counts, units, counts.sum(1, keepdims=True))
    mean, lower, upper, n = sums.interval(unit="share")
    ends = [share_ends(*row, count) for row in zip(mean, lower, upper, strict=True)]
    return Table(
        names.PART_SIGNS,
        {
            "group": list(found.groups),
            "share": mean.tolist(),
            "lower": [None if np.isnan(low) else float(low) for low, _ in ends],
            "upper": [None if np.isnan(high) else float(high) for _, high in ends],
            "n": n.tolist(),
            "units": [count] * len(found.groups),
        },
        f"How often each combination of signs occurs in the corpus; the interval resamples {of}.",
    )
