"""What has the model learned, on books that it never read?

    python -m training.evaluate --corpus DIR [--model DIR] [--json FILE]

Six kept-out books, one per genre, no author of which wrote a training book. For each measurement:
what is asked, of how many contexts, and its goal where there is one.

- Bits per byte: -log2 p of every token given at least 128 earlier ones (BOS included; fewer at a
  book's start), over the bytes of the text, newlines included.
- After each kind of full stop: the probability mass on space+Capital, space+lower case, quotation
  mark, newline and digit. Contexts are 96 tokens or a little more, from a paragraph or sentence
  start, as in training.
- Flip: `.` replaced by `,`. Right when space+Capital is above space+lower after the stop and below
  it after the comma; ` I` counts as neither.
- Case style: the same context in lower case, whole or in its first letter only.
- Decimals: digit mass after the point of the kept-out books' decimals (nearly all the astronomy's),
  of those with another decimal before them, and after a few templates in numeric contexts, against
  the same mass after a sentence's end.

Float32 throughout. Costs about three minutes on two cores, most of it the bits per byte.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import HELD_OUT, Book, read_corpus, split
from .errors import CheckpointError, CorpusError, TrainingError
from .model import Kernels, ModelConfig, Parameters, final_norm, keep_freed_memory
from .windows import TITLES, EncodedBook, encode_books

BUNDLED = Path(__file__).parents[1] / "src/casestudy/model/bundled/tiny"
CONTEXT = 96
KINDS = (
    "sentence end .",
    "sentence end ?",
    "sentence end !",
    "closing quote",
    "after a number",
    "after a title",
    "after an initial",
    "decimal point",
    "comma",
)
NUMERIC = (
    "The specific gravity of the liquid was 3.",
    "The diameter of the wire is 0.",
    "In the first experiment the loss was 2.6 grains, and in the second it was 3.",
    "The distance is 1.5 miles, or about 2.",
    "The value of the ratio lies between 3.1 and 3.",
    "One cubic foot of water weighs 62.4 pounds, and one of ice weighs 57.",
    "The temperature rose from 98.2 degrees to 99.",
    "The density of the Earth is 5.5, and that of the Moon is 3.",
)
SENTENCES = (
    "He went back to the house.",
    "She looked at him for a long time.",
    "They sat down at the table.",
    "The old man opened the door.",
    "I do not know what you mean.",
    "The children ran into the garden.",
    "We came at last to the river.",
    "This is a sentence.",
)
PROMPTS = ("", "The captain looked at the", "When the water is heated,")


@dataclass(frozen=True)
class Reader:
    """A trained model with its tokenizer, in float32."""

    weights: Parameters
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def bos(self) -> int:
        """`<|endoftext|>`, the last token."""
        return self.config.d_vocab - 1

    @torch.no_grad()
    def final(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """What the unembedding reads."""
        kernels = Kernels(gelu=partial(F.gelu, approximate="tanh"))
        return final_norm(self.weights, tokens, self.config, kernels, torch.float32)

    def log_probs(self, contexts: list[list[int]]) -> Float[Tensor, "context d_vocab"]:
        """log p(next token) after each context; BOS is prepended here."""
        order = sorted(range(len(contexts)), key=lambda index: len(contexts[index]))
        out = torch.empty(len(contexts), self.config.d_vocab)
        W_U = self.weights["transformer.wte.weight"].T
        for begin in range(0, len(order), 64):
            part = order[begin : begin + 64]
            lengths = torch.tensor([len(contexts[index]) for index in part])
            # Right padding cannot be seen from the last real position of a causal model.
            rows = torch.full((len(part), int(lengths.max()) + 1), self.bos)
            for row, index in enumerate(part):
                rows[row, 1 : lengths[row] + 1] = torch.tensor(contexts[index])
            final = self.final(rows)[torch.arange(len(part)), lengths]
            out[part] = (final @ W_U).log_softmax(-1)
        return out

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, BOS not among them."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def load_reader(folder: Path, weights: Path | None = None) -> Reader:
    """The model in a Hugging Face folder, or other weights under the same configuration."""
    weights = weights or folder / "model.safetensors"
    for path in (folder / "config.json", folder / "tokenizer.json", weights):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. Try: --model with a Hugging Face folder.")
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = ModelConfig(
        n_layers=stored["n_layer"],
        d_model=stored["n_embd"],
        n_heads=stored["n_head"],
        n_ctx=stored["n_positions"],
        d_vocab=stored["vocab_size"],
        eps=stored["layer_norm_epsilon"],
    )
    values = {name: value.float() for name, value in load_file(weights).items()}
    return Reader(values, config, Tokenizer.from_file(str(folder / "tokenizer.json")))


class Classes:
    """Token classes by what a token looks like when decoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """One boolean mask over the vocabulary per class."""
        size = tokenizer.get_vocab_size()
        texts = [tokenizer.decode([index]) for index in range(size - 1)] + [""]

        def mask(pattern: str) -> Tensor:
            return torch.tensor([re.match(pattern, text) is not None for text in texts])

        self.capital = mask(r" [^\W\d_]") & mask(r" [A-ZÀ-Þ]")
        self.lower = mask(r" [^\W\d_]") & ~self.capital
        self.i = mask(r" I$")
        self.quote = mask(r" ?[\"']")
        self.newline = mask(r"\n")
        self.digit = mask(r"\d")


