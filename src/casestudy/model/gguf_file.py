"""The contents of a GGUF file, checked before they are used.

A GGUF file is a header (metadata by key, then a table of tensors) and the tensors' bytes, each
starting at a multiple of an alignment. Every count, length and offset of the header is checked
against the file's size before it is used, so a damaged or hostile file costs time and memory in
proportion to its size and ends in a `ModelError`; nothing in it is executed. The `gguf` package
knows the layout of each type of block and converts blocks to numbers.

Source: the format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.model import WeightsFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LONGEST = 4_000_000
"""Most entries of a list in the metadata: far more than a vocabulary has, in little memory."""
_MOST_AXES, _MOST_ALIGNMENT = 4, 1 << 16
_STEP = 1 << 20
"""How many numbers are de-quantised at a time, so that intermediate results stay small."""

# the format's numbers of metadata types, and their `struct` formats
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_NEED = "pip install 'casestudy[gguf]', or `make smollm2` in a checkout"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: its name in the file.
        shape: in torch's order: the last axis is contiguous.
        type: the format's name of its storage type ("F32", "Q4_1").
        start, size: its first byte in the file, and its number of bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    size: int


class GgufFile:
    """A GGUF file whose header has been read and checked.

    Attributes:
        metadata: values by key; lists of strings as lists, lists of numbers as arrays.
        tensors: tensors by name.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises: ModelError if the file is no GGUF file, is damaged, or has tensors of an unknown
            type.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise ModelError(f"{path} cannot be read: {error}") from error
        header = _Header(self._bytes, path)
        self.metadata: Mapping[str, Any] = header.metadata
        self.tensors: Mapping[str, StoredTensor] = header.tensors

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor, de-quantised to float32 and then rounded to `dtype`.

        Raises: ModelError if a number is not finite.
        """
        stored = self.tensors[name]
        n_rows, n = prod(stored.shape[:-1]), stored.shape[-1]
        raw = np.frombuffer(self._bytes, np.uint8, stored.size, stored.start).reshape(n_rows, -1)
        out = torch.empty(n_rows, n, dtype=dtype)
        step = max(1, _STEP // n)
        for first in range(0, n_rows, step):
            part = torch.from_numpy(_numbers(raw[first : first + step], stored.type))
            low, high = part.aminmax()  # hands NaN on, in a twentieth of the time of isfinite
            if not (low.isfinite() and high.isfinite()):
                raise ModelError(
                    f"{name} in {self.path} holds NaN or infinite numbers",
                    hint="The file is damaged or the training diverged; fetch it again",
                )
            out[first : first + step] = part
        return out.view(stored.shape)

    @cached_property
    def origin(self) -> WeightsFile:
        """The file's name and hash, and how many numbers have which storage type."""
        count: Counter[str] = Counter()
        for stored in self.tensors.values():
            count[stored.type] += prod(stored.shape)
        digest = hashlib.sha256(self._bytes).hexdigest()
        return WeightsFile(self.path.name, digest, tuple(count.most_common()))


