"""For which kinds of position is a part selective?

The AUROC of its activity: the chance that a position of one kind has a larger value than one of
another, a tie counting half; 0.5 is what chance gives, below it the part is less active there. The
kinds of a corpus's positions are those of `behaviour.windows`; each is compared with every other
position, and a full stop that ends a sentence with the other stops and with commas. On a
behaviour's prompts the tokens of each role are compared with the other tokens. Intervals resample
documents, windows or prompts (see `auroc_interval`).

Cost: a sort of at most `OF_A_KIND` values of each kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.windows import COMMA, KINDS, OTHER, SENTENCE_END
from casestudy.measure.part_activity import Activity, kind_values
from casestudy.results import names
from casestudy.results.auroc import auroc_interval
from casestudy.results.result import Array, Table
from casestudy.results.stats import units_of

COLUMNS = ("where", "kind", "against", "auroc", "lower", "upper", "n", "n_against", "units", "of")
_EVERY_OTHER = "every other position"
Side = tuple[Array, NDArray[np.int64], int]
"""Values, each one's unit, and how many there were before they were sampled."""


def selectivity(
    found: Activity | None,
    activity: Float[Tensor, "batch pos"] | None,
    roles: Sequence[Mapping[str, tuple[int, ...]]],
    lengths: Sequence[int],
) -> Table:
    """The AUROC of a part's activity, over a corpus and over a behaviour's prompts.

    Args:
        found: of a corpus; None without one.
        activity: at every position of the prompts; None without any.
        roles: each prompt's positions by role.
        lengths: of the prompts.

    Rows:   one per comparison of two kinds of position that both occur.
    """
    rows: list[dict[str, Any]] = []
    if found is not None:
        units, of, _ = found.units()
        for kind, against, sides in _pairs_in(found):
            rows.append(_row("corpus", kind, against, sides, units, of))
    if activity is not None:
        unit = units_of(len(lengths))
        for role, sides in _roles_in(activity, roles, lengths):
            rows.append(_row("prompts", role, "other tokens", sides, unit, "prompts"))
    return Table(
        names.PART_SELECTIVITY,
        {name: [row[name] for row in rows] for name in COLUMNS},
        "The AUROC of the part's activity: the chance that a position of the kind has a larger "
        "value than one it is compared with; 0.5 is chance. n counts positions; the interval "
        "resamples units.",
    )


def _row(
    where: str,
    kind: str,
    against: str,
    sides: tuple[Side, Side],
    units: NDArray[np.int64],
    of: str,
) -> dict[str, Any]:
    scores = np.concatenate([values for values, _, _ in sides])
    true = np.repeat([True, False], [len(values) for values, _, _ in sides])
    unit = units[np.concatenate([place for _, place, _ in sides])]
    area, lower, upper, count = auroc_interval(scores, true, unit)
    ends = (None if math.isnan(end) else end for end in (lower, upper))
    counts = (n for _, _, n in sides)
    row = (where, kind, against, area, *ends, *counts, count, of)
    return dict(zip(COLUMNS, row, strict=True))


def _pairs_in(found: Activity) -> Iterator[tuple[str, str, tuple[Side, Side]]]:
    """The kinds to compare."""
    values, window, kind = found.everywhere.columns()
    window = window.astype(np.int64)
    sides = {name: kind_values(found, i) for i, name in enumerate(KINDS)}
    for i, name in enumerate(KINDS):
        there = kind != i
        others = found.everywhere.seen - sides[name][2]
        if name != OTHER and sides[name][2] and others and there.any():
            yield name, _EVERY_OTHER, (sides[name], (values[there], window[there], others))
    for name in KINDS[: KINDS.index(COMMA) + 1]:
        if name != SENTENCE_END and sides[SENTENCE_END][2] and sides[name][2]:
            yield SENTENCE_END, name, (sides[SENTENCE_END], sides[name])


def _roles_in(
    activity: Float[Tensor, "batch pos"],
    roles: Sequence[Mapping[str, tuple[int, ...]]],
    lengths: Sequence[int],
) -> Iterator[tuple[str, tuple[Side, Side]]]:
    """Each role's tokens, and the prompts' other tokens; the first position is left out."""
    values = activity.double().cpu().numpy()
    for role in dict.fromkeys(name for row in roles for name in row):
        places: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for i, (row, length) in enumerate(zip(roles, lengths, strict=True)):
            for p in range(1, length):
                places[p not in row.get(role, ())].append((i, p))
        if all(places):
            first, second = (_side(values, some) for some in places)
            yield role, (first, second)


def _side(values: Array, places: Sequence[tuple[int, int]]) -> Side:
    prompts, positions = np.array(places).T
    return values[prompts, positions], prompts.astype(np.int64), len(places)
