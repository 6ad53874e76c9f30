"""Which books does the model learn from, and which are kept out?

Assumes a folder of plain text, one paragraph per line and a blank line between chapters, with a
MANIFEST.tsv naming file, title, author and source. A paragraph break is therefore one newline and
a chapter break two, and both are kept as they are: the model learns `\n` after a full stop as one
of the ways a sentence can be followed, as GPT-2 did.

Costs one read of every file (57 MB for the shipped model's corpus).
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from .errors import CorpusError

#: Kept out of tokenizer and model, one book per genre. No author here also wrote a training book,
#: so that a familiar voice cannot flatter the figures.
HELD_OUT = {
    "h-g-wells_the-war-of-the-worlds.txt": "science fiction",
    "eleanor-h-porter_pollyanna.txt": "children's novel",
    "oscar-wilde_the-picture-of-dorian-gray.txt": "gothic novel",
    "john-buchan_the-thirty-nine-steps.txt": "thriller",
    "john-stuart-mill_on-liberty.txt": "philosophy",
    "george-c-comstock_a-text-book-of-astronomy.txt": "science",
}

#: How often a book is read while a novel is read once. Decimals are rare in prose: the novels
#: hold about one per megabyte, these hold nearly all there are, so they are read more often.
SCIENCE_RATES = {
    "babcock-wilcox_steam-its-generation-and-use.txt": 4,
    "mcpherson-henderson_an-elementary-study-of-chemistry.txt": 4,
    "michael-faraday_experimental-researches-in-electricity.txt": 3,
    "bertha-m-clark_general-science.txt": 3,
    "alfred-north-whitehead_an-introduction-to-mathematics.txt": 3,
    "robert-stawell-ball_the-story-of-the-heavens.txt": 2,
    "albert-einstein_relativity.txt": 2,
    "michael-faraday_the-chemical-history-of-a-candle.txt": 2,
    "simon-newcomb_side-lights-on-astronomy.txt": 2,
    "william-harmon-norton_the-elements-of-geology.txt": 2,
    "robert-stawell-ball_great-astronomers.txt": 2,
}


@dataclass(frozen=True)
class Book:
    """One text, and where it came from."""

    file: str
    title: str
    author: str
    source: str
    text: str


def read_text(path: Path) -> str:
    """The text of one file, refused unless it is UTF-8 prose."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}. "
            f"Only UTF-8 is read. Try: iconv -f LATIN1 -t UTF-8 (or -f UTF-16) on that file."
        ) from error
    if "\0" in text:  # UTF-16 without a mark decodes as UTF-8 when the text is plain ASCII
        raise CorpusError(
            f"{path} holds NUL bytes, so it is probably UTF-16. Only UTF-8 is read. "
            f"Try: iconv -f UTF-16LE -t UTF-8 on that file."
        )
    return text.replace("\r\n", "\n").strip("\n") + "\n"


def read_corpus(folder: Path) -> list[Book]:
    """Every book that the manifest lists, in the manifest's order."""
    manifest = folder / "MANIFEST.tsv"
    if not folder.is_dir():
        raise CorpusError(
            f"No corpus folder at {folder}. Expected a folder of .txt files with a MANIFEST.tsv. "
            f"Try: --corpus DIR with the folder that holds the books."
        )
    if not manifest.is_file():
        raise CorpusError(
            f"{folder} has no MANIFEST.tsv. Expected one with the columns file, title, author and "
            f"source. Try: --corpus DIR with the folder that holds both."
        )
    rows = list(csv.DictReader(read_text(manifest).splitlines(), delimiter="\t"))
    columns = {"file", "title", "author", "source"}
    if not rows:
        raise CorpusError(f"{manifest} lists no books, so there is nothing to learn from.")
    if missing := columns - set(rows[0]):
        raise CorpusError(f"{manifest} lacks the columns {sorted(missing)}; it has {[*rows[0]]}.")
    books = []
    for row in rows:
        text = read_text(folder / row["file"])
        if not text.strip():
            raise CorpusError(f"{folder / row['file']} is empty. Remove it from {manifest}.")
        books.append(Book(row["file"], row["title"], row["author"], row["source"], text))
    return books


def split(books: list[Book]) -> tuple[list[Book], list[Book]]:
    """(training books, kept-out books)."""
    kept_out = [book for book in books if book.file in HELD_OUT]
    return [book for book in books if book.file not in HELD_OUT], kept_out
