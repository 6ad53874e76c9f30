"""Which parts of the model wrote an answer of several tokens, token by token and in sum?

log p(answer) is a sum over the answer's tokens, and a contrast of two answers is the difference of
two such sums (see `behaviour/steps`). At each place the value is a logit difference, or log p of a
token: a class contrast of that token against the whole vocabulary. Both have an exact ledger, lens
and head attribution, and so has their sum. Where the two answers have one token each, all of this
is the logit difference of the two.

Assumes answers that are tokenised as they continue the prompt. Cost: one forward pass over each
prompt with its answer, and with its counterpart; tokens that both share are read once.
Source: the chain rule of probability; each step's ledger as in `ledger`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from casestudy.behaviour.prompts import Prompt, Prompts
from casestudy.behaviour.steps import Scoring, steps_of
from casestudy.engine.batch import Batch
from casestudy.engine.reading import Readings
from casestudy.errors import CasestudyError
from casestudy.measure.attribution import keep_for_heads, measure_heads
from casestudy.measure.ledger import keep_for_ledger, measure_ledger
from casestudy.measure.lens import curves, keep_for_lens
from casestudy.model.model import Model
from casestudy.model.notices import Notice
from casestudy.model.sites import Keep
from casestudy.model.token import Token
from casestudy.results import names
from casestudy.results.names import SIDES
from casestudy.results.result import Array, Axis, Grid, Result, Shown, Table, worst_error


@dataclass(frozen=True)
class Answered:
    """A prompt's two answers, token by token."""

    answer: tuple[Token, ...]
    counterpart: tuple[Token, ...]


@dataclass(frozen=True)
class WholeAnswers(Shown):
    """The account of several prompts' answers of several tokens.

    Attributes:
        scoring: how the tokens of an answer count.
        steps: a row per place at which an answer is read: the prompt, the token's place in its
            answer, the tokens that count for and against it, with log p and id, the weight, and
            the value.
        value: (prompt), nats: log p(answer) - log p(counterpart), by `scoring`.
        grids: by name, each with the axis `prompt` last, the steps of a prompt added up by weight:
            `ledger`, `ledger.check`, `lens`, `lens.own_norm`, `attribution.head`, as a study has
            them without its contrast axis.
        by_step: the same before they are added up, with the axis `step` last ("0.2" is the third
            step of prompt 0).
        notices: where a prompt and its answer, read as one text, have other tokens than apart.
        answers: each prompt's two answers, whole.
    """

    scoring: Scoring
    steps: Table
    value: Grid
    grids: dict[str, Grid]
    by_step: dict[str, Grid]
    notices: tuple[Notice, ...] = ()
    answers: tuple[Answered, ...] = ()

    @property
    def ledger(self) -> Grid:
        """(term, prompt), nats: the terms sum to `value`."""
        return self.grids[names.LEDGER]

    def accounts(self) -> list[dict[str, Any]]:
        """Each step with its ledger, for JSON: the columns of `steps`, and `ledger`."""
        ledger = self.by_step[names.LEDGER]
        terms = ledger.axis("term").labels
        return [
            row
            | {
                "ledger": [
                    {"term": term, "value": float(value)}
                    for term, value in zip(terms, ledger.values[:, i], strict=True)
                    if not np.isnan(value)
                ]
            }
            for i, row in enumerate(self.steps.rows())
        ]

    @property
    def shown(self) -> Grid:
        """The ledger."""
        return self.ledger


Part = Literal["ledger", "lens", "heads"]
PARTS: tuple[Part, ...] = ("ledger", "lens", "heads")
_PARTS: dict[
    Part, tuple[Callable[[Model], Sequence[Keep]], Callable[[Batch], Iterable[Result]]]
] = {
    "ledger": (keep_for_ledger, measure_ledger),
    "lens": (keep_for_lens, curves),
    "heads": (keep_for_heads, measure_heads),
}


def whole_answers(
    model: Model,
    behaviour: Prompts,
    *,
    scoring: Scoring = "sum",
    parts: Sequence[Part] = PARTS,
) -> WholeAnswers:
    """The contrast of two answers of any length, and which parts wrote it.

    Args:
        model: the decoder.
        behaviour: a behaviour, or prompts, each with an answer and a counterpart: texts that
            continue it, or ids ("id:12,345").
        scoring: "sum" is log p(answer) - log p(counterpart); "mean" takes each answer's mean over
            its own tokens; "first" is the logit difference of the first tokens in which the two
            differ, and leaves out the others.
        parts: what is measured. The lens is the dearest: log p at a depth takes all logits there.

    Unit:   nats (logits where each answer is one token, which is the same number).
    Error:  the ledger's largest gap of any step, and what law 1 allows there.
    Raises: BehaviourError for a prompt without both answers, or with the same tokens twice;
        TokenError for an empty or a too long answer; PromptError for a text the model cannot read.
    """
    return account_of(Readings.of(model, behaviour, scoring), parts)


