"""What does a study ask, and how is it run?

`Settings` belong to the question: another value is another study. `Execution` never changes what is
found, beyond float rounding: a continued study may be given another, and keeps its stored plan of
chunks and its number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from casestudy.circuits.evidence import Choices
from casestudy.engine.packing import Budget
from casestudy.measure.metrics import Kind

CHUNK_TOKENS = 4096

Executor = Literal["local", "ray"]


@dataclass(frozen=True)
class Search:
    """Which circuit is looked for, and how.

    Attributes:
        choices: method, rank, ablation and the rest.
        metric: what a circuit is to carry.
        family: of edits; the strongest by default.
    """

    choices: Choices = field(default_factory=Choices)
    metric: Kind = "contrast"
    family: str | None = None


@dataclass(frozen=True)
class Settings:
    """What a study asks, beside its behaviour and its model.

    Attributes:
        top_k: how many predictions to look through for an answer.
        search: which circuit to look for. By default the study's own choice, and that there is none
            is then no error.
        family: of edits, to patch and to look for the study's own circuit on; by default the
            corrupted prompts that are given, or else the family that undoes the behaviour most
            surely.
    """

    top_k: int = 100
    search: Search | None = None
    family: str | None = None


@dataclass(frozen=True)
class Execution:
    """How a study is run.

    Attributes:
        executor: "local" is this process; "ray" runs the same chunks on Ray workers.
        workers: how many, on Ray.
        address: of a Ray cluster; by default one is started on this machine for the time.
        threads: of each process that measures; by default as many of torch's as help a model of
            this size (see `engine.threads`), on Ray no more than its share of them. A continued
            study keeps its stored number.
        chunk_tokens: how many tokens to run at once; a continued study keeps its stored plan.
        budget: of the patch grids and the circuit, beyond the model itself.
    """

    executor: Executor = "local"
    workers: int = 2
    address: str | None = None
    threads: int | None = None
    chunk_tokens: int = CHUNK_TOKENS
    budget: Budget = field(default_factory=Budget)
