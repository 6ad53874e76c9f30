"""How many threads does the arithmetic take?

On a CPU torch splits a product over threads that wait for each other at its end. GNU's OpenMP,
which torch's Linux wheels bring, has them wait in a loop of some 20 ms (`GOMP_SPINCOUNT` turns).
Where other processes hold a core, a product of 1 ms so costs 12 ms of computing and more of
waiting. Two rules end that: products are split only as far as each thread has enough to do
(`suited`), and the command line lets threads sleep while they wait (`cli.wait_asleep`).

A number that somebody chose is kept: by `OMP_NUM_THREADS`, `MKL_NUM_THREADS` or
`torch.set_num_threads`. Another number may round otherwise, and so a study stores its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

import torch

from casestudy.model.model import Model

CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user chooses the number of threads."""

RATE, BANDWIDTH = 5e10, 1e10
"""What one core is taken to do: float32 operations and bytes of weights read, per second."""

SHARE = 4e-3
"""Seconds of one product that are worth a thread: some hundred times what it costs to wake one, and
about what a busy system makes it wait for a core."""

ROWS = 256
"""Positions in a typical product of a study: between a prompt's own and a full climb's 2,048."""


def suited(model: Model, rows: int = ROWS) -> int:
    """How many threads help this model's largest product, of those torch would take.

    Args:
        rows: positions that are computed together.

    Returns: torch's own number where it was chosen by somebody, or the model is not on the CPU.
    """
    available = torch.get_num_threads()
    if model.device.type != "cpu" or _chosen(available):
        return available
    size = model.config.d_model * model.config.d_mlp
    itemsize = model.weights.W_E.element_size()
    seconds = max(2 * rows * size / RATE, size * itemsize / BANDWIDTH)
    return min(available, max(1, int(seconds / SHARE)))


@contextlib.contextmanager
def threads_set(threads: int) -> Generator[None, None, None]:
    """So many threads for a while; torch's number before is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(count: int) -> bool:
    """Whether torch's number of threads is not the one it starts with: the cores it may run on."""
    return any(os.environ.get(name) for name in CHOSEN) or count != cores()


def cores() -> int:
    """Cores this process may run on, two hardware threads counted as one, as torch counts them."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        usable = os.cpu_count() or 1
    try:
        paired = Path("/sys/devices/system/cpu/smt/active").read_text().strip() == "1"
    except OSError:
        paired = False
    return max(1, usable // 2) if paired else usable
