"""What should a user know about how a text was read, although nothing failed?

A `Notice` is data: code that reads texts collects them, and a study's manifest, its report and the
command line show one line per kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """One remark on one text.

    Attributes:
        kind: what sort of remark; of one kind, only the first is said in full.
        text: the remark, one sentence.
    """

    kind: str
    text: str


def one_per_kind(notices: Iterable[Notice]) -> tuple[str, ...]:
    """A line for each kind: its first remark, and how many more texts it is true of."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for notice in notices:
        first.setdefault(notice.kind, notice.text)
        counts[notice.kind] += 1
    return tuple(
        text if counts[kind] == 1 else f"{text} ({counts[kind] - 1:,} more such)"
        for kind, text in first.items()
    )
