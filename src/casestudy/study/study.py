"""How are measurements run together, and resumed?

A `Study` is a behaviour, a model and measurements. Its prompts are packed into chunks by length,
one run per chunk serves every measurement, and each chunk is stored whole before the next begins.
Joined results, means and the report follow from the chunks alone. Killed at any moment, the same
call continues; the plan of chunks and the number of threads are stored, so the numbers are the
same.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import casestudy
from casestudy.behaviour.presets import preset
from casestudy.behaviour.prompts import Behaviour
from casestudy.errors import CasestudyError, StudyError
from casestudy.measure.attention import ATTENTION
from casestudy.measure.attribution import ATTRIBUTION
from casestudy.measure.batch import Measurement, run_batch
from casestudy.measure.ledger import LEDGER
from casestudy.measure.lens import LENS
from casestudy.measure.predictions import PREDICTIONS
from casestudy.measure.profile import PROFILE
from casestudy.measure.result import Grid, Result, Table, concatenate, concatenate_tables
from casestudy.measure.stats import mean_over_prompts
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.study.store import FORMAT, Store

MEASUREMENTS: dict[str, Measurement] = {
    m.name: m for m in (PREDICTIONS, LEDGER, LENS, ATTRIBUTION, ATTENTION, PROFILE)
}
"""What a study runs, by name, in the order of the argument."""

CHUNK_TOKENS = 4096
CHUNK_PROMPTS = 128
_IDENTITY = ("format", "behaviour", "model", "settings", "measurements")
_NOT_MEASURED = (
    ("causal effects", "no activation was patched: the ledger says who wrote, not who was needed"),
    ("circuits", "no subgraph was tested for faithfulness"),
)

Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all) after each chunk."""


@dataclass(frozen=True)
class Study:
    """A finished study: what was run, and what it gave.

    Attributes:
        store: its folder.
        grids: joined results and their means, by name.
        tables: joined tables, by name.
    """

    store: Store
    grids: dict[str, Grid]
    tables: dict[str, Table]

    @property
    def manifest(self) -> dict[str, Any]:
        """What was run on what, with which versions and settings."""
        return self.store.manifest

    def __getitem__(self, name: str) -> Result:
        """A grid or table by name.

        Raises: StudyError listing what there is.
        """
        results: dict[str, Result] = {**self.grids, **self.tables}
        if name not in results:
            raise StudyError(f"the study has no {name!r}", allowed=", ".join(sorted(results)))
        return results[name]

    def report(self) -> Path:
        """Write report.html into the study's folder, and say where it is."""
        from casestudy.show.report import write_report

        return write_report(self.store)


def study(
    behaviour: Behaviour | str,
    model: Model | str = "tiny",
    *,
    out: str | os.PathLike[str] | None = None,
    only: Sequence[str] | None = None,
    prepend_bos: bool | None = None,
    top_k: int = 100,
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Progress | None = None,
) -> Study:
    """Run a behaviour's measurements on a model, or continue where a run of the same was killed.

    Args:
        behaviour: a `Behaviour` or a preset's name.
        model: a `Model`, or what `load` takes.
        out: the study's folder; a temporary one by default.
        only: names of measurements; all by default.
        prepend_bos: the family's convention by default.
        top_k: how many predictions to look through for an answer.
        chunk_tokens: how many tokens to run at once; a continued study keeps its stored plan.
        progress: told how many prompts are done.

    Raises: StudyError where the folder holds another study or cannot be written; BehaviourError,
        PromptError, TokenError, ModelError for inputs that are not well formed.
    """
    behaviour = preset(behaviour) if isinstance(behaviour, str) else behaviour
    model = load(model) if isinstance(model, str) else model
    measurements = _choose(only)
    folder = Path(tempfile.mkdtemp(prefix="casestudy-")) if out is None else Path(out)
    settings = {
        "prepend_bos": model.tokenizer.prepend_bos if prepend_bos is None else prepend_bos,
        "top_k": top_k,
    }
    prompts, lengths = _prompts_table(model, behaviour, prepend_bos)
    manifest = {
        "format": FORMAT,
        "versions": _versions(),
        "model": _describe(model),
        "behaviour": _describe_behaviour(behaviour),
        "settings": settings,
        "measurements": [m.name for m in measurements],
        "plan": {
            "chunks": plan_chunks(lengths, chunk_tokens=chunk_tokens),
            "threads": torch.get_num_threads(),
        },
        "not_measured": [{"what": what, "why": why} for what, why in _NOT_MEASURED],
        "created": _now(),
        "state": "running",
        "seconds": 0.0,
    }
    store = Store.create_or_resume(folder, manifest, _IDENTITY)
    with store.locked():
        _run_chunks(store, model, behaviour, measurements, prepend_bos, top_k, progress)
        joined = _join(store, behaviour, measurements, prompts)
        store.write_final(joined)
        store.manifest |= {"state": "complete", "finished": _now()}
        store.save_manifest()
    return open_study(folder)


