"""What is a stage of a study?

A stage is a series of steps. The value of each step is stored, and at the end the values are
combined into results. The three stages are measuring the chunks of prompts, patching, and the
circuit. All are resumed by one rule (law 5): a step whose value is stored is never computed again;
a value is stored completely before the next step begins; results are combined from stored values
only.

Cost: none beyond that of the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.steps import Scoring
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.engine.packing import Progress, Tell
from casestudy.errors import MeasureError
from casestudy.model.model import Model
from casestudy.study.clock import Clock, LeftOut
from casestudy.study.settings import Execution, Settings
from casestudy.study.store import Store

Step = TypeVar("Step")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Subject:
    """The study that a stage belongs to.

    Attributes:
        store: the study's folder.
        model, behaviour, settings, execution: as `study` takes them.
        measurements: the measurements of the first stage, made on every chunk.
        chunks: the prompts that are run together, by index.
        lengths: tokens per prompt; None for a prompt that cannot be run.
        errors: for each prompt that cannot be run, the reason.
        scoring: how the tokens of an answer count, if any prompt has answers of several tokens;
            None if none has.
        progress: called with the progress of each stage.
        clock: the time of this call.
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
    scoring: Scoring | None = None
    progress: Tell | None = None
    clock: Clock = field(default_factory=lambda: Clock(None))

    @cached_property
    def runnable(self) -> list[int]:
        """The prompts that can be run, by index."""
        return [i for i, n in enumerate(self.lengths) if n is not None]

    def tell(self, progress: Progress) -> None:
        """Report progress, if the caller asked for it."""
        if self.progress is not None:
            self.progress(progress)

    def batch(self, index: Sequence[int]) -> Batch:
        """Run some prompts and choose their contrasts; no activations are kept."""
        settings = self.settings
        return run_batch(
            self.model,
            self.behaviour,
            index,
            [],
            top_k=settings.top_k,
        )


def _nothing() -> None:
    """The default `combine`: nothing to combine."""


def _raise(problem: MeasureError) -> None:
    raise problem


@dataclass(frozen=True)
class Stage(Generic[Step, Value]):
    """Steps whose values are stored one by one and then combined.

    Attributes:
        name: the stage's name in `Progress.stage`.
        steps: all steps, in order.
        has: whether the value of a step is stored.
        run: computes the given steps, in any order, and yields each step with its value.
        keep: stores the value of a step, completely or not at all.
        combine: makes the results from the stored values, once all are stored.
        cannot: called instead of `combine` if the stage cannot be measured on these prompts.
    """

    name: str
    steps: Sequence[Step]
    has: Callable[[Step], bool]
    run: Callable[[Sequence[Step]], Generator[tuple[Step, Value], None, None]]
    keep: Callable[[Step, Value], None]
    combine: Callable[[], None] = _nothing
    cannot: Callable[[MeasureError], None] = _raise

    def finish(self) -> None:
        """Compute and store the missing steps, then combine all values; nothing is combined if a
        step was left out for lack of time.

        Raises: StudyError if a value cannot be stored or read; whatever a step raises.
        """
        missing = [step for step in self.steps if not self.has(step)]
        try:
            # if storing fails, the generator is closed at once, so that its workers stop
            with contextlib.closing(self.run(missing)) as values:
                for step, value in values:
                    self.keep(step, value)
            self.combine()
        except LeftOut:
            return
        except MeasureError as problem:
            self.cannot(problem)
