"""How long do the steps of a circuit's evidence still take?

As long as they were planned, at the pace of the planned steps that are done: another process on the
machine slows all of them. Before any is done, at the pace of the clock beside the processor.
Assumes steps that are counted in parts of like cost. Cost: none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from casestudy.engine.packing import Progress, Tell


class StepClock:
    """How long the planned steps still take, at the pace of those that are done.

    Args:
        values: by step, as they are computed.
        plan: the name of the step whose value is a `Plan`.
    """

    def __init__(self, values: Mapping[str, Any], plan: str) -> None:
        self.values, self.plan, self.begun = values, plan, (0.0, 0.0)
        self.clock = self.processor = 0.0
        self.spent = self.planned = 0.0
        """Seconds by the clock of the steps that are done, and as they were planned."""

    def begin(self) -> None:
        """A step begins."""
        self.begun = time.perf_counter(), time.process_time()

    def end(self, name: str) -> None:
        """It ends."""
        clock, processor = self.begun
        took = time.perf_counter() - clock
        self.clock += took
        self.processor += time.process_time() - processor
        self.spent += took if name in self.steps else 0.0
        self.planned += self.steps.get(name, 0.0)

    @property
    def steps(self) -> Mapping[str, float]:
        """The planned seconds of each step; none before the plan."""
        plan = self.values.get(self.plan)
        return {} if plan is None else plan.steps

    def left(self, name: str, done: float = 0.0) -> float | None:
        """Seconds from a share of a step on, to the end of all; None before the plan."""
        if name not in self.steps:
            return None
        later = (s for step, s in self.steps.items() if step not in self.values and step != name)
        ahead = sum(later) + (1 - done) * self.steps[name]
        return ahead * self.pace

    @property
    def pace(self) -> float:
        """Seconds by the clock for each that was planned."""
        if self.planned:
            return self.spent / self.planned
        return max(1.0, self.clock / self.processor) if self.processor else 1.0

    def tell(self, progress: Tell, begins: Progress, name: str, part: Progress) -> None:
        """Tell how far a step is, and how long the rest takes."""
        share = part.done / part.total if part.total else 0.0
        progress(replace(begins, within=part, left=self.left(name, share)))
