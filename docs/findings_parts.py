"""What do single neurons and heads of a model do, in figures and in words?

The neurons that write most of the capital on the preset's sentences, and the heads that carry most
of an edit: their cards (`casestudy.measure.part_card`) over the beginnings of the kept-out books.
How many neurons are enough is read from neurons.json, which `make circuits-table` measures. Cost:
for `tiny` about a minute of one core; for `smollm2` about ten.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from docs.findings_kept import mean, number
from docs.findings_tables import Found

from casestudy.behaviour.presets import preset
from casestudy.measure.attribution import neuron_attribution
from casestudy.measure.part_card import CardSettings, part_cards
from casestudy.model.model import Model
from casestudy.results import components, names
from casestudy.results.part_card import PartCard

BYTES = 34_000
"""Of each kept-out book, from its beginning."""
NEURONS = 3
"""Neurons that get a card."""
TERMS, TOKENS, CONTEXTS = 4, 6, 3
"""How many of each are kept of a card."""
BEHAVIOUR = "full-stop-capitals"
SETTINGS = CardSettings(k=20, loss_windows=16)


def beginnings(folder: Path, books: Sequence[str]) -> dict[str, str]:
    """The first whole paragraphs of the books that the folder has, by their name."""
    found = {}
    for name in books:
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                text = file.read(BYTES).decode("utf-8", "ignore")
            found[name] = text[: text.rindex("\n") + 1]
    return found


def measure_parts(
    model: Model, folder: str | os.PathLike[str], books: Sequence[str], carriers: Sequence[Found]
) -> Found | None:
    """The neurons that write the capital, and the cards of the first of them and of some heads.

    Args:
        model: the decoder.
        folder, books: where the texts are, and their files.
        carriers: an edit, and the head that carries most of it, for each edit.

    Returns: None without a text.
    """
    texts = beginnings(Path(folder), books)
    if not texts:
        print(f"no kept-out book in {folder}: single parts stay as they are", file=sys.stderr)
        return None
    written = writers(model)
    parts = [row["neuron"] for row in written["first"][:NEURONS]]
    parts += list(dict.fromkeys(f"head {row['head']}" for row in carriers))
    cards = part_cards(model, parts, behaviour=preset(BEHAVIOUR), corpus=texts, settings=SETTINGS)
    return {
        "weight_hash": model.weight_hash,
        "bytes": sum(len(text.encode("utf-8")) for text in texts.values()),
        "books": len(texts),
        "writers": written,
        "carriers": [*carriers],
        "cards": [told(card) for card in cards],
    }


def writers(model: Model) -> Found:
    """The neurons with the largest direct contributions on the preset, and how few write how
    much."""
    behaviour = preset(BEHAVIOUR)
    main = tuple(behaviour.prompts[i] for i in behaviour.main_prompts)
    grid = neuron_attribution(model, replace(behaviour, prompts=main, main=()))
    shares = grid.select(contrast=grid.axis("contrast").labels[0]).values[:, :-1]  # without biases
    width = shares.shape[1]
    flat = shares.reshape(-1, shares.shape[-1])
    flat = flat[:, np.isfinite(flat).all(0)]
    means = flat.mean(1)
    order = np.argsort(-means, kind="stable")
    positive = np.cumsum(means[order])
    total = float(means.sum())
    return {
        "first": [
            {"neuron": components.neuron(*divmod(int(i), width))} | mean(flat[i]) for i in order[:8]
        ],
        "neurons": len(means),
        "sum": mean(flat.sum(0)),
        "first_sum": {str(n): number(float(positive[n - 1])) for n in (1, 3, 10, 30, 100, 300)},
        "to_sum": int(np.argmax(positive >= total)) + 1,
        "against": number(float(means[means < 0].sum())),
    }


def told(card: PartCard) -> Found:
    """What the page says of a card."""
    found = card.as_dict()
    selective = [row for row in found["active"]["selectivity"] if row["where"] == "corpus"]
    return {
        "part": card.part,
        "share": _figures(found["writes"]["share"][0]),
        "promoted": [
            row["token"] for row in found["writes"]["tokens"]
            if row["side"] == "promoted" and row["direction"] == 1
        ][:TOKENS],
        "sources": [
            {"source": row["source"], "promoted": row["promoted"][:3]}
            for row in found["writes"]["sources"][:TERMS]
        ],
        "selective": {
            f"{row['kind']} / {row['against']}": _figures(row, "auroc") | {"of": row["of"]}
            for row in selective
        },
        "contexts": [
            "".join(row["tokens"][max(0, row["at"] - 7) : row["at"] + 1])
            for row in found["active"]["contexts"] if row["shown"] == "strongest"
        ][:CONTEXTS],
        "attention": {row["role"]: _figures(row) for row in found["active"]["attention"]},
        "reads_at": card.about["reads_at"].get(names.PART_READS, ""),
        "reads": _reads(found["reads"]["prompts"]["terms"]),
        "needed": {row["kind"]: _figures(row) for row in found["needed"]["behaviour"]},
        "loss": {
            row["kind"]: _figures(row, "difference")
            for row in found["needed"]["corpus"] if row["kind"] in ("zero", "mean")
        },
    }  # fmt: skip


def _reads(terms: Sequence[Mapping[str, Any]]) -> dict[str, list[Found]]:
    """The largest terms of each side."""
    sides: dict[str, list[Mapping[str, Any]]] = {}
    for row in terms:
        sides.setdefault(str(row.get("side") or row.get("input")), []).append(row)
    return {
        side: [
            {"component": row["component"]} | _figures(row)
            for row in sorted(rows, key=lambda row: -abs(row["mean"]))[:TERMS]
        ]
        for side, rows in sides.items()
    }


def _figures(row: Mapping[str, Any], value: str = "mean") -> Found:
    low, high = (None if row[end] is None else number(row[end]) for end in ("lower", "upper"))
    return {"mean": number(row[value]), "low": low, "high": high, "n": row["n"]}
