"""How long does somebody wait for the explorer's panels, and for the cells of its patch grid?

    make bench-explorer

For each model `casestudy serve` is started as a person starts it, and asked over its socket what
the page asks when ten prompts are typed one after another: `/panels` of the prompt alone, `/panels`
of the prompt with its corrupted prompt, and then `/patch` of the default grid (the residual stream
by layer and position) and of the heads. A grid arrives in lines: the first one with computed cells
and the last one are timed. Last, `/panels` is asked for while the longest prompt's grid is being
computed and no longer wanted, as when somebody types on. Everything is asked once before, to warm
up. CPU seconds are the server's own, which other work on the machine distorts less.

Not measured: the page's pause after the last keystroke (0.12 s), and the browser's own work.

With --against SRC, a second server runs the casestudy in that folder, and the two take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np

from common import ROOT, TALK, table

MODELS = ("tiny", "smollm2")
GRIDS = ("resid_pre", "z")
PASSAGE = (
    "The old harbour lay quiet under a thin mist. Two boats were tied to the wall, and a boy sat on"
    " the steps with a line in the water. He had been there since dawn, and he had caught nothing."
)
PAIRS = (
    ("This is a sentence.", "This is a sentence,"),
    ("It was late.", "It was late,"),
    ("The end of the day is", "The end of the night is"),
    ("She opened the door. The room was dark.", "She opened the door. The room was dark,"),
    ("The men in the old house", "The man in the old house"),
    (
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
    ),
    (
        "The train left at noon. Nobody was on the platform.",
        "The train left at noon. Nobody was on the platform,",
    ),
    ("One, two, three, four, five, six, seven,", "One, two, nine, four, five, six, seven,"),
    (PASSAGE, PASSAGE[:-1] + ","),
    (f"{PASSAGE} {PASSAGE}", f"{PASSAGE} {PASSAGE.replace('since dawn', 'since noon')}"),
)
"""Prompts, each with its corrupted prompt: a question of a few words up to a long paragraph."""


@dataclass(frozen=True)
class Wait:
    """A wait for one line of an answer: seconds, CPU seconds of the server, kilobytes so far."""

    seconds: float
    cpu: float
    kilobytes: float


@dataclass
class Server:
    """A running explorer: its process, its port, and the wait for its address."""

    process: subprocess.Popen[str]
    port: int = 0
    start: Wait = Wait(0.0, 0.0, 0.0)

    def cpu(self) -> float:
        """CPU seconds of the process so far; NaN where the system does not say."""
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{self.process.pid}/stat").read_text()
            user, system = line.rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return float("nan")


@contextlib.contextmanager
def serving(model: str, source: Path) -> Iterator[Server]:
    """The explorer of a source tree, until the block ends."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "serve", "--model", model, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    try:
        assert process.stdout is not None
        port = urlsplit(process.stdout.readline().strip()).port
        if port is None:
            raise SystemExit(f"no explorer of {model}; its message is above")
        start = Wait(time.perf_counter() - begun, Server(process).cpu(), 0.0)
        yield Server(process, port, start)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


CODE = "from casestudy.cli import main; main()"


def asked(server: Server, path: str, *, stop: bool = False, **query: str) -> tuple[Wait, Wait, Any]:
    """Ask one question as the page does.

    Args:
        stop: hang up after the first line that counts: one with computed cells.

    Returns: the waits for that line and for the last one, and the last line itself.
    """
    connection = HTTPConnection("127.0.0.1", server.port)
    cpu, begun = server.cpu(), time.perf_counter()
    connection.request("GET", f"{path}?{urlencode(query)}", headers={"x-page": "benchmark"})
    response, waits, size, answer = connection.getresponse(), [], 0, {}
    for line in response:
        answer, size = json.loads(line), size + len(line)
        if response.status != 200 or "problem" in answer:
            raise SystemExit(f"{path} of {query}: {answer}")
        if answer.get("done", 1):
            waits.append(Wait(time.perf_counter() - begun, server.cpu() - cpu, size / 1000))
        if waits and stop:
            break
    connection.close()
    return waits[0], waits[-1], answer


def questions(server: Server, clean: str, corrupted: str) -> dict[str, Wait]:
    """What the page asks of one prompt: its panels, with a corrupted prompt, its grids."""
    pair = {"prompt": clean, "corrupted": corrupted}
    found = {}
    _, found["panels, one prompt"], _ = asked(server, "/panels", prompt=clean)
    _, found["panels, with corrupted"], answer = asked(server, "/panels", **pair)
    sides = {side: answer["state"][side] for side in ("answer", "counterpart")}
    for site in GRIDS:
        query = pair | sides | ({} if site == GRIDS[0] else {"site": site})
        first, last, _ = asked(server, "/patch", **query)
        found |= {f"grid of {site}, first cells": first, f"grid of {site}, all cells": last}
    asked(server, "/patch", stop=True, prompt=PAIRS[-1][0], corrupted=PAIRS[-1][1])
    _, found["panels, during a grid"], _ = asked(server, "/panels", prompt=clean)
    return found


def measured(model: str, sources: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """Every server's waits for one model, with the servers in turns."""
    waits: dict[tuple[str, str], list[Wait]] = {}
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(model, source)) for name, source in sources.items()
        }
        for server in servers.values():  # to warm up
            questions(server, *PAIRS[0])
        for number in range(rounds):
            for pair in PAIRS:
                for name, server in servers.items():
                    for question, wait in questions(server, *pair).items():
                        waits.setdefault((question, name), []).append(wait)
            print(f"{model}: {number + 1}/{rounds}", file=TALK)
        for name, server in servers.items():
            waits["start to address", name] = [server.start]
    return [row(model, *of, found) for of, found in waits.items()]


def row(model: str, question: str, name: str, waits: Sequence[Wait]) -> dict[str, Any]:
    """Medians, with the smallest and the largest."""
    found: dict[str, Any] = {"model": model, "question": question, "of": name}
    times = {"s": [w.seconds for w in waits], "cpu_s": [w.cpu for w in waits]}
    for unit, seconds in times.items():
        found[unit] = round(float(np.median(seconds)), 3)
        found[f"{unit}_ends"] = [round(end, 3) for end in (min(seconds), max(seconds))]
    kilobytes = round(float(np.median([w.kilobytes for w in waits])))
    return {**found, "kB": kilobytes, "n": len(waits)}


def lengths(model: str) -> list[int]:
    """Tokens of each prompt, BOS included where the model has one."""
    import casestudy as cs
    from casestudy.behaviour.prompts import Prompt
    from casestudy.behaviour.readouts import row_of

    tokenizer = cs.load(model).tokenizer
    return [len(row_of(tokenizer, Prompt(clean))) for clean, _ in PAIRS]


def main() -> None:
    """Measure each model, and print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, default=2, help="times that every prompt is typed")
    parser.add_argument("--against", type=Path, metavar="SRC", help="another source tree's src/")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "explorer.json"
    )
    arguments = parser.parse_args()
    sources = {"this": ROOT / "src"}
    if arguments.against:
        sources = {"other": arguments.against.resolve(), **sources}
    rows = []
    for model in arguments.model or MODELS:
        tokens = lengths(model)
        print(f"{model}: {len(PAIRS)} prompts of {sorted(tokens)} tokens")
        rows += measured(model, sources, arguments.rounds)
    print(table(rows))
    arguments.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
