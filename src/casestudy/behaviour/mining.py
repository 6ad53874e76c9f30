"""Which real contexts end in a full stop, and of what kind?

Plain text, JSONL and Parquet are streamed; every full stop is classified by the characters around
it, and a context is a prefix of the tokenised text, from the start of its paragraph (or of a
sentence in it, if the paragraph is too long) to the stop, with the token that followed it.

The kinds of stop are `full_stops.CATEGORIES`; `corpus` reads the files.

If a stop is part of a longer token (`."`, `...`), no prefix of the tokenised text ends in it; such
stops are counted as `inside a longer token` and not sampled.

Sampling keeps the contexts with the smallest hash (of context and seed). So the sample is uniform
over distinct contexts and the same for any order of the files; repeated contexts have the same hash
and need no memory.
Cost: every paragraph is tokenised once; memory for `n` contexts and one block of text, whatever the
size of the input. Assumes English abbreviations and UTF-8.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import regex

from casestudy.behaviour.corpus import AHEAD, Paragraph, Reader, files_of
from casestudy.behaviour.full_stops import CATEGORIES, INSIDE, classify
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError, one_of
from casestudy.model.tokens import Tokenizer

__all__ = (
    *("CATEGORIES", "INSIDE", "MINABLE", "Mined", "Sampling"),
    *("classify", "mine", "read_sampling", "read_shard"),
)

Sampling = Literal["balanced", "natural"]
MINABLE = {"full-stop-capitals": CATEGORIES, "decimal-point": ("decimal point",)}
"""The presets whose prompts end in a full stop, with the kinds of stop that each uses."""

_BATCH = 256
_SENTENCE_START = regex.compile(r"[.!?][\"'”’)\]]*\s+(?=[\p{Lu}\p{N}\"'“‘(\[])")


@dataclass(frozen=True)
class Mined:
    """The sample, with counts.

    Attributes:
        behaviour: the sampled contexts as prompts; the group of each is its category.
        found: the number of stops of each kind in the text, `inside a longer token` included.
        taken: the number of each kind in the sample.
        skipped: the number of contexts, lines and files left out, by reason.
        documents: the number of texts read.
        bytes: their size.
    """

    behaviour: Behaviour
    found: dict[str, int]
    taken: dict[str, int]
    skipped: dict[str, int]
    documents: int
    bytes: int


def mine(
    sources: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    *,
    preset: str = "full-stop-capitals",
    n: int = 1000,
    seed: int = 0,
    sampling: Sampling = "balanced",
    min_tokens: int = 4,
    max_tokens: int = 128,
    shard: tuple[int, int] = (1, 1),
    text_field: str = "text",
    progress: Callable[[int, int], None] | None = None,
) -> Mined:
    """Sample contexts that end in a full stop.

    Args:
        sources: files, or folders of them: `.jsonl`/`.ndjson`, `.parquet`, anything else is plain
            text.
        tokenizer: the model's; a context is a prefix in its tokens.
        preset: gives the behaviour its question and answers.
        n: the largest number of contexts.
        seed: another seed gives another sample.
        sampling: "balanced" takes equally many of each kind where there are enough; "natural"
            takes every context with the same probability.
        min_tokens, max_tokens: a context's length, BOS included.
        shard: (i, k) reads the i-th of k disjoint parts of the lines, counted from 1.
        text_field: the field of JSONL and Parquet rows that has their text.
        progress: called with the bytes read and all bytes.

    Raises: BehaviourError for sources that do not exist, are not text, or have no such context.
    """
    base, kinds = _header(preset)
    _check(n, min_tokens, max_tokens, shard, tokenizer)
    skipped: Counter[str] = Counter()
    reader = Reader(files_of(sources), text_field, skipped, progress)
    if not reader.total:
        raise BehaviourError(
            f"{', '.join(map(str, sources))}: no text, 0 bytes",
            allowed="files with text in which full stops occur",
        )
    sample = _Sample(n, kinds if sampling == "balanced" else None)
    found: Counter[str] = Counter()
    bos = tokenizer.prepend_bos and tokenizer.bos_id is not None
    cutter = _Cutter(tokenizer, min_tokens - bos, max_tokens - bos, bos, seed, skipped)
    for batch in _batches(_of_shard(reader.paragraphs(), shard), _BATCH):
        for kind, candidate in cutter.stops(batch):
            found[kind] += 1
            if candidate is not None and kind in kinds:
                sample.offer(kind, candidate, cutter)
    chosen = sample.chosen()
    if sample.repeats:
        skipped["contexts that repeat one of the sample"] = sample.repeats
    if not chosen:
        raise _no_context(kinds, reader.documents, found, skipped)
    behaviour = Behaviour(
        name=f"{base.name}-mined",
        question=base.question,
        prompts=tuple(_prompt(kind, candidate, tokenizer) for kind, candidate in chosen),
        answers=base.answers,
        about=f"{len(chosen)} contexts that end in a full stop, mined from {reader.documents} "
        f"texts ({sampling} sample, seed {seed}, {min_tokens} to {max_tokens} tokens).",
        classes=base.classes,
        class_contrast=base.class_contrast,
        roles=base.roles,
    )
    taken = Counter(kind for kind, _ in chosen)
    names = (*CATEGORIES, INSIDE)
    return Mined(
        behaviour,
        {kind: found[kind] for kind in names},
        {kind: taken[kind] for kind in kinds},
        dict(skipped),
        reader.documents,
        reader.bytes,
    )


def _no_context(
    kinds: Sequence[str], documents: int, found: Mapping[str, int], skipped: Mapping[str, int]
) -> BehaviourError:
    """The error of texts without a context: what they have instead."""
    texts = f"{documents:,} text" + ("" if documents == 1 else "s")
    left_out = f"; left out: {_counted(skipped)}" if skipped else ""
    if not found:
        return BehaviourError(
            f"no full stop in {texts}{left_out}", hint="Is this the file you meant?"
        )
    return BehaviourError(
        f"no context that ends in a full stop of the kinds asked for in {texts}: found "
        f"{_counted(found)}{left_out}",
        allowed=", ".join(kinds),
        hint="Try a smaller min_tokens= or a larger max_tokens=",
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.items())


def _prompt(kind: str, context: _Candidate, tokenizer: Tokenizer) -> Prompt:
    return Prompt(
        context.text,
        groups=(kind,),
        category=kind,
        document=context.document,
        next_token=context.next_token(tokenizer),
    )


def read_shard(text: str) -> tuple[int, int]:
    """(i, k) of "i/k".

    Raises: BehaviourError for anything else.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise BehaviourError(f"shard {text!r}", allowed="1/k to k/k, such as 2/8")
    return int(parts[0]), int(parts[1])


