"""Which tokens does the model read and write?

Byte-level BPE with GPT-2's pre-tokenisation, so a word carries its leading space; 8,192 tokens.
`<|endoftext|>` is the last of them and serves as BOS, EOS and UNK, as in GPT-2. Differences from
GPT-2's recipe, and why:

- Every digit is a token of its own (` 3` or `3`): no merge joins two digits. `0.` then ends in the
  digit and the stop, and a decimal's next digit is one of ten tokens, not one of a thousand.
- The prompts of this project lean on some words having all four forms (` The`, ` the`, `The`,
  `the`). What frequency alone leaves out is joined by extra merges at the end of the list.

A full stop before a space or a newline is always the single token `.`: GPT-2's pattern cuts
there. Only closing marks join it (`."`, `.'`, `.)`, `.,`).

Assumes the training books alone (the kept-out six are not read). Costs about a minute.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from .corpus import Book, read_corpus, split
from .errors import TokenizerError, TrainingError

END_OF_TEXT = "<|endoftext|>"
D_VOCAB = 8192
OPENERS = [
    "The",
    "It",
    "He",
    "She",
    "I",
    "This",
    "That",
    "But",
    "And",
    "There",
    "They",
    "We",
    "You",
    "In",
    "A",
    "What",
    "When",
    "If",
    "No",
    "His",
    "Her",
    "My",
    "At",
    "For",
    "As",
    "On",
    "Go",
    "Hello",
]


def four_forms(word: str) -> list[str]:
    """` The`, ` the`, `The`, `the`."""
    return [space + form for space in (" ", "") for form in (word, word.lower())]


def learn_merges(texts: Iterable[str], d_vocab: int) -> list[tuple[str, str]]:
    """BPE merges in order of frequency, none of them joining two digits."""
    tokenizer = Tokenizer(BPE())
    # Cutting before every digit but the first hides digit pairs from the counts.
    single_digits = pre_tokenizers.Split(Regex(r" ?\p{N}"), behavior="isolated")
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([single_digits, gpt2])
    trainer = BpeTrainer(
        vocab_size=d_vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def build(merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer as GPT-2 lays it out: bytes, then merges, then `<|endoftext|>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(left + right for left, right in merges), END_OF_TEXT]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def missing_merges(tokenizer: Tokenizer, words: list[str]) -> list[tuple[str, str]]:
    """One more merge for each form that is still several tokens: its first two pieces."""
    merges = []
    for form in (form for word in words for form in four_forms(word)):
        pieces = tokenizer.encode(form).tokens
        if len(pieces) > 1 and (pieces[0], pieces[1]) not in merges:
            merges.append((pieces[0], pieces[1]))
    return merges


def train(texts: list[str], d_vocab: int = D_VOCAB, words: list[str] = OPENERS) -> Tokenizer:
    """The tokenizer of `d_vocab` tokens in which each of `words` has its four forms."""
    merges = learn_merges(texts, d_vocab - 1)
    extra: list[tuple[str, str]] = []
    while True:
        tokenizer = build(merges[: d_vocab - 257 - len(extra)] + extra)
        more = missing_merges(tokenizer, words)
        if not more:
            return tokenizer
        extra += more


def broken_promises(tokenizer: Tokenizer) -> list[str]:
    """Everything the prompts rely on that this tokenizer does not do."""
    broken = []

    def expect(text: str, tokens: list[str]) -> None:
        found = [tokenizer.decode([index]) for index in tokenizer.encode(text).ids]
        if found != tokens:
            broken.append(f"{text!r} should be {tokens}, is {found}")

    for word in OPENERS:
        for form in four_forms(word):
            expect(form, [form])
    for text in ("3.14", "0.5", "1999. ", " 98.6", "in 1815.\n", "12.", '2."', "1.5)."):
        expect(text, re.findall(r'\n| ?\d| ?\.?["\)]+\.?| ?\.| ?\w+| ', text))
    broken += [
        f"the full stop in {text!r} is not a token of its own"
        for text in ("end. The", "end.\nThe", "end.\n\nThe", "U. S. A.")
        if "." not in tokenizer.encode(text).tokens
    ]
    for token, index in tokenizer.get_vocab().items():
        if re.search(r"\d\d", tokenizer.decode([index])):
            broken.append(f"token {token!r} joins digits")
    if tokenizer.token_to_id(END_OF_TEXT) != tokenizer.get_vocab_size() - 1:
        broken.append(f"{END_OF_TEXT} is not the last token")
    return broken


def write(tokenizer: Tokenizer, folder: Path, n_ctx: int) -> None:
    """tokenizer.json, and the tokenizer_config.json that `transformers` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": n_ctx,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": END_OF_TEXT,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def paragraphs(books: list[Book]) -> Iterator[str]:
    """Lines with their newlines, as the windows encode them."""
    for book in books:
        yield from book.text.splitlines(keepends=True)


def main(arguments: list[str] | None = None) -> int:
    """Learns, checks and writes the tokenizer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of books")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json")
    options = parser.parse_args(arguments)
    try:
        training_books, _ = split(read_corpus(options.corpus))
        tokenizer = train(list(paragraphs(training_books)))
        if broken := broken_promises(tokenizer):
            raise TokenizerError("The tokenizer breaks a promise:\n  " + "\n  ".join(broken))
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    write(tokenizer, options.out, n_ctx=256)
    print(f"{tokenizer.get_vocab_size()} tokens written to {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
