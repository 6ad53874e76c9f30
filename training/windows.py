"""In which pieces, in which order and in which case does the model read the books?

A training window is `<|endoftext|>` and the next T tokens, starting where a paragraph or a sentence
starts, so that BOS at position 0 followed by a short prompt is something the model has seen. No
padding: a window runs on into the following paragraphs, newlines included.

In one epoch every book is cut from its start (a fresh one each time) into windows laid end to end,
the science books several times; then all windows are shuffled. A few per cent are then lower-cased
whole and about one per cent upper-cased, so that how earlier sentences began is evidence of how
the next one will.

Decimals remain rare even so (about 850 in 13.6 M tokens), so each decimal point heads a few more
windows an epoch, beginning at a random sentence shortly before it.

Assumes a sentence ends in `.`, `!` or `?`, closing marks included, before a space and a capital,
and not after a title (`Mr.`) or an initial. A sentence whose first word has no single token
without its leading space is not used as a start. Costs one encoding of the corpus (half a
minute) at the start and about 2 ms a step.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, from_numpy

from .corpus import SCIENCE_RATES, Book
from .errors import CorpusError

SENTENCE_ENDS = {mark + close for mark in ".!?" for close in ("", '"', "'", ")", "'\"")}
TITLES = {"Mr", "Mrs", "Ms", "Dr", "St", "Esq", "Capt", "Prof", "Rev", "Col", "Gen", "Fig", "No"}
LOWER_RATE, UPPER_RATE = 0.05, 0.01
#: Extra windows an epoch for every decimal point.
DECIMAL_RATE = 3


@dataclass(frozen=True)
class EncodedBook:
    """One book as tokens, with the places where a window may start."""

    ids: NDArray[np.uint16]
    starts: list[int]
    #: The token to begin with at each start: a mid-paragraph sentence loses its leading space.
    first: list[int]
    #: Where a point stands between two digits.
    decimals: list[int]
    rate: int


def encode_books(books: list[Book], tokenizer: Tokenizer) -> list[EncodedBook]:
    """Tokens and window starts of every book."""
    texts = {index: tokenizer.decode([index]) for index in range(tokenizer.get_vocab_size())}
    newline = tokenizer.token_to_id("Ċ")
    ends = np.array([text in SENTENCE_ENDS for text in texts.values()])
    # An initial (`U. S.`) or a title before the stop means that the sentence goes on.
    goes_on = np.array([t.strip() in TITLES or len(t.strip()) == 1 for t in texts.values()])
    unspaced = np.full(len(texts), -1)
    for index, text in texts.items():
        if text[:1] == " " and (text[1:2].isupper() or text[1:] in ('"', "'")):
            ids = tokenizer.encode(text[1:], add_special_tokens=False).ids
            unspaced[index] = ids[0] if len(ids) == 1 else -1
    digit = np.array([text.strip().isdigit() for text in texts.values()])
    point = tokenizer.token_to_id(".")
    word_goes_on = np.array([text[:1].isalpha() for text in texts.values()])

    encoded = []
    for book in books:
        lines = tokenizer.encode_batch(book.text.splitlines(keepends=True))
        tokens = np.concatenate([np.array(line.ids, dtype=np.uint16) for line in lines])
        paragraph = np.zeros(len(tokens), bool)
        paragraph[0] = True
        paragraph[1:] = (tokens[:-1] == newline) & (tokens[1:] != newline)
        sentence = np.zeros(len(tokens), bool)
        sentence[2:-1] = (
            ends[tokens[1:-2]]
            & ~goes_on[tokens[:-3]]
            & (unspaced[tokens[2:-1]] >= 0)
            & ~word_goes_on[tokens[3:]]
        )
        starts = np.flatnonzero(paragraph | sentence)
        first = np.where(paragraph[starts], tokens[starts], unspaced[tokens[starts]])
        between = (tokens[1:-1] == point) & digit[tokens[:-2]] & digit[tokens[2:]]
        encoded.append(
            EncodedBook(
                ids=tokens,
                starts=starts.tolist(),
                first=first.tolist(),
                decimals=(np.flatnonzero(between) + 1).tolist(),
                rate=SCIENCE_RATES.get(book.file, 1),
            )
        )
    return encoded


@dataclass
class Position:
    """How far the reading at one window length has come; all there is to resume."""

    epoch: int = 0
    offset: int = 0


class Windows:
    """Batches of windows, reproducible from a seed and one Position per length."""

    def __init__(self, books: list[EncodedBook], tokenizer: Tokenizer, seed: int) -> None:
        """Refuses a corpus too small to cut a batch from only when one is asked for."""
        self.books, self.tokenizer, self.seed = books, tokenizer, seed
        self.bos = tokenizer.get_vocab_size() - 1
        self.epochs: dict[int, tuple[int, NDArray[np.int64], NDArray[np.float64]]] = {}

    def epoch(self, length: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The shuffled (book, start index) pairs of one epoch, and a draw for each one's case."""
        kept = self.epochs.get(length)
        if kept is None or kept[0] != number:
            rng = np.random.default_rng([self.seed, length, number])
            pairs = np.array(
                [
                    (index, start)
                    for index, book in enumerate(self.books)
                    for start in self.read(book, length, rng)
                ],
                dtype=np.int64,
            ).reshape(-1, 2)
            kept = (number, rng.permutation(pairs), rng.random(len(pairs)))
            self.epochs[length] = kept
        return kept[1], kept[2]

    def read(self, book: EncodedBook, length: int, rng: np.random.Generator) -> list[int]:
        """Indices of the starts at which one epoch reads a book."""
        usable = bisect_left(book.starts, len(book.ids) - length + 1)
        starts = [start for _ in range(book.rate) for start in self.cut(book, length, rng)]
        for point in book.decimals * DECIMAL_RATE:
            first = bisect_left(book.starts, point + 2 - length)
            last = min(usable, bisect_left(book.starts, point))
            if first < last:
                starts.append(int(rng.integers(first, last)))
        return starts

    @staticmethod
    def cut(book: EncodedBook, length: int, rng: np.random.Generator) -> list[int]:
        """Indices of starts a window apart, the first drawn from those inside one window."""
        usable = bisect_left(book.starts, len(book.ids) - length + 1)
        if not usable:
            return []
        chosen = [int(rng.integers(max(1, min(usable, bisect_left(book.starts, length)))))]
        while True:
            following = bisect_left(book.starts, book.starts[chosen[-1]] + length)
            if following >= usable:
                return chosen
            chosen.append(following)

    def window(self, book: EncodedBook, start: int, length: int, draw: float) -> NDArray[np.int64]:
        """BOS and `length` tokens, in the case that `draw` decides."""
        begin = book.starts[start]
        if draw < LOWER_RATE + UPPER_RATE:
            # Twice the length, because case changes how many tokens a text takes.
            ids = [book.first[start], *book.ids[begin + 1 : begin + 2 * length].tolist()]
            text = self.tokenizer.decode(ids)
            text = text.lower() if draw < LOWER_RATE else text.upper()
            changed = self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(changed) >= length:
                return np.array([self.bos, *changed[:length]], dtype=np.int64)
        window = np.empty(length + 1, np.int64)
        window[0], window[1] = self.bos, book.first[start]
        window[2:] = book.ids[begin + 1 : begin + length]
        return window

    def batch(
        self, position: Position, size: int, length: int
    ) -> tuple[Int[Tensor, "batch pos_plus_1"], Position]:
        """The next `size` windows, and where the reading then stands."""
        pairs, draws = self.epoch(length, position.epoch)
        if len(pairs) < size:
            raise CorpusError(
                f"The corpus gives {len(pairs)} windows of {length} tokens; a batch needs {size}. "
                f"Give a longer corpus or a smaller --batch-tokens."
            )
        if position.offset + size > len(pairs):
            position = Position(position.epoch + 1, 0)
            pairs, draws = self.epoch(length, position.epoch)
        part = slice(position.offset, position.offset + size)
        rows = [
            self.window(self.books[book], start, length, draw)
            for (book, start), draw in zip(pairs[part].tolist(), draws[part].tolist(), strict=True)
        ]
        return from_numpy(np.stack(rows)), Position(position.epoch, position.offset + size)
