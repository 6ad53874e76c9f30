"""What does a model expect at the decimal points of every book, kept out of training or not?

The six kept-out books hold fewer than a hundred decimal points, all in one of them, so the rest of
the corpus is read as well. For `tiny` most of these books are its training text, which the page
says.

Cost: one pass of the tokenizer over the corpus, and `WANTED` short prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from docs.findings_kept import mean
from docs.findings_tables import Found

from casestudy.behaviour.mining import mine
from casestudy.measure.class_mass import class_mass
from casestudy.model.model import Model

WANTED, LONGEST = 250, 64
CLASSES = ("digit", "space+Capital", "space+lower", "newline")


def decimals(model: Model, folder: Path, kept_out: Sequence[str]) -> Found:
    """Class masses after decimal points sampled from all books; books are resampled."""
    books = sorted(folder.glob("*.txt"))
    mined = mine(
        books, model.tokenizer, preset="decimal-point", n=WANTED, seed=0, max_tokens=LONGEST
    )
    prompts = mined.behaviour.prompts
    documents = [prompt.document for prompt in prompts]
    mass = class_mass(model, [prompt.text for prompt in prompts])
    rows = dict(zip(mass.axis("class").labels, mass.values, strict=True))
    return {
        "weight_hash": model.weight_hash,
        "found": mined.found["decimal point"],
        "n": len(prompts),
        "all_books": len(books),
        "books": len(set(documents)),
        "kept_out": sum(document in kept_out for document in documents),
        "mass": {name: mean(rows[name], documents) for name in CLASSES},
    }
