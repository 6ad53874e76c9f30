"""How far is it? A progress bar on stderr, in the terms of what is running.

Where stderr is no terminal (a file, a pipe, a job's log) there is no bar to redraw: each part that
is finished gets a line with its time, and a long one a line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from casestudy.cli.printing import duration
from casestudy.study.chosen import CIRCUIT, PATCHING

if TYPE_CHECKING:
    from casestudy.engine.packing import Progress
    from casestudy.study.measuring import State


EVERY = 30.0
"""Seconds between two lines about one part, where stderr is no terminal."""


class _Bar:
    """A bar that is drawn again as it grows."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )

    def begin(self) -> None:
        self._bar.start()
        self._task = self._bar.add_task("", total=None)

    def end(self) -> None:
        self._bar.stop()

    def note(self, words: str) -> None:
        self._bar.console.print(words, markup=False, highlight=False)

    def show(self, part: str, done: int, total: int, words: Sequence[str]) -> None:
        text = ", ".join([part, *words] if part else words)
        self._bar.update(self._task, completed=done, total=total or None, description=text)


class _Lines:
    """A line for each finished part with its time, and one every `EVERY` seconds of a long part."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._part: str | None = None

    def begin(self) -> None:
        """Nothing is said before something is done."""

    def end(self) -> None:
        self._finish()

    def note(self, words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    def show(self, part: str, done: int, total: int, words: Sequence[str]) -> None:
        now = self._clock()
        if part != self._part:
            self._finish()
            self._part, self._begun, self._said = part, now, now
        self._last = (done, total)
        if now - self._said >= EVERY and done < total:
            self._said = now
            self._say(", ".join([*words, f"{duration(now - self._begun)} so far"]))

    def _finish(self) -> None:
        if self._part is None:
            return
        done, total = self._last
        counted = f"{total:,} of {total:,} in " if done == total > 0 else ""
        self._say(counted + duration(self._clock() - self._begun))
        self._part = None

    def _say(self, words: str) -> None:
        print(f"{self._part or self._what}: {words}", file=sys.stderr, flush=True)


class ProgressBar:
    """How far something is, on stderr: a study's stages, patched cells, bytes read."""

    def __init__(self, what: str) -> None:
        self._shown = _Bar(what) if sys.stderr.isatty() else _Lines(what)
        self._grid = ""
        self._begun: tuple[float, int] | None = None

    def __enter__(self) -> ProgressBar:
        self._shown.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.end()

    def __call__(self, progress: Progress) -> None:
        """How far a stage of a study is."""
        from casestudy.engine.packing import Planned
        from casestudy.study.measuring import State

        if isinstance(progress, Planned):
            self._shown.note(progress.words)
        elif isinstance(progress, State):
            self._prompts(progress)
        elif progress.stage == PATCHING:
            self.cells(progress)
        elif progress.stage == CIRCUIT:
            self._step(progress)

    def of(self, name: str, progress: Progress) -> None:
        """How far one of several studies is."""
        words = [f"{progress.done:,} of {progress.total:,}"]
        self._shown.show(name, progress.done, progress.total, words)

    def read(self, done: int, total: int) -> None:
        """Bytes of a corpus read of all there are."""
        each, unit = (1e6, "MB") if total >= 1e7 else (1e3, "kB")
        words = [f"{done / each:,.0f} of {total / each:,.0f} {unit}"]
        self._shown.show("bytes of the corpus", done, total, words)

    def cells(self, progress: Progress) -> None:
        """Patched (cell, prompt) pairs of one grid, which the note names."""
        name, done, total = progress.note, progress.done, progress.total
        now = time.perf_counter()
        if name != self._grid or self._begun is None:
            self._grid, self._begun = name, (now, done)
        start, before = self._begun
        words = [f"{done:,} of {total:,} cells"]
        if done > before:
            rate = (done - before) / (now - start)
            words += [f"{rate:,.0f}/s", f"{duration((total - done) / rate)} left"]
        self._shown.show(name, done, total, words)

    def _step(self, progress: Progress) -> None:
        """A step of the circuit, and how far it is."""
        part = progress.within
        words = [f"step {progress.done + 1} of {progress.total}"]
        done, total = (0, 0) if part is None else (part.done, part.total)
        if part is not None:
            words.append(f"{done:,} of {total:,}")
        if progress.left is not None:
            words.append(f"{duration(progress.left)} left")
        self._shown.show(progress.note, done, total, words)

    def _prompts(self, state: State) -> None:
        words = [f"{state.done:,} of {state.total:,}"]
        if state.found:
            words.append(f"{state.found:,} stored before")
        if state.left is not None:
            words.append(f"{state.rate:.1f}/s")
            words.append(f"{duration(state.left)} left")
        if state.memory:
            words.append(f"{state.memory / 1e9:.1f} GB")
        self._shown.show("", state.done, state.total, words)
