"""What is a finding: which number of which prompts, and what has to be there for it?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from casestudy.claims.context import Bench, Values
from casestudy.engine.batch import Measurement
from casestudy.results.result import Array, Grid


class Finding(ABC):
    """One kind of number. Its fields are the keys of its table; "class" is `class_`."""

    measure: ClassVar[str]

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """What is measured over all prompts at once, besides the predictions."""
        return ()

    @property
    def alone(self) -> bool:
        """Whether there is nothing to rank it among."""
        return False

    @abstractmethod
    def check(self, bench: Bench) -> None:
        """See that what is meant exists.

        Raises: FindingError for what nothing has; Inapplicable for what this model or behaviour
            does not have.
        """

    @abstractmethod
    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """The numbers, prompt by prompt.

        Args:
            bench: on which `check` passed.
            group: of prompts; the headline prompts by default.
            ranked: beside all they are ranked among.

        Raises: Unmeasurable where these prompts say nothing about it.
        """


def flat(grid: Grid, meant: Mapping[str, str]) -> tuple[Array, int]:
    """A grid's cells as (prompt, cell), and which of them is at these labels."""
    rest = [axis for axis in grid.axes if axis.name != "prompt"]
    place = tuple(axis.labels.index(meant[axis.name]) for axis in rest)
    values = np.moveaxis(grid.values, grid.dim("prompt"), 0)
    which = int(np.ravel_multi_index(place, tuple(map(len, rest)))) if rest else 0
    return values.reshape(len(values), -1).astype(np.float64), which
