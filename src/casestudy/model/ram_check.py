"""Is there room for a model, before any of it is read?"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from casestudy.errors import ModelError

_GROUP = Path("/sys/fs/cgroup")


def check_room(need: int, device: torch.device, what: str) -> None:
    """Check that a model fits into memory.

    Args:
        need: bytes of its parameters, as they will be held.
        device: where they will be.
        what: what an error calls them.

    Raises: ModelError stating the memory needed and the memory available.
    """
    free = available(device)
    if free is not None and need > free:
        raise ModelError(
            f"{what} need {_size(need)}, and {device} has {_size(free)} of memory available",
            hint='Choose a smaller model, a number format of fewer bytes (dtype="auto" keeps the '
            "checkpoint's own), or another device",
        )


def available(device: torch.device) -> int | None:
    """Free bytes on a device; None where the system does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    known = [n for n in (_of_machine(), _of_group(_GROUP)) if n is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux: the total memory is the best known bound
        if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in lines)
    return 1024 * int(fields["MemAvailable"].split()[0])


def _of_group(folder: Path) -> int | None:
    """What the limit of the container leaves; the file cache counts as free."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    cached = int(dict(line.split() for line in stat).get("file", 0))
    return None if limit == "max" else int(limit) - used + cached


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"
