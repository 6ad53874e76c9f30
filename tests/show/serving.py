"""The explorer as a person has it: a process of its own, reached over a socket."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Served:
    """A running explorer.

    Attributes:
        address: "http://127.0.0.1:PORT", without a slash at its end.
        process: its process.
    """

    address: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    def memory(self) -> int:
        """Bytes the process holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Served]:
    """Serve on a free port until the block ends, then interrupt it as an impatient person would.

    It has to answer, to end as one that was stopped, and to say only that on stderr.
    """
    # a shell that starts the suite in the background has its processes ignore Ctrl-C
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from casestudy.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip().rstrip("/")
        assert address, process.communicate(timeout=300)[1]
        yield Served(address, process)
    finally:
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        said = process.communicate(timeout=300)[1]
    # A third interrupt may come when Python has already put the system's own handler back; a shell
    # says 130 of a process that ends so, too.
    assert process.returncode in (130, -signal.SIGINT), (process.returncode, said)
    assert said == "Stopped.\n", said
