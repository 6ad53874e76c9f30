"""Which parts of a computation run at the same time?

The products of a small model are too small to split over threads, but its prompts are independent
(law 3): blocks of prompts are computed at the same time, each by a thread of its own whose products
are not split. Python runs in one thread at a time, but torch releases it during each operation.

A part runs whole in one thread, and its arithmetic does not depend on the others. So numbers depend
on how prompts are divided into parts, and not on the order in which these end.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Given = TypeVar("Given")

Part = Callable[[], Iterable[Item]]
"""Computes a part of something and yields what it finds."""

_WAIT = 0.01
"""Seconds between looks at a thread that is to end."""

_CORES: ContextVar[int | None] = ContextVar("cores", default=None)


def allowed() -> int:
    """The cores that computations may use here: as set by `cores_set`, or else torch's number of
    threads; of a part, its share."""
    return _CORES.get() or torch.get_num_threads()


def use_cores(cores: int) -> None:
    """Let computations use so many cores from here on."""
    _CORES.set(cores)


@contextlib.contextmanager
def cores_set(cores: int) -> Generator[None, None, None]:
    """Let computations use so many cores within the context."""
    before = _CORES.set(cores)
    try:
        yield
    finally:
        _CORES.reset(before)


def at_once(device: torch.device, parts: int) -> int:
    """How many of some parts are computed at the same time: on a CPU as many as there are cores,
    elsewhere one."""
    return max(1, min(allowed(), parts)) if device.type == "cpu" else 1


def together(parts: Sequence[Part[Item]], workers: int) -> Generator[tuple[int, Item], None, None]:
    """What some parts find, each with its part's number, as soon as it is found.

    Args:
        parts: begun in order; the longest first leave the least waiting at the end.
        workers: the most that run at the same time. The caller's thread runs none of them, so what
            it does with an item (storing it, telling progress) needs no lock; a single worker is
            the caller's thread itself.

    Raises: what a part raises; of several parts that fail, the first one's, as if they had run one
        after another. The parts after it that have not begun are left out, and those that have
        end at their next item. If the generator is closed, all end at their next item.
    """
    if workers < 2 or len(parts) < 2:
        for number, part in enumerate(parts):
            for item in part():
                yield number, item
        return
    work = _Together(parts, min(workers, len(parts)))
    try:
        yield from work.items()
    finally:
        work.end()


def mapped(
    function: Callable[[Given], Item], given: Sequence[Given], workers: int
) -> Generator[Item, None, None]:
    """The function of each of the given, in their order, several at the same time.

    Args:
        workers: as in `together`.

    Raises: as `together`.
    """

    def one(value: Given) -> Iterator[Item]:
        yield function(value)

    early: dict[int, Item] = {}
    following = 0
    found = together([partial(one, value) for value in given], workers)
    with contextlib.closing(found):
        for number, item in found:
            early[number] = item
            while following in early:
                yield early.pop(following)
                following += 1


class _Together(Generic[Item]):
    """Threads that run parts, and the queue of what these find."""

    def __init__(self, parts: Sequence[Part[Item]], workers: int) -> None:
        self.parts = parts
        self.next = iter(range(len(parts)))
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        # bounded: parts do not run far ahead of what the caller does with their items
        self.found: queue.Queue[tuple[int, Item] | None] = queue.Queue(2 * workers)
        self.failed: dict[int, BaseException] = {}
        self.with_gradients = torch.is_grad_enabled()
        self.cores = max(1, allowed() // workers)
        self.split = min(self.cores, torch.get_num_threads())
        """Threads that a part's products are split over."""
        self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(workers)]
        for thread in self.threads:
            thread.start()

    def items(self) -> Iterator[tuple[int, Item]]:
        """What the parts find, until all have ended.

        Raises: the error of the first part that failed.
        """
        working = len(self.threads)
        while working:
            item = self.found.get()
            if item is None:
                working -= 1
            else:
                yield item
        if self.failed:
            raise self.failed[min(self.failed)]

    def end(self) -> None:
        """Stop, and wait for the threads."""
        self.stopped.set()
        for thread in self.threads:
            while thread.is_alive():
                with contextlib.suppress(queue.Empty):
                    self.found.get_nowait()
                thread.join(_WAIT)
        torch.set_num_threads(torch.get_num_threads())  # for threads that begin later, too

    def work(self) -> None:
        """Run parts until there are none left; one thread's work."""
        torch.set_num_threads(self.split)  # of this thread alone
        _CORES.set(self.cores)
        with torch.set_grad_enabled(self.with_gradients):
            while not self.stopped.is_set() and not self.failed:
                with self.lock:
                    number = next(self.next, None)
                if number is None:
                    break
                try:
                    self.run(number)
                except BaseException as problem:  # noqa: BLE001 - raised by `items`
                    self.failed[number] = problem
        self.found.put(None)

    def run(self, number: int) -> None:
        """Run a part until it ends, an earlier one failed, or all are stopped."""
        for item in self.parts[number]():
            self.found.put((number, item))
            if self.stopped.is_set() or any(other < number for other in list(self.failed)):
                return
