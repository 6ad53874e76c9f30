"""How is a study stored, so that no result is lost?

A folder: `manifest.json` says what was run on what; `chunks/` holds each finished chunk of prompts,
each written completely or not at all, until `SHARD` of them are merged into one of `shards/` (grids
in a safetensors file, tables in Parquet files beside it); `steps/` holds the finished steps of an
unfinished stage; `arrays/` and `tables/` hold the joined results, `report.html` the report. A
killed study continues from its chunks, shards and steps. `results/files` says what the files are.
Results are read by name when they are needed, so a large study opens at once. This module uses
neither torch nor pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from casestudy.errors import StudyError
from casestudy.results.files import (
    about_table,
    axes_described,
    described_in,
    read_grid,
    read_results,
    read_table,
    reading,
    reading_parquet,
    replacing,
    write_atomically,
    write_parquet,
    write_results,
)
from casestudy.results.result import Axis, Grid, Result, Table, concatenate

if TYPE_CHECKING:
    import polars as pl

FORMAT = 1
"""Version of the folder's layout; a reader of another version reports the difference."""

SHARD = 16
"""Chunks per shard: large enough for few files, small enough to merge in little memory."""

TABLE_ROWS = 1_000_000
"""A table with more rows is not read when it is joined, and stays in the order of the plan."""

R = TypeVar("R")

__all__ = (
    *("FORMAT", "SHARD", "TABLE_ROWS", "Store", "Stored", "differences", "merge", "merge_grids"),
    *("read_results", "read_table", "write_atomically", "write_results"),
)


