"""Which activations carry a prompt's preference, against its own corrupted prompt?

Exact activation patching as in `patching`, from prompts instead of pairs and a contrast: for a
first look, from the command line, in the explorer, in Python. Answers may have several tokens. A
patch of a prompt then counts at every place at which its answers are read (see `behaviour/steps`):
the patched run reads the answer's tokens, and in a run of its own the counterpart's, and the values
of the places are added up by their weights. The answers are the same in both prompts of a pair.

Cost: a sweep (see `sweep`) over the prompts; for answers of several tokens, over each prompt with
its answer, and with its counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from casestudy.behaviour.answers import choose_answers
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import NO_ROLE, Excluded, propose
from casestudy.behaviour.prompts import AnswerRule, Prompt
from casestudy.behaviour.readouts import partner_of, row_of
from casestudy.behaviour.steps import Scoring, has_several
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.reading import SIDES, Readings
from casestudy.engine.readout import Metric, Tails
from casestudy.errors import BehaviourError, MeasureError
from casestudy.measure.metrics import NamedMetric
from casestudy.measure.pairs import UNEQUAL, Direction, Pairs, pairs_of
from casestudy.measure.patched import Patched
from casestudy.measure.patching import Ablation, By, Watch, ablate, patch
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.results.result import Array, Axis, Grid

WHOLE = "log-probability difference of two answers"
"""The metric of answers of several tokens."""


def patch_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    site: Site | str,
    *,
    by: By | None = None,
    direction: Direction = "denoising",
    readout: int | str | None = None,
    scoring: Scoring = "sum",
    layers: Sequence[int] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
    watch: Watch | None = None,
) -> Patched:
    """Patch one site between prompts and their own corrupted prompts.

    Answers are the prompts' own or the model's, with their lower case as counterpart (see
    `choose_answers`). They are read where each prompt says (see `readouts`), or all at `readout`, a
    position or a role; a prompt's own may have several tokens. For a single pair of one length,
    positions are labelled with the clean prompt's tokens.

    Args:
        model: the decoder.
        prompts: each with a corrupted partner.
        site, by, direction, layers, budget, progress, watch: as in `patch`.
        readout: where the answers are read.
        scoring: how the tokens of an answer count, see `whole_answers`.

    Shape, error: as `patch`. Behind the prompt, a position is the same place of both answers.
    Unit:   logits; nats where an answer has several tokens.
    Raises: as `patch`; BehaviourError for a prompt without a partner, a pair whose tokens do not
        correspond, and a prompt without an answer; MeasureError for by="last" where answers are
        read at several tokens.
    """
    if readout is not None:
        prompts = [replace(prompt, readout=readout) for prompt in prompts]
    pairs = _paired(model, prompts, by)
    given = all(prompt.answer and prompt.counterpart for prompt in prompts)
    if given and any(has_several(model.tokenizer, prompt) for prompt in prompts):
        asked = _whole(Readings.of(model, tuple(prompts), scoring), pairs, by)
    else:
        asked = _single(model, prompts, pairs, "given" if given else "space-capital")
    found = patch(
        model,
        asked.pairs,
        asked.metric,
        site,
        by=by,
        direction=direction,
        layers=layers,
        tails=asked.tails,
        budget=budget,
        progress=progress,
        watch=None if watch is None else lambda found: watch(asked.finished(found)),
    )
    found = asked.finished(found)
    return _with_tokens(found, asked.positions) if len(prompts) == 1 else found


@dataclass(frozen=True)
class _Asked:
    """What a sweep is asked for prompts.

    Attributes:
        finished: turns the sweep's values into the prompts'.
        positions: the tokens of the first pair's clean prompt, and of its answers behind.
        tails: where texts are read at several of their last positions.
    """

    pairs: Pairs
    metric: Contrast | Metric
    finished: Callable[[Patched], Patched]
    positions: tuple[str, ...]
    tails: Tails | None = None


def _paired(model: Model, prompts: Sequence[Prompt], by: By | None) -> Pairs:
    """The prompts and their partners.

    Raises: BehaviourError for a prompt without one, or with one whose tokens do not correspond.
    """
    proposals = propose(model, prompts, (), aligned="last" if by == "last" else "role")
    if not proposals.pairs or proposals.excluded:
        raise _not_paired(model, prompts, proposals.excluded)
    return pairs_of(model, proposals.pairs)


def _single(model: Model, prompts: Sequence[Prompt], pairs: Pairs, rule: AnswerRule) -> _Asked:
    """Answers of one token, given or chosen."""
    logits = run(model, pairs.clean, logits="last").logits
    assert logits is not None
    answers = choose_answers(model, prompts, logits, rule=rule)
    if answers.errors:
        raise BehaviourError("; ".join(f"prompt {i}: {w}" for i, w in answers.errors.items()))
    form = "counterpart" if rule == "given" else "lowercase"
    weighed = tuple(((a.token,), (a.counterparts[form],)) for a in answers.chosen if a is not None)
    tokens = tuple(model.tokenizer.labels(pairs.clean.rows()[0]))
    return _Asked(
        pairs, answers.contrast(form), lambda found: replace(found, weighed=weighed), tokens
    )


def _whole(readings: Readings, pairs: Pairs, by: By | None) -> _Asked:
    """Answers of several tokens: a text for each side, read at several of its last positions.

    Raises: MeasureError for by="last".
    """
    if by == "last":
        raise MeasureError(
            "by='last' for answers that are read at several tokens",
            allowed="by='role', where the prompt's last token is a role; 'position' or 'all'",
        )
    assert pairs.roles is not None
    assert pairs.corrupted_roles is not None
    texts = texts_of(readings)

    def longer(side: Tokens) -> Tokens:
        rows = side.rows()
        return Tokens.of([[*rows[t.prompt], *t.before] for t in texts], bos=side.bos)

    both = Pairs(
        longer(pairs.clean),
        longer(pairs.corrupted),
        [pairs.roles[t.prompt] for t in texts],
        [pairs.corrupted_roles[t.prompt] for t in texts],
    )
    positions = readings.model.tokenizer.labels(pairs.clean.rows()[0]) + _behind(readings)
    return _Asked(
        both,
        metric_of(readings),
        lambda found: by_prompt(readings, found),
        tuple(positions),
        tails_of(readings),
    )


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


def tails_of(readings: Readings) -> Tails:
    """Where the texts of `texts_of` are read, with the readings' weights."""
    return Tails(tuple(text.reads for text in texts_of(readings)), readings.weights)


