"""What still fits into the time that a study was given?

A part of a study is begun if its estimated time is left. What is not is left out and said, with its
estimate; it stays missing, so the same command makes it later. Estimates of one kind (patch grids)
are a number of units times the seconds a unit took so far in this call; the first estimate is of a
forward pass.

Cost: none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from casestudy.circuits.cost import spoken_seconds

LEFT_OUT = "left out of a budget of"
"""How the reason begins, so that a call that continues can take it back."""


class LeftOut(Exception):
    """Raised within a stage whose next step does not fit: the rest of its steps stays missing."""


class Clock:
    """The time of one call of `study`.

    Args:
        limit: seconds on the clock from now; None for no limit.
        now: seconds of a clock that only goes forward.
    """

    def __init__(self, limit: float | None, now: Callable[[], float] = time.perf_counter) -> None:
        self.limit, self._now = limit, now
        self._begun = now()
        self._units, self._seconds = 0, 0.0
        self.left_out: dict[str, float | None] = {}

    @property
    def left(self) -> float:
        """Seconds that are left; infinite without a limit."""
        return float("inf") if self.limit is None else self.limit - (self._now() - self._begun)

    def fits(self, what: str, seconds: float) -> bool:
        """Whether a part fits; if not, it is noted as left out."""
        return self.fit([what], seconds)

    def fit(self, parts: Sequence[str], seconds: float) -> bool:
        """Whether parts that are made at once fit; if not, each is noted with the whole time."""
        fits = seconds <= self.left
        for part in parts:
            if fits:
                self.left_out.pop(part, None)
            else:
                self.left_out[part] = seconds
        return fits

    def skip(self, what: str) -> None:
        """Note a part as left out whose cost is not known, because no time is left."""
        self.left_out[what] = None

    def seconds(self, units: int, each: float) -> float:
        """The estimate of so many units.

        Args:
            units: of one kind.
            each: seconds of a unit, as long as none was timed.
        """
        return units * (self._seconds / self._units if self._units else each)

    @contextmanager
    def timing(self, units: int) -> Iterator[None]:
        """Learn from a part of so many units that is made meanwhile."""
        begun = self._now()
        yield
        self._units += units
        self._seconds += self._now() - begun

    def why(self, what: str) -> str:
        """The reason for leaving out a part, in words."""
        assert self.limit is not None
        seconds = self.left_out[what]
        cost = "no time was left" if seconds is None else f"about {spoken_seconds(seconds)}"
        return (
            f"{LEFT_OUT} {spoken_seconds(self.limit)} ({cost}); the same command continues with it"
        )
