"""Which request does the model run next?

One model, one thread, one short queue, first come first served. The newest request of a page
replaces an older one: a waiting one is dropped, and a running one stops at its next step. When the
queue is full, the next request is refused at once and may be sent again; waiting would take a
minute.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

MOST = 32
"""Most requests that wait: one or two seconds of computing with the bundled model."""

T = TypeVar("T")
Pause = Callable[[], None]
"""Long work calls it between its steps; it raises `Stopped` when the request was withdrawn."""


class Busy(Exception):
    """The queue is full."""


class Stopped(Exception):
    """The request was withdrawn."""


@dataclass(eq=False)
class Job(Generic[T]):
    """One request.

    Attributes:
        work: computes the answer, in the model's thread.
        page: the key of the page that sent it; "" for a request of no page.
        answer: the result.
    """

    work: Callable[[Pause], T]
    page: str = ""
    answer: Future[T] = field(default_factory=Future)
    _unwanted: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Withdraw it: if it has not begun, it never will."""
        self._unwanted.set()
        self.answer.cancel()

    def pause(self) -> None:
        """Raises: Stopped once it was withdrawn."""
        if self._unwanted.is_set():
            raise Stopped

    def run(self) -> None:
        """Run the work, unless the request was withdrawn before."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.work(self.pause))
        except Exception as error:  # noqa: BLE001 - passed on to the caller
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
        """Put work into the queue, in place of older work of the same page.

        Raises: Busy where the queue is full.
        """
        job = Job(work, page)
        with self._changed:
            for older in (*self._waiting, self._running):
                if page and older is not None and older.page == page:
                    older.stop()
            # withdrawn requests take no place in the queue
            self._waiting = deque(j for j in self._waiting if not j.answer.cancelled())
            if len(self._waiting) >= self._most or not self._open:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Finish the running request and stop."""
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