def read_sampling(text: str) -> Sampling:
    """One of the two ways of sampling.

    Raises: BehaviourError listing them.
    """
    return one_of("sampling", text, get_args(Sampling), BehaviourError)


def _header(preset: str) -> tuple[Behaviour, tuple[str, ...]]:
    from casestudy.behaviour.presets import preset as named

    base = named(preset)
    if preset not in MINABLE:
        raise BehaviourError(
            f"the prompts of {preset!r} are made from templates, not mined",
            allowed=", ".join(MINABLE),
        )
    return base, MINABLE[preset]


def _check(
    n: int, min_tokens: int, max_tokens: int, shard: tuple[int, int], tokenizer: Tokenizer
) -> None:
    if n < 1:
        raise BehaviourError(f"n is {n}", allowed="at least 1")
    if not 1 <= min_tokens <= max_tokens <= tokenizer.n_ctx:
        raise BehaviourError(
            f"contexts of {min_tokens} to {max_tokens} tokens",
            allowed=f"1 to {tokenizer.n_ctx}, which is as much as the model reads",
        )
    if not 1 <= shard[0] <= shard[1]:
        raise BehaviourError(f"shard {shard[0]}/{shard[1]}", allowed="1/k to k/k")


# Where is it in the tokens?


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One context that may be sampled."""

    text: str
    ids: Sequence[int]
    following: Sequence[int]
    document: str
    place: tuple[int, int]
    priority: int

    def next_token(self, tokenizer: Tokenizer) -> str | None:
        """The token that followed; if it is part of a character, with the rest of the character."""
        for k in range(1, len(self.following) + 1):
            text = str(
                tokenizer.backend.decode(list(self.following[:k]), skip_special_tokens=False)
            )
            if "�" not in text:
                return text
        return None


class _Cutter:
    """Finds the stops of paragraphs, and the contexts that end there."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        shortest: int,
        longest: int,
        bos: bool,
        seed: int,
        skipped: Counter[str],
    ) -> None:
        self.tokenizer = tokenizer
        self.shortest, self.longest, self.bos = shortest, longest, bos
        self.key = f"casestudy {seed}".encode()
        self.skipped = skipped

    def stops(self, batch: Sequence[Paragraph]) -> Iterator[tuple[str, _Candidate | None]]:
        """Every full stop with its kind, and its context (None if there is none)."""
        wanted = [p for p in batch if "." in p.text]
        self.tokenizer.backend.encode_special_tokens = True
        texts = [p.text + p.ahead for p in wanted]
        for paragraph, encoding in zip(
            wanted,
            self.tokenizer.backend.encode_batch(texts, add_special_tokens=False),
            strict=True,
        ):
            for start, end in self.windows(paragraph.text, encoding.offsets):
                yield from self.of_window(paragraph, start, end, encoding if start == 0 else None)

    def windows(self, text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The paragraph, or stretches of it that start with a sentence and fit into a context."""
        if len(offsets) <= self.longest:
            return [(0, len(text))]
        starts = [0, *(m.end() for m in _SENTENCE_START.finditer(text))]
        firsts = [a for a, _ in offsets]
        windows = []
        this = 0
        while this < len(starts):
            # one token less than fits: without its leading space the first may become two tokens
            token = max(bisect_right(firsts, starts[this]) - 1, 0) + self.longest - 1
            reach = firsts[token] if token < len(firsts) else len(text)
            following = len(starts) if reach >= len(text) else bisect_right(starts, reach) - 1
            # a sentence longer than a context is a stretch of its own
            following = max(following, this + 1)
            end = starts[following] if following < len(starts) else len(text)
            windows.append((starts[this], end))
            this = following
        return windows

    def of_window(
        self, paragraph: Paragraph, start: int, end: int, encoding: Any
    ) -> Iterator[tuple[str, _Candidate | None]]:
        """The stops of one stretch, each with the prefix that ends there."""
        if "." not in paragraph.text[start:end]:
            return
        if encoding is None:
            text = (paragraph.text + paragraph.ahead)[start : end + AHEAD]
            encoding = self.tokenizer.backend.encode(text, add_special_tokens=False)
        # if a line was cut for its length, the paragraph continues
        goes_on = paragraph.ahead[:1] not in ("", "\n")
        around = paragraph.text + paragraph.ahead if goes_on else paragraph.text
        ids, offsets = encoding.ids, encoding.offsets
        firsts = [a for a, _ in offsets]
        at = paragraph.text.find(".", start)
        while 0 <= at < end:
            token = bisect_right(firsts, at - start) - 1
            a, b = offsets[token]
            own = paragraph.text[start + a : start + b].strip() == "."
            if not own:
                yield INSIDE, None
            else:
                kind = classify(around, at)
                yield kind, self.candidate(paragraph, start, at, ids, token)
            at = paragraph.text.find(".", at + 1)

    def candidate(
        self, paragraph: Paragraph, start: int, at: int, ids: Sequence[int], token: int
    ) -> _Candidate | None:
        if token + 1 > self.longest:
            self.skipped[f"contexts longer than {self.longest + self.bos} tokens"] += 1
            return None
        if token + 1 < self.shortest:
            self.skipped[f"contexts shorter than {self.shortest + self.bos} tokens"] += 1
            return None
        text = paragraph.text[start : at + 1]
        digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8, key=self.key)
        return _Candidate(
            text,
            ids[: token + 1],
            ids[token + 1 : token + 5],
            paragraph.document,
            (paragraph.number, at),
            int.from_bytes(digest.digest(), "big"),
        )

    def same_alone(self, candidate: _Candidate) -> bool:
        """Whether the context alone has the same tokens as the prefix."""
        if self.tokenizer.ids(candidate.text) == list(candidate.ids):
            return True
        self.skipped["contexts that are tokenised otherwise alone"] += 1
        return False


# Which are kept?


@dataclass
class _Sample:
    """The contexts with the smallest hashes: n in total, or equally many of each kind."""

    n: int
    kinds: Sequence[str] | None
    repeats: int = 0
    pools: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[tuple[str, int], tuple[str, _Candidate]] = field(default_factory=dict)

    def offer(self, kind: str, candidate: _Candidate, cutter: _Cutter) -> None:
        """Keep a context as long as it may belong to the sample."""
        pool = kind if self.kinds is not None else ""
        heap = self.pools.setdefault(pool, [])
        key = (pool, candidate.priority)
        if key in self.kept:
            self.repeats += 1
            old = self.kept[key][1]
            # of equal ones keep the same one, whatever their order
            if (candidate.document, candidate.place) < (old.document, old.place):
                self.kept[key] = (kind, candidate)
            return
        full = len(self.kept) >= self.n
        if full and self.largest() == pool and candidate.priority > -heap[0]:
            return
        if not cutter.same_alone(candidate):
            return
        heapq.heappush(heap, -candidate.priority)
        self.kept[key] = (kind, candidate)
        if len(self.kept) > self.n:
            pool = self.largest()
            del self.kept[pool, -heapq.heappop(self.pools[pool])]

    def largest(self) -> str:
        """The largest pool (the last of equal ones), from which a context is removed."""
        order = self.kinds if self.kinds is not None else ("",)
        return max(order, key=lambda pool: (len(self.pools.get(pool, ())), order.index(pool)))

    def chosen(self) -> list[tuple[str, _Candidate]]:
        """The sample by document and place; a text that two kinds share counts once."""
        order = sorted(self.kept.values(), key=lambda k: (k[1].document, k[1].place))
        once = {candidate.priority: (kind, candidate) for kind, candidate in reversed(order)}
        return list(reversed(once.values()))


def _of_shard(paragraphs: Iterable[Paragraph], shard: tuple[int, int]) -> Iterator[Paragraph]:
    """The paragraphs of one shard; equal texts are in the same shard."""
    place, count = shard
    for paragraph in paragraphs:
        if count == 1 or zlib.crc32(paragraph.text.encode()) % count == place - 1:
            yield paragraph


def _batches(items: Iterator[Paragraph], size: int) -> Iterator[list[Paragraph]]:
    batch: list[Paragraph] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