def open_study(folder: str | os.PathLike[str]) -> Study:
    """Read a stored study.

    Raises: StudyError when there is none, or a file of it is damaged.
    """
    store = Store.open(folder)
    return Study(store, store.grids(), store.tables())


def plan_chunks(
    lengths: Sequence[int | None],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    chunk_prompts: int = CHUNK_PROMPTS,
) -> list[list[int]]:
    """Pack prompts into chunks of similar length.

    Args:
        lengths: tokens per prompt; None for a prompt that cannot be run, which gets no chunk.
        chunk_tokens: at most so many tokens in a chunk, padding included (one prompt always fits).
        chunk_prompts: at most so many prompts.
    """
    order = sorted((n, i) for i, n in enumerate(lengths) if n is not None)
    chunks: list[list[int]] = []
    for n, i in order:
        # sorted by length, so the newcomer is the longest and sets the padded width
        full = not chunks or n * (len(chunks[-1]) + 1) > chunk_tokens
        if full or len(chunks[-1]) == chunk_prompts:
            chunks.append([])
        chunks[-1].append(i)
    return chunks


def _run_chunks(
    store: Store,
    model: Model,
    behaviour: Behaviour,
    measurements: Sequence[Measurement],
    prepend_bos: bool | None,
    top_k: int,
    progress: Progress | None,
) -> None:
    plan = store.manifest["plan"]
    done = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(plan["threads"])
    try:
        for number, index in enumerate(plan["chunks"]):
            if not store.has_chunk(number):
                start = time.perf_counter()
                batch = run_batch(
                    model, behaviour, index, measurements, prepend_bos=prepend_bos, top_k=top_k
                )
                results = [result for m in measurements for result in m.measure(batch)]
                results.append(_errors_table(index, batch.answers.errors))
                store.write_chunk(number, results)
                store.manifest["seconds"] += time.perf_counter() - start
            done += len(index)
            if progress is not None:
                progress(done, sum(map(len, plan["chunks"])))
    finally:
        torch.set_num_threads(threads)


def _errors_table(index: Sequence[int], errors: Any) -> Table:
    return Table(
        "errors",
        {"prompt": [index[row] for row in errors], "why": list(errors.values())},
        "Prompts that got no answer, and why.",
    )


