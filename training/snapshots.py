"""When does the behaviour emerge, and which part of it first?

    python -m training.snapshots --corpus DIR --run DIR --out DIR

Measures the flagship at every snapshot of a run, whose token counts double: after a sentence end
the mass on space+Capital and on space+lower, the class contrast, flips under `.` to `,`, the digit
mass after a decimal point, what lower-casing the context takes away, and the gain on a repeated
random sequence (induction). Writes emergence.csv and emergence.svg.

The same contexts at every snapshot, fewer than the evaluation's. Costs half a minute a snapshot.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

from .chart import Series, line_chart
from .corpus import Book, read_corpus, split
from .errors import CheckpointError, TrainingError
from .evaluate import (
    BUNDLED,
    Classes,
    Reader,
    after_stops,
    bits_per_byte,
    case_style,
    decimals,
    flips,
    load_reader,
    repetition_gain,
    stop_contexts,
)
from .windows import EncodedBook, encode_books

#: Contexts for each kind of stop.
PER_KIND = 120
#: The columns that are shares of one, drawn in the figure.
DRAWN = {
    "space+Capital after a sentence end": "space+Capital after .",
    "flips": "flips under . to ,",
    "digit after a decimal point": "digit after 3.",
    "lost in lower case": "lost in lower case",
    "capital, quote or newline after a sentence end": "Capital, quote, newline",
}


def measure(
    reader: Reader,
    books: list[Book],
    encoded: list[EncodedBook],
    contexts: dict[str, list[list[int]]],
) -> dict[str, float]:
    """The flagship's figures for one set of weights."""
    classes = Classes(reader.tokenizer)
    ends = {kind: contexts[kind] for kind in ("sentence end .", "comma")}
    after = after_stops(reader, classes, ends)
    stop = after["sentence end ."]
    style = case_style(reader, classes, ends["sentence end ."])
    digits = decimals(reader, classes, contexts)
    bits = [
        bits_per_byte(reader, tokens, book.text, limit=6_000)
        for book, tokens in zip(books, encoded, strict=True)
    ]
    return {
        "bits per byte": sum(bits) / len(bits),
        "space+Capital after a sentence end": stop["space+Capital"].value,
        "space+lower after a sentence end": stop["space+lower"].value,
        "capital, quote or newline after a sentence end": stop["capital, quote or newline"].value,
        "class contrast": stop["class contrast"].value,
        "space+Capital after a comma": after["comma"]["space+Capital"].value,
        "flips": flips(reader, classes, ends["sentence end ."])["flips"].value,
        "digit after a decimal point": digits["kept-out books, decimal point"].value,
        "digit after a sentence end": digits["kept-out books, sentence end ."].value,
        "lost in lower case": style["several sentences"]["drop in lower case"].value,
        "lost in lower case, one sentence": style["one sentence"]["drop in lower case"].value,
        "repetition gain": repetition_gain(reader).value,
    }


def figure(rows: list[dict[str, float]]) -> str:
    """The shares over tokens seen."""
    tokens = [row["tokens"] for row in rows]
    series = [Series(name, tokens, [row[key] for row in rows], True) for key, name in DRAWN.items()]
    return line_chart(
        series, "What the model has learned by when", "training tokens", "share", (-0.05, 1.0)
    )


def main(arguments: list[str] | None = None) -> int:
    """One line of CSV per snapshot."""
    parser = argparse.ArgumentParser(
        prog="python -m training.snapshots", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of books")
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and figure")
    parser.add_argument("--model", type=Path, default=BUNDLED, help="for config and tokenizer")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    try:
        _, books = split(read_corpus(options.corpus))
        found = sorted((options.run / "snapshots").glob("tokens-*.safetensors"))
        if not found:
            raise CheckpointError(f"No snapshots in {options.run}. Try: the --run of training.")
        reader = load_reader(options.model, found[0])
        encoded = encode_books(books, reader.tokenizer)
        contexts = stop_contexts(reader, encoded, PER_KIND)
        for path in found:
            tokens = int(path.stem.removeprefix("tokens-"))
            reader = load_reader(options.model, path)
            measured = measure(reader, books, encoded, contexts)
            rows.append({"tokens": float(tokens), **measured})
            print(f"{path.stem}: {rows[-1]}", file=sys.stderr)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    with open(options.out / "emergence.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(
                f"{value:.6g}" if key != "tokens" else int(value) for key, value in row.items()
            )
    (options.out / "emergence.svg").write_text(figure(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