class _Header:
    """Reads a GGUF file's header from its first byte on."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0
        if data[:4] != MAGIC:
            raise ModelError(f"{path} does not begin with {MAGIC.decode()}", allowed="a GGUF file")
        self.at = 4
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            kind = "written for big-endian machines" if swapped else f"GGUF version {version}"
            raise ModelError(f"{path} is {kind}", allowed="little-endian, version 2 or 3")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        # at least: a key has a length, a type and a value; a tensor has five numbers
        self.check_count(n_keys, 8 + 4 + 1, "metadata keys")
        self.metadata = dict(self.unique(self.pairs(n_keys), "metadata key"))
        self.check_count(n_tensors, 8 + 4 + 8 + 4 + 8, "tensors")
        entries = dict(self.unique((self.entry() for _ in range(n_tensors)), "tensor"))
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT:
            raise self.damaged(f"an alignment of {alignment!r}")
        begin = -(-self.at // alignment) * alignment
        self.tensors = {
            name: self.place(name, *entry, begin=begin, alignment=alignment)
            for name, entry in entries.items()
        }
        self.check_apart()

    def damaged(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path} has {what}", hint="It is truncated or damaged; fetch it again"
        )

    def take(self, n: int, what: str) -> int:
        """Move past the next n bytes and return where they begin; the file must have them."""
        if n > len(self.data) - self.at:
            raise self.damaged(f"{what} of {n} bytes at {self.at}, beyond its end")
        begin, self.at = self.at, self.at + n
        return begin

    def check_count(self, n: int, least: int, what: str) -> None:
        """Check that n entries of at least `least` bytes fit into the rest of the file."""
        if n * least > len(self.data) - self.at:
            raise self.damaged(f"{n} {what}, more than its {len(self.data)} bytes can hold")

    def number(self, kind: str) -> Any:
        form = f"<{kind}"
        (value,) = struct.unpack_from(form, self.data, self.take(struct.calcsize(form), "a number"))
        return value

    def text(self) -> str:
        n = self.number("Q")
        begin = self.take(n, "a text")
        try:
            return self.data[begin : begin + n].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text at {begin} that is not UTF-8") from error

    def pairs(self, n: int) -> Iterator[tuple[str, Any]]:
        for _ in range(n):
            key = self.text()
            yield key, self.value(self.number("I"), key)

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.damaged(f"metadata of the unknown type {kind}: {key}")
        kind, n = self.number("I"), self.number("Q")
        if n > LONGEST:
            raise self.damaged(f"a list of {n:,}, longer than any of a model's: {key}")
        if kind == _STRING:
            self.check_count(n, 8, f"texts in {key}")
            return [self.text() for _ in range(n)]
        if kind not in _SCALARS:
            raise self.damaged(f"a list of the type {kind}: {key}")
        dtype = np.dtype(f"<{_SCALARS[kind]}" if kind != 7 else np.bool_)
        self.check_count(n, dtype.itemsize, f"numbers in {key}")
        return np.frombuffer(self.data, dtype, n, self.take(n * dtype.itemsize, "a list")).copy()

    def entry(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        """A tensor's name; its shape, the number of its type, and its place in the data."""
        name, n_axes = self.text(), self.number("I")
        if not 0 < n_axes <= _MOST_AXES:
            raise self.damaged(f"a tensor {name!r} of {n_axes} axes")
        shape = tuple(self.number("Q") for _ in range(n_axes))
        return name, (shape[::-1], self.number("I"), self.number("Q"))

    def unique(self, pairs: Iterator[tuple[str, Any]], what: str) -> Iterator[tuple[str, Any]]:
        met: set[str] = set()
        for name, value in pairs:
            if name in met:
                raise self.damaged(f"the {what} {name!r} twice")
            met.add(name)
            yield name, value

    def place(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: int,
        offset: int,
        *,
        begin: int,
        alignment: int,
    ) -> StoredTensor:
        """A tensor's place, which must be within the file."""
        type_name, block, size = _block(kind, name, self.path)
        if not all(shape) or shape[-1] % block:
            raise self.damaged(f"a tensor {name!r} of shape {shape} in blocks of {block}")
        n_bytes = prod(shape) // block * size
        if offset % alignment or begin + offset + n_bytes > len(self.data):
            raise self.damaged(f"a tensor {name!r} of {n_bytes} bytes at {offset}, not within it")
        return StoredTensor(name, shape, type_name, begin + offset, n_bytes)

    def check_apart(self) -> None:
        """Check that no two tensors overlap."""
        placed = sorted(self.tensors.values(), key=lambda stored: stored.start)
        for one, other in pairwise(placed):
            if one.start + one.size > other.start:
                raise self.damaged(f"tensors that overlap, {one.name!r} and {other.name!r}")


def _block(kind: int, name: str, path: Path) -> tuple[str, int, int]:
    """A storage type: its name, and the numbers and bytes per block."""
    gguf = _package(path)
    try:
        known = gguf.GGMLQuantizationType(kind)
    except ValueError as error:
        raise ModelError(
            f"{path} stores {name} as the unknown type {kind}",
            hint="Is there a newer version of the package gguf?",
        ) from error
    if not _readable(known.name):
        raise ModelError(f"{path} stores {name} as {known.name}", allowed=", ".join(readable()))
    return known.name, *gguf.GGML_QUANT_SIZES[known]


def readable() -> list[str]:
    """Names of the storage types that can be read."""
    return [kind.name for kind in _package(None).GGMLQuantizationType if _readable(kind.name)]


@cache
def _readable(kind: str) -> bool:
    gguf = _package(None)
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    try:
        _numbers(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _numbers(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """De-quantise rows of bytes to rows of float32."""
    if kind == "F64":
        return raw.copy().view(np.float64).astype(np.float32)
    gguf = _package(None)
    with np.errstate(all="ignore"):  # `read` refuses numbers that are not finite
        numbers: NDArray[np.float32] = gguf.dequantize(raw.copy(), gguf.GGMLQuantizationType[kind])
    return numbers


def _package(path: Path | None) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            f"{path or 'this'} is a GGUF file, and the package gguf is not installed", hint=_NEED
        ) from error
    return gguf