def account_of(readings: Readings, parts: Sequence[Part] = PARTS) -> WholeAnswers:
    """`whole_answers` of answers that are tokenised already."""
    model, scoring = readings.model, readings.scoring
    rows: list[dict[str, Any] | None] = [None] * len(readings)
    grids: dict[str, list[Grid]] = {}
    order: list[int] = []
    for some, batch in readings.batches([k for part in parts for k in _PARTS[part][0](model)]):
        order += some
        for number, row in zip(some, _rows(readings, some, batch), strict=True):
            rows[number] = row
        for grid in (grid for part in parts for grid in _PARTS[part][1](batch)):
            assert isinstance(grid, Grid)
            grids.setdefault(grid.name, []).append(grid)
    columns = {name: [row[name] for row in rows if row] for name in rows[0] or ()}
    steps = Table(names.STEPS, columns, _STEPS)
    by_step = {name: _joined(readings, found, order) for name, found in grids.items()}
    folded = {name: fold(readings, grid) for name, grid in by_step.items()}
    value = np.array(steps.columns["value"], dtype=np.float64)
    named = Grid(names.STEPS, value, (Axis("step", readings.labels),), _unit(readings))
    whole = replace(fold(readings, named), name=names.LOGIT_DIFFERENCE, about=_VALUE[scoring])
    token = model.tokenizer.token
    answers = tuple(
        Answered(tuple(map(token, one.answer)), tuple(map(token, one.counterpart)))
        for one in readings.answers
    )
    return WholeAnswers(scoring, steps, whole, folded, by_step, readings.notices, answers)


def answer_values(
    model: Model, prompts: Sequence[Prompt], *, scoring: Scoring = "sum"
) -> list[float]:
    """Each prompt's `WholeAnswers.value` alone, without an account of it; raises as that."""
    return Readings.of(model, tuple(prompts), scoring).values()


_STEPS = (
    "The places at which the answers are read: what counts for and what counts against; tokens "
    "that answer and counterpart share at their start cancel and are not listed."
)
_VALUE: dict[Scoring, str] = {
    "sum": "log p(answer) - log p(counterpart), each the sum over its tokens",
    "mean": "The mean log p of the answer's tokens less that of the counterpart's",
    "first": "The logit difference of the first tokens in which answer and counterpart differ",
}


def _unit(readings: Readings) -> str:
    return "logits" if readings.linear else "nats"


def _rows(readings: Readings, some: Sequence[int], batch: Batch) -> Iterator[dict[str, Any]]:
    """The rows of the table for some readings."""
    (contrast,) = batch.contrasts
    logits = batch.logits.double()
    whole = logits.logsumexp(1).tolist()
    values = contrast.value(batch.logits).tolist()
    labels = readings.labels
    for row, number in enumerate(some):
        step = readings.steps[number]
        found = {"prompt": readings.prompts[number], "step": labels[number], "place": step.place}
        for side in SIDES:
            id = getattr(step, side)
            found[side] = None if id is None else readings.model.tokenizer.label(id)
            found[f"{side}_id"] = id
            found[f"{side}_log_prob"] = None if id is None else float(logits[row, id]) - whole[row]
        yield found | {"weight": step.weight, "value": values[row]}


def _joined(readings: Readings, parts: Sequence[Grid], order: Sequence[int]) -> Grid:
    """A grid's batches as one, its steps in order, without the contrast axis."""
    (contrast,) = parts[0].axis("contrast").labels
    found = [grid.select(contrast=contrast) for grid in parts]
    back = np.argsort(order)
    values = np.concatenate([grid.values for grid in found], -1)[..., back]
    axes = (*found[0].axes[:-1], Axis("step", readings.labels))
    error = worst_error([grid.error for grid in found])
    return replace(found[0], values=values, axes=axes, unit=_unit(readings), error=error)


def fold(readings: Readings, grid: Grid) -> Grid:
    """A grid whose last axis is the steps, added up by weight over each prompt's steps.

    A term that some steps do not have (the entropy of log p) counts there as nothing, and is absent
    where no step has it.
    """
    weights = np.array(readings.weights)
    mine = np.array(readings.prompts)
    columns = []
    for i in range(len(readings.answers)):
        at = mine == i
        part = grid.values[..., at] * weights[at]
        nothing = np.isnan(part).all(-1)
        columns.append(np.where(nothing, np.nan, np.nansum(part, -1)))
    axes = (*grid.axes[:-1], Axis.count("prompt", len(readings.answers)))
    return replace(grid, values=np.stack(columns, -1), axes=axes)


def with_whole_answers(
    batch: Batch, results: Sequence[Result], scoring: Scoring = "sum"
) -> list[Result]:
    """A batch's results with the contrast of the whole answers after their own contrasts.

    Its name is that of the scoring in `names.WHOLES`. Logit difference, ledger, lenses and head
    attribution have it, since they are linear in the contrast. For a prompt whose answers are
    single tokens it is the main contrast.
    """
    present = {result.name for result in results}
    parts = [part for part, name in _NAMES.items() if name in present]
    rows, whole = _of_several(batch, parts, scoring)
    grids = {} if whole is None else whole.grids | {names.LOGIT_DIFFERENCE: whole.value}
    found = [
        _extended(result, rows, grids.get(result.name), names.WHOLES[scoring])
        if isinstance(result, Grid) and result.name in _LINEAR
        else result
        for result in results
    ]
    return found if whole is None else found + _tables(whole, [batch.index[row] for row in rows])


