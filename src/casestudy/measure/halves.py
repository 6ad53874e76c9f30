"""Which pairs is something found on, and which judge it?

Half of the pairs for the search, the others for the evaluation; prompts of one document are never
on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from casestudy.behaviour.contrast import Contrast
from casestudy.engine.readout import Metric
from casestudy.measure.metrics import rows_of, signed
from casestudy.measure.pairs import Pairs
from casestudy.model.tokens import Tokens
from casestudy.results.stats import units_of

FEWEST = 6
"""With at least this many pairs, some are held out."""


@dataclass(frozen=True)
class Half:
    """Some of the pairs, with their metric.

    Attributes:
        pairs: clean and corrupted prompts of equal length.
        metric: a contrast, or a function of the last token's logits with a gradient; a row for
            each reading of pairs with `texts`.
        documents: per pair, its document; None if not known.
    """

    pairs: Pairs
    metric: Contrast | Metric
    documents: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: list[int]) -> Half:
        """The same for some of the pairs."""
        documents = self.documents
        return Half(
            self.pairs[rows],
            rows_of(self.metric, self.pairs.readings(rows)),
            None if documents is None else tuple(documents[i] for i in rows),
        )

    @property
    def mirrored(self) -> bool:
        """Whether a pair has its mirror among the pairs: clean and corrupted prompt exchanged."""
        sides = list(zip(self.pairs.clean.rows(), self.pairs.corrupted.rows(), strict=True))
        there = {(tuple(a), tuple(b)) for a, b in sides}
        return any((tuple(b), tuple(a)) in there for a, b in sides)

    def turned(self, rows: Collection[int]) -> Half:
        """The same with clean and corrupted prompt exchanged in some pairs, and the metric's sign
        with them."""
        if not rows:
            return self
        clean, corrupted = self.pairs.clean.rows(), self.pairs.corrupted.rows()
        sides = self.pairs.sides("noising")
        ours, theirs = sides.base_roles, sides.source_roles
        at = range(len(self))
        bos = self.pairs.clean.bos
        pairs = replace(
            self.pairs,
            clean=Tokens.of([(corrupted if i in rows else clean)[i] for i in at], bos=bos),
            corrupted=Tokens.of([(clean if i in rows else corrupted)[i] for i in at], bos=bos),
        )
        if ours is not None and theirs is not None:
            pairs = replace(
                pairs,
                roles=[(theirs if i in rows else ours)[i] for i in at],
                corrupted_roles=[(ours if i in rows else theirs)[i] for i in at],
            )
        signs = torch.tensor([-1.0 if i in rows else 1.0 for i in at], dtype=torch.float64)
        return replace(self, pairs=pairs, metric=signed(self.metric, signs))

    def first(self, most: int) -> Half:
        """At most so many of the pairs, the first ones."""
        return self if most >= len(self) else self[list(range(most))]


def split(
    n: int, documents: Sequence[str] | None, seed: int, *, fewest: int = FEWEST
) -> tuple[list[int], list[int]]:
    """The pairs for the search and the pairs for evaluation; each document is in one half.

    With fewer pairs than `fewest`, or one document, all pairs are in both halves.
    """
    everything = list(range(n))
    unit = units_of(n, documents)
    if n < fewest or len(set(unit.tolist())) < 2:
        return everything, everything
    order = np.random.default_rng(seed).permutation(np.unique(unit))
    size = {u: int((unit == u).sum()) for u in order.tolist()}
    taken: set[int] = set()
    held = 0
    for u in order.tolist():
        if held + size[u] <= n // 2:
            taken.add(u)
            held += size[u]
    if not taken:
        taken.add(int(order[0]))
    judged = [i for i in everything if unit[i] in taken]
    return [i for i in everything if unit[i] not in taken], judged
