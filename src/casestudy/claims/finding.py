"""What is a finding? It names a number, the prompts, and what has to be measured for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from casestudy.claims.context import Bench, Values
from casestudy.engine.batch import Measurement
from casestudy.results.result import Array, Grid


class Finding(ABC):
    """One kind of finding. Its fields are the keys of its table; "class" is the field `class_`."""

    measure: ClassVar[str]

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The measurements over all prompts that this finding needs, besides the predictions."""
        return ()

    @property
    def alone(self) -> bool:
        """Whether there are no other numbers to rank it among."""
        return False

    @abstractmethod
    def check(self, bench: Bench) -> None:
        """Check that the finding is about something that exists.

        Raises: FindingError for a value that no model or behaviour has; Inapplicable for one that
            this model or this behaviour does not have.
        """

    @abstractmethod
    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """The numbers, one per prompt.

        Args:
            bench: for which `check` passed.
            group: a group of prompts; by default the headline prompts.
            ranked: measure also the numbers that this one is ranked among.

        Raises: Unmeasurable if it cannot be measured on these prompts.
        """


class Single(Finding):
    """A finding about one number: an edit's, a circuit's, an answer's or a part's."""

    @property
    def alone(self) -> bool:
        """True: there is nothing to rank it among."""
        return True


def flat(grid: Grid, meant: Mapping[str, str]) -> tuple[Array, int]:
    """A grid's cells as (prompt, cell), and the index of the cell with these labels."""
    rest = [axis for axis in grid.axes if axis.name != "prompt"]
    place = tuple(axis.labels.index(meant[axis.name]) for axis in rest)
    values = np.moveaxis(grid.values, grid.dim("prompt"), 0)
    which = int(np.ravel_multi_index(place, tuple(map(len, rest)))) if rest else 0
    return values.reshape(len(values), -1).astype(np.float64), which
