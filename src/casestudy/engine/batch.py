"""What is the input of a measurement?

One `Batch`: some prompts of a behaviour, one run of them, and the contrasts chosen from its
predictions. A measurement declares the sites it reads, and the run keeps the sites of all
measurements. So a study is one pass over the prompts, with the activations of one batch in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.answers import FORMS, Answers, choose_answers
from casestudy.behaviour.chat import written
from casestudy.behaviour.contrast import Contrast, class_contrast
from casestudy.behaviour.prompts import Behaviour, Prompt, Prompts
from casestudy.behaviour.readouts import tokens_of
from casestudy.behaviour.roles import role_names, roles_of
from casestudy.engine.packing import pack
from casestudy.engine.workers import at_once, mapped
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Keep
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.results.result import Axis, Result

Value = TypeVar("Value")

_TOKENS, _PROMPTS = 1024, 64
"""The most tokens and prompts that are run together where only logits are read."""


@dataclass(frozen=True)
class Batch:
    """Prompts, their run and their contrasts.

    Attributes:
        index: each prompt's index in the behaviour; the label of its results.
        trace: the run, with logits at the last positions.
        contrasts: by name; the main one first, the class contrast (if there is one) last.
        behaviour: of the prompts; None for a batch without behaviour, which has no roles.
    """

    model: Model
    index: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    tokens: Tokens
    trace: Trace
    answers: Answers
    contrasts: tuple[Contrast, ...]
    behaviour: Behaviour | None = None

    @property
    def logits(self) -> Float[Tensor, "batch d_vocab"]:
        """At each prompt's last position."""
        assert self.trace.logits is not None
        return self.trace.logits

    @property
    def prompt_axis(self) -> Axis:
        """The axis along which this batch's results are joined to other batches'."""
        return Axis("prompt", tuple(map(str, self.index)))

    @property
    def contrast_axis(self) -> Axis:
        """One label per contrast."""
        return Axis("contrast", tuple(c.name for c in self.contrasts))

    @property
    def role_names(self) -> tuple[str, ...]:
        """Every role the behaviour's prompts may have, the same in all its batches."""
        return () if self.behaviour is None else role_names(self.behaviour)

    @cached_property
    def directions(self) -> tuple[Float[Tensor, "batch d_model"], ...]:
        """Each contrast's `Contrast.directions`, which ledger, lens and attribution all read."""
        return tuple(contrast.directions(self.model.weights) for contrast in self.contrasts)

    @cached_property
    def roles(self) -> tuple[Mapping[str, tuple[int, ...]], ...]:
        """Each prompt's roles, as token indices; roles that it does not have are absent."""
        if self.behaviour is None:
            return ({},) * len(self.prompts)
        return tuple(
            roles_of(self.model.tokenizer, prompt, row, self.behaviour.roles)
            for prompt, row in zip(self.prompts, self.tokens.rows(), strict=True)
        )


@dataclass(frozen=True)
class Measurement:
    """One measurement, made on every batch.

    Attributes:
        name: as in `casestudy run --only NAME`.
        keep: the sites it reads of a model.
        measure: from a batch to named results. Grids with a prompt axis and tables are joined over
            chunks, and the grids averaged; a grid without one (a single prompt's pattern, the
            model's own profile) is kept as it is.
        partial: names of results that have a meaning only when all chunks are combined.
        combine: maps all chunks' partial results, by name, to the results that replace them.
        also: from a model and prompts (their index and tokens) to sites that the batch's run keeps
            as well if they are small enough, so that the measurement needs no run of its own.
    """

    name: str
    keep: Callable[[Model], Sequence[Keep]]
    measure: Callable[[Batch], list[Result]]
    partial: tuple[str, ...] = ()
    combine: Callable[[Mapping[str, Sequence[Result]]], list[Result]] = lambda _: []
    also: Callable[[Model, Sequence[int], Tokens], Sequence[Keep]] = lambda model, index, tokens: ()


def run_whole(
    model: Model,
    prompts: Prompts,
    measurements: Sequence[Measurement],
) -> Batch:
    """Run all of a behaviour's prompts, or texts, once."""
    behaviour = written(model, Behaviour.of(prompts))
    index = range(len(behaviour))
    return run_batch(model, behaviour, index, measurements)


def run_batch(
    model: Model,
    behaviour: Behaviour,
    index: Sequence[int],
    measurements: Sequence[Measurement],
    *,
    top_k: int = 100,
) -> Batch:
    """Run some prompts of a behaviour once, and keep the sites that the measurements read."""
    model = behaviour.read_by(model)
    prompts = tuple(behaviour.prompts[i] for i in index)
    tokens = tokens_of(model, prompts)
    keep = [k for m in measurements for k in (*m.keep(model), *m.also(model, index, tokens))]
    trace = run(model, tokens, keep=keep, logits="last") if keep else _of_logits(model, tokens)
    assert trace.logits is not None
    classes = class_contrast(model, behaviour, prompts, trace.logits)
    answers = choose_answers(
        model, prompts, trace.logits, rule=behaviour.answers, top_k=top_k, classes=classes
    )
    forms = FORMS if behaviour.answers == "space-capital" else ("counterpart",)
    contrasts = tuple(answers.contrast(form) for form in forms)
    if classes is not None:
        contrasts = (*contrasts, classes)
    return Batch(model, tuple(index), prompts, tokens, trace, answers, contrasts, behaviour)


def of_last_logits(
    model: Model,
    tokens: Tokens,
    of: Callable[[Float[Tensor, "some d_vocab"], list[int]], Value],
) -> Iterator[tuple[list[int], Value]]:
    """What is read of the logits at the last tokens of many prompts, a few prompts at a time: those
    of similar length together, so that little is padding.

    Args:
        of: maps the logits of some prompts, and their numbers, to what is read.

    Returns: the prompts' numbers with what is read of them.
    """
    lengths = tokens.lengths.tolist()
    workers = at_once(model.device, len(lengths))
    pieces = pack(
        lengths,
        fits=lambda n, longest, _: n <= _PROMPTS and n * longest <= _TOKENS,
        parts=workers,
    )

    def read(some: list[int]) -> Value:
        logits = run(model, tokens[some].to(model.device), logits="last").logits
        assert logits is not None
        return of(logits, some)

    longest_first = pieces[::-1]
    yield from zip(longest_first, mapped(read, longest_first, workers), strict=True)


def _of_logits(model: Model, tokens: Tokens) -> Trace:
    """The run of some prompts that keeps the logits at their last tokens alone."""
    logits: Tensor | None = None
    for some, found in of_last_logits(model, tokens, lambda logits, _: logits):
        if logits is None:
            logits = found.new_empty(len(tokens), found.shape[1])
        logits[torch.tensor(some, device=found.device)] = found
    return Trace(tokens, {}, {}, logits, model.config.n_layers)