class Stored(Mapping[str, R], Generic[R]):
    """Results in files, by name; each is read when it is accessed."""

    def __init__(self, paths: Mapping[str, Path], read: Callable[[Path], R]) -> None:
        self._paths = dict(paths)
        self._read = read
        self._known: dict[str, R] = {}

    def __getitem__(self, name: str) -> R:
        if name not in self._known:
            self._known[name] = self._read(self._paths[name])
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._paths  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class Store:
    """A study's folder.

    Attributes:
        folder: where it is.
        manifest: the contents of manifest.json; `save_manifest` writes it back.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """Open an existing study.

        Raises: StudyError when the folder holds none, or one that cannot be read.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise StudyError(
                f"{folder} holds no study (no manifest.json)",
                hint="Make one with: casestudy run --out DIR",
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StudyError(f"{path} is damaged: {error}") from error
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise StudyError(f"{path} is not a study's manifest")
        return cls(folder, manifest)

    @classmethod
    def create_or_resume(
        cls, folder: str | os.PathLike[str], manifest: Mapping[str, Any], identity: Sequence[str]
    ) -> Store:
        """Open the folder for this study, new or interrupted.

        Args:
            folder: made when it does not exist.
            manifest: what a new study would record.
            identity: the manifest's keys that must agree, so that a resumed study gives the same
                numbers; for all other keys the stored values are used.

        Raises: StudyError when the folder cannot be written, holds other files, or holds another
            study (naming what differs).
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            raise StudyError(
                f"{folder} cannot be written: {error.strerror}", hint="Choose another with --out"
            ) from error
        if (folder / "manifest.json").exists():
            store = cls.open(folder)
            now = json.loads(json.dumps({key: manifest[key] for key in identity}))
            stored = {key: store.manifest.get(key) for key in identity}
            different = [
                f"{where}: stored {_short(then)}, now {_short(now)}"
                for where, then, now in differences(stored, now)
                # how it was named and where it was read from; the weights' hash says which it is
                if where not in ("model.name", "model.source")
            ]
            different.sort(key=lambda said: not said.startswith(_SAID_FIRST))
            if different:
                more = len(different) - MOST_SAID
                raise StudyError(
                    f"{folder} holds another study; "
                    + "; ".join(different[: MOST_SAID + (more == 1)])
                    + (f"; and {more} other entries differ" if more > 1 else ""),
                    hint="Give another --out, or remove that folder",
                )
            return store
        strangers = [p.name for p in folder.iterdir() if p.name != ".lock"]
        if strangers:
            raise StudyError(
                f"{folder} holds files that are not a study's: {', '.join(sorted(strangers)[:5])}",
                hint="Give a new or empty folder as --out",
            )
        store = cls(folder, json.loads(json.dumps(manifest)))
        store.save_manifest()
        return store

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder: one process writes at a time.

        Raises: StudyError when another process holds it.
        """
        import fcntl

        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"another process is running a study in {self.folder}",
                    hint="Wait for it, or give another --out",
                ) from error
            yield

    def save_manifest(self) -> None:
        """Write manifest.json atomically."""
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False)
        write_atomically(self.folder / "manifest.json", text.encode("utf-8"))

    def say_not_measured(self, what: str, why: str) -> None:
        """Record in the manifest that something was not measured, and why; once per thing."""
        entry = {"what": what, "why": why}
        if entry not in self.manifest["not_measured"]:
            self.manifest["not_measured"].append(entry)

    def say_measured(self, what: str) -> None:
        """Remove the record that this was not measured."""
        entries = self.manifest["not_measured"]
        self.manifest["not_measured"] = [entry for entry in entries if entry["what"] != what]

    def has_chunk(self, chunk: int) -> bool:
        """Whether this chunk was finished."""
        return self._shard(chunk // SHARD).is_file() or self._chunk(chunk).is_file()

    def write_chunk(self, chunk: int, results: Sequence[Result]) -> None:
        """Store one chunk's results atomically."""
        write_results(self._chunk(chunk), results)

    def read_chunk(self, chunk: int) -> list[Result]:
        """What `write_chunk` stored, until `seal` merges it.

        Raises: StudyError naming a file that is truncated or damaged.
        """
        return read_results(self._chunk(chunk))

    def _chunk(self, chunk: int) -> Path:
        return self.folder / "chunks" / f"{chunk:05d}.safetensors"

    def _shard(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.safetensors"

    def has_step(self, stage: str, step: str) -> bool:
        """Whether this step of a stage is kept."""
        return self._step(stage, step).is_file()

    def write_step(
        self, stage: str, step: str, arrays: Mapping[str, NDArray[Any]], plain: Any
    ) -> None:
        """Store one step's value atomically.

        Args:
            stage, step: their names.
            arrays: by name.
            plain: the rest, as JSON holds it.
        """
        whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        with replacing(self._step(stage, step)) as part:
            save_file(whole, part, metadata={"plain": json.dumps(plain)})

    def read_step(self, stage: str, step: str) -> tuple[dict[str, NDArray[Any]], Any]:
        """What `write_step` stored.

        Raises: StudyError naming a file that is truncated or damaged.
        """
        path = self._step(stage, step)
        with reading(path), safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, json.loads((file.metadata() or {})["plain"])

    def drop_steps(self, stage: str) -> None:
        """Delete a stage's steps, once its results are stored."""
        shutil.rmtree(self.folder / "steps" / stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / "steps").rmdir()

    def _step(self, stage: str, step: str) -> Path:
        return self.folder / "steps" / stage / f"{step}.safetensors"

    def seal(self, shard: int, plan: Sequence[Sequence[int]], summed: Collection[str]) -> None:
        """Merge a shard's chunks once all are there, and delete them.

        Args:
            shard: chunks `SHARD * shard` to `SHARD * (shard + 1)`.
            plan: which prompts each chunk of the study holds.
            summed: names of grids that add up over chunks.

        Raises: StudyError naming a chunk that is damaged, or holds other prompts than the plan.
        """
        chunks = range(SHARD * shard, min(SHARD * (shard + 1), len(plan)))
        if not self._shard(shard).is_file():
            if not all(self._chunk(chunk).is_file() for chunk in chunks):
                return
            read = []
            for chunk in chunks:
                results = self.read_chunk(chunk)
                self._check_chunk(chunk, results, plan[chunk])
                read.append(results)
            merged = merge(read, summed)
            grids = [result for result in merged if isinstance(result, Grid)]
            for table in merged:
                if isinstance(table, Table):
                    path = self._shard(shard).with_suffix(f".{table.name}.parquet")
                    write_parquet(path, table.to_polars(), table.about)
            # last, since its presence says that the shard is whole
            write_results(self._shard(shard), grids)
        for chunk in chunks:
            self._chunk(chunk).unlink(missing_ok=True)

    def _check_chunk(self, chunk: int, results: Sequence[Result], prompts: Sequence[int]) -> None:
        for result in results:
            if isinstance(result, Table) and result.name == "prompts":
                if list(result.columns["prompt"]) == list(prompts):
                    return
                break
        raise StudyError(
            f"{self._chunk(chunk)} holds other prompts than the manifest's plan",
            hint="Was either changed by hand? Delete the chunk, and the same command makes it anew",
        )

    def shards(self) -> list[Path]:
        """The merged shards' array files, in the order of the plan."""
        return sorted((self.folder / "shards").glob("*.safetensors"))

    def stream(self, name: str) -> Iterator[Grid]:
        """One grid shard by shard, in the order of the plan.

        For per-prompt values that are too large to join; `int(label)` of the prompt axis is the
        prompt's place in the behaviour.

        Raises: StudyError naming a shard that is truncated or damaged.
        """
        for shard in self.shards():
            for result in read_results(shard, only=name):
                if isinstance(result, Grid):
                    yield result

    def axes(self, name: str) -> Iterator[tuple[Axis, ...]]:
        """A grid's axes in each shard that has it, without reading its values."""
        for shard in self.shards():
            for entry in described_in(shard):
                if entry["name"] == name:
                    yield axes_described(entry)

    def names(self, shard: Path) -> list[str]:
        """The grids in one shard."""
        return [str(entry["name"]) for entry in described_in(shard)]

    def scan(self, name: str) -> pl.LazyFrame:
        """One table over all shards, as a lazy frame, in the order of the plan.

        Raises: StudyError where no shard has it.
        """
        import polars as pl

        paths = sorted((self.folder / "shards").glob(f"*.{name}.parquet"))
        if not paths:
            raise StudyError(f"no shard of {self.folder} has a table {name!r}")
        return pl.concat([pl.scan_parquet(path) for path in paths], how="vertical_relaxed")

    def shard_tables(self) -> dict[str, str]:
        """Names of the tables in shards, with the description of each."""
        found: dict[str, str] = {}
        for path in sorted((self.folder / "shards").glob("*.parquet")):
            name = path.name.split(".", 1)[1].removesuffix(".parquet")
            if name not in found:
                found[name] = about_table(path)
        return found

    def has_grid(self, name: str) -> bool:
        """Whether this joined grid is there."""
        return (self.folder / "arrays" / f"{name}.safetensors").is_file()

    def write_final(self, results: Sequence[Result]) -> None:
        """Keep joined results: arrays/NAME.safetensors and tables/NAME.parquet."""
        for result in results:
            if isinstance(result, Grid):
                path = self.folder / "arrays" / f"{result.name}.safetensors"
                write_results(path, [result], lasting=False)
            else:
                self.write_table(result.name, result.to_polars(), result.about)

    def write_table(self, name: str, frame: pl.DataFrame | pl.LazyFrame, about: str) -> None:
        """Keep a joined table; a lazy one is streamed to the disk."""
        write_parquet(self.folder / "tables" / f"{name}.parquet", frame, about, lasting=False)

    def columns(self, table: str, names: Sequence[str]) -> pl.DataFrame:
        """Some columns of a joined table, without reading the others.

        Raises: StudyError where the table is not there, is damaged, or has no such column.
        """
        import polars as pl

        path = self.folder / "tables" / f"{table}.parquet"
        return reading_parquet(lambda: pl.scan_parquet(path).select(names).collect(), path)

    def grids(self) -> Stored[Grid]:
        """Every joined grid by name, read when it is accessed.

        Raises: StudyError on access, naming a file that is damaged.
        """
        paths = sorted((self.folder / "arrays").glob("*.safetensors"))
        return Stored({path.stem: path for path in paths}, read_grid)

    def tables(self) -> Stored[Table]:
        """Every joined table by name, read when it is accessed.

        Raises: StudyError on access, naming a file that is damaged.
        """
        paths = sorted((self.folder / "tables").glob("*.parquet"))
        return Stored({path.stem: path for path in paths}, read_table)


def merge(chunks: Sequence[Sequence[Result]], summed: Collection[str]) -> list[Result]:
    """Several chunks' results as one chunk's: joined, added up, or the first of the same."""
    grids: dict[str, list[Grid]] = {}
    tables: dict[str, list[Table]] = {}
    for results in chunks:
        for result in results:
            if isinstance(result, Grid):
                grids.setdefault(result.name, []).append(result)
            else:
                tables.setdefault(result.name, []).append(result)
    merged: list[Result] = [merge_grids(parts, name in summed) for name, parts in grids.items()]
    for parts in tables.values():
        columns = {name: [v for t in parts for v in t.columns[name]] for name in parts[0].columns}
        merged.append(Table(parts[0].name, columns, parts[0].about))
    return merged


def merge_grids(parts: Iterable[Grid], summed: bool) -> Grid:
    """One grid of several chunks: added up, joined along its prompts, or the first of the same."""
    rest = iter(parts)
    first = next(rest)
    if summed:
        values = first.values
        for part in rest:
            values = values + part.values
        return Grid(first.name, values, first.axes, first.unit, about=first.about)
    if any(axis.name == "prompt" for axis in first.axes):
        return concatenate([first, *rest])
    # of the model or of one prompt: every chunk that has it has the same
    return first


MOST_SAID = 4
"""Entries of manifests that an error names."""
_SAID_FIRST = ("model.", "behaviour.name", "measurements", "settings.")


def stored_as_described(store: Store, key: str, described: Mapping[str, Any]) -> bool:
    """Whether the manifest's entry is a search that was made as described.

    Raises: StudyError if it is one that was made in another way.
    """
    known = store.manifest.get(key)
    if known is None:
        return False
    changed = [
        f"{what}: {ours!r}, now {new!r}" for what, ours, new in differences(known, described)
    ]
    if changed:
        raise StudyError(
            f"{store.folder} holds a circuit found in another way ({'; '.join(changed)})",
            hint="Give another --out",
        )
    return True


def differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The entries in which two manifests differ, with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            inner = f"{where}.{key}" if where else str(key)
            yield from differences(one.get(key), other.get(key), inner)
    elif one != other:
        yield where, one, other


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