def mass(log_probs: Float[Tensor, "context d_vocab"], which: Tensor) -> Float[Tensor, " context"]:
    """Probability of a class of tokens."""
    return log_probs[:, which].exp().sum(-1)


@dataclass(frozen=True)
class Mean:
    """A mean over contexts with its 95 % interval (normal)."""

    value: float
    n: int
    half_width: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Of one value per context."""
        spread = values.double().std().item() if len(values) > 1 else math.nan
        return cls(values.double().mean().item(), len(values), 1.96 * spread / len(values) ** 0.5)

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.half_width:.3f} (n={self.n:,})"


def bits_per_byte(reader: Reader, book: EncodedBook, text: str, limit: int | None = None) -> float:
    """Windows of the whole context, half overlapping: the first half is only context."""
    length, stride = reader.config.n_ctx - 1, reader.config.n_ctx // 2
    ids = torch.from_numpy(book.ids.astype(np.int64))[:limit]
    W_U = reader.weights["transformer.wte.weight"].T
    nats, begins = 0.0, list(range(0, max(1, len(ids) - length + stride), stride))
    for batch in (begins[i : i + 16] for i in range(0, len(begins), 16)):
        windows = [ids[begin : begin + length] for begin in batch]
        rows = torch.full((len(batch), length + 1), reader.bos)
        for row, window in enumerate(windows):
            rows[row, 1 : len(window) + 1] = window
        final = reader.final(rows[:, :-1])
        for row, (begin, window) in enumerate(zip(batch, windows, strict=True)):
            scored = 0 if begin == 0 else length - stride
            logits = final[row, scored : len(window)] @ W_U
            chosen = logits.log_softmax(-1).gather(-1, window[scored:, None])
            nats -= chosen.sum().item()
    bytes_scored = (
        len(text.encode()) if limit is None else len(reader.tokenizer.decode(ids.tolist()).encode())
    )
    return nats / math.log(2) / bytes_scored


def kind_of_stop(texts: list[str], ids: NDArray[np.uint16], at: int) -> str | None:
    """Which of KINDS the token at `at` is, judged by the book's own text; None for other tokens."""
    before, here, after = (texts[ids[at + step]] for step in (-1, 0, 1))
    goes_on_as_sentence = re.match(r"\n| [A-ZÀ-Þ\"']", after) is not None
    if here == ",":
        return "comma" if re.match(r" [^\W\d_]", after) else None
    if here == "." and before.strip().isdigit():
        return (
            "decimal point"
            if after.isdigit()
            else "after a number"
            if goes_on_as_sentence
            else None
        )
    if here == "." and before.strip() in TITLES:
        return "after a title"
    if here == "." and re.fullmatch(r" ?[A-Z]", before) and before != " I":
        return "after an initial"
    if here in (".", "?", "!"):
        return f"sentence end {here}" if goes_on_as_sentence else None
    return "closing quote" if here in ('."', '?"', '!"') and goes_on_as_sentence else None


