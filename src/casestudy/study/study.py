"""How are measurements run together, and resumed?

A `Study` is a behaviour, a model and measurements. Its prompts are packed into chunks by length,
one run per chunk serves every measurement, and each chunk is stored whole before the next begins.
Joined results, means and the report follow from the chunks alone. Killed at any moment, the same
call continues; the plan of chunks and the number of threads are stored, so the numbers are the
same. Memory: a chunk's run, a few shards' results, and about 1 kB per prompt for the prompts
themselves; per-prompt results stay on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

import casestudy
from casestudy.behaviour.contrast import check_classes
from casestudy.behaviour.files import find_behaviour
from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.roles import check_roles
from casestudy.circuits.evidence import Tell
from casestudy.drawing import draw
from casestudy.engine.batch import Measurement
from casestudy.engine.packing import DEFAULT_MEMORY
from casestudy.errors import CasestudyError, StudyError
from casestudy.measure.attention import ATTENTION
from casestudy.measure.attribution import ATTRIBUTION
from casestudy.measure.case_by_space import CASE_BY_SPACE
from casestudy.measure.class_mass import CLASS_MASS
from casestudy.measure.controls import CONTROL
from casestudy.measure.head_scores import PROFILE
from casestudy.measure.ledger import LEDGER
from casestudy.measure.lens import LENS
from casestudy.measure.predictions import PREDICTIONS
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.results.result import Grid, Result, Table
from casestudy.study import causal, circuit
from casestudy.study.executors import Done, Work, left_out, local_chunks, threads_set
from casestudy.study.join import join
from casestudy.study.on_ray import ray_chunks
from casestudy.study.store import FORMAT, SHARD, Store

MEASUREMENTS: dict[str, Measurement] = {
    m.name: m
    for m in (
        *(PREDICTIONS, CLASS_MASS, LEDGER, CASE_BY_SPACE, CONTROL),
        *(LENS, ATTRIBUTION, ATTENTION, PROFILE),
    )
}
"""What a study runs, by name, in the order of the argument."""

CHUNK_TOKENS = 4096
CHUNK_PROMPTS = 128
_IDENTITY = ("format", "behaviour", "model", "settings", "measurements")
_NOT_MEASURED = {
    causal.NAME: (
        "causal effects",
        "no activation was patched: the ledger says who wrote, not who was needed",
    ),
    circuit.NAME: ("circuits", "no subgraph was tested for faithfulness"),
}
"""What a reader might look for, by the measurement that would have it."""

USEFUL = 0.9
"""Of the tokens a chunk computes, at least so many are its prompts' own; the rest is padding."""


@dataclass(frozen=True)
class State:
    """How far a study is.

    Attributes:
        done, total: prompts.
        found: how many of the done were stored by an earlier run of the same study.
        rate: prompts per second of this run; 0 before its first chunk.
        left: seconds that the rest will take by this run's tokens per second; later chunks have
            longer prompts, so prompts per second would promise too much. None before the first.
        memory: bytes this process holds now; 0 where the system does not say.
    """

    done: int
    total: int
    found: int
    rate: float
    left: float | None
    memory: int


Executor = Literal["local", "ray"]

Progress = Callable[[State], None]
"""Told the state at the start and after each chunk."""


@dataclass(frozen=True)
class Study:
    """A finished study: what was run, and what it gave.

    Attributes:
        store: its folder.
        grids: joined results, their means and means by group, by name; read when asked for.
        tables: joined tables, by name; read when asked for.
    """

    store: Store
    grids: Mapping[str, Grid]
    tables: Mapping[str, Table]

    @property
    def manifest(self) -> dict[str, Any]:
        """What was run on what, with which versions and settings."""
        return self.store.manifest

    def __getitem__(self, name: str) -> Result:
        """A grid or table by name.

        Raises: StudyError listing what there is.
        """
        if name in self.grids:
            return self.grids[name]
        if name in self.tables:
            return self.tables[name]
        known = sorted({*self.grids, *self.tables})
        raise StudyError(f"the study has no {name!r}", allowed=", ".join(known))

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the mean ledger; for another result, `study[name].plot()`."""
        return self.grids["ledger.mean"].plot(**options)

    def _repr_html_(self) -> str:
        about = self.manifest["behaviour"]
        html = draw(
            "study.html",
            f"{about['name']} on {self.manifest['model']['name']}",
            about["n_prompts"],
            self.grids.get("ledger.mean"),
            sorted({*self.grids, *self.tables}),
            str(self.store.folder),
        )
        return str(html)

    def report(self) -> Path:
        """Write report.html into the study's folder, and say where it is."""
        path: Path = draw("study.report", self.store)
        return path


