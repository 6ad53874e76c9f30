"""Who gets the model next?

One model, one thread, two short queues. Quick questions (a page's panels, a head's pattern) come
first, also between the steps of a long one (a patch grid), but never more than a few in a row, so
that long ones get on however many ask. A long one stops at its next step once nobody waits for it
any more. When a queue is full the next one is told to come again: a refusal at once is kinder than
an answer after a minute.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

QUICK = 24
"""Quick questions that may wait: a second or so of the bundled model's time."""
LONG = 8
"""Long ones that may wait."""
TURNS = 4
"""Quick questions in a row while a long one waits."""

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
        answer: what came of it.
    """

    work: Callable[[Pause], T]
    answer: Future[T] = field(default_factory=Future)
    _unwanted: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Nobody waits for it: if it has not begun it never will."""
        self._unwanted.set()
        self.answer.cancel()

    def check(self) -> None:
        """Raises: Stopped once nobody waits for it."""
        if self._unwanted.is_set():
            raise Stopped

    def run(self, pause: Pause) -> None:
        """Answer it, unless it was stopped before."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.work(pause))
        except Exception as error:  # noqa: BLE001 - whoever asked gets to see it
            self.answer.set_exception(error)


class Worker:
    """The model's thread and its queues."""

    def __init__(self, quick: int = QUICK, long: int = LONG) -> None:
        self._most = {False: quick, True: long}
        self._waiting: dict[bool, deque[Job[Any]]] = {False: deque(), True: deque()}
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def ask(self, work: Callable[[Pause], T], *, long: bool = False) -> Job[T]:
        """Put a question into its queue.

        Raises: Busy where the queue is full.
        """
        job = Job(work)
        with self._changed:
            queue = self._waiting[long]
            # those nobody waits for any more hold no place
            kept = [other for other in queue if not other.answer.cancelled()]
            queue.clear()
            queue.extend(kept)
            if len(queue) >= self._most[long] or not self._open:
                raise Busy
            queue.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Finish what is under way and stop."""
        with self._changed:
            self._open = False
            for queue in self._waiting.values():
                for job in queue:
                    job.stop()
            self._changed.notify()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        in_a_row = 0
        while True:
            with self._changed:
                while self._open and not any(self._waiting.values()):
                    self._changed.wait()
                quick, long = self._waiting[False], self._waiting[True]
                if not quick and not long:
                    return
                turn = bool(long) and (not quick or in_a_row >= TURNS)
                job = (long if turn else quick).popleft()
            in_a_row = 0 if turn else in_a_row + 1
            self._run(job)

    def _run(self, job: Job[Any]) -> None:
        def pause() -> None:
            job.check()
            for _ in range(TURNS):
                with self._changed:
                    if not self._waiting[False]:
                        return
                    quick = self._waiting[False].popleft()
                quick.run(quick.check)
                job.check()

        job.run(pause)
