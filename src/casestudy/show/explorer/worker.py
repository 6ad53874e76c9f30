"""Who gets the model next?

One model, one thread, one short queue in the order of asking. The newest question of a page wins:
an older one of the same page that waits is dropped, and one that runs stops at its next step. When
the queue is full the next one is told to come again: a refusal at once is kinder than an answer
after a minute.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

MOST = 32
"""Questions that may wait: a second or two of the bundled model's time."""

T = TypeVar("T")
Pause = Callable[[], None]
"""A long question calls it between its steps; it raises `Stopped` once nobody waits any more."""


class Busy(Exception):
    """The queue is full."""


class Stopped(Exception):
    """Nobody waits for this any more."""


@dataclass(eq=False)
class Job(Generic[T]):
    """A question on its way.

    Attributes:
        work: answers it, in the model's thread.
        page: the key of the page that asks; "" for one that asks once.
        answer: what came of it.
    """

    work: Callable[[Pause], T]
    page: str = ""
    answer: Future[T] = field(default_factory=Future)
    _unwanted: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Nobody waits for it: if it has not begun it never will."""
        self._unwanted.set()
        self.answer.cancel()

    def pause(self) -> None:
        """Raises: Stopped once nobody waits for it."""
        if self._unwanted.is_set():
            raise Stopped

    def run(self) -> None:
        """Answer it, unless it was stopped before."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.work(self.pause))
        except Exception as error:  # noqa: BLE001 - whoever asked gets to see it
            self.answer.set_exception(error)


class Worker:
    """The model's thread and its queue."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._waiting: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def ask(self, work: Callable[[Pause], T], *, page: str = "") -> Job[T]:
        """Put a question into the queue, in place of an older one of the same page.

        Raises: Busy where the queue is full.
        """
        job = Job(work, page)
        with self._changed:
            for older in (*self._waiting, self._running):
                if page and older is not None and older.page == page:
                    older.stop()
            # those nobody waits for any more hold no place
            self._waiting = deque(j for j in self._waiting if not j.answer.cancelled())
            if len(self._waiting) >= self._most or not self._open:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Finish what is under way and stop."""
        with self._changed:
            self._open = False
            for job in self._waiting:
                job.stop()
            self._changed.notify()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._waiting:
                    self._changed.wait()
                if not self._waiting:
                    return
                self._running = self._waiting.popleft()
            self._running.run()
            with self._changed:
                self._running = None