def _join(
    store: Store, behaviour: Behaviour, measurements: Sequence[Measurement], prompts: Table
) -> list[Result]:
    """Results over all chunks, in the behaviour's order, with means where there is something."""
    chunks = [store.read_chunk(i) for i in range(len(store.manifest["plan"]["chunks"]))]
    named: dict[str, list[Result]] = {}
    for chunk in chunks:
        for result in chunk:
            named.setdefault(result.name, []).append(result)
    joined: list[Result] = []
    for measurement in measurements:
        if measurement.partial:
            parts = {name: named.pop(name, []) for name in measurement.partial}
            joined += measurement.combine(parts)
    documents = [p.document for p in behaviour.prompts]
    for results in named.values():
        grids = [r for r in results if isinstance(r, Grid)]
        if not grids:
            tables = [r for r in results if isinstance(r, Table)]
            joined.append(_in_order(concatenate_tables(tables)))
            continue
        if not any(axis.name == "prompt" for axis in grids[0].axes):
            # of the model or of one prompt: every chunk that has it has the same
            joined.append(grids[0])
            continue
        grid = _grid_in_order(concatenate(grids))
        joined.append(grid)
        if grid.name != "ledger.check":
            own = [documents[int(label)] for label in grid.axis("prompt").labels]
            joined.append(mean_over_prompts(grid, documents=own if any(own) else None))
    errors = next((t for t in joined if t.name == "errors"), None)
    if isinstance(errors, Table):
        joined.remove(errors)
        for prompt, why in zip(errors.columns["prompt"], errors.columns["why"], strict=True):
            prompts.columns["error"][prompt] = why
    joined.append(prompts)
    return joined


def _in_order(table: Table) -> Table:
    order = sorted(range(len(table.columns["prompt"])), key=lambda i: table.columns["prompt"][i])
    columns = {name: [column[i] for i in order] for name, column in table.columns.items()}
    return Table(table.name, columns, table.about)


def _grid_in_order(grid: Grid) -> Grid:
    order = sorted(grid.axis("prompt").labels, key=int)
    return grid.take("prompt", order)


def _prompts_table(
    model: Model, behaviour: Behaviour, prepend_bos: bool | None
) -> tuple[Table, list[int | None]]:
    """Each prompt's tokens, or why it cannot be run; the latter costs only that prompt."""
    names = ("prompt", "text", "groups", "n_tokens", "tokens", "token_ids", "error")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, prompt in enumerate(behaviour.prompts):
        ids: list[int] = []
        error = None
        try:
            ids = model.tokenizer.tokenize(prompt.text, prepend_bos=prepend_bos).rows()[0]
        except CasestudyError as problem:
            error = str(problem)
        columns["prompt"].append(i)
        columns["text"].append(prompt.text)
        columns["groups"].append(list(prompt.groups))
        columns["n_tokens"].append(len(ids) if ids else None)
        columns["tokens"].append(model.tokenizer.strings(ids))
        columns["token_ids"].append(ids)
        columns["error"].append(error)
    if all(error is not None for error in columns["error"]):
        raise StudyError(f"no prompt can be run; the first: {columns['error'][0]}")
    return Table("prompts", columns, "The prompts as the model reads them."), columns["n_tokens"]


def _choose(only: Sequence[str] | None) -> list[Measurement]:
    unknown = [name for name in only or () if name not in MEASUREMENTS]
    if unknown:
        raise StudyError(
            f"no measurement is called {', '.join(unknown)}", allowed=", ".join(MEASUREMENTS)
        )
    return [m for name, m in MEASUREMENTS.items() if only is None or name in only]


def _describe(model: Model) -> dict[str, Any]:
    config = model.config
    return {
        "name": model.name,
        "source": model.source,
        "weight_hash": model.weight_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "family": config.family,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "d_model": config.d_model,
        "d_vocab": config.d_vocab,
        "n_ctx": config.n_ctx,
        "rewrites": list(model.rewrites),
    }


def _describe_behaviour(behaviour: Behaviour) -> dict[str, Any]:
    prompts = json.dumps([asdict(p) for p in behaviour.prompts], ensure_ascii=True)
    return {
        "name": behaviour.name,
        "question": behaviour.question,
        "about": behaviour.about,
        "answers": behaviour.answers,
        "n_prompts": len(behaviour),
        "hash": hashlib.sha256(prompts.encode()).hexdigest(),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "tokenizers", "safetensors")
    return {
        "casestudy": casestudy.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