def stop_contexts(
    reader: Reader, books: list[EncodedBook], per_kind: int, seed: int = 0
) -> dict[str, list[list[int]]]:
    """Contexts that end in each kind of stop, drawn evenly from all books."""
    texts = [reader.tokenizer.decode([index]) for index in range(reader.bos)]
    found: dict[str, list[list[int]]] = {kind: [] for kind in KINDS}
    rng = np.random.default_rng(seed)
    for book in books:
        places: dict[str, list[int]] = {kind: [] for kind in KINDS}
        for at in range(CONTEXT, len(book.ids) - 1):
            if kind := kind_of_stop(texts, book.ids, at):
                places[kind].append(at)
        for kind, ats in places.items():
            chosen = rng.permutation(ats)[: per_kind // len(books)].tolist()
            if kind in ("decimal point", "after a number"):  # nearly all are in one book
                chosen = ats[:per_kind]
            found[kind] += [context_before(book, at) for at in chosen]
    return found


def context_before(book: EncodedBook, at: int) -> list[int]:
    """Tokens up to and with `at`, from the last start at least CONTEXT before it."""
    index = max(0, int(np.searchsorted(book.starts, at - CONTEXT, side="right")) - 1)
    begin = max(book.starts[index], at - 2 * CONTEXT)
    first = book.first[index] if begin == book.starts[index] else int(book.ids[begin])
    return [first, *book.ids[begin + 1 : at + 1].tolist()]


def after_stops(
    reader: Reader, classes: Classes, contexts: dict[str, list[list[int]]]
) -> dict[str, dict[str, Mean]]:
    """Mass by class after each kind of stop."""
    table = {}
    for kind, rows in contexts.items():
        if not rows:
            continue
        log_probs = reader.log_probs(rows)
        capital, lower = mass(log_probs, classes.capital), mass(log_probs, classes.lower)
        quote, newline = mass(log_probs, classes.quote), mass(log_probs, classes.newline)
        table[kind] = {
            "space+Capital": Mean.of(capital),
            "space+lower": Mean.of(lower),
            "quote": Mean.of(quote),
            "newline": Mean.of(newline),
            "digit": Mean.of(mass(log_probs, classes.digit)),
            "capital minus lower": Mean.of(capital - lower),
            "capital, quote or newline": Mean.of(capital + quote + newline),
            "class contrast": Mean.of(capital.log() - lower.log()),
        }
    return table


def flips(reader: Reader, classes: Classes, contexts: list[list[int]]) -> dict[str, Mean]:
    """Right after the stop, right after the comma, and both; ` I` counts as neither."""
    (comma,) = reader.encode(",")
    capital_class = classes.capital & ~classes.i
    right = []
    for rows in (contexts, [[*context[:-1], comma] for context in contexts]):
        log_probs = reader.log_probs(rows)
        right.append(mass(log_probs, capital_class) > mass(log_probs, classes.lower))
    stop, comma_right = right[0], ~right[1]
    return {
        "right after the stop": Mean.of(stop.float()),
        "right after the comma": Mean.of(comma_right.float()),
        "flips": Mean.of((stop & comma_right).float()),
    }


def last_sentence(reader: Reader, context: list[int]) -> str:
    """The last sentence of a context that ends in a full stop."""
    text = reader.tokenizer.decode(context)
    parts = re.split(r"(?<=[.!?])[\"']?\s+(?=[A-Z\"'])", text)
    return parts[-1].strip().strip("\"'")


def lowered(texts: Iterable[str], whole: bool) -> list[str]:
    """The texts in lower case, whole or in their first letter."""
    return [text.lower() if whole else text[:1].lower() + text[1:] for text in texts]


def case_style(
    reader: Reader, classes: Classes, contexts: list[list[int]]
) -> dict[str, dict[str, Mean]]:
    """space+Capital and space+lower mass as written and lowered, for contexts of two lengths."""
    table = {}
    long = [reader.tokenizer.decode(context) for context in contexts]
    # Sentences that start with I, or one letter, have no first letter to lower independently.
    short = [text for text in (last_sentence(reader, c) for c in contexts) if len(text) > 12]
    for name, texts in (("several sentences", long), ("one sentence", short)):
        versions = {
            "as written": texts,
            "lower case": lowered(texts, whole=True),
            "first letter lowered": lowered(texts, whole=False),
        }
        masses = {}
        for version, changed in versions.items():
            log_probs = reader.log_probs([reader.encode(text)[-240:] for text in changed])
            masses[version] = mass(log_probs, classes.capital), mass(log_probs, classes.lower)
        capital = masses["as written"][0]
        table[name] = {f"{v}: space+Capital": Mean.of(masses[v][0]) for v in versions}
        table[name] |= {f"{v}: space+lower": Mean.of(masses[v][1]) for v in versions}
        table[name]["drop in lower case"] = Mean.of(capital - masses["lower case"][0])
        table[name]["drop, first letter"] = Mean.of(capital - masses["first letter lowered"][0])
    return table


def decimals(
    reader: Reader, classes: Classes, contexts: dict[str, list[list[int]]]
) -> dict[str, Mean]:
    """Digit mass where a number may go on, and where it may not."""

    def digit(rows: list[list[int]]) -> Mean:
        return Mean.of(mass(reader.log_probs(rows), classes.digit))

    found = {
        "templates, numeric context": digit([reader.encode(text) for text in NUMERIC]),
        "templates, sentence end": digit([reader.encode(text) for text in SENTENCES]),
    }
    kept_out = {k: contexts[k] for k in ("decimal point", "after a number", "sentence end .")}
    kept_out["decimal point, another decimal before it"] = [
        context
        for context in contexts["decimal point"]
        if re.search(r"\d\.\d", reader.tokenizer.decode(context))
    ]
    return found | {f"kept-out books, {k}": digit(rows) for k, rows in kept_out.items() if rows}


def repetition_gain(reader: Reader, seed: int = 0) -> Mean:
    """Nats per token that a repeated random sequence gains the second time: induction."""
    rng = np.random.default_rng(seed)
    half = torch.from_numpy(rng.integers(256, reader.bos, (32, 40)))
    rows = torch.cat([torch.full((32, 1), reader.bos), half, half], dim=1)
    logits = reader.final(rows[:, :-1]) @ reader.weights["transformer.wte.weight"].T
    nll = -logits.log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    return Mean.of((nll[:, :40] - nll[:, 40:]).mean(-1))


@torch.no_grad()
def sample(reader: Reader, prompt: str, n_tokens: int = 80, seed: int = 0) -> str:
    """Text at temperature 0.8 from the 40 likeliest tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = [reader.bos, *reader.encode(prompt)]
    for _ in range(n_tokens):
        final = reader.final(torch.tensor([ids[-reader.config.n_ctx :]]))[0, -1]
        top = (final @ reader.weights["transformer.wte.weight"].T / 0.8).topk(40)
        pick = torch.multinomial(top.values.softmax(-1), 1, generator=generator)
        ids.append(int(top.indices[pick]))
    return reader.tokenizer.decode(ids[1:])


@dataclass(frozen=True)
class Evaluation:
    """Every measurement of one model."""

    bits_per_byte: float
    bits_per_byte_by_book: dict[str, float]
    after_stops: dict[str, dict[str, Mean]]
    flips: dict[str, Mean]
    case_style: dict[str, dict[str, Mean]]
    decimals: dict[str, Mean]
    repetition_gain: Mean
    samples: dict[str, str]


def evaluate(
    reader: Reader, books: list[Book], per_kind: int = 600, limit: int | None = None
) -> Evaluation:
    """Every measurement; bits per byte of each book's first `limit` tokens."""
    encoded = encode_books(books, reader.tokenizer)
    classes = Classes(reader.tokenizer)
    contexts = stop_contexts(reader, encoded, per_kind)
    stops = contexts["sentence end ."]
    per_book = {
        HELD_OUT.get(book.file, book.title): bits_per_byte(reader, tokens, book.text, limit)
        for book, tokens in zip(books, encoded, strict=True)
    }
    sizes = [len(book.text.encode()) for book in books]
    return Evaluation(
        sum(b * s for b, s in zip(per_book.values(), sizes, strict=True)) / sum(sizes),
        per_book,
        after_stops(reader, classes, contexts),
        flips(reader, classes, stops),
        case_style(reader, classes, stops),
        decimals(reader, classes, contexts),
        repetition_gain(reader),
        {prompt: sample(reader, prompt) for prompt in PROMPTS},
    )


def goals(found: Evaluation) -> list[tuple[str, str, float, bool]]:
    """(measurement, goal, value, whether it is met)."""
    bits, flipped = found.bits_per_byte, found.flips["flips"].value
    end = found.after_stops["sentence end ."]["capital, quote or newline"].value
    rows = [
        ("bits per byte, kept-out books", "<= 1.60", bits, bits <= 1.60),
        ("capital, quote or newline after a sentence end", "> 0.95", end, end > 0.95),
        ("flips under `.` to `,`", ">= 0.98", flipped, flipped >= 0.98),
    ]
    for name, goal, sign in (
        ("kept-out books, decimal point", 0.6, 1),
        ("kept-out books, decimal point, another decimal before it", 0.6, 1),
        ("templates, numeric context", 0.6, 1),
        ("kept-out books, sentence end .", 0.02, -1),
        ("templates, sentence end", 0.02, -1),
    ):
        if name in found.decimals:
            value = found.decimals[name].value
            met = value * sign > goal * sign
            rows.append((f"digit mass: {name}", f"{'>' if sign > 0 else '<'} {goal}", value, met))
    for name, table in found.case_style.items():
        value = table["drop in lower case"].value
        rows.append((f"space+Capital lost in lower case: {name}", ">= 0.25", value, value >= 0.25))
    return rows


def markdown(found: Evaluation) -> str:
    """The tables of the model card."""

    def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
        head = [title, *columns]
        body = [" | ".join(row) for row in rows]
        return ["", *(f"| {row} |" for row in (" | ".join(head), "--- | " * len(head), *body))]

    def mean(value: Mean) -> str:
        return f"{value.value:.3f} ± {value.half_width:.3f}"

    kinds, lengths = found.after_stops, found.case_style
    masses, versions = next(iter(kinds.values())), next(iter(lengths.values()))
    lines = table(
        "measurement",
        ("goal", "value", "met"),
        ((n, g, f"{v:.4g}", "yes" if met else "**no**") for n, g, v, met in goals(found)),
    )
    lines += table(
        "after",
        ("n", *masses),
        ((kind, f"{row['digit'].n:,}", *map(mean, row.values())) for kind, row in kinds.items()),
    )
    for title, means in (("flips", found.flips), ("digit mass", found.decimals)):
        lines += table(title, ("mean", "n"), ((k, mean(v), f"{v.n:,}") for k, v in means.items()))
    lines += table(
        "case style",
        lengths,
        (
            (version, *(mean(column[version]) for column in lengths.values()))
            for version in versions
        ),
    )
    lines += table(
        "kept-out book",
        ("bits per byte",),
        ((name, f"{value:.3f}") for name, value in found.bits_per_byte_by_book.items()),
    )
    lines += ["", f"A repeated random sequence gains {found.repetition_gain} nats per token."]
    for prompt, text in found.samples.items():
        lines += ["", f"Prompt {prompt!r}:", "", *(f"> {line}" for line in text.splitlines())]
    return "\n".join(lines[1:]).replace("| --- |  |", "| --- |") + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Tables to stdout, talk to stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of books")
    parser.add_argument("--model", type=Path, default=BUNDLED, help="Hugging Face folder")
    parser.add_argument("--weights", type=Path, help="other weights of the same configuration")
    parser.add_argument(
        "--quick", action="store_true", help="a third of the contexts, little of the text"
    )
    parser.add_argument("--json", type=Path, help="also write every value to this file")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    try:
        reader = load_reader(options.model, options.weights)
        _, books = split(read_corpus(options.corpus))
        if not books:
            raise CorpusError(f"{options.corpus} has none of the kept-out books: {[*HELD_OUT]}.")
        found = evaluate(reader, books, 200, 12_000) if options.quick else evaluate(reader, books)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        text = json.dumps(asdict(found), indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print(markdown(found), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
