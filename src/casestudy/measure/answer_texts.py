"""In which texts are the answers of several tokens read, and at which of their positions?

An answer's token is predicted from the prompt and the answer's tokens before it. So each prompt
becomes at most two texts: the prompt with the answer, and the prompt with the counterpart, each
without its last token. A text is read at its last positions, once for each token that counts (see
`behaviour/steps`), and the prompt's value is the weighted sum over the readings of its texts.
Tokens that both answers share at their start are part of both texts; the first token that differs
is read once.

In pairs of clean and corrupted prompts, both have the same answers behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import Counterfactual, Proposals
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.behaviour.readouts import row_of
from casestudy.behaviour.steps import Scoring, Steps, steps_of
from casestudy.engine.reading import Readings
from casestudy.engine.readout import Metric, Tails
from casestudy.errors import CasestudyError
from casestudy.measure.metrics import NamedMetric
from casestudy.measure.pairs import Pairs, Texts
from casestudy.measure.patched import Patched
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from casestudy.results.names import SIDES
from casestudy.results.result import Array, Axis, Grid

WHOLE = "log-probability difference of two answers"
"""The metric of answers of several tokens."""


@dataclass(frozen=True)
class Text:
    """A prompt with one of its answers, as far as it is read.

    Attributes:
        prompt: which, by index.
        before: the answer's tokens, up to the last place at which it is read.
        reads: how many places, at the text's end.
    """

    prompt: int
    before: tuple[int, ...]
    reads: int


def texts_of(readings: Readings) -> list[Text]:
    """The texts in which a behaviour's answers are read: of each prompt one with its answer and one
    with its counterpart, where they are read. Their places are the readings, in order."""
    found = []
    for i, answer in enumerate(readings.answers):
        sides = [[step for step in answer.steps if step.answer is not None]]
        sides.append([step for step in answer.steps if step.answer is None])
        found += [Text(i, steps[-1].before, len(steps)) for steps in sides if steps]
    return found


def places_of(readings: Readings) -> Texts:
    """Whose the texts of `texts_of` are and where they are read, with the readings' weights."""
    texts = texts_of(readings)
    tails = Tails(tuple(text.reads for text in texts), readings.weights)
    return Texts(tuple(text.prompt for text in texts), tails)


def with_answers(pairs: Pairs, readings: Readings) -> Pairs:
    """Pairs with the readings' answers behind both prompts, text by text.

    Args:
        pairs: of prompts, cut where they are read.
        readings: of the clean prompts' answers, pair by pair.
    """
    texts = texts_of(readings)

    def longer(side: Tokens) -> Tokens:
        rows = side.rows()
        return Tokens.of([[*rows[t.prompt], *t.before] for t in texts], bos=side.bos)

    sides = pairs.sides("noising")
    ours, theirs = sides.base_roles, sides.source_roles
    return Pairs(
        longer(pairs.clean).to(pairs.clean.ids.device),
        longer(pairs.corrupted).to(pairs.clean.ids.device),
        None if ours is None else [ours[t.prompt] for t in texts],
        None if theirs is None else [theirs[t.prompt] for t in texts],
        pairs.labels,
        places_of(readings),
    )


def metric_of(readings: Readings) -> Contrast | Metric:
    """What is read at each place, before its weight: a contrast if all of them are linear."""
    answers, counterparts = ([getattr(s, side) for s in readings.steps] for side in SIDES)
    if readings.linear:
        return Contrast.between(readings.model, answers, counterparts)
    absent = -1
    sides = [[absent if id is None else id for id in side] for side in (answers, counterparts)]
    ids, sign = torch.tensor(sides).T, torch.tensor([1.0, -1.0], dtype=torch.float64)

    def metric(logits: Tensor, rows: Tensor) -> Tensor:
        mine = ids.to(logits.device)[rows]
        log_p = logits.double().log_softmax(1).gather(1, mine.clamp(min=0))
        return (log_p * sign.to(logits.device)).masked_fill(mine == absent, 0.0).sum(1)

    return NamedMetric(WHOLE, "nats", metric)


