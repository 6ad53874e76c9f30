"""Which real contexts end in a full stop, and of what kind?

Plain text, JSONL and Parquet are streamed; every full stop is classified by the characters around
it, and a context is a prefix of the tokenised text, from the start of its paragraph (or of a
sentence in it, where the paragraph is too long) to the stop, with the token that truly followed.

The kinds are tried in this order, since a stop can be several things at once:

    decimal point             a digit on its right
    ellipsis                  another stop beside it, or a space away
    end of paragraph          nothing but white space up to the paragraph's end
    before a closing mark     a closing quote or bracket on its right
    URL or file name          inside www.example.org, main.py
    initial                   J. K.
    abbreviation              Mr., e.g., U.S.; a list of English ones below
    sentence end              white space on its right, then no lower-case letter
    other                     the rest, such as abbreviations this module does not know

A stop that shares its token with other characters (`."`, `...`) ends no prefix of the tokenised
text; such stops are counted as `inside a longer token` and not sampled.

Sampling keeps the contexts whose hash with the seed is smallest. So it is uniform over distinct
contexts, the same for any order of the files, and repeats cost no memory: they have the same hash.
Cost: every paragraph is tokenised once; memory for `n` contexts and one block of text, whatever the
size of the input. Assumes English abbreviations and UTF-8.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import regex

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError, one_of
from casestudy.model.tokens import Tokenizer

CATEGORIES = (
    "sentence end",
    "abbreviation",
    "initial",
    "decimal point",
    "ellipsis",
    "URL or file name",
    "before a closing mark",
    "end of paragraph",
    "other",
)
INSIDE = "inside a longer token"
Sampling = Literal["balanced", "natural"]
MINABLE = {"full-stop-capitals": CATEGORIES, "decimal-point": ("decimal point",)}
"""The presets whose prompts are contexts that end in a full stop, and the kinds each is about."""

BLOCK = 1 << 20
LONGEST_LINE = 1 << 18
"""A longer line is read in pieces of at most so many bytes, cut after a sentence if possible."""

_BATCH = 256
_AHEAD = 24
_CLOSING = "\"'”’»)]}›"
_SHORT = """
Mr Mrs Ms Messrs Mme Mlle Dr Drs Prof Rev Hon St Mt Ft Jr Sr Esq Gen Col Capt Lt Lieut Maj Sgt Corp
Cpl Adm Gov Sen Rep Pres Supt vs etc cf al viz ibid op cit ca approx vol Vol pp ch chap Chap eq Eq
sec Sec dept est Inc Ltd Co Bros Jan Feb Mar Apr Jun Jul Aug Sept Sep Oct Nov Dec Tues Wed Thurs Fri
ed eds trans lb lbs oz ft hrs Nos nos Ave Blvd Rd Ph.D M.D B.A M.A D.C B.C A.D A.M P.M U.S U.K U.S.A
U.N U.S.S.R
"""
_ABBREVIATIONS = frozenset(_SHORT.split())
_BEFORE_A_NUMBER = frozenset(("No", "no", "p", "Art", "art", "fig", "figs", "Fig", "Figs"))
"""Also words of their own, so abbreviations only with a digit on their right."""

_WORD = regex.compile(r"[\p{L}\p{N}]+(?:\.[\p{L}\p{N}]+)*\Z")
_MORE = regex.compile(r"(?:\.\p{L}+(?=\.))*")
_URL = regex.compile(
    r"(?:https?://|www\.)\S+"
    r"|[\w+-]+(?:\.[\w+-]+)*\.(?:com|org|net|edu|gov|io|co|uk|de|fr|info|txt|md|py|js|c|h|cpp|rs"
    r"|java|json|jsonl|csv|html?|xml|ya?ml|toml|pdf|png|jpe?g|gif|zip|gz|tar|exe|docx?|xlsx?)\b"
)
_ELLIPSIS = regex.compile(r"\.(?:[ \u00a0]?\.)+")
_SENTENCE_START = regex.compile(r"[.!?][\"'”’)\]]*\s+(?=[\p{Lu}\p{N}\"'“‘(\[])")


@dataclass(frozen=True)
class Mined:
    """What mining found.

    Attributes:
        behaviour: the sampled contexts as prompts; each one's group is its category.
        found: how many stops of each kind there were, `inside a longer token` among them.
        taken: how many of each kind are in the sample.
        skipped: what was left out, by reason: contexts, lines and files.
        documents: how many texts were read.
        bytes: how much of them.
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
        preset: whose question and answers the prompts get.
        n: how many contexts to take, at most.
        seed: another sample for another seed.
        sampling: "balanced" takes as many of each kind as it can; "natural" takes every context
            with the same chance.
        min_tokens, max_tokens: a context's length, BOS included.
        shard: (i, k) reads the i-th of k disjoint parts of the lines, counted from 1.
        text_field: where JSONL and Parquet rows keep their text.
        progress: told bytes read and bytes in all.

    Raises: BehaviourError for sources that are not there, not text, or hold no such context.
    """
    base, kinds = _header(preset)
    _check(n, min_tokens, max_tokens, shard, tokenizer)
    skipped: Counter[str] = Counter()
    reader = _Reader(_files(sources), text_field, skipped, progress)
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
        raise BehaviourError(
            f"no context that ends in a full stop ({', '.join(kinds[:2])}, …) in "
            f"{reader.documents} texts; found {dict(found) or 'no full stop at all'}, left out "
            f"{dict(skipped) or 'nothing'}",
            hint="Is this the file you meant? Try a smaller --min-tokens or a larger --max-tokens",
        )
    prompts = tuple(
        Prompt(
            c.text,
            groups=(kind,),
            category=kind,
            document=c.document,
            next_token=c.next_token(tokenizer),
        )
        for kind, c in chosen
    )
    behaviour = Behaviour(
        name=f"{base.name}-mined",
        question=base.question,
        prompts=prompts,
        answers=base.answers,
        about=f"{len(prompts)} contexts that end in a full stop, mined from {reader.documents} "
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


# What kind of stop is it?


def classify(text: str, at: int) -> str:
    """The kind of the full stop at a character of a paragraph; see the module's list."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if after.isdigit():
        return "decimal point"
    if "." in (before, after) or _spaced_ellipsis(text, at):
        return "ellipsis"
    rest = text[at + 1 : at + 64].lstrip()
    if not rest and not text[at + 1 :].strip():
        return "end of paragraph"
    if after and after in _CLOSING:
        return "before a closing mark"
    if _in_url(text, at):
        return "URL or file name"
    found = _WORD.search(text[max(0, at - 40) : at])
    stem = found.group() if found else ""
    more = _MORE.match(text[at : at + 12])
    # the first stop of "e.g." is of the same kind as its second
    whole = stem + (more.group() if more else "")
    if whole in _ABBREVIATIONS or (whole in _BEFORE_A_NUMBER and rest[:1].isdigit()):
        return "abbreviation"
    if whole and all(len(letter) == 1 and letter.isalpha() for letter in whole.split(".")):
        if _is_initial(whole, rest):
            return "initial"
        if "." in whole or (whole.islower() and (rest[:1].islower() or rest[:1].isdigit())):
            return "abbreviation"
    if after.isspace() and not rest[:1].islower() and not _is_list_number(text, at, stem):
        return "sentence end"
    return "other"