def _behind(readings: Readings) -> list[str]:
    """The first prompt's answers, place by place: "South | North"."""
    first, label = readings.answers[0], readings.model.tokenizer.label
    places = zip_longest(first.answer, first.counterpart)
    both = [tuple(dict.fromkeys(id for id in place if id is not None)) for place in places]
    return [" | ".join(map(label, ids)) for ids in both]


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


def ablate_answers(
    readings: Readings,
    site: Site | str,
    *,
    kind: Ablation = "zero",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Patched:
    """Ablate one site at all positions, for answers of any length; otherwise as `ablate`.

    A mean or another's activation is taken from the prompts with their answers.
    """
    rows = [[*readings.answers[t.prompt].row, *t.before] for t in texts_of(readings)]
    found = ablate(
        readings.model,
        Tokens.of(rows),
        metric_of(readings),
        site,
        kind=kind,
        by="all",
        tails=tails_of(readings),
        budget=budget,
        progress=progress,
    )
    return by_prompt(readings, found)


def by_prompt(readings: Readings, found: Patched) -> Patched:
    """Patches of the texts of `texts_of`, added up over each prompt's texts.

    A patched position that one of them does not have changes nothing there. While a grid is
    computed, a cell that one of a prompt's texts does not have yet is unknown.
    """
    raw, known = found.raw.values.copy(), found.known.values.copy()
    mine = np.array([text.prompt for text in texts_of(readings)])
    base = np.broadcast_to(found.baselines.values[0], raw.shape)
    beyond = np.broadcast_to(_beyond(readings, found.raw), raw.shape)
    prompts = range(len(readings.answers))
    for i in prompts:
        elsewhere = beyond & (mine == i)
        elsewhere &= ~beyond[..., mine == i].all(-1, keepdims=True)
        raw[elsewhere], known[elsewhere] = base[elsewhere], 1.0
    unit = "logits" if readings.linear else "nats"
    token = readings.model.tokenizer.token
    axis = Axis.count("prompt", len(prompts))

    def of_prompts(grid: Grid, values: Array, over: Callable[..., Array] = np.sum) -> Grid:
        columns = [over(values[..., mine == i], axis=-1) for i in prompts]
        return replace(grid, values=np.stack(columns, -1), axes=(*grid.axes[:-1], axis))

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


def _not_paired(
    model: Model, prompts: Sequence[Prompt], excluded: Sequence[Excluded]
) -> BehaviourError:
    """The error for pairs that cannot be aligned, with both lengths if they differ."""
    lines = []
    for one in excluded:
        prompt, why = prompts[one.index], one.why
        if why == NO_ROLE and prompt.corrupted is not None:
            both = (prompt, partner_of(prompt, prompt.corrupted))
            clean, corrupted = (len(row_of(model.tokenizer, side)) for side in both)
            why = (
                f"the clean prompt has {clean} tokens and the corrupted one {corrupted}, and from "
                "the first token that differs they share no role to align them"
            )
        lines.append(f"prompt {one.index}: {why}")
    unequal = any(one.why == NO_ROLE for one in excluded)
    return BehaviourError(
        "; ".join(lines) or "no prompt",
        allowed=f"pairs of as many tokens; {UNEQUAL}" if unequal else _PARTNERS,
    )


_PARTNERS = "prompts with a corrupted partner"


def _with_tokens(found: Patched, tokens: Sequence[str]) -> Patched:
    """A grid's positions labelled "index:token"."""
    labels = [f"{i}:{token}" for i, token in enumerate(tokens)]

    def labelled(grid: Grid) -> Grid:
        axes = tuple(
            Axis("pos", tuple(labels[: len(axis)]))
            if axis.name == "pos" and len(axis) <= len(labels)
            else axis
            for axis in grid.axes
        )
        return replace(grid, axes=axes)

    return replace(found, raw=labelled(found.raw), known=labelled(found.known))