def by_prompt(readings: Readings, found: Patched, labels: Sequence[str] | None = None) -> Patched:
    """Patches of the texts of `texts_of`, added up over each prompt's texts.

    A patched position that one of them does not have changes nothing there. While a grid is
    computed, a cell that one of a prompt's texts does not have yet is unknown.
    """
    raw, known = found.raw.values.copy(), found.known.values.copy()
    texts = places_of(readings)
    mine = np.array(texts.pairs)
    base = np.broadcast_to(found.baselines.values[0], raw.shape)
    beyond = np.broadcast_to(_beyond(readings, found.raw), raw.shape)
    prompts = range(len(readings.answers))
    for i in prompts:
        elsewhere = beyond & (mine == i)
        elsewhere &= ~beyond[..., mine == i].all(-1, keepdims=True)
        raw[elsewhere], known[elsewhere] = base[elsewhere], 1.0
    unit = "logits" if readings.linear else "nats"
    token = readings.model.tokenizer.token
    axis = Axis("prompt", tuple(map(str, prompts)) if labels is None else tuple(labels))

    def of_prompts(grid: Grid, values: Array, over: Callable[..., Array] = np.sum) -> Grid:
        return replace(grid, values=texts.added(values, over), axes=(*grid.axes[:-1], axis))

    return replace(
        found,
        raw=replace(of_prompts(found.raw, raw), unit=unit),
        baselines=replace(of_prompts(found.baselines, found.baselines.values), unit=unit),
        known=of_prompts(found.known, known, np.min),
        weighed=tuple(
            (tuple(map(token, one.answer)), tuple(map(token, one.counterpart)))
            for one in readings.answers
        ),
    )


def _beyond(readings: Readings, grid: Grid) -> Array:
    """Which positions of a grid by position a text does not have."""
    if "pos" not in [axis.name for axis in grid.axes]:
        return np.zeros(grid.values.shape, dtype=bool)
    ends = [len(readings.answers[t.prompt].row) + len(t.before) for t in texts_of(readings)]
    return np.arange(len(grid.axis("pos")))[:, None] >= np.array(ends)


def readings_of(model: Model, pairs: Sequence[Counterfactual], scoring: Scoring) -> Readings:
    """The readings of the clean prompts' answers, pair by pair; raises as `steps_of`."""
    return Readings.of(model, tuple(pair.clean for pair in pairs), scoring)


def answer_pair_values(
    model: Model, proposals: Proposals, scoring: Scoring
) -> tuple[NDArray[np.float64], dict[int, str]]:
    """`pair_values` for answers of several tokens: those of the clean prompt behind both prompts.

    Returns: (2, pair) in nats, NaN for a pair without a value; and why each of these has none.
    """
    pairs, tokenizer = proposals.pairs, model.tokenizer
    values, left_out = np.full((2, len(pairs)), np.nan), {}
    steps: dict[int, Steps] = {}
    edited: dict[int, Steps] = {}
    for i, pair in enumerate(pairs):
        try:
            if pair.index not in steps:
                steps[pair.index] = steps_of(tokenizer, pair.clean, scoring, number=pair.index)
            clean = steps[pair.index]
            row = row_of(tokenizer, pair.corrupted)
            longest = max((step.before for step in clean.steps), key=len)
            tokenizer.check_length([*row, *longest], f"corrupted prompt {pair.index}")
            edited[i] = replace(clean, row=tuple(row))
        except CasestudyError as problem:
            left_out[i] = problem.came
    prompts = {pair.index: pair.clean for pair in pairs}

    def read(some: Mapping[int, Steps], asked: Mapping[int, Prompt]) -> dict[int, float]:
        behaviour = Behaviour.of(tuple(asked[key] for key in some))
        readings = Readings(model, behaviour, scoring, tuple(some.values()))
        return dict(zip(some, readings.values(), strict=True)) if some else {}

    of_clean = read(steps, prompts)
    of_edited = read(edited, {i: pair.corrupted for i, pair in enumerate(pairs)})
    for i in edited:
        values[:, i] = of_clean[pairs[i].index], of_edited[i]
    return values, left_out


def answers_mirrored(pairs: Pairs, readings: Readings) -> bool:
    """Whether for each pair there is another with clean and corrupted prompt and answer and
    counterpart exchanged, so that noising the one is denoising the other.

    Args:
        pairs: of prompts, without their answers.
    """
    sides = zip(pairs.clean.rows(), pairs.corrupted.rows(), readings.answers, strict=True)
    there = {(tuple(a), tuple(b), one.answer, one.counterpart) for a, b, one in sides}
    return {(b, a, theirs, ours) for a, b, ours, theirs in there} == there
