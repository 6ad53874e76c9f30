"""Which paragraphs are in files of text?

Plain text, JSONL and Parquet are streamed as paragraphs. Each paragraph comes with the text that
follows it, so that the token after its last token is the true one. A line is a paragraph, unless
lines are wrapped to a width; then a blank line ends a paragraph. Input that cannot be read is
counted by reason. A file that the user named and that is not text is an error.

Assumes UTF-8. Cost: one pass over the files; memory for one block of text, whatever the size of the
input.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from casestudy.errors import BehaviourError

BLOCK = 1 << 20
LONGEST_LINE = 1 << 18
"""Bytes: a longer line is read in pieces of at most this size, cut after a sentence if possible."""

AHEAD = 24
"""How many characters of the following text come with a paragraph."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph with its place in the document.

    Attributes:
        text: of the paragraph.
        ahead: the text that follows in the document, so that the next token is the true one.
        document: the name of the text that contains it.
        number: the number of its first line, from 1.
    """

    text: str
    ahead: str
    document: str
    number: int


class Reader:
    """Streams files as paragraphs, and counts input that it cannot read."""

    def __init__(
        self,
        files: Sequence[tuple[Path, bool]],
        text_field: str,
        skipped: Counter[str],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.files = files
        self.text_field = text_field
        self.skipped = skipped
        self.progress = progress
        self.total = sum(path.stat().st_size for path, _ in files)
        self.bytes = 0
        self.documents = 0

    def paragraphs(self) -> Iterator[Paragraph]:
        """Every paragraph of every document, in order."""
        names = Counter(path.name for path, _ in self.files)
        for path, named in self.files:
            name = path.name if names[path.name] == 1 else path.as_posix()
            kind = path.suffix.lower()
            if kind in (".jsonl", ".ndjson"):
                yield from self.jsonl(path, name)
            elif kind == ".parquet":
                yield from self.parquet(path, name)
            elif self.is_text(path, named):
                self.documents += 1
                yield from _paragraphs(self.lines(path), name, _wrapped(path))

    def is_text(self, path: Path, named: bool) -> bool:
        """Whether a file is text; a file that the user named must be text."""
        with open(path, "rb") as file:
            head = file.read(8192)
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            what, hint = "UTF-16 text", f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name}"
        elif b"\0" in head:
            what, hint = "a binary file", "Give plain text, .jsonl or .parquet"
        else:
            return True
        if named:
            raise BehaviourError(f"{path} is {what}", allowed="UTF-8 text", hint=hint)
        self.skipped["files that are not text"] += 1
        return False

    def lines(self, path: Path, *, cut: bool = True) -> Iterator[str | None]:
        """A file's lines without their ends; None if a line continues in the next piece."""
        for line, whole in byte_lines(path, LONGEST_LINE if cut else 64 * LONGEST_LINE, self.read):
            if line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            try:
                if b"\0" in line:
                    raise ValueError
                text = line.decode("utf-8")
            except ValueError:
                self.skipped["lines that are not UTF-8"] += 1
                text = ""
            yield text
            if not whole:
                if cut:
                    self.skipped["lines cut for their length (the pieces are read)"] += 1
                yield None

    def read(self, count: int) -> None:
        """Count the bytes that were read, and report them."""
        self.bytes += count
        if self.progress is not None:
            self.progress(self.bytes, self.total)

    def jsonl(self, path: Path, name: str) -> Iterator[Paragraph]:
        """One document per line."""
        good, bad = self.documents, 0
        number = 0
        for line in self.lines(path, cut=False):
            number += line is not None
            if line is None or not line.strip():
                continue
            try:
                row = json.loads(line)
                text = row[self.text_field]
                if not isinstance(text, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                bad += 1
                continue
            yield from self.document(text, str(row.get("document") or f"{name}:{number}"))
        if bad:
            self.skipped[f"JSON lines without a text in {self.text_field!r}"] += bad
        if bad and self.documents == good:
            raise BehaviourError(
                f"no line of {path} is a JSON object with a text in {self.text_field!r}",
                hint="Name another field with --text-field",
            )

    def parquet(self, path: Path, name: str) -> Iterator[Paragraph]:
        """One document per row."""
        import polars as pl

        try:
            columns = pl.read_parquet_schema(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise BehaviourError(f"{path} is not a Parquet file: {error}") from error
        if columns.get(self.text_field) != pl.String:
            raise BehaviourError(
                f"{path} has no text column {self.text_field!r}",
                allowed=", ".join(columns),
                hint="Name another with --text-field",
            )
        chosen = [self.text_field, *({"document"} & set(columns))]
        rows = pl.scan_parquet(path).select(chosen)
        start, step = 0, 1024
        while len(frame := rows.slice(start, step).collect()):
            for i, row in enumerate(frame.iter_rows(named=True), start + 1):
                text = row[self.text_field]
                if text is None:
                    self.skipped["rows without a text"] += 1
                    continue
                self.read(len(text.encode()))
                yield from self.document(text, str(row.get("document") or f"{name}:{i}"))
            start += step

    def document(self, text: str, name: str) -> Iterator[Paragraph]:
        """The paragraphs of a text that is already in memory."""
        self.documents += 1
        lines = text.splitlines()
        return _paragraphs(iter(lines), name, _is_wrapped(lines[:200]))


def files_of(sources: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, bool]]:
    """The files to read, each with whether the user named it; files of a folder are sorted."""
    found: list[tuple[Path, bool]] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(p for p in source.rglob("*") if p.is_file())
            found += [(p, False) for p in inside if not p.name.startswith(".")]
        elif source.is_file():
            found.append((source, True))
        else:
            raise BehaviourError(f"there is no {source}", allowed="files, or folders of them")
    if not found:
        where = f" in {', '.join(map(str, sources))}" if sources else ""
        raise BehaviourError(f"no files to read{where}", allowed="at least one file of text")
    return found


def byte_lines(
    path: Path, longest: int, read: Callable[[int], None]
) -> Iterator[tuple[bytes, bool]]:
    """Lines without their ends, and whether each is complete; a long line comes in pieces."""
    rest = b""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            read(len(block))
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                pieces = [*pieces_of(line.removesuffix(b"\r"), longest)]
                yield from ((piece, i == len(pieces) - 1) for i, piece in enumerate(pieces))
            if len(rest) > longest:
                *pieces, rest = pieces_of(rest, longest)
                yield from ((piece, False) for piece in pieces)
    if rest:
        pieces = [*pieces_of(rest, longest)]
        yield from ((piece, i == len(pieces) - 1) for i, piece in enumerate(pieces))


def pieces_of(line: bytes, longest: int) -> Iterator[bytes]:
    """A line, or parts of it that end after a sentence, a word, or at least a character."""
    start = 0
    while len(line) - start > longest:
        end = start + longest
        sentence = line.rfind(b". ", start, end)
        space = line.rfind(b" ", start, end)
        if sentence > start:
            cut = sentence + 2
        elif space > start:
            cut = space + 1
        else:
            cut = end
            while cut > start + 1 and line[cut] & 0xC0 == 0x80:
                cut -= 1
        yield line[start:cut]
        start = cut
    yield line[start:]


def _wrapped(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(65536).decode("utf-8", "replace")
    return _is_wrapped(head.splitlines()[:-1])


def _is_wrapped(lines: Sequence[str]) -> bool:
    """Whether lines are wrapped to a width, so that only a blank line ends a paragraph."""
    lengths = sorted(len(line) for line in lines if line.strip())
    blank = sum(not line.strip() for line in lines)
    return len(lengths) > 9 and blank > 0 and lengths[-1] <= 100 and lengths[len(lengths) // 2] > 40


def _paragraphs(
    lines: Iterator[str] | Iterator[str | None], document: str, wrapped: bool
) -> Iterator[Paragraph]:
    """Paragraphs with the text that follows; each line is one, unless lines are wrapped."""
    held: tuple[int, str] | None = None
    gap = ""
    for number, text, separator in _stretches(lines, wrapped):
        if text.strip():
            if held is not None:
                yield Paragraph(held[1], gap + text[:AHEAD], document, held[0])
            held, gap = (number, text), separator
        elif held is not None:
            gap += text + separator
    if held is not None:
        yield Paragraph(held[1], gap, document, held[0])


def _stretches(
    lines: Iterator[str] | Iterator[str | None], wrapped: bool
) -> Iterator[tuple[int, str, str]]:
    """(line number, text, separator before the next) of lines or of blocks between blank lines."""
    block: list[str] = []
    first = 0
    number = 0
    line: str | None
    pending: str | None = None
    for line in lines:
        if line is None:
            # the line continues: the next piece is no new paragraph, and no newline comes between
            if pending is not None:
                yield number, pending, ""
            pending = None
            continue
        if pending is not None:
            if wrapped and pending.strip():
                block.append(pending)
            else:
                if block:
                    yield first, "\n".join(block), "\n"
                    block = []
                yield number, pending, "\n"
        number += 1
        if not block:
            first = number
        pending = line
    if wrapped and pending is not None and pending.strip():
        block.append(pending)
        pending = None
    if block:
        yield first, "\n".join(block), "\n"
    if pending is not None:
        yield number, pending, ""