def _spaced_ellipsis(text: str, at: int) -> bool:
    start = max(0, at - 12)
    return any(
        match.start() <= at - start < match.end()
        for match in _ELLIPSIS.finditer(text[start : at + 13])
    )


def _is_initial(letters: str, rest: str) -> bool:
    """One capital letter, or several with stops between, before a name: "J. K.", "J.R.R."."""
    if not letters.replace(".", "").isupper() or not rest[:1].isupper():
        return False
    # "and so did I. Then" ends a sentence; "I. K. Brunel" does not
    return letters != "I" or rest[1:2] == "."


def _in_url(text: str, at: int) -> bool:
    if text[at + 1 : at + 2].isspace():
        return False
    start = max(text.rfind(" ", max(0, at - 200), at), text.rfind("\n", max(0, at - 200), at)) + 1
    return any(
        start + match.start() <= at < start + match.end()
        for match in _URL.finditer(text[start : at + 200])
    )


def _is_list_number(text: str, at: int, stem: str) -> bool:
    return stem.isdigit() and not text[: at - len(stem)].strip()


# Where is it in the tokens?


@dataclass(frozen=True, slots=True)
class _Paragraph:
    text: str
    ahead: str  # what follows in the document, so that the next token is the true one
    document: str
    number: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One context, before anybody has decided to keep it."""

    text: str
    ids: Sequence[int]
    following: Sequence[int]
    document: str
    place: tuple[int, int]
    priority: int

    def next_token(self, tokenizer: Tokenizer) -> str | None:
        """The token that truly followed; with the rest of its character where it is only a part."""
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

    def stops(self, batch: Sequence[_Paragraph]) -> Iterator[tuple[str, _Candidate | None]]:
        """Every full stop with its kind; without a context where there can be none."""
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
            # one token less than fits: without its leading space, the first may become two
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
        self, paragraph: _Paragraph, start: int, end: int, encoding: Any
    ) -> Iterator[tuple[str, _Candidate | None]]:
        """The stops of one stretch, each with the prefix that ends there."""
        if "." not in paragraph.text[start:end]:
            return
        if encoding is None:
            text = (paragraph.text + paragraph.ahead)[start : end + _AHEAD]
            encoding = self.tokenizer.backend.encode(text, add_special_tokens=False)
        # where a line was cut for its length, the paragraph goes on
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
        self, paragraph: _Paragraph, start: int, at: int, ids: Sequence[int], token: int
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
        """Whether the context by itself has the tokens it has as a prefix."""
        if self.tokenizer.ids(candidate.text) == list(candidate.ids):
            return True
        self.skipped["contexts that are tokenised otherwise alone"] += 1
        return False


# Which are kept?


@dataclass
class _Sample:
    """The contexts with the smallest hashes: n in all, or shared evenly among kinds."""

    n: int
    kinds: Sequence[str] | None
    repeats: int = 0
    pools: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[tuple[str, int], tuple[str, _Candidate]] = field(default_factory=dict)

    def offer(self, kind: str, candidate: _Candidate, cutter: _Cutter) -> None:
        """Keep a context, for now, if it may belong to the sample."""
        pool = kind if self.kinds is not None else ""
        heap = self.pools.setdefault(pool, [])
        key = (pool, candidate.priority)
        if key in self.kept:
            self.repeats += 1
            old = self.kept[key][1]
            # the same one of several whatever the order they come in
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
        """The fullest pool, the last of equals: what has to give way."""
        order = self.kinds if self.kinds is not None else ("",)
        return max(order, key=lambda pool: (len(self.pools.get(pool, ())), order.index(pool)))

    def chosen(self) -> list[tuple[str, _Candidate]]:
        """The sample by document and place; a text that two kinds share counts once."""
        order = sorted(self.kept.values(), key=lambda k: (k[1].document, k[1].place))
        once = {candidate.priority: (kind, candidate) for kind, candidate in reversed(order)}
        return list(reversed(once.values()))


# What is read?


class _Reader:
    """Streams files as paragraphs, counting what it cannot read."""

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

    def paragraphs(self) -> Iterator[_Paragraph]:
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
        """Whether a file is text; one the user named must be."""
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
        """A file's lines without their ends; None where a line goes on in the next piece."""
        for line, whole in _byte_lines(path, LONGEST_LINE if cut else 64 * LONGEST_LINE, self.read):
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
        self.bytes += count
        if self.progress is not None:
            self.progress(self.bytes, self.total)

    def jsonl(self, path: Path, name: str) -> Iterator[_Paragraph]:
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

    def parquet(self, path: Path, name: str) -> Iterator[_Paragraph]:
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

    def document(self, text: str, name: str) -> Iterator[_Paragraph]:
        """The paragraphs of a text that is already in memory."""
        self.documents += 1
        lines = text.splitlines()
        return _paragraphs(iter(lines), name, _is_wrapped(lines[:200]))


