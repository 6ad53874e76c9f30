"""Where are the chunks of prompts measured?

`Work` holds what measuring a chunk needs: the model, the behaviour and the measurements.
`local_chunks` measures chunks in this process; `ray_chunks` sends them to the workers of a Ray
cluster. In both cases the study's own process stores the results, a whole chunk at
a time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.behaviour.steps import Scoring
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.engine.workers import at_once, mapped
from casestudy.measure.whole_answers import with_whole_answers
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Result, Table

Done = tuple[int, list[Result]]
"""A chunk's number and its results."""


@dataclass(frozen=True)
class Work:
    """Everything that measuring a chunk of prompts needs.

    Attributes:
        scoring: how the tokens of an answer count, if any prompt of the behaviour has answers of
            several tokens: results then have the contrast of the whole answers.
    """

    model: Model
    behaviour: Behaviour
    measurements: tuple[Measurement, ...]
    top_k: int
    scoring: Scoring | None = None

    @property
    def summed(self) -> frozenset[str]:
        """The names of results that are summed over chunks."""
        return frozenset(name for m in self.measurements for name in m.partial)

    def chunk(self, index: Sequence[int]) -> list[Result]:
        """Measure some prompts of the behaviour.

        Adds two tables to the results of the measurements: "prompts" (how each prompt was read, and
        why it has no answer) and "chunks" (the cost).
        """
        start = time.perf_counter()
        batch = run_batch(
            self.model,
            self.behaviour,
            index,
            self.measurements,
            top_k=self.top_k,
        )
        results = [result for m in self.measurements for result in m.measure(batch)]
        if self.scoring is not None:
            results = with_whole_answers(batch, results, self.scoring)
        results.append(_prompts(batch, _compared_whole(results)))
        results.append(_cost(batch, time.perf_counter() - start))
        return results


def local_chunks(
    work: Work, plan: Sequence[Sequence[int]], todo: Sequence[int]
) -> Generator[Done, None, None]:
    """Run chunks in this process; several at the same time, each in a thread of its own, and yield
    them in order."""
    workers = at_once(work.model.device, len(todo))
    done = mapped(lambda number: work.chunk(plan[number]), todo, workers)
    yield from zip(todo, done, strict=True)


PROMPT_COLUMNS = (
    *("prompt", "text", "groups", "category", "document", "next_token"),
    *("n_tokens", "tokens", "token_ids", "error", "corrupted"),
)


READOUT = "readout"
"""The column of the position at which a prompt is read, where it is not simply its last token."""


def _add_prompt(
    columns: dict[str, list[Any]],
    index: int,
    prompt: Prompt,
    tokens: list[str],
    ids: list[int],
    error: str | None,
) -> None:
    """Add a prompt's row to the table "prompts"."""
    cells: tuple[Any, ...] = (index, prompt.text, list(prompt.groups), prompt.category)
    cells += (prompt.document, prompt.next_token, len(ids) or None, tokens, ids, error)
    cells += (prompt.corrupted,)
    for name, cell in zip(PROMPT_COLUMNS, cells, strict=True):
        columns[name].append(cell)
    if READOUT in columns:
        read = prompt.readout is not None and ids
        columns[READOUT].append(len(ids) - 1 if read else None)


def _prompt_columns(behaviour: Behaviour) -> dict[str, list[Any]]:
    """The columns of the table "prompts", empty: that of readouts only where a prompt has one, so
    that studies stored before there were any go on."""
    columns: dict[str, list[Any]] = {name: [] for name in PROMPT_COLUMNS}
    some = any(prompt.readout is not None for prompt in behaviour.prompts)
    return columns | {READOUT: []} if some else columns


def left_out(behaviour: Behaviour, errors: Mapping[int, str]) -> Table:
    """The rows of the table "prompts" for the prompts that cannot be run, with the reasons."""
    columns = _prompt_columns(behaviour)
    for index, why in errors.items():
        _add_prompt(columns, index, behaviour.prompts[index], [], [], why)
    return Table(names.PROMPTS, columns)


def _compared_whole(results: Sequence[Result]) -> set[int]:
    """The prompts whose whole answers are compared, by number: what is wrong with their first
    tokens alone leaves none of them out."""
    tables = [result for result in results if result.name == names.ANSWER_TOKENS]
    return {prompt for t in tables if isinstance(t, Table) for prompt in t.columns["prompt"]}


def _prompts(batch: Batch, whole: Collection[int]) -> Table:
    assert batch.behaviour is not None
    columns = _prompt_columns(batch.behaviour)
    labels = batch.model.tokenizer.labels
    for row, (index, prompt, ids) in enumerate(
        zip(batch.index, batch.prompts, batch.tokens.rows(), strict=True)
    ):
        why = None if index in whole else batch.answers.errors.get(row)
        _add_prompt(columns, index, prompt, labels(ids), ids, why)
    return Table(names.PROMPTS, columns, "The prompts as the model reads them.")


def _cost(batch: Batch, seconds: float) -> Table:
    return Table(
        names.CHUNKS,
        {
            "first_prompt": [batch.index[0]],
            "prompts": [len(batch.index)],
            "tokens": [int(batch.tokens.lengths.sum())],
            "computed_tokens": [batch.tokens.ids.numel()],
            "seconds": [seconds],
        },
        "The cost of each chunk: tokens of its prompts, computed tokens with padding, seconds.",
    )
