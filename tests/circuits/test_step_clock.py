"""The time that is left follows the plan, at the pace of what is done."""

from __future__ import annotations

from typing import Any

import pytest

from casestudy.circuits import step_clock
from casestudy.circuits.cost import Extent, Plan
from casestudy.circuits.step_clock import StepClock
from casestudy.engine.packing import Progress

STEPS = {"curves": 10.0, "controls": 20.0, "knockouts": 30.0}


def test_what_is_left_is_what_was_planned_at_the_pace_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(step_clock.time, "process_time", lambda: now[0] / 2)
    values: dict[str, Any] = {}
    clock = StepClock(values, "plan")
    assert clock.left("scores") is None, "nothing is planned yet"
    clock.begin()
    now[0] += 8
    clock.end("scores")
    values["plan"] = Plan(Extent(1, 1), 1, 60.0, steps=STEPS)
    assert clock.left("curves") == 2 * 60, "half of the time goes to others"
    clock.begin()
    now[0] += 25  # 2.5 times as long as planned: a busy machine
    values["curves"] = None
    clock.end("curves")
    assert clock.left("controls") == pytest.approx(2.5 * 50)
    told: list[Progress] = []
    begins = Progress("circuit", 4, 9, "controls")
    clock.tell(told.append, begins, "controls", Progress("circuits", 3, 4))
    assert told[0].left == pytest.approx(2.5 * 35)
    assert told[0].within == Progress("circuits", 3, 4)
    values["controls"] = None
    assert clock.left("knockouts", 1.0) == 0