def _files(sources: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, bool]]:
    """The files to read, each with whether the user named it; a folder's are sorted."""
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
        raise BehaviourError("no files to read", allowed="at least one file of text")
    return found


def _byte_lines(
    path: Path, longest: int, read: Callable[[int], None]
) -> Iterator[tuple[bytes, bool]]:
    """Lines without their ends, and whether each is whole; an overlong one comes in pieces."""
    rest = b""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            read(len(block))
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                pieces = [*_pieces(line.removesuffix(b"\r"), longest)]
                yield from ((piece, i == len(pieces) - 1) for i, piece in enumerate(pieces))
            if len(rest) > longest:
                *pieces, rest = _pieces(rest, longest)
                yield from ((piece, False) for piece in pieces)
    if rest:
        pieces = [*_pieces(rest, longest)]
        yield from ((piece, i == len(pieces) - 1) for i, piece in enumerate(pieces))


def _pieces(line: bytes, longest: int) -> Iterator[bytes]:
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
    """Whether lines are broken to a width, so that only a blank line ends a paragraph."""
    lengths = sorted(len(line) for line in lines if line.strip())
    blank = sum(not line.strip() for line in lines)
    return len(lengths) > 9 and blank > 0 and lengths[-1] <= 100 and lengths[len(lengths) // 2] > 40


def _paragraphs(
    lines: Iterator[str] | Iterator[str | None], document: str, wrapped: bool
) -> Iterator[_Paragraph]:
    """Paragraphs, each with the text that follows it; a line is one, unless lines are wrapped."""
    held: tuple[int, str] | None = None
    gap = ""
    for number, text, separator in _stretches(lines, wrapped):
        if text.strip():
            if held is not None:
                yield _Paragraph(held[1], gap + text[:_AHEAD], document, held[0])
            held, gap = (number, text), separator
        elif held is not None:
            gap += text + separator
    if held is not None:
        yield _Paragraph(held[1], gap, document, held[0])


def _stretches(
    lines: Iterator[str] | Iterator[str | None], wrapped: bool
) -> Iterator[tuple[int, str, str]]:
    """(line number, text, what separates it from the next) of lines or of blank-line blocks."""
    block: list[str] = []
    first = 0
    number = 0
    line: str | None
    pending: str | None = None
    for line in lines:
        if line is None:
            # the line goes on: what follows is no new paragraph, and no newline comes between
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


def _of_shard(paragraphs: Iterable[_Paragraph], shard: tuple[int, int]) -> Iterator[_Paragraph]:
    """The part of the paragraphs whose text falls into a shard; equal texts fall into the same."""
    place, count = shard
    for paragraph in paragraphs:
        if count == 1 or zlib.crc32(paragraph.text.encode()) % count == place - 1:
            yield paragraph


def _batches(items: Iterator[_Paragraph], size: int) -> Iterator[list[_Paragraph]]:
    batch: list[_Paragraph] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
