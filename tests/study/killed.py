"""Runs a study in processes that are going to be killed."""

from __future__ import annotations

import os
import random
import resource
import signal
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
from tests.forks import forked

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


def limited_to(size: int, model: str, out: str) -> None:
    """`run` in a process that can write no file larger than so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    run(model, out)


def circuit_until(step: str, model: str, out: str) -> None:
    """`find_circuit` in a process that kills itself as this step of the circuit begins."""
    find_circuit(model, out, die_at(step))


def kill_often(model: str, out: str, kills: int) -> tuple[set[str], list[str]]:
    """Start runs and kill them at random moments, so many of them; then let one finish.

    A moment is so many chunks after a run's start and a few milliseconds, so that a busy machine's
    runs die in the same places. A run that comes through before begins another folder: OUT-1, …

    Returns: the parts of a study's folder that had files when a run was killed, and the folders.
    """
    rng = random.Random(0)
    folders = [out]
    killed = 0
    reached: set[str] = set()
    while True:
        with forked(run, model, folders[-1]) as one:
            if killed < kills:
                for _ in range(rng.randrange(12)):
                    one.lines.readline()  # of a run that has ended: nothing, at once
                time.sleep(rng.uniform(0, 0.02))
                one.process.kill()
            said = one.ended()
        if one.process.exitcode == -signal.SIGKILL:
            killed += 1
            here = Path(folders[-1])
            places = ("chunks", "shards", "arrays")
            reached |= {name for name in places if any((here / name).glob("[!.]*"))}
        elif one.process.exitcode != 0:
            raise AssertionError(f"a run failed by itself: {said}")
        elif killed >= kills:
            return reached, folders
        else:
            folders.append(f"{out}-{len(folders)}")
