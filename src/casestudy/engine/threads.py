"""How many threads should torch use?

On a CPU torch splits a matrix product over threads, and the threads wait for each other at its end.
GNU's OpenMP, which is part of torch's Linux wheels, lets them wait in a loop of about 20 ms
(`GOMP_SPINCOUNT` turns). If other processes use the cores, a product of 1 ms costs 12 ms of CPU
time and more of waiting. Two rules prevent this: products use only as many threads as have enough
work (`suited`), and the command line lets threads sleep while they wait (`cli.wait_asleep`).

The user's own number is kept: from `OMP_NUM_THREADS`, `MKL_NUM_THREADS` or `torch.set_num_threads`.
Another number of threads may change rounding, so a study stores its number. The cores that this
leaves free compute other prompts (`engine/workers`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

import torch

from casestudy.engine.workers import allowed, use_cores
from casestudy.model.model import Model

CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user chooses the number of threads."""

RATE, BANDWIDTH = 5e10, 1e10
"""The assumed speed of one core: float32 operations, and bytes of weights read, per second."""

SHARE = 4e-3
"""Seconds of a product per thread: about a hundred times the cost of waking a thread, and about the
time that a thread waits for a core on a busy system."""

ROWS = 256
"""Positions in a typical product of a study: between one prompt's and the 2,048 of a full climb."""


def suited(model: Model, rows: int = ROWS) -> int:
    """How many threads speed up this model's largest product, at most torch's own number.

    Args:
        rows: positions that are computed together.

    Returns: torch's own number if the user chose it, or if the model is not on the CPU.
    """
    available = torch.get_num_threads()
    if model.device.type != "cpu" or _chosen(available):
        return available
    size = model.config.d_model * model.config.d_mlp
    itemsize = model.weights.W_E.element_size()
    seconds = max(2 * rows * size / RATE, size * itemsize / BANDWIDTH)
    return min(available, max(1, int(seconds / SHARE)))


def adapt(model: Model) -> None:
    """Use all of torch's threads for this model from here on: as many as help for one product, and
    all for parts that are computed at the same time (see `engine/workers`)."""
    use_cores(allowed())
    torch.set_num_threads(suited(model))


@contextlib.contextmanager
def threads_set(threads: int) -> Generator[None, None, None]:
    """Use this number of threads within the context, then torch's previous number again."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(count: int) -> bool:
    """Whether torch's number of threads differs from its default: the cores it may run on."""
    return any(os.environ.get(name) for name in CHOSEN) or count != cores()


def cores() -> int:
    """Cores that this process may run on; as in torch, two hardware threads count as one."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        usable = os.cpu_count() or 1
    try:
        paired = Path("/sys/devices/system/cpu/smt/active").read_text().strip() == "1"
    except OSError:
        paired = False
    return max(1, usable // 2) if paired else usable
