"""Where does a study live, so that nothing is lost?

A folder: `manifest.json` says what was run on what; `chunks/` holds each finished chunk of prompts,
written whole or not at all; `arrays/` and `tables/` hold the joined results, `report.html` the
report. A killed study continues from its chunks. Grids are safetensors files that describe
themselves (axes, unit, error in the header); tables are Parquet. No torch here, and no pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from casestudy.errors import StudyError
from casestudy.measure.result import Axis, Grid, Result, Table

if TYPE_CHECKING:
    import polars as pl

FORMAT = 1
"""Version of the folder's layout; a reader of another version says so rather than guess."""


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
            identity: the manifest's keys that must agree for a resumed study's numbers to be the
                same; the stored ones are used for everything else.

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
            different = [
                f"{key}: stored {_short(store.manifest.get(key))}, now {_short(manifest[key])}"
                for key in identity
                if store.manifest.get(key) != json.loads(json.dumps(manifest[key]))
            ]
            if different:
                raise StudyError(
                    f"{folder} holds another study; " + "; ".join(different),
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
        """Hold the folder for one writing process.

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
        """Write manifest.json, whole or not at all."""
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False)
        write_atomically(self.folder / "manifest.json", text.encode("utf-8"))

    def has_chunk(self, chunk: int) -> bool:
        """Whether this chunk was finished."""
        return self._chunk(chunk).is_file()

    def write_chunk(self, chunk: int, results: Sequence[Result]) -> None:
        """Keep one chunk's results, whole or not at all."""
        write_results(self._chunk(chunk), results)

    def read_chunk(self, chunk: int) -> list[Result]:
        """What `write_chunk` kept.

        Raises: StudyError naming a file that is truncated or damaged.
        """
        return read_results(self._chunk(chunk))

    def _chunk(self, chunk: int) -> Path:
        return self.folder / "chunks" / f"{chunk:05d}.safetensors"

    def write_final(self, results: Sequence[Result]) -> None:
        """Keep the joined results: arrays/NAME.safetensors and tables/NAME.parquet."""
        for result in results:
            if isinstance(result, Grid):
                write_results(self.folder / "arrays" / f"{result.name}.safetensors", [result])
            else:
                self._write_parquet(result.name, result.to_polars(), result.about)

    def _write_parquet(self, name: str, frame: pl.DataFrame, about: str) -> None:
        import io

        buffer = io.BytesIO()
        frame.write_parquet(buffer, metadata={"about": about})
        write_atomically(self.folder / "tables" / f"{name}.parquet", buffer.getvalue())

    def grids(self) -> dict[str, Grid]:
        """Every joined grid, by name."""
        grids: dict[str, Grid] = {}
        for path in sorted((self.folder / "arrays").glob("*.safetensors")):
            for result in read_results(path):
                if isinstance(result, Grid):
                    grids[result.name] = result
        return grids

    def tables(self) -> dict[str, Table]:
        """Every joined table, by name.

        Raises: StudyError naming a file that is damaged.
        """
        paths = sorted((self.folder / "tables").glob("*.parquet"))
        return {path.stem: read_table(path) for path in paths}


def read_table(path: Path) -> Table:
    """Read one table that `write_final` wrote.

    Raises: StudyError naming a file that is damaged.
    """
    import polars as pl

    try:
        about = pl.read_parquet_metadata(path).get("about", "")
        columns = pl.read_parquet(path).to_dict(as_series=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    return Table(path.stem, columns, about)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write grids and tables to one safetensors file; its header describes them."""
    arrays: dict[str, Any] = {}
    described: list[dict[str, Any]] = []
    for result in results:
        if isinstance(result, Table):
            entry: dict[str, Any] = {"kind": "table", "columns": dict(result.columns)}
        else:
            for part in ("values", "lower", "upper", "n"):
                array = getattr(result, part)
                if array is not None:
                    arrays[f"{result.name}/{part}"] = np.ascontiguousarray(array)
            entry = {
                "kind": "grid",
                "axes": [{"name": a.name, "labels": list(a.labels)} for a in result.axes],
                "unit": result.unit,
                "error": dict(result.error),
            }
        described.append({"name": result.name, "about": result.about, **entry})
    header = {"results": json.dumps(described, ensure_ascii=False)}
    write_atomically(path, save(arrays, metadata=header))


def read_results(path: Path) -> list[Result]:
    """Read what `write_results` wrote.

    Raises: StudyError naming a file that is truncated or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})["results"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StudyError(
            f"{path} cannot be read: {error}",
            hint="If it is a chunk, delete that file and run the same command again",
        ) from error
    results: list[Result] = []
    for entry in described:
        if entry["kind"] == "table":
            results.append(Table(entry["name"], entry["columns"], entry["about"]))
            continue
        name = entry["name"]
        results.append(
            Grid(
                name=name,
                values=arrays[f"{name}/values"],
                lower=arrays.get(f"{name}/lower"),
                upper=arrays.get(f"{name}/upper"),
                n=arrays.get(f"{name}/n"),
                axes=tuple(Axis(a["name"], tuple(a["labels"])) for a in entry["axes"]),
                unit=entry["unit"],
                error=entry["error"],
                about=entry["about"],
            )
        )
    return results


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a neighbour, flushed to disk, then renamed.

    Raises: StudyError when the disk is full or the folder cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StudyError(
            f"{path} could not be written: {error.strerror}",
            hint="Nothing already written was lost; make room and run the same command again",
        ) from error


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
