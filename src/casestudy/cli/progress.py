"""How far is it? A progress bar on stderr, in the terms of what is running."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from casestudy.cli.printing import duration

if TYPE_CHECKING:
    from casestudy.study.study import State


class ProgressBar:
    """A progress bar on stderr, for a study's states, for patched cells or for bytes read."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
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

    def __call__(self, state: State) -> None:
        """A study's prompts."""
        words = [f"{state.done:,} of {state.total:,}"]
        if state.found:
            words.append(f"{state.found:,} stored before")
        if state.left is not None:
            words.append(f"{state.rate:.1f}/s")
            words.append(f"{duration(state.left)} left")
        if state.memory:
            words.append(f"{state.memory / 1e9:.1f} GB")
        self._show(state.done, state.total, words)

    def of(self, name: str, state: State) -> None:
        """One of several studies' states."""
        self._show(state.done, state.total, [name, f"{state.done:,} of {state.total:,}"])

    def read(self, done: int, total: int) -> None:
        """Bytes read of all there are."""
        self._show(done, total, [f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"])

    def step(self, name: str, done: int, total: int) -> None:
        """Which step of how many begins."""
        self._show(done, total, [f"{name} ({done + 1} of {total})"])

    def cells(self, name: str, done: int, total: int) -> None:
        """Patched (cell, prompt) pairs of one grid."""
        now = time.perf_counter()
        if name != self._grid or self._begun is None:
            self._grid, self._begun = name, (now, done)
        start, before = self._begun
        words = [*([name] if name else []), f"{done:,} of {total:,} cells"]
        if done > before:
            rate = (done - before) / (now - start)
            words += [f"{rate:,.0f}/s", f"{duration((total - done) / rate)} left"]
        self._show(done, total, words)

    def _show(self, done: int, total: int, words: Sequence[str]) -> None:
        self._bar.update(self._task, completed=done, total=total, description=", ".join(words))
