"""Processes that start at once: forks of a server that has imported what most of them need.

A fresh interpreter imports torch and compiles this package for seconds. The server imports both
once, for all tests of a worker, and forks before any library starts a thread. A process has the
environment and the modules of the server, not of the test.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple, TextIO

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["casestudy.study.study", "tests.forks"])


class Fork(NamedTuple):
    """A process.

    Attributes:
        process: it.
        lines: what it prints, on stdout and stderr.
    """

    process: BaseProcess
    lines: TextIO

    def ended(self) -> str:
        """What it still prints until it ends."""
        said = self.lines.read()
        self.process.join()
        return said


@contextlib.contextmanager
def forked(work: Callable[..., object], *arguments: object) -> Iterator[Fork]:
    """A process that does some work, until it has ended; at the block's end it is killed."""
    listens, speaks = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_speaking, args=(speaks, work, arguments), daemon=True)
    process.start()
    speaks.close()
    with os.fdopen(os.dup(listens.fileno()), encoding="utf-8") as lines:
        listens.close()
        try:
            yield Fork(process, lines)
        finally:
            if process.is_alive():
                process.kill()
            process.join()


def _speaking(to: Connection, work: Callable[..., object], arguments: Sequence[object]) -> None:
    for stream in (1, 2):
        os.dup2(to.fileno(), stream)
    work(*arguments)


def print_sources(names: tuple[str, ...], environment: dict[str, str]) -> None:
    """Print what loading each name says, in a fork whose huggingface_hub has this environment."""
    from casestudy.errors import ModelError
    from casestudy.model.loading import load

    assert "huggingface_hub" not in sys.modules, "it reads its environment once, when imported"
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        del os.environ[name]
    os.environ.update(environment)
    warnings.simplefilter("error")
    for name in names:
        try:
            print(load(name, device="cpu").source)
        except ModelError as error:
            print(error)
