"""The first stage of a study: all measurements on every chunk of prompts.

Prompts are packed into chunks by length. Each chunk is run once for all measurements. A step of
this stage is a chunk. Finished chunks are merged into shards, and the joined results are computed
from the shards only (see `join`).

Memory: the run of one chunk, the results of a few shards, and about 1 kB per prompt for the prompts
themselves. Results per prompt stay on disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from casestudy.engine.packing import Progress, pack
from casestudy.results.result import Result
from casestudy.study.executors import Done, Work, left_out, local_chunks
from casestudy.study.join import join
from casestudy.study.on_ray import ray_chunks
from casestudy.study.settings import CHUNK_TOKENS
from casestudy.study.stage import Stage, Subject
from casestudy.study.store import SHARD

NAME = "measuring"

CHUNK_PROMPTS = 128

USEFUL = 0.9
"""At least this share of a chunk's tokens are tokens of prompts; the others are padding."""


@dataclass(frozen=True)
class State(Progress):
    """The progress of measuring prompts.

    Attributes:
        done, total: numbers of prompts.
        found: how many of `done` were stored by an earlier run of the same study.
        rate: prompts per second in this run; 0 before its first chunk is done.
        left: estimated seconds for the other prompts, from this run's tokens per second. Prompts
            per second would give too small a number, because later chunks have longer prompts.
            None before the first chunk is done.
        memory: bytes of memory this process uses; 0 if the system does not say.
    """

    found: int = 0
    rate: float = 0.0
    left: float | None = None
    memory: int = 0


def measuring(subject: Subject) -> Stage[int, list[Result]]:
    """The stage that measures every chunk of the plan."""
    store, chunks, execution = subject.store, subject.chunks, subject.execution
    settings = subject.settings
    work = Work(
        subject.model,
        subject.behaviour,
        subject.measurements,
        settings.top_k,
        scoring=subject.scoring,
    )
    for shard in range(-(-len(chunks) // SHARD)):
        store.seal(shard, chunks, work.summed)  # shards that a killed run had begun to merge
    pace = _Pace(subject)

    def run(missing: Sequence[int]) -> Generator[Done, None, None]:
        if execution.executor == "local":
            return local_chunks(work, chunks, missing)
        return ray_chunks(
            work,
            chunks,
            missing,
            threads=execution.threads or 1,
            workers=execution.workers,
            address=execution.address,
        )

    def keep(number: int, results: list[Result]) -> None:
        store.write_chunk(number, results)
        store.seal(number // SHARD, chunks, work.summed)
        pace.chunk(number)

    def combine() -> None:
        unread = left_out(subject.behaviour, subject.errors)
        join(store, subject.behaviour, subject.measurements, unread)

    return Stage(NAME, range(len(chunks)), store.has_chunk, run, keep, combine)


class _Pace:
    """Measures the speed of this run and estimates the time left."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        missing = [n for n in range(len(subject.chunks)) if not subject.store.has_chunk(n)]
        self.total = sum(map(len, subject.chunks))
        self.found = self.total - sum(len(subject.chunks[number]) for number in missing)
        self.tokens_left = sum(self.tokens(number) for number in missing)
        self.prompts = self.tokens_done = 0
        self.start = time.perf_counter()
        self.tell()

    def tokens(self, number: int) -> int:
        return sum(self.subject.lengths[i] or 0 for i in self.subject.chunks[number])

    def chunk(self, number: int) -> None:
        self.prompts += len(self.subject.chunks[number])
        self.tokens_done += self.tokens(number)
        self.tokens_left -= self.tokens(number)
        self.tell()

    def tell(self) -> None:
        seconds = time.perf_counter() - self.start
        begun = self.prompts > 0
        self.subject.tell(
            State(
                NAME,
                self.found + self.prompts,
                self.total,
                "prompts",
                found=self.found,
                rate=self.prompts / seconds if begun else 0.0,
                left=self.tokens_left * seconds / self.tokens_done if begun else None,
                memory=memory_now(),
            )
        )


def memory_now() -> int:
    """Bytes of memory this process uses; 0 if the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def plan_chunks(
    lengths: Sequence[int | None],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    chunk_prompts: int = CHUNK_PROMPTS,
) -> list[list[int]]:
    """Pack prompts into chunks of similar length.

    Args:
        lengths: tokens per prompt; None for a prompt that cannot be run, which is in no chunk.
        chunk_tokens: the most tokens in a chunk, including padding. A longer prompt is a chunk by
            itself.
        chunk_prompts: the most prompts in a chunk.

    At most 1 − `USEFUL` of a chunk's tokens are padding.
    """
    runnable = [i for i, n in enumerate(lengths) if n is not None]
    chunks = pack(
        [n for n in lengths if n is not None],
        fits=lambda n, longest, _: n <= chunk_prompts and n * longest <= chunk_tokens,
        useful=USEFUL,
    )
    return [[runnable[k] for k in chunk] for chunk in chunks]
