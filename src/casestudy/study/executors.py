"""Who runs the chunks?

`Work` is what a chunk needs: the model, the behaviour and what is asked. This process runs it chunk
after chunk; `ray_chunks` hands the same chunks to workers of a Ray cluster. Either way the results
of a chunk come back whole, and the study's own process stores them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Result, Table

Done = tuple[int, list[Result]]
"""A chunk's number and its results."""


@dataclass(frozen=True)
class Work:
    """All that a chunk of prompts needs to be measured."""

    model: Model
    behaviour: Behaviour
    measurements: tuple[Measurement, ...]
    top_k: int

    @property
    def summed(self) -> frozenset[str]:
        """Names of the results that add up over chunks."""
        return frozenset(name for m in self.measurements for name in m.partial)

    def chunk(self, index: Sequence[int]) -> list[Result]:
        """Measure some prompts of the behaviour.

        Beside the measurements' own results, the tables "prompts" (what was read, or why there is
        no answer) and "chunks" (what it cost).
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
        results.append(_prompts(batch))
        results.append(_cost(batch, time.perf_counter() - start))
        return results


def local_chunks(
    work: Work, plan: Sequence[Sequence[int]], todo: Sequence[int]
) -> Generator[Done, None, None]:
    """Run chunks in this process, in order."""
    for number in todo:
        yield number, work.chunk(plan[number])


PROMPT_COLUMNS = (
    *("prompt", "text", "groups", "category", "document", "next_token"),
    *("n_tokens", "tokens", "token_ids", "error", "corrupted"),
)


def _add_prompt(
    columns: dict[str, list[Any]],
    index: int,
    prompt: Prompt,
    tokens: list[str],
    ids: list[int],
    error: str | None,
) -> None:
    cells: tuple[Any, ...] = (index, prompt.text, list(prompt.groups), prompt.category)
    cells += (prompt.document, prompt.next_token, len(ids) or None, tokens, ids, error)
    cells += (prompt.corrupted,)
    for column, cell in zip(columns.values(), cells, strict=True):
        column.append(cell)


def left_out(behaviour: Behaviour, errors: Mapping[int, str]) -> Table:
    """The rows of the table "prompts" for those that cannot be run; each costs only itself."""
    columns: dict[str, list[Any]] = {name: [] for name in PROMPT_COLUMNS}
    for index, why in errors.items():
        _add_prompt(columns, index, behaviour.prompts[index], [], [], why)
    return Table(names.PROMPTS, columns)


def _prompts(batch: Batch) -> Table:
    columns: dict[str, list[Any]] = {name: [] for name in PROMPT_COLUMNS}
    labels = batch.model.tokenizer.labels
    for row, (index, prompt, ids) in enumerate(
        zip(batch.index, batch.prompts, batch.tokens.rows(), strict=True)
    ):
        why = batch.answers.errors.get(row)
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
        "What each chunk cost: its prompts' own tokens, those computed with the padding, time.",
    )
