"""How far is it? A progress bar on stderr, in the terms of what is running."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from casestudy.cli.printing import duration

if TYPE_CHECKING:
    from casestudy.engine.packing import Progress
    from casestudy.study.measuring import State


class ProgressBar:
    """A progress bar on stderr, for the stages of a study, for patched cells or for bytes read."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=not sys.stderr.isatty(),
        )
        self._grid = ""
        self._begun: tuple[float, int] | None = None

    def __enter__(self) -> ProgressBar:
        self._bar.__enter__()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def __call__(self, progress: Progress) -> None:
        """How far a stage of a study is."""
        from casestudy.study import causal, circuit
        from casestudy.study.measuring import State

        if isinstance(progress, State):
            self._prompts(progress)
        elif progress.stage == causal.NAME:
            self.cells(progress)
        elif progress.stage == circuit.NAME:
            words = [f"{progress.note} ({progress.done + 1} of {progress.total})"]
            self._show(progress.done, progress.total, words)

    def of(self, name: str, progress: Progress) -> None:
        """How far one of several studies is."""
        words = [name, f"{progress.done:,} of {progress.total:,}"]
        self._show(progress.done, progress.total, words)

    def read(self, done: int, total: int) -> None:
        """Bytes read of all there are."""
        self._show(done, total, [f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"])

    def cells(self, progress: Progress) -> None:
        """Patched (cell, prompt) pairs of one grid, which the note names."""
        name, done, total = progress.note, progress.done, progress.total
        now = time.perf_counter()
        if name != self._grid or self._begun is None:
            self._grid, self._begun = name, (now, done)
        start, before = self._begun
        words = [*([name] if name else []), f"{done:,} of {total:,} cells"]
        if done > before:
            rate = (done - before) / (now - start)
            words += [f"{rate:,.0f}/s", f"{duration((total - done) / rate)} left"]
        self._show(done, total, words)

    def _prompts(self, state: State) -> None:
        words = [f"{state.done:,} of {state.total:,}"]
        if state.found:
            words.append(f"{state.found:,} stored before")
        if state.left is not None:
            words.append(f"{state.rate:.1f}/s")
            words.append(f"{duration(state.left)} left")
        if state.memory:
            words.append(f"{state.memory / 1e9:.1f} GB")
        self._show(state.done, state.total, words)

    def _show(self, done: int, total: int, words: Sequence[str]) -> None:
        self._bar.update(self._task, completed=done, total=total, description=", ".join(words))
