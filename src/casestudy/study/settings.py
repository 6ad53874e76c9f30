"""Which settings does a study have?

`Settings` are part of the question: a study with another value is another study. `Execution` only
says how the study is run; it changes no result beyond float rounding. A study may be continued with
another `Execution`, but keeps its stored plan of chunks and its stored number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from casestudy.behaviour.steps import Scoring
from casestudy.circuits.evidence import Choices
from casestudy.circuits.neuron_circuit import NeuronChoices
from casestudy.engine.packing import Budget
from casestudy.measure.metrics import Kind

CHUNK_TOKENS = 4096

Executor = Literal["local", "ray"]


@dataclass(frozen=True)
class Search:
    """Which circuit a study looks for, and how.

    Attributes:
        choices: the method, the rank, the ablation and the other choices.
        metric: the metric that the circuit has to reproduce.
        family: the family of edits; by default chosen by `choose_family`.
    """

    choices: Choices = field(default_factory=Choices)
    metric: Kind = "contrast"
    family: str | None = None


@dataclass(frozen=True)
class NeuronSearch:
    """Which circuit of heads and neurons a study looks for, and how.

    Attributes:
        choices: the method, the rank, the ablation and the other choices.
        metric: the metric that the circuit has to reproduce.
        family: the family of edits; by default the study's, or chosen by `choose_family`.
    """

    choices: NeuronChoices = field(default_factory=NeuronChoices)
    metric: Kind = "contrast"
    family: str | None = None


@dataclass(frozen=True)
class Settings:
    """What a study measures, besides its behaviour and its model.

    Attributes:
        top_k: the number of predictions among which an answer is chosen.
        search: the circuit to look for. By default the study chooses it, and it is no error if it
            finds no pairs to look for one on.
        family: the family of edits for patching and for the circuit; by default the given corrupted
            prompts, or otherwise the family that most surely undoes the behaviour.
        scoring: how the tokens of answers of several tokens count: in the contrast of the whole
            answers, in patching and in the circuit. A behaviour whose answers are single tokens
            has no such choice.
        neurons: the circuit of heads and neurons to look for, besides the rest; None for none. A
            finished study may be continued with it.
    """

    top_k: int = 100
    search: Search | None = None
    family: str | None = None
    scoring: Scoring = "sum"
    neurons: NeuronSearch | None = None


@dataclass(frozen=True)
class Execution:
    """How a study is run.

    Attributes:
        executor: "local" runs the chunks in this process, "ray" on Ray workers.
        workers: the number of Ray workers.
        address: the address of a Ray cluster; by default a temporary one on this machine.
        threads: the number of threads of each measuring process. By default all of torch's, which
            compute several prompts at the same time, and as many for one product as speed up a
            model of this size (see `engine/workers`, `engine/threads`); each Ray worker gets at
            most its share. A continued study keeps its stored number.
        chunk_tokens: the number of tokens to run at once, divided among the cores; a continued
            study keeps its stored plan.
        budget: the memory for patching and the circuit, in addition to the model's. Its `seconds`
            are for the whole call: after the first stage, which is always finished, patch grids
            and steps of the circuit are computed if their estimated time is left. The others are
            named as left out, and the same call continues with them.
    """

    executor: Executor = "local"
    workers: int = 2
    address: str | None = None
    threads: int | None = None
    chunk_tokens: int = CHUNK_TOKENS
    budget: Budget = field(default_factory=Budget)
