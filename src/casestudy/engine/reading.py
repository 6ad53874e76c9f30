"""What does one run say at several places of each row?

A causal decoder predicts each token from what stands before it, so one forward pass over a text has
what a run of each of its beginnings would have at its last token. `Readings` are the places at
which the answers of a behaviour are read, several for each prompt.

Cost: the rows' forward pass, with the kept sites at every position in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.answers import Answers
from casestudy.behaviour.chat import written
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Behaviour, Prompts
from casestudy.behaviour.steps import Scoring, Step, Steps, common_start, steps_of
from casestudy.engine.batch import Batch
from casestudy.engine.packing import pack
from casestudy.model.branches import Branches
from casestudy.model.decoder import run, unembed
from casestudy.model.model import Model
from casestudy.model.notices import Notice
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.results import names
from casestudy.results.names import SIDES

ROWS = 4096
"""Tokens of the texts that are run at once: their activations are kept at every position."""
WEIGHTS = 1 << 23
"""Readings times tokens of the vocabulary whose weights are held at once, in float64: 64 MB."""


def read_at(
    model: Model,
    rows: Sequence[Sequence[int]],
    where: Sequence[tuple[int, int]],
    keep: Sequence[Keep],
) -> Trace:
    """The trace of each row's beginning up to each place, from one run of the rows.

    Args:
        model: the decoder.
        rows: ids, BOS included.
        where: (row, position) of each reading.
        keep: sites at the last token (`Site.at(last=True)`), none of them with a key axis.

    Returns: a trace with one prompt per reading: `tokens` are the row up to the position, `lasts`
        and `logits` what is there.
    Raises: as `run`.
    """
    if list(where) == [(i, len(row) - 1) for i, row in enumerate(rows)]:
        return run(model, [list(row) for row in rows], keep=keep, logits="last")
    everywhere = [replace(one, last=False) for one in (*keep, Site.FINAL_NORMED.at(last=True))]
    branched, branches, places = branching(rows, where)
    text = run(model, branched, keep=everywhere, branches=branches)
    which = torch.tensor([row for row, _ in places], device=model.device)
    at = torch.tensor([position for _, position in places], device=model.device)
    lasts = {address: x[which, at] for address, x in text.values.items()}
    logits = unembed(model.config, model.weights, lasts[Site.FINAL_NORMED, None])
    tokens = Tokens.of([list(rows[row][: position + 1]) for row, position in where])
    return Trace(tokens.to(model.device), {}, lasts, logits, model.config.n_layers)


@dataclass(frozen=True)
class Readings:
    """The places at which the answers of some prompts are read.

    Attributes:
        model: as the behaviour reads it.
        behaviour: with written prompts (see `casestudy.chat`).
        scoring: how the tokens of an answer count.
        answers: each prompt's steps.
    """

    model: Model
    behaviour: Behaviour
    scoring: Scoring
    answers: tuple[Steps, ...]

    @classmethod
    def of(cls, model: Model, behaviour: Prompts, scoring: Scoring = "sum") -> Readings:
        """The readings of a behaviour's answers.

        Raises: as `steps_of`.
        """
        behaviour = written(model, Behaviour.of(behaviour))
        model = behaviour.read_by(model)
        prompts = enumerate(behaviour.prompts)
        answers = (steps_of(model.tokenizer, p, scoring, number=i) for i, p in prompts)
        return cls(model, behaviour, scoring, tuple(answers))

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def prompts(self) -> tuple[int, ...]:
        """Each reading's prompt, by index."""
        return tuple(i for i, answer in enumerate(self.answers) for _ in answer.steps)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Each reading's step."""
        return tuple(step for answer in self.answers for step in answer.steps)

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """Of each reading in its prompt's value."""
        return tuple(step.weight for step in self.steps)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Each reading's name: its prompt, and its number there."""
        return tuple(f"{i}.{n}" for i, steps in enumerate(self.answers) for n in range(len(steps)))

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Where a prompt and its answer, read as one text, have other tokens than apart."""
        return tuple(dict.fromkeys(notice for answer in self.answers for notice in answer.notices))

    @property
    def linear(self) -> bool:
        """Whether every reading compares two tokens of one place, so that it is a logit difference:
        true of answers of a single token, and of `first`."""
        return all(None not in (step.answer, step.counterpart) for step in self.steps)

    def rows(self) -> list[list[int]]:
        """What the model has read at each reading: the prompt's tokens, and the answer's before."""
        pairs = zip(self.prompts, self.steps, strict=True)
        return [[*self.answers[i].row, *step.before] for i, step in pairs]

    def contrast(self, some: Sequence[int], logits: Float[Tensor, "batch d_vocab"]) -> Contrast:
        """The contrast of some of the readings at these logits, one row each: the logit difference
        of two tokens, or log p of one."""
        steps = [self.steps[i] for i in some]
        answers, counterparts = ([getattr(s, side) for s in steps] for side in SIDES)
        name = names.WHOLES[self.scoring]
        if self.linear:
            return Contrast.between(self.model, answers, counterparts, name=name)
        return Contrast.of_log_probs(self.model, logits, answers, counterparts, name=name)

    def values(self) -> list[float]:
        """Each prompt's value: its readings' contrasts, added up by weight."""
        values = [0.0] * len(self.answers)
        for some, batch in self.batches(()):
            (contrast,) = batch.contrasts
            for number, value in zip(some, contrast.value(batch.logits).tolist(), strict=True):
                values[self.prompts[number]] += self.weights[number] * value
        return values

    def batches(self, keep: Sequence[Keep]) -> Iterator[tuple[list[int], Batch]]:
        """The readings with their run, whole prompts at a time: (indices of readings, batch).

        Args:
            keep: as for `read_at`.
        """
        rows = self.rows()
        mine: dict[int, list[int]] = {}
        for number, i in enumerate(self.prompts):
            mine.setdefault(i, []).append(number)
        most = max(map(len, self.answers))
        d_vocab = 1 if self.linear else self.model.config.d_vocab

        def fits(n: int, longest: int, _: int) -> bool:
            return 2 * n * longest <= ROWS and n * most * d_vocab <= WEIGHTS

        for some in pack([max(len(rows[k]) for k in mine[i]) for i in mine], fits=fits):
            chosen = [k for i in sorted(some) for k in mine[i]]
            yield chosen, self._batch(chosen, [rows[k] for k in chosen], keep)

    def _batch(self, some: list[int], rows: list[list[int]], keep: Sequence[Keep]) -> Batch:
        texts, where = together(rows)
        trace = read_at(self.model, texts, where, keep)
        assert trace.logits is not None
        return Batch(
            self.model,
            tuple(some),
            tuple(self.behaviour.prompts[self.prompts[k]] for k in some),
            trace.tokens,
            trace,
            Answers((None,) * len(some)),
            (self.contrast(some, trace.logits),),
        )


def branching(
    rows: Sequence[Sequence[int]], where: Sequence[tuple[int, int]]
) -> tuple[list[list[int]], Branches | None, list[tuple[int, int]]]:
    """Texts two in a row where they begin alike, so that the beginning is computed once.

    Returns: the rows, where their second texts begin (None if no row has one), and each place in
        them.
    """
    found: list[list[int]] = []
    ends: list[int] = []
    shared: list[int] = []
    places: dict[int, tuple[int, int, int]] = {}  # a text's row, what it shares, where it goes on
    free: int | None = None  # a row of one text, the last one
    for i, row in enumerate(rows):
        same = 0 if free is None else common_start(found[free], row)
        if free is not None and 2 * same >= len(row):
            places[i] = (free, same, ends[free])
            shared[free] = same
            found[free] += row[same:]
            free = None
            continue
        free = len(found)
        places[i] = (free, len(row), len(row))
        found.append(list(row))
        ends.append(len(row))
        shared.append(len(row))
    moved = []
    for i, position in where:
        place, same, end = places[i]
        moved.append((place, position if position < same else end + position - same))
    several = len(found) < len(rows)
    return found, Branches(tuple(ends), tuple(shared)) if several else None, moved


def together(rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Rows as places in as few texts as hold them: a row that begins another is read there.

    Returns: the texts, and each row's (text, position of its last token).
    """
    holders: dict[int, list[int]] = {}
    held_by: dict[int, int] = {}
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        row = list(rows[i])
        held_by[i] = next((h for h, text in holders.items() if text[: len(row)] == row), i)
        holders.setdefault(held_by[i], row)
    number = {h: n for n, h in enumerate(sorted(holders))}  # in the order of the rows
    texts = [holders[h] for h in number]
    return texts, [(number[held_by[i]], len(row) - 1) for i, row in enumerate(rows)]
