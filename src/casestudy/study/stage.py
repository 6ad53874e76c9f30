"""What is a stage of a study?

A series of steps whose values are kept one by one, and what is made of them at the end. Measuring
the chunks of prompts, patching and the circuit are stages alike, with one rule for resuming (law
5): a step whose value is kept is never computed again; each value is kept whole before the next
step begins; what joins them is made again from the kept values alone.

Cost: none of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from casestudy.behaviour.prompts import Behaviour
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.engine.packing import Progress, Tell
from casestudy.errors import MeasureError
from casestudy.model.model import Model
from casestudy.study.settings import Execution, Settings
from casestudy.study.store import Store

Step = TypeVar("Step")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Subject:
    """What every stage of a study is about.

    Attributes:
        store: the study's folder.
        model, behaviour, settings, execution: as `study` takes them.
        measurements: those of the first stage, asked of every chunk.
        chunks: which prompts are run together.
        lengths: tokens per prompt; None for a prompt that cannot be run.
        errors: why not, by prompt.
        progress: told how far each stage is.
    """

    store: Store
    model: Model
    behaviour: Behaviour
    settings: Settings
    execution: Execution
    measurements: tuple[Measurement, ...]
    chunks: Sequence[Sequence[int]]
    lengths: Sequence[int | None]
    errors: Mapping[int, str]
    progress: Tell | None = None

    @cached_property
    def runnable(self) -> list[int]:
        """The prompts that can be run, by index."""
        return [i for i, n in enumerate(self.lengths) if n is not None]

    def tell(self, progress: Progress) -> None:
        """Pass on how far a stage is, where somebody wants to know."""
        if self.progress is not None:
            self.progress(progress)

    def batch(self, index: Sequence[int]) -> Batch:
        """Some prompts with their contrasts; no activations are kept."""
        settings = self.settings
        return run_batch(
            self.model,
            self.behaviour,
            index,
            [],
            top_k=settings.top_k,
        )


def _nothing() -> None:
    """Of steps that need no joining."""


def _raise(problem: MeasureError) -> None:
    raise problem


@dataclass(frozen=True)
class Stage(Generic[Step, Value]):
    """Steps that are kept one by one, and what is made of them.

    Attributes:
        name: as `Progress.stage` has it.
        steps: all of them, in order.
        has: whether a step's value is kept.
        run: computes steps that are not, in any order, and yields each with its value.
        keep: stores one step's value, whole or not at all.
        combine: makes the results from the kept values, once all are there.
        cannot: called instead of `combine` where these prompts do not allow the question.
    """

    name: str
    steps: Sequence[Step]
    has: Callable[[Step], bool]
    run: Callable[[Sequence[Step]], Generator[tuple[Step, Value], None, None]]
    keep: Callable[[Step, Value], None]
    combine: Callable[[], None] = _nothing
    cannot: Callable[[MeasureError], None] = _raise

    def finish(self) -> None:
        """Compute and keep the steps that are missing, then combine all.

        Raises: StudyError where a value cannot be stored or read; what a step raises.
        """
        missing = [step for step in self.steps if not self.has(step)]
        try:
            # closed at once when keeping fails, so that workers do not go on for nobody
            with contextlib.closing(self.run(missing)) as values:
                for step, value in values:
                    self.keep(step, value)
            self.combine()
        except MeasureError as problem:
            self.cannot(problem)