def study(
    behaviour: Behaviour | str,
    model: Model | str = "tiny",
    *,
    out: str | os.PathLike[str] | None = None,
    only: Sequence[str] | None = None,
    prepend_bos: bool | None = None,
    top_k: int = 100,
    chunk_tokens: int = CHUNK_TOKENS,
    threads: int | None = None,
    executor: Executor = "local",
    workers: int = 2,
    address: str | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
    patch_progress: causal.Progress | None = None,
    search: circuit.Search | None = None,
    circuit_progress: Tell | None = None,
) -> Study:
    """Run a behaviour's measurements on a model, or continue where a run of the same was killed.

    Args:
        behaviour: a `Behaviour`, a preset's name or the path of a behaviour file.
        model: a `Model`, or what `load` takes.
        out: the study's folder; a temporary one by default.
        only: names of measurements; all by default.
        prepend_bos: the family's convention by default.
        top_k: how many predictions to look through for an answer.
        chunk_tokens: how many tokens to run at once; a continued study keeps its stored plan.
        threads: of each process that measures; by default torch's number here, on Ray shared among
            the workers. A continued study keeps its stored number.
        executor: "local" is this process; "ray" runs the same chunks on Ray workers.
        workers: how many, on Ray.
        address: of a Ray cluster; by default one is started on this machine for the time.
        memory: bytes that a patch grid may use, beyond the model itself.
        progress: told how far the prompts are.
        patch_progress: told how far each patch grid is.
        search: which circuit to look for, and how.
        circuit_progress: told which step of that begins.

    Raises: StudyError where the folder holds another study or cannot be written; BehaviourError,
        PromptError, TokenError, ModelError for inputs that are not well formed.
    """
    behaviour = find_behaviour(behaviour) if isinstance(behaviour, str) else behaviour
    model = load(model) if isinstance(model, str) else model
    measurements = _choose(only)
    asked = [m.name for m in measurements]
    asked += [name for name in (causal.NAME, circuit.NAME) if only is None or name in only]
    check_classes(model, behaviour)
    check_roles(model.tokenizer, behaviour, prepend_bos=prepend_bos)
    folder = Path(tempfile.mkdtemp(prefix="casestudy-")) if out is None else Path(out)
    settings = {
        "prepend_bos": model.tokenizer.prepend_bos if prepend_bos is None else prepend_bos,
        "top_k": top_k,
    }
    lengths, errors = _lengths(model, behaviour, prepend_bos)
    manifest = {
        "format": FORMAT,
        "versions": _versions(),
        "model": _describe(model),
        "behaviour": _describe_behaviour(behaviour),
        "settings": settings,
        "measurements": asked,
        "plan": {
            "chunks": plan_chunks(lengths, chunk_tokens=chunk_tokens),
            "threads": threads or _threads(executor, workers),
        },
        "not_measured": [
            {"what": what, "why": why}
            for name, (what, why) in _NOT_MEASURED.items()
            if name not in asked
        ],
        "notes": list(behaviour.notes),
        "created": _now(),
        "state": "running",
        "seconds": 0.0,
    }
    store = Store.create_or_resume(folder, manifest, _IDENTITY)
    with store.locked():
        plan, threads = _stored_plan(store, lengths)
        work = Work(model, behaviour, tuple(measurements), prepend_bos, top_k)
        todo = _seal(store, work, plan)
        chunks = (
            local_chunks(work, plan, todo, threads=threads)
            if executor == "local"
            else ray_chunks(work, plan, todo, threads=threads, workers=workers, address=address)
        )
        _keep_chunks(store, work, plan, chunks, _Watch(plan, todo, lengths, progress))
        join(store, behaviour, measurements, left_out(behaviour, errors))
        runnable = [i for i, n in enumerate(lengths) if n is not None]
        if causal.NAME in asked:
            with threads_set(threads):
                causal.keep_causes(
                    store,
                    model,
                    behaviour,
                    runnable,
                    prepend_bos=prepend_bos,
                    top_k=top_k,
                    memory=memory,
                    progress=patch_progress,
                )
        if circuit.NAME in asked:
            with threads_set(threads):
                circuit.keep_circuit(
                    store,
                    model,
                    behaviour,
                    runnable,
                    prepend_bos=prepend_bos,
                    top_k=top_k,
                    memory=memory,
                    search=search,
                    progress=circuit_progress,
                )
        seconds = float(store.scan("chunks").select("seconds").sum().collect().item())
        store.manifest |= {"state": "complete", "finished": _now(), "seconds": seconds}
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

    At least `USEFUL` of every chunk's tokens are no padding.
    """
    order = sorted((n, i) for i, n in enumerate(lengths) if n is not None)
    chunks: list[list[int]] = []
    own = 0
    for n, i in order:
        # sorted by length, so the newcomer is the longest and sets the padded width
        computed = n * (len(chunks[-1]) + 1) if chunks else 0
        full = computed > chunk_tokens or own + n < USEFUL * computed
        if not chunks or full or len(chunks[-1]) == chunk_prompts:
            chunks.append([])
            own = 0
        chunks[-1].append(i)
        own += n
    return chunks


def _stored_plan(store: Store, lengths: Sequence[int | None]) -> tuple[list[list[int]], int]:
    """The chunks and threads this study was begun with.

    Raises: StudyError where they are not a plan of these prompts.
    """
    plan: Any = store.manifest.get("plan")
    runnable = [i for i, n in enumerate(lengths) if n is not None]
    try:
        chunks = [[int(i) for i in chunk] for chunk in plan["chunks"]]
        threads = int(plan["threads"])
        whole = sorted(i for chunk in chunks for i in chunk) == runnable and all(chunks)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or threads < 1:
        raise StudyError(
            f"the plan in {store.folder / 'manifest.json'} does not hold each prompt once",
            hint="Was it changed by hand? Put it back, or give another --out",
        )
    return chunks, threads


def _threads(executor: Executor, workers: int) -> int:
    return (
        torch.get_num_threads()
        if executor == "local"
        else max(1, torch.get_num_threads() // workers)
    )


def _seal(store: Store, work: Work, plan: Sequence[Sequence[int]]) -> list[int]:
    """Finish what a killed run left half merged; the chunks that are still to do."""
    for shard in range(-(-len(plan) // SHARD)):
        store.seal(shard, plan, work.summed)
    return [number for number in range(len(plan)) if not store.has_chunk(number)]


def _keep_chunks(
    store: Store,
    work: Work,
    plan: Sequence[Sequence[int]],
    chunks: Generator[Done, None, None],
    watch: _Watch,
) -> None:
    """Store chunks as they come, and merge them into shards."""
    # closed at once when storing fails, so that workers do not go on for nobody
    with contextlib.closing(chunks):
        for number, results in chunks:
            store.write_chunk(number, results)
            store.seal(number // SHARD, plan, work.summed)
            watch.chunk(number)


class _Watch:
    """Tells a caller how far a study is."""

    def __init__(
        self,
        plan: Sequence[Sequence[int]],
        todo: Sequence[int],
        lengths: Sequence[int | None],
        progress: Progress | None,
    ) -> None:
        self.plan, self.lengths, self.progress = plan, lengths, progress
        self.total = sum(map(len, plan))
        self.found = self.total - sum(len(plan[number]) for number in todo)
        self.tokens_left = sum(self.tokens(number) for number in todo)
        self.prompts = self.tokens_done = 0
        self.start = time.perf_counter()
        self.tell()

    def tokens(self, number: int) -> int:
        return sum(self.lengths[i] or 0 for i in self.plan[number])

    def chunk(self, number: int) -> None:
        self.prompts += len(self.plan[number])
        self.tokens_done += self.tokens(number)
        self.tokens_left -= self.tokens(number)
        self.tell()

    def tell(self) -> None:
        if self.progress is None:
            return
        seconds = time.perf_counter() - self.start
        begun = self.prompts > 0
        self.progress(
            State(
                self.found + self.prompts,
                self.total,
                self.found,
                self.prompts / seconds if begun else 0.0,
                self.tokens_left * seconds / self.tokens_done if begun else None,
                memory_now(),
            )
        )


def memory_now() -> int:
    """Bytes of memory this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _lengths(
    model: Model, behaviour: Behaviour, prepend_bos: bool | None
) -> tuple[list[int | None], dict[int, str]]:
    """How many tokens each prompt has, and why those without a number cannot be run."""
    lengths: list[int | None] = []
    errors: dict[int, str] = {}
    for i, prompt in enumerate(behaviour.prompts):
        try:
            tokens = model.tokenizer.tokenize(prompt.text, prepend_bos=prepend_bos)
            lengths.append(int(tokens.lengths[0]))
        except CasestudyError as problem:
            lengths.append(None)
            errors[i] = str(problem)
    if len(errors) == len(behaviour):
        raise StudyError(f"no prompt can be run; the first: {errors[0]}")
    return lengths, errors


def _choose(only: Sequence[str] | None) -> list[Measurement]:
    known = (*MEASUREMENTS, causal.NAME, circuit.NAME)
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise StudyError(f"no measurement is called {', '.join(unknown)}", allowed=", ".join(known))
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
        "classes": asdict(behaviour.classes),
        "class_contrast": behaviour.class_contrast and asdict(behaviour.class_contrast),
        "roles": [asdict(role) for role in behaviour.roles],
        "main": list(behaviour.main),
        "n_main": sum(map(behaviour.is_main, behaviour.prompts)),
        "groups": {
            name: sum(name in prompt.groups for prompt in behaviour.prompts)
            for name in behaviour.groups
        },
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
