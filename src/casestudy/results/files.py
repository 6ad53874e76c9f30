"""How are results stored in files?

Grids are safetensors files with axes, unit and error in the header; tables are Parquet files. Every
file is written completely or not at all: under a temporary name in the same folder, and then
renamed. Without torch and without pickle.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from casestudy.errors import StudyError
from casestudy.results.result import Axis, Grid, Result, Table

if TYPE_CHECKING:
    import polars as pl

R = TypeVar("R")


def read_grid(path: Path) -> Grid:
    """The first grid of a file.

    Raises: StudyError if there is none, or the file is damaged.
    """
    for result in read_results(path):
        if isinstance(result, Grid):
            return result
    raise StudyError(f"{path} holds no grid")


def reading_parquet(read: Callable[[], R], path: Path) -> R:
    """The result of `read` on a Parquet file.

    Raises: StudyError naming a file that does not exist or is damaged.
    """
    import polars as pl

    try:
        return read()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error


def about_table(path: Path) -> str:
    """The `about` of a stored table.

    Raises: StudyError naming a file that is damaged.
    """
    import polars as pl

    return reading_parquet(lambda: pl.read_parquet_metadata(path), path).get("about", "")


def write_parquet(
    path: Path, frame: pl.DataFrame | pl.LazyFrame, about: str, *, lasting: bool = True
) -> None:
    """Write one table completely or not at all; a lazy frame is streamed to disk.

    Raises: StudyError when the disk is full or the folder cannot be written.
    """
    import polars as pl

    with replacing(path, lasting=lasting) as part:
        if isinstance(frame, pl.LazyFrame):
            frame.sink_parquet(part, metadata={"about": about})
        else:
            frame.write_parquet(part, metadata={"about": about})


def read_table(path: Path, *, most: int | None = None) -> Table:
    """Read one table written by `write_parquet`.

    Args:
        path: of the Parquet file.
        most: the largest number of rows to read; `about` then says that there are more.

    Raises: StudyError naming a file that is damaged.
    """
    import polars as pl

    frame = reading_parquet(lambda: pl.read_parquet(path, n_rows=most), path)
    about = about_table(path)
    if frame.height == most:
        rows = reading_parquet(
            lambda: pl.scan_parquet(path).select(pl.len()).collect().item(), path
        )
        if rows > most:
            about = f"{about} The first {most:,} of {rows:,} rows.".strip()
    return Table(path.stem, frame.to_dict(as_series=False), about)


def write_results(path: Path, results: Sequence[Result], *, lasting: bool = True) -> None:
    """Write grids and tables to one safetensors file; its header describes them.

    Args:
        path: of the file, which is written completely or not at all.
        results: the results to write.
        lasting: flush to disk, so that the file survives a power cut.

    Raises: StudyError when the disk is full or the folder cannot be written.
    """
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
    with replacing(path, lasting=lasting) as neighbour:
        save_file(arrays, neighbour, metadata=header)


def read_results(path: Path, *, only: str | None = None) -> list[Result]:
    """Read a file written by `write_results`, or one result of it by name.

    Raises: StudyError naming a file that is truncated or damaged.
    """
    with reading(path), safe_open(path, framework="numpy") as file:
        described = json.loads((file.metadata() or {})["results"])
        described = [entry for entry in described if only in (None, entry["name"])]
        wanted = {entry["name"] for entry in described}
        keys = [key for key in file.keys() if key.rsplit("/", 1)[0] in wanted]  # noqa: SIM118
        arrays = {key: file.get_tensor(key) for key in keys}
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
                axes=axes_described(entry),
                unit=entry["unit"],
                error=entry["error"],
                about=entry["about"],
            )
        )
    return results


def axes_described(entry: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes of an entry from `described_in`."""
    return tuple(Axis(a["name"], tuple(a["labels"])) for a in entry["axes"])


def described_in(path: Path) -> list[dict[str, Any]]:
    """The descriptions of the results in a file, from its header."""
    with reading(path), safe_open(path, framework="numpy") as file:
        described: list[dict[str, Any]] = json.loads((file.metadata() or {})["results"])
    return described


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """A context for reading a file.

    Raises: StudyError naming a file that does not exist, is truncated or damaged.
    """
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StudyError(
            f"{path} cannot be read: {error}",
            hint="If it is a chunk, a shard or a step, delete that file, and the same command "
            "makes it again; all others are kept",
        ) from error


def finite_only(value: Any) -> Any:
    """The same with null for numbers that are not finite: JSON has none."""
    if isinstance(value, dict):
        return {key: finite_only(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all.

    Raises: StudyError when the disk is full or the folder cannot be written; an older file stays.
    """
    with replacing(path) as part:
        part.write_bytes(data)


_NO_PLACE = {errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors of a path that cannot be written, for reasons other than a full disk."""


@contextlib.contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """A temporary file in the same folder, which is then renamed to `path`.

    With `lasting` it is flushed to disk first, so that it survives a power cut. Files that can be
    made again from the shards need no flush, and flushing a hundred files takes time.
    """
    import polars as pl

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if lasting:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
        if lasting:
            _sync_folder(path.parent)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError(
            f"{path} could not be written: {reason}",
            hint="Choose another place with --out"
            if getattr(error, "errno", None) in _NO_PLACE
            else "Nothing already written was lost; make room and run the same command again",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a path through a file has no temporary file to remove
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a renaming survive a power cut, on systems where folders can be flushed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
