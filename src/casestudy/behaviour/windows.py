"""Which tokens does a corpus consist of, in windows that a model reads?

Texts are streamed (see `corpus`) and cut into windows of consecutive tokens of one document, none
twice. Every position is of one kind: a full stop by what it ends (`full_stops.CATEGORIES`), a
comma, a token that begins with a capital, or any other. So a window gives both what the model reads
and what to compare an activation with.

Assumes UTF-8 and English abbreviations. A document is tokenised in stretches of about `STRETCH`
characters that begin with a paragraph; windows do not overlap, so the first tokens of each have
little context. Cost: every text is tokenised once; memory for one stretch.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from casestudy.behaviour.corpus import AHEAD, Paragraph, Reader, files_of
from casestudy.behaviour.full_stops import CATEGORIES, classify
from casestudy.errors import BehaviourError
from casestudy.model.tokens import Tokenizer

STRETCH = 1 << 15
"""Characters that are tokenised at once."""
COMMA, CAPITAL, OTHER = "comma", "capital", "other token"
KINDS = (*(f"full stop: {kind}" for kind in CATEGORIES), COMMA, CAPITAL, OTHER)
"""What a position can be: by the first that fits."""
SENTENCE_END = "full stop: sentence end"

Corpus = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str]
"""Files or folders of text, or texts by the name of their document."""


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a document.

    Attributes:
        ids: BOS first, where the model's texts start with it.
        kinds: each position's, as an index into `KINDS`; of BOS `other token`.
        document: the name of the text.
        lines: the number of each position's line (or of the paragraph's first), from 1.
    """

    ids: tuple[int, ...]
    kinds: tuple[int, ...]
    document: str
    lines: tuple[int, ...]


@dataclass
class Windows:
    """Streams a corpus as windows, and counts what was read.

    Attributes:
        corpus: files or folders (text, .jsonl, .parquet), or texts by document.
        tokenizer: the model's.
        length: tokens of a window, BOS included.
        skipped: what could not be read, by reason.
        documents: texts read so far.
        bytes: their size.
        progress: called with the bytes read and all bytes.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    length: int = 128
    progress: Callable[[int, int], None] | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.length <= self.tokenizer.n_ctx:
            raise BehaviourError(
                f"windows of {self.length} tokens",
                allowed=f"2 to {self.tokenizer.n_ctx}, which is as much as the model reads",
            )

    def __iter__(self) -> Iterator[Window]:
        """Every window, in order.

        Raises: BehaviourError for sources that do not exist or are not text, and for no text.
        """
        some = False
        for stretch in _stretches(self._paragraphs()):
            for window in self._windows(stretch):
                some = True
                yield window
        if not some:
            left_out = ", ".join(f"{n:,} {why}" for why, n in self.skipped.items())
            raise BehaviourError(
                f"no text in the corpus ({self.documents:,} documents, {self.bytes:,} bytes)"
                + (f"; left out: {left_out}" if left_out else ""),
                allowed="texts of at least one token",
            )

    def _paragraphs(self) -> Iterator[Paragraph]:
        if isinstance(self.corpus, Mapping):
            reader = Reader([], "text", self.skipped, None)
            for name, text in self.corpus.items():
                self.bytes += len(text.encode("utf-8", "replace"))
                yield from reader.document(text, name)
                self.documents = reader.documents
            return
        corpus = self.corpus
        sources = [corpus] if isinstance(corpus, str | os.PathLike) else list(corpus)
        reader = Reader(files_of(sources), "text", self.skipped, self.progress)
        for paragraph in reader.paragraphs():
            self.documents, self.bytes = reader.documents, reader.bytes
            yield paragraph
        self.documents, self.bytes = reader.documents, reader.bytes

    def _windows(self, stretch: _Stretch) -> Iterator[Window]:
        encoding = self.tokenizer.encode(stretch.text)
        ids, offsets = encoding.ids, encoding.offsets
        bos = [self.tokenizer.bos_id] if self.tokenizer.prepend_bos else []
        first = [id for id in bos if id is not None]
        step = self.length - len(first)
        other = KINDS.index(OTHER)
        for start in range(0, len(ids), step):
            own = range(start, min(start + step, len(ids)))
            if len(first) + len(own) < 2:
                continue  # one token has nothing before it
            lines = [stretch.line(offsets[i][0]) for i in own]
            yield Window(
                (*first, *(ids[i] for i in own)),
                (*(other for _ in first), *(stretch.kind(*offsets[i]) for i in own)),
                stretch.document,
                (*(lines[0] for _ in first), *lines),
            )


@dataclass(frozen=True)
class _Stretch:
    """Consecutive paragraphs of one document.

    Attributes:
        starts, ends: of each paragraph, in characters.
        numbers: of each paragraph's first line.
    """

    text: str
    document: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    numbers: tuple[int, ...]

    def paragraph(self, at: int) -> int:
        """The paragraph that a character is in, or follows."""
        return max(0, bisect_right(self.starts, at) - 1)

    @cached_property
    def newlines(self) -> list[int]:
        """Where the lines end."""
        return [i for i, character in enumerate(self.text) if character == "\n"]

    def line(self, at: int) -> int:
        """The number of a character's line."""
        i = self.paragraph(at)
        before = bisect_right(self.newlines, self.starts[i] - 1)
        return self.numbers[i] + bisect_right(self.newlines, at - 1) - before

    def kind(self, start: int, end: int) -> int:
        """What a token is, as an index into `KINDS`."""
        token = self.text[start:end]
        text = token.strip()
        if text == ".":
            at = start + token.index(".")
            i = self.paragraph(at)
            place = classify(self.text[self.starts[i] : self.ends[i]], at - self.starts[i])
            return CATEGORIES.index(place)
        if text == ",":
            return KINDS.index(COMMA)
        return KINDS.index(CAPITAL if text[:1].isupper() else OTHER)


def _stretches(paragraphs: Iterator[Paragraph]) -> Iterator[_Stretch]:
    """Paragraphs with the text between them, joined up to about `STRETCH` characters."""
    held: list[Paragraph] = []
    size = 0
    for paragraph in paragraphs:
        if held and (paragraph.document != held[-1].document or size >= STRETCH):
            yield _joined(held)
            held, size = [], 0
        held.append(paragraph)
        size += len(paragraph.text)
    if held:
        yield _joined(held)


def _joined(paragraphs: Sequence[Paragraph]) -> _Stretch:
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    numbers: list[int] = []
    at = 0
    for i, paragraph in enumerate(paragraphs):
        gap = ""
        if i + 1 < len(paragraphs):
            # what comes ahead is the gap and the next paragraph's first characters
            gap = paragraph.ahead.removesuffix(paragraphs[i + 1].text[:AHEAD])
        goes_on = i > 0 and ends[-1] == at  # a line that was cut for its length
        if not goes_on:
            starts.append(at)
            numbers.append(paragraph.number)
            ends.append(at + len(paragraph.text))
        else:
            ends[-1] = at + len(paragraph.text)
        pieces += [paragraph.text, gap]
        at += len(paragraph.text) + len(gap)
    return _Stretch(
        "".join(pieces), paragraphs[0].document, tuple(starts), tuple(ends), tuple(numbers)
    )
