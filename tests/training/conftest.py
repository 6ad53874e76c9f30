"""A corpus made on the spot, and the training modules with every annotated shape checked."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.checked import install

install("training")

import pytest  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from training.corpus import HELD_OUT  # noqa: E402
from training.train import BUNDLED  # noqa: E402

CORPUS = "CASESTUDY_CORPUS"
SUBJECTS = ("The captain", "She", "An old man", "He", "My sister", "It", "Nobody", "Mr. Smith")
VERBS = (
    "saw the house",
    "went to the river",
    "said nothing",
    "opened the door, and left",
    "was 3.5 feet",
)
MARKS = (".", ".", ".", "!", "?")


def prose(seed: int, paragraphs: int = 60) -> str:
    """Paragraphs of short sentences, one a line, with quotations and a chapter break."""
    rng = random.Random(seed)
    lines = []
    for number in range(paragraphs):
        sentences = [
            f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)}{rng.choice(MARKS)}"
            for _ in range(rng.randint(2, 6))
        ]
        text = " ".join(sentences)
        lines.append(f'"{text}"' if number % 5 == 0 else text)
        if number % 20 == 19:
            lines.append("")
    return "\n".join(lines) + "\n"


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """A corpus folder of two training books and one kept-out book."""

    def make(name: str = "corpus") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = ["file\ttitle\tauthor\tsource\tbytes\tparagraphs"]
        for seed, file in enumerate(("one.txt", "two.txt", next(iter(HELD_OUT)))):
            (folder / file).write_text(prose(seed), encoding="utf-8")
            rows.append(f"{file}\tTitle {seed}\tAuthor {seed}\tmade up\t0\t0")
        (folder / "MANIFEST.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The frozen tokenizer of the bundled model."""
    return Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))


@pytest.fixture(scope="session")
def real_corpus() -> Path:
    """The books the shipped model learned from, where they are."""
    default = Path(__file__).resolve().parents[3] / "shared" / "corpus"
    folder = Path(os.environ.get(CORPUS, default))
    if not (folder / "MANIFEST.tsv").is_file():
        pytest.skip(f"no corpus at {folder}; set {CORPUS} to the folder of books")
    return folder