_NAMES: dict[Part, str] = {
    "ledger": names.LEDGER,
    "lens": names.LENS,
    "heads": names.HEAD_SHARES,
}
_LINEAR = frozenset(
    {
        *(names.LOGIT_DIFFERENCE, names.LEDGER, names.LEDGER_CHECK),
        *(names.LENS, names.LENS_OWN_NORM, names.HEAD_SHARES),
    }
)


def _of_several(
    batch: Batch, parts: Sequence[Part], scoring: Scoring
) -> tuple[list[int], WholeAnswers | None]:
    """The rows of a batch with answers of several tokens, and their account."""
    answers = {}
    for row, prompt in enumerate(batch.prompts):
        with suppress(CasestudyError):  # such a prompt is left out, with this reason
            steps = steps_of(batch.model.tokenizer, prompt, scoring)
            if steps.several:
                answers[row] = steps
    if not answers or batch.behaviour is None:
        return [], None
    some = tuple(batch.prompts[row] for row in answers)
    behaviour = replace(batch.behaviour, prompts=some, main=())
    readings = Readings(batch.model, behaviour, scoring, tuple(answers.values()))
    return list(answers), account_of(readings, parts)


MOST_STEPS = 2000
"""Of so many prompts a study keeps the ledger of each step."""


def _tables(whole: WholeAnswers, index: Sequence[int]) -> list[Result]:
    """The tokens of the answers, and the steps' ledgers, of prompts with these numbers."""
    steps: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(index))}
    for row in whole.steps.rows():
        steps[row["prompt"]].append(row)
    tokens = [
        {"prompt": index[i], "side": side, **token}
        for i in steps
        for side in SIDES
        for token in _tokens_of(whole.answers[i], side, steps[i])
    ]
    found: list[Result] = [_table(names.ANSWER_TOKENS, tokens, _ANSWER_TOKENS)]
    if names.LEDGER not in whole.by_step:
        return found
    ledger = whole.by_step[names.LEDGER]
    terms, values = ledger.axis("term").labels, iter(ledger.values.T)
    cells = [
        {"prompt": index[i], "step": n, "total": row["value"], "term": term, "value": float(value)}
        for i, rows in steps.items()
        for n, row in enumerate(rows)
        for term, value in zip(terms, next(values), strict=True)
        if index[i] < MOST_STEPS and not np.isnan(value)
    ]
    return [*found, _table(names.STEP_TERMS, cells, _STEP_TERMS)] if cells else found


def _tokens_of(
    answer: Answered, side: str, steps: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One answer's tokens, each with the step that reads it."""
    read = {row["place"]: (n, row) for n, row in enumerate(steps) if row[side] is not None}
    for place, token in enumerate(getattr(answer, side)):
        n, row = read.get(place, (None, {}))
        log_p = row.get(f"{side}_log_prob")
        one = {"place": place, "token": token.label, "id": token.id}
        yield one | {"log_prob": log_p, "step": n}


def _table(name: str, rows: Sequence[dict[str, Any]], about: str) -> Table:
    return Table(name, {column: [row[column] for row in rows] for column in rows[0]}, about)


_ANSWER_TOKENS = "The tokens of answers of several tokens, and the step that reads each."
_STEP_TERMS = "The ledger of each step of answers of several tokens, before the step's weight."


def _extended(grid: Grid, rows: list[int], theirs: Grid | None, name: str) -> Grid:
    """A grid with the contrast of the whole answers, of this name, after its own.

    Args:
        grid: (contrast, …, prompt).
        rows: the prompts that have whole answers of their own.
        theirs: (…, prompt) of those; None for none.
    """
    own, axes, error = grid.values, list(grid.axes[1:]), dict(grid.error)
    if grid.name == names.LEDGER:  # log p has an entropy term, which single tokens lack
        terms = tuple(dict.fromkeys((*axes[0].labels, names.ENTROPY)))
        own = _on_terms(own, axes[0].labels, terms)
        axes[0] = Axis("term", terms)
    whole = own[0].copy()
    if theirs is not None:
        found = theirs.values
        if grid.name == names.LEDGER:
            found = _on_terms(found, theirs.axis("term").labels, axes[0].labels)
        whole[..., rows] = found
        error = worst_error([error, theirs.error])
    if grid.name == names.LEDGER:
        entropy = whole[axes[0].labels.index(names.ENTROPY)]
        entropy[np.isnan(entropy) & ~np.isnan(whole).all(0)] = 0.0  # of a single token's contrast
    contrasts = Axis("contrast", (*grid.axes[0].labels, name))
    values = np.concatenate([own, whole[None]])
    return replace(grid, values=values, axes=(contrasts, *axes), error=error)


def _on_terms(values: Array, terms: Sequence[str], every: Sequence[str]) -> Array:
    """(…, term, prompt) on more terms, NaN where there is none."""
    wide = np.full((*values.shape[:-2], len(every), values.shape[-1]), np.nan)
    wide[..., [every.index(term) for term in terms], :] = values
    return wide
