"""What stderr says of long work where it is no terminal: a line per part, and signs of life."""

from __future__ import annotations

import pytest

from casestudy.cli import progress
from casestudy.engine.packing import Progress
from casestudy.study import circuit


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_finished_part_has_one_line_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = progress._Lines("prompts", clock)
    lines.begin()
    for done in (0, 43):
        lines.show("", done, 43, ["…"])
        clock.now += 6
    lines.show("patching.z.last", 10, 20, ["10 of 20 cells"])
    clock.now += 65
    lines.end()
    assert capsys.readouterr().err.splitlines() == [
        "prompts: 43 of 43 in 0:12",
        "patching.z.last: 1:05",
    ]


def test_a_long_part_gives_signs_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = progress._Lines("cells", clock)
    for done in range(7):
        lines.show("z", done, 10, [f"{done} of 10 cells"])
        clock.now += progress.EVERY / 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"z: {done} of 10 cells, {duration} so far"
                    for done, duration in ((2, "0:30"), (4, "1:00"), (6, "1:30"))]  # fmt: skip


def test_a_step_of_the_circuit_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress.ProgressBar("circuit")
    shown: list[tuple[str, int, int, list[str]]] = []
    bar._shown.show = lambda *a: shown.append(a)  # type: ignore[method-assign, assignment]
    step = Progress(circuit.NAME, 2, 8, "curves")
    bar(step)
    step.tell_within(bar)(Progress("circuits", 120, 280))
    assert shown == [
        ("curves", 0, 0, ["step 3 of 8"]),
        ("curves", 120, 280, ["step 3 of 8", "120 of 280"]),
    ]
