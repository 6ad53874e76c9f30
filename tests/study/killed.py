"""Runs a study in processes that are going to be killed.

    python -m tests.study.killed MODEL OUT            one run
    python -m tests.study.killed MODEL OUT KILLS      again and again, until so many were killed
    python -m tests.study.killed MODEL OUT 0 BYTES    one run that can write no larger file
    python -m tests.study.killed MODEL OUT STEP       one that kills itself as this step of the
                                                      circuit begins

The second imports everything once and forks its victims before any library has started a thread, so
that a start costs nothing and the kills fall into the work: runs, writes, merges, the final join.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.circuits.evidence import Choices
from casestudy.engine.packing import Progress
from casestudy.model.loading import load
from casestudy.study.measuring import State
from casestudy.study.settings import Execution, Search, Settings
from casestudy.study.study import Study, study

N = 60
CHUNK_TOKENS = 24


def behaviour(n: int = N) -> Behaviour:
    """Short prompts of several lengths and documents."""
    words = ("Go", "She left", "It was late", "The dog ran home", "He said no more of it")
    return Behaviour(
        "killed",
        "Why?",
        tuple(
            Prompt(
                f"{words[i % 5]} {i}.",
                answer=" He",
                groups=("odd" if i % 2 else "even",),
                document=f"d{i % 12}",
            )
            for i in range(n)
        ),
    )


def run(model: str, out: str, prepend_bos: bool | None = None) -> Study:
    """The study, the same for whoever asks; says on stdout how far it is."""

    def say(state: Progress) -> None:
        if isinstance(state, State):
            print(state.done, flush=True)

    torch.set_num_threads(1)
    return study(
        behaviour(),
        load(model, device="cpu", prepend_bos=prepend_bos),
        out=out,
        only=["predictions", "ledger", "attribution"],
        execution=Execution(chunk_tokens=CHUNK_TOKENS),
        progress=say,
    )


def find_circuit(model: str, out: str, progress: Callable[[Progress], None] | None = None) -> Study:
    """A study with a circuit, the same for whoever asks."""
    torch.set_num_threads(1)
    texts = ("The dog slept.", "A cat ran off.")
    choices = Choices(steps=1, random_circuits=1, exact_edges=5, replicates=0, faithful=0.5)
    return study(
        load(model, device="cpu"),
        Behaviour("stops", "A capital?", tuple(Prompt(text) for text in texts)),
        out=out,
        only=["predictions", "circuit"],
        settings=Settings(search=Search(choices, family="all lowered")),
        progress=progress,
    )


def die_at(step: str) -> Callable[[Progress], None]:
    """Kills this process when a stage says that it begins this step."""

    def tell(progress: Progress) -> None:
        if progress.note == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return tell


def fork(work: Callable[[], object]) -> tuple[int, int]:
    """A child that does some work and is gone; its number, and where to read what it says."""
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(says, 1)
            work()
            status = 0
        finally:
            os._exit(status)
    os.close(says)
    return child, said


def kill_often(model: str, out: str, kills: int) -> dict[str, object]:
    """Fork runs and kill them at random moments; then let one finish.

    A moment is so many chunks after a run's start and a few milliseconds, so that a busy machine's
    runs die in the same places. A run that comes through before begins another folder: OUT-1, …
    """
    rng = random.Random(0)
    folders = [out]
    killed = 0
    reached: set[str] = set()
    while True:
        child, said = fork(lambda: run(model, folders[-1]))
        with os.fdopen(said, "rb", buffering=0) as lines:
            if killed < kills:
                for _ in range(rng.randrange(12)):
                    lines.readline()  # of a run that has ended: nothing, at once
                time.sleep(rng.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
            lines.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            here = Path(folders[-1])
            places = ("chunks", "shards", "arrays")
            reached |= {name for name in places if any((here / name).glob("[!.]*"))}
        elif status != 0:
            raise SystemExit(f"a run failed by itself: {os.waitstatus_to_exitcode(status)}")
        elif killed >= kills:
            return {"killed": killed, "reached": sorted(reached), "folders": folders}
        else:
            folders.append(f"{out}-{len(folders)}")


if __name__ == "__main__":
    model, out, *numbers = sys.argv[1:]
    if not numbers:
        run(model, out)
    elif not numbers[0].isdecimal():
        find_circuit(model, out, die_at(*numbers))
    elif len(numbers) == 1:
        print(json.dumps(kill_often(model, out, int(numbers[0]))))
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(numbers[1]), resource.RLIM_INFINITY))
        run(model, out)
