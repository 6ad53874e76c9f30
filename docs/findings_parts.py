"""What do single neurons and heads of two models do, in figures and in words?

The neurons that write most of the capital on the preset's sentences, and the heads that carry most
of an edit: their cards (`casestudy.measure.part_card`) over the beginnings of the kept-out books.
How many neurons are enough is read from neurons.json, which `make circuits-table` measures. Cost:
for `tiny` about a minute of one core; for `smollm2` about ten.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from docs.findings_directions import measure_direction
from docs.findings_kept import mean, number
from docs.findings_tables import NAMES, Found, between, share, table
from docs.neurons_table import KEPT

from casestudy.behaviour.presets import preset
from casestudy.behaviour.windows import KINDS, SENTENCE_END
from casestudy.measure.attribution import neuron_attribution
from casestudy.measure.part_card import CardSettings, part_cards
from casestudy.model.model import Model
from casestudy.results import components, names
from casestudy.results.part_card import PartCard
from casestudy.show.text import interval, listing, percent, signed, visible
from casestudy.show.text import number as shown

BYTES = 34_000
"""Of each kept-out book, from its beginning."""
NEURONS = 3
"""Neurons that get a card."""
TERMS, TOKENS, CONTEXTS = 4, 6, 3
"""How many of each are kept of a card."""
BEHAVIOUR = "full-stop-capitals"
SETTINGS = CardSettings(k=20, loss_windows=16)


def measure_single_parts(
    name: str,
    model: Model,
    folder: str | os.PathLike[str],
    books: Sequence[str],
    carriers: Sequence[Found],
) -> Found:
    """The cards of single parts and the direction of a model, by their keys in findings.json; the
    cards only where there is text (see `measure_parts`)."""
    found = {"direction": measure_direction(name, model)}
    parts = measure_parts(model, folder, books, carriers)
    return found if parts is None else found | {"parts": parts}


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
        **{
            side: [
                row["token"] for row in found["writes"]["tokens"]
                if row["side"] == side and row["direction"] == 1
            ][:TOKENS]
            for side in ("promoted", "demoted")
        },
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


# The words

ABBREVIATION, COMMA = (f"{SENTENCE_END} / {KINDS[1]}", f"{SENTENCE_END} / comma")
FROM_ALL = f"{SENTENCE_END} / every other position"


def parts_page(found: Found) -> str:
    """Of each model: which neurons write the capital, how few are enough, what heads read."""
    kept = json.loads(KEPT.read_text("utf-8"))
    return "\n".join(
        _of_model(title, found[name]["parts"], kept[name][BEHAVIOUR])
        for name, title in NAMES.items()
        if found[name].get("parts")
    )


def _of_model(title: str, found: Found, needed: Found) -> str:
    neurons = [card for card in found["cards"] if card["part"].startswith("neuron")]
    heads = [card for card in found["cards"] if card["part"].startswith("head")]
    said = [
        f"### {title}",
        _writers(found["writers"]),
        _neuron_table(neurons),
        _selective(neurons, found),
        _enough(needed),
        *(_head(card, found["carriers"]) for card in heads),
    ]
    return "\n\n".join(one.strip() for one in said) + "\n"


def _writers(found: Found) -> str:
    rows, sums = found["first"][:NEURONS], found["first_sum"]
    named = listing([f"{row['neuron']} ({signed(row['mean'])})" for row in rows])
    return (
        f"**Which neurons write it.** The largest direct contributions on the preset are those of "
        f"{named}, n = {rows[0]['n']}. All {found['neurons']:,} neurons write "
        f"{between(found['sum'])} logits in sum; those that write against the capital, "
        f"{signed(found['against'])}. The first 3 write {signed(sums['3'])}, the first 10 "
        f"{signed(sums['10'])}, and the first {found['to_sum']} as much as all together."
    )


def _neuron_table(cards: Sequence[Found]) -> str:
    head = [
        "neuron",
        "promotes most",
        "demotes most",
        "writes",
        "replaced by its mean over the text",
    ]
    head += ["by its mean over these prompts", "by its mean: loss on the text, nats"]
    return table(
        head,
        [
            [
                card["part"],
                *(
                    " ".join(_code(visible(token)) for token in card[side])
                    for side in ("promoted", "demoted")
                ),
                between(card["share"]),
                between(card["needed"]["corpus mean"]),
                between(card["needed"]["mean"]),
                _fine(card["loss"]["mean"]),
            ]
            for card in cards
        ],
    )


def _fine(x: Found) -> str:
    """A small change."""
    return f"{signed(x['mean'], 4)} ({interval(x['low'], x['high'], 4)})"


def _selective(cards: Sequence[Found], found: Found) -> str:
    """What the neurons fire on: a table of chances, and which kinds of stop each tells apart."""
    apart = {card["part"]: card["selective"][ABBREVIATION] for card in cards}
    told = listing([f"{part} {_told_apart(x)}" for part, x in apart.items()])
    rows = [
        [
            card["part"],
            *(_auroc(card["selective"][one]) for one in (FROM_ALL, COMMA, ABBREVIATION)),
            " ".join(_code(_context(text)) for text in card["contexts"]),
        ]
        for card in cards
    ]
    head = ["neuron", "than any other position", "than a comma", "than an abbreviation's stop"]
    return (
        f"**What they fire on**, in {found['bytes'] / 1000:,.0f} kB, the beginnings of "
        f"{found['books']} kept-out books: the chance that a neuron is larger at a stop that ends "
        f"a sentence than elsewhere (AUROC; 0.5 is chance), and its strongest contexts.\n\n"
        f"{table([*head, 'strongest contexts'], rows)}\n"
        f"Of stops that end a sentence and an abbreviation's, {told}."
    )


def _told_apart(x: Found) -> str:
    """Which of the two kinds of stop a neuron is larger at."""
    if x["low"] is None or x["low"] <= 0.5 <= x["high"]:
        return "does not tell the two apart"
    return f"is larger at the {'sentence' if x['low'] > 0.5 else 'abbreviation'}'s"


def _auroc(x: Found) -> str:
    return shown(x["mean"]) + ("" if x["low"] is None else f" ({interval(x['low'], x['high'])})")


def _enough(needed: Found) -> str:
    value, low, high, n = needed["held out"]
    (neurons, of), (heads, of_heads) = needed["neurons"], needed["heads"]
    return (
        f"**How many are enough.** {neurons:,} of {of:,} neurons with {heads} of {of_heads} heads, "
        f"all others as in the corrupted run, keep {shown(value)} ({interval(low, high)}, n = {n}) "
        f"of the difference on pairs on which they were not looked for; as many random neurons of "
        f"the same layers beside the same heads keep {share(needed['random neurons'][0])} "
        "([the search](circuits.md#how-few-neurons-are-enough))."
    )


def _head(card: Found, carriers: Sequence[Found]) -> str:
    """What a head carries, where it attends and why."""
    carried = listing([
        f"{between(row, shown)} of what “{row['edit']}” changes (n = {row['n']})"
        for row in carriers if f"head {row['head']}" == card["part"]
    ])  # fmt: skip
    attention = {
        role: x["mean"] for role, x in card["attention"].items()
        if role not in ("last token", "changed tokens")
    }  # fmt: skip
    most = sorted(attention, key=lambda role: -attention[role])[:2]
    looks = listing([f"{percent(attention[role])} of its attention to {role}" for role in most])
    sides = "; ".join(f"on the {side}'s side {_terms(x)}" for side, x in card["reads"].items())
    needed = card["needed"]
    return (
        f"**What {card['part']} reads.** Taken from the edited run, its output takes away "
        f"{carried}. From the last token it gives {looks}. The difference of attention scores that "
        f"makes it attend there ({card['reads_at']}) has as its largest terms {sides}. Directly it "
        f"writes {between(card['share'])} logits. Replaced by its mean over the text, the contrast "
        f"changes by {between(needed['corpus mean'])} and the loss there by "
        f"{_fine(card['loss']['mean'])} nats; by its mean over these prompts at the same role, the "
        f"contrast changes by {between(needed['mean'])}."
    )


def _terms(rows: Sequence[Found]) -> str:
    return listing([f"{row['component']} ({signed(row['mean'])})" for row in rows[:2]])


def _context(text: str) -> str:
    """The end of a context, without what marks a text's beginning."""
    return "…" + text.replace("<|endoftext|>", "").replace("\n", "↵")


def _code(text: str) -> str:
    """Code in Markdown; a bar would end a table's cell."""
    return f"`{text}`".replace("|", "¦")
