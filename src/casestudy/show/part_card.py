"""The page of a part's card.

One self-contained HTML file in the report's style, made from a stored card alone: where the part is
active, what it writes, what it reads and what it is needed for. Its sentences state measured
values; they give the part no label.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.files import write_atomically
from casestudy.results.part_card import FOLDER, PAGE, PartCard, stored_cards
from casestudy.results.result import Grid, Table
from casestudy.show import marks
from casestudy.show.blocks import Absent, Block, Figure, Listing, Section, columns_of, paragraph
from casestudy.show.page import environment
from casestudy.show.part_links import card_addresses, linked
from casestudy.show.report import frame
from casestudy.show.text import (
    amount,
    capital,
    chip,
    chips,
    clean,
    count,
    interval,
    number,
    percent,
    shorten,
    signed,
)
from casestudy.show.wording import Mean, spoken

MOST_TERMS = 16
"""Terms of what a part reads that are drawn; the others are one bar."""
FOLD = 10
"""Contexts listed before the rest has to be asked for."""
HOW = {
    "zero": "by zero",
    "mean": "by its mean over the prompts at the same role or position",
    "resample": "by its output elsewhere",
    "corpus mean": "by its mean over the corpus",
}


def write_part_card(card: PartCard, path: str | os.PathLike[str]) -> Path:
    """Write the page, completely or not at all, and return its path.

    Raises: StudyError if the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, part_card_html(card).encode("utf-8"))
    return path


def write_study_cards(study: Path) -> dict[str, Path]:
    """Write the pages of all cards in a study's folder, each with links to the others, and return
    their paths by part. A card that cannot be read keeps the page that it has.

    Raises: StudyError if a file cannot be written.
    """
    cards = stored_cards(study)
    addresses = card_addresses(cards, above="../")
    pages = {}
    for folder, card in cards.items():
        path = study / FOLDER / folder / PAGE
        others = {part: address for part, address in addresses.items() if part != card.part}
        html = linked(part_card_html(card, others), others.get)
        write_atomically(path, html.encode("utf-8"))
        pages[card.part] = path
    return pages


def part_card_html(card: PartCard, others: Mapping[str, str] | None = None) -> str:
    """The whole page.

    Args:
        card: what was measured.
        others: addresses of other parts' cards, by part, which labels of figures open.
    """
    answer = _answer(card)
    model = clean(card.about["model"]["name"])
    return (
        environment()
        .get_template("part.html")
        .render(
            title=f"{capital(clean(card.part))} of {model}",
            model=model,
            description=shorten(answer[0].striptags(), 300) if answer else "",
            answer=answer,
            notes=card.notes,
            sections=_sections(card),
            absent=_absent(card),
            facts=_facts(card),
            shared={"prompts": {}, "patterns": {}} | ({"cards": others} if others else {}),
            **frame(),
        )
    )


def part_panel(card: PartCard, basis: str, page: str) -> Markup:
    """The card as a part of another page.

    Args:
        card: what was measured.
        basis: of which prompts and text, in a sentence.
        page: the address of the card as a page of its own.
    """
    html = (
        environment()
        .get_template("part_panel.html")
        .render(
            basis=basis,
            page=page,
            notes=card.notes,
            answer=_answer(card),
            sections=_sections(card),
            absent=_absent(card),
        )
    )
    return Markup(html)


def _sections(card: PartCard) -> list[Section]:
    """The questions that the card answers."""
    return [
        Section(id, title, blocks)
        for id, title, blocks in (
            ("active", "Where is it active?", _active(card)),
            ("writes", "What does it write?", _writes(card)),
            ("reads", "What does it read?", _reads(card)),
            ("needed", "What is it needed for?", _needed(card)),
        )
        if blocks
    ]


def _absent(card: PartCard) -> list[Absent]:
    return [Absent(what, why) for what, why in card.absent]


# What was measured, in sentences


def _answer(card: PartCard) -> list[Markup]:
    """The card's main figures, each with its interval and n."""
    found = [_needed_words(card), _active_words(card), _writes_words(card), _reads_words(card)]
    return [words for words in found if words]


def _needed_words(card: PartCard) -> Markup:
    parts: list[Markup] = []
    ablation = card.get(names.mean(names.PART_ABLATION))
    if isinstance(ablation, Grid):
        kinds = ablation.axis("kind").labels
        means = {kind: Mean.of(ablation, kind=kind) for kind in kinds}
        parts += [
            Markup(
                "Replacing its {} {} changes the logit difference of {} by {} logits ({})."
            ).format(
                "coordinate" if card.kind == "direction" else "output",
                *(HOW.get(kind, kind), _behaviour(card), signed(mean.value), mean.bracket),
            )
            for kind, mean in means.items()
            if kind in ("zero", "corpus mean") or (kind == "mean" and "corpus mean" not in means)
        ]
    for row in card.rows(names.PART_LOSS):
        if row["kind"] in ("zero", "mean"):
            mean = _of_row(row, "difference")
            how = "by zero" if row["kind"] == "zero" else "by its mean"
            parts.append(
                Markup("{} it changes the next-token loss over the corpus by {} nats ({}).").format(
                    f"Replaced {how},", signed(mean.value, 3), _bracket(mean, 3)
                )
            )
    return Markup(" ").join(parts)


def _active_words(card: PartCard) -> Markup:
    rows = [row for row in card.rows(names.PART_SELECTIVITY) if row["lower"] is not None]
    parts = []
    for where in ("corpus", "prompts"):
        some = [row for row in rows if row["where"] == where]
        if some:
            row = max(some, key=lambda row: abs(row["auroc"] - 0.5))
            side = "larger" if row["auroc"] >= 0.5 else "smaller"
            parts.append(
                Markup(
                    "Of {} kinds of position compared in the {}, its activity is most different "
                    "at “{}” against {}: {} there, AUROC {} (95\u00a0% interval {})."
                ).format(
                    len(some),
                    where,
                    clean(row["kind"]),
                    clean(row["against"]),
                    side,
                    number(row["auroc"]),
                    interval(row["lower"], row["upper"]),
                )
            )
    return Markup(" ").join(parts)


def _writes_words(card: PartCard) -> Markup:
    parts = []
    share = card.get(names.mean(names.PART_SHARE))
    if isinstance(share, Grid):
        first = share.axis("contrast").labels[0]
        mean = Mean.of(share, contrast=first)
        parts.append(
            Markup("It writes {} logits of the difference directly ({}).").format(
                signed(mean.value), mean.bracket
            )
        )
    rows = card.rows(names.PART_TOKENS)
    for side in ("promoted", "demoted"):
        some = [row for row in rows if row["side"] == side and row["direction"] == 1][:4]
        if some:
            chosen = Markup(" ").join(chip(row["token"]) for row in some)
            template = Markup("Where it is positive, it {} {} most.")
            parts.append(template.format("promotes" if side == "promoted" else "demotes", chosen))
    return Markup(" ").join(parts)


def _reads_words(card: PartCard) -> Markup:
    name = names.PART_READS if card.get(names.PART_READS) else names.PART_READS_CONTEXTS
    mean = card.get(names.mean(name))
    if not isinstance(mean, Grid):
        return Markup("")
    axis = mean.axes[0]
    parts = [Markup("What it reads is split at {}.").format(clean(card.about["reads_at"][name]))]
    for label in axis.labels:
        one = mean.select(**{axis.name: label})
        largest = int(np.nanargmax(np.abs(one.values)))
        name = one.axis("component").labels[largest]
        what = {"side": f"the {label}’s side", "input": f"its {label}"}.get(
            axis.name, f"its coordinate (direction {label})"
        )
        parts.append(
            Markup("The largest term of {} is {}: {} ({}).").format(
                what, clean(name), *_value(Mean.of(one, component=name))
            )
        )
    return Markup(" ").join(parts)


def _value(mean: Mean) -> tuple[str, str]:
    return signed(mean.value), mean.bracket


def _of_row(row: Mapping[str, Any], value: str) -> Mean:
    low, high = (
        float("nan") if row[end] is None else float(row[end]) for end in ("lower", "upper")
    )
    return Mean(float(row[value]), low, high, int(row["n"]))


def _bracket(mean: Mean, digits: int) -> str:
    if np.isnan(mean.lower) or np.isnan(mean.upper):
        return mean.bracket
    ends = interval(mean.lower, mean.upper, digits)
    return f"95\u00a0% interval {ends}, n\u00a0=\u00a0{mean.n:,} tokens"


def _behaviour(card: PartCard) -> str:
    return clean(card.about["behaviour"]["name"])


# Where it is active


def _active(card: PartCard) -> list[Block]:
    blocks: list[Block] = []
    contexts = card.rows(names.PART_CONTEXTS)
    strongest = [row for row in contexts if row["shown"] == "strongest"]
    for group in dict.fromkeys(row["group"] for row in strongest):
        rows = [row for row in strongest if row["group"] == group]
        title = "The strongest contexts" + (f", {group}" if group else "")
        blocks.append(_contexts(title, rows, rank=True))
    sampled = [row for row in contexts if row["shown"] != "strongest"]
    if sampled:
        blocks.append(_contexts("A random sample by quantile of its activity", sampled, rank=False))
    signs = card.get(names.PART_SIGNS)
    if isinstance(signs, Table):
        blocks.append(_signs(signs))
    blocks += _selectivity(card)
    attention = card.get(names.mean(names.PART_ATTENTION))
    if isinstance(attention, Grid):
        blocks.append(_bars(attention, "Attention from the last token, by role"))
    values = card.get(names.PART_VALUES)
    if isinstance(values, Table):
        cells = [(clean(row["quantile"]), number(row["value"], 3)) for row in values.rows()]
        title = "Its activity over the corpus"
        blocks.append(Listing(title, ("", "value#"), cells, values.about, data=values.columns))
    return blocks


def _contexts(title: str, rows: Sequence[Mapping[str, Any]], *, rank: bool) -> Listing:
    """Contexts as text, the position marked, and for a head the key that it attends to most."""
    heads = any(row["key_token"] is not None for row in rows)
    cells = [
        (
            str(row["rank"] if rank else place),
            context_markup(row),
            *(() if rank else (clean(row["shown"]),)),
            number(row["value"]),
            *((_key(row),) if heads else ()),
            Markup("<bdi>{}</bdi>, line {}").format(clean(row["document"]), f"{row['line']:,}"),
        )
        for place, row in enumerate(rows, 1)
    ]
    caption = "The marked token is the position; the value is the part’s activity there."
    if heads:
        caption += " The underlined token is the one that the head attends to most from there."
    more = ("attends to",) if heads else ()
    return Listing(
        title,
        ("", "context", *(() if rank else ("quantiles",)), "value#", *more, "where"),
        cells,
        caption,
        stack=True,
        fold=FOLD if rank else 0,
        data=columns_of(rows),
    )


def context_markup(row: Mapping[str, Any]) -> Markup:
    """A context's text with its position marked and its key underlined."""
    parts = []
    for i, token in enumerate(row["tokens"]):
        text = _running(token)
        template = "{}"
        if i == row["at"]:
            template = "<mark>{}</mark>"
        elif i == row["key"]:
            template = "<u>{}</u>"
        parts.append(Markup(template).format(text))
    return Markup('<bdi class="context">{}</bdi>').format(Markup("").join(parts))


def _running(token: object) -> str:
    """A token within a text: its spaces as they are, line ends visible."""
    return clean(str(token).replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥"))


def _key(row: Mapping[str, Any]) -> Markup:
    if row["key_token"] is None:
        return Markup("")
    return Markup("{} {}").format(chip(row["key_token"]), percent(row["key_share"]))


def _signs(table: Table) -> Listing:
    rows = [
        (
            clean(row["group"]),
            percent(row["share"]),
            "no interval"
            if row["lower"] is None
            else f"{percent(row['lower'])} to {percent(row['upper'])}",
            f"{row['n']:,}",
        )
        for row in table.rows()
    ]
    head = ("signs", "share#", "95 % interval#", "positions#")
    return Listing("How often each combination of signs occurs", head, rows, table.about)


def _selectivity(card: PartCard) -> list[Block]:
    table = card.get(names.PART_SELECTIVITY)
    if not isinstance(table, Table) or not table.rows():
        return []
    rows = [
        (
            clean(row["kind"]),
            clean(row["against"]),
            clean(row["where"]),
            number(row["auroc"], 3),
            "no interval" if row["lower"] is None else interval(row["lower"], row["upper"], 3),
            f"{row['n']:,} / {row['n_against']:,}",
            f"{row['units']:,} {clean(row['of'])}",
        )
        for row in table.rows()
    ]
    head = ("positions", "against", "in", "AUROC#", "95 % interval#", "n#", "resampled")
    title = "Which kinds of position does its activity tell apart?"
    return [Listing(title, head, rows, table.about, data=table.columns)]


# What it writes


def _writes(card: PartCard) -> list[Block]:
    blocks: list[Block] = []
    share = card.get(names.mean(names.PART_SHARE))
    if isinstance(share, Grid):
        blocks.append(_bars(share, f"Its direct contribution to {_behaviour(card)}"))
    tokens = card.get(names.PART_TOKENS)
    if isinstance(tokens, Table):
        numbers = list(dict.fromkeys(tokens.columns["direction"]))
        blocks += [_tokens(tokens, n, several=len(numbers) > 1) for n in numbers]
    sources = card.get(names.PART_SOURCES)
    if isinstance(sources, Table):
        blocks.append(_sources(sources))
    return blocks


def _tokens(table: Table, direction: int, *, several: bool) -> Listing:
    chosen = [row for row in table.rows() if row["direction"] == direction]
    sides = [[row for row in chosen if row["side"] == s] for s in ("promoted", "demoted")]
    rows = [
        (
            str(one["rank"]),
            *(chip(one["token"]), signed(one["effect"], 3)),
            *(chip(other["token"]), signed(other["effect"], 3)),
        )
        for one, other in zip(*sides, strict=True)
    ]
    head = ("", "promoted", "effect#", "demoted", "effect#")
    title = "Tokens that it promotes and demotes directly"
    title += f", direction {direction}" if several else ""
    return Listing(title, head, rows, table.about, fold=FOLD, data=table.columns)


def _sources(table: Table) -> Listing:
    rows = [
        (
            chip(row["source"]),
            percent(row["attention"]),
            f"{row['occurrences']:,}",
            chips(row["promoted"]),
            chips(row["demoted"]),
            f"{row['own_rank']:,}",
        )
        for row in table.rows()
    ]
    head = ("source", "attention#", "n#", "promotes", "demotes", "own rank#")
    title = "From source tokens to output tokens"
    return Listing(title, head, rows, table.about, fold=FOLD, data=table.columns)


# What it reads


def _reads(card: PartCard) -> list[Block]:
    blocks: list[Block] = []
    for name in (names.PART_READS, names.PART_READS_CONTEXTS):
        mean = card.get(names.mean(name))
        if not isinstance(mean, Grid):
            continue
        axis = mean.axes[0]
        where = clean(card.about["reads_at"][name])
        blocks.append(paragraph("At {}:", where))
        gap, bound = mean.error.get("gap"), mean.error.get("bound")
        closes = "" if gap is None else f" Largest gap of the sums: {number(gap)}"
        closes += "" if gap is None else "." if bound is None else f" (bound {number(bound)})."
        for label in axis.labels:
            one = mean.select(**{axis.name: label})
            what = {
                "side": f"What wrote the {label}’s stream",
                "input": f"What makes its {label}",
                "direction": f"What wrote its coordinate, direction {label}",
            }[axis.name]
            blocks.append(_terms(one, what, closes))
    return blocks


def _terms(mean: Grid, title: str, closes: str) -> Figure:
    """The largest terms as bars, the others as one."""
    labels = mean.axis("component").labels
    values = np.asarray(mean.values, dtype=float)
    order = np.argsort(-np.abs(values), kind="stable")
    # in the model's order; the rest is one bar
    some = sorted(order[:MOST_TERMS].tolist())
    rest = order[MOST_TERMS:].tolist()
    shown = mean.take("component", [labels[i] for i in some])
    bars = marks.mean_bars(shown)
    total = float(values.sum())
    caption = f"{mean.about} Sum of all terms {number(total, 3)}.{closes}"
    if rest:
        others = float(values[rest].sum())
        caption += f" The other {count(len(rest), 'term')}: {signed(others, 3)} in sum."
    largest = labels[int(order[0])]
    return Figure(
        title,
        bars,
        f"Bars of the largest terms; first {clean(largest)}, {signed(float(values[order[0]]))}.",
        marks.Data.of(mean),
        caption,
    )


# What it is needed for


def _needed(card: PartCard) -> list[Block]:
    blocks: list[Block] = []
    ablation = card.get(names.mean(names.PART_ABLATION))
    if isinstance(ablation, Grid):
        title = f"Change of the logit difference of {_behaviour(card)} when it is replaced"
        blocks.append(_bars(ablation, title))
    loss = card.get(names.PART_LOSS)
    if isinstance(loss, Table):
        blocks.append(_loss(loss))
    return blocks


def _loss(table: Table) -> Figure:
    """The changes of the next-token loss as bars."""
    rows = table.rows()
    labels = [clean(row["kind"]) for row in rows]
    values, lower, upper = (
        [row[name] for row in rows] for name in ("difference", "lower", "upper")
    )
    words = "; ".join(f"{kind} {signed(v, 3)}" for kind, v in zip(labels, values, strict=True))
    unit = "nats per token"
    return Figure(
        "Change of the next-token loss over the corpus when it is replaced",
        marks.Bars(labels, values, unit, lower, upper, axis="kind"),
        f"Bars: {words}.",
        marks.Data([("kind", labels)], {"value": values, "lower": lower, "upper": upper}, unit),
        f"{table.about} As it is, the model’s loss there is {number(rows[0]['loss'], 3)} nats "
        f"(n = {rows[0]['n']:,} tokens).",
    )


def _bars(mean: Grid, title: str) -> Figure:
    """A grid of means as bars with intervals."""
    (axis,) = mean.axes
    bars = marks.mean_bars(mean, [spoken(label) for label in axis.labels])
    words = [
        f"{spoken(label)} {signed(value)}"
        for label, value in zip(axis.labels, mean.values.tolist(), strict=True)
    ]
    gap, bound = mean.error.get("gap"), mean.error.get("bound")
    caption = f"{mean.about} Means over prompts with 95 % intervals"
    caption += "" if mean.n is None else f", n = {amount(float(np.nanmax(mean.n)))}"
    caption += "." if gap is None else f"; largest gap to full forward passes {number(gap)}"
    caption += "" if gap is None else "." if bound is None else f" (bound {number(bound)})."
    return Figure(title, bars, "Bars: " + "; ".join(words) + ".", marks.Data.of(mean), caption)


# Provenance


def _facts(card: PartCard) -> list[tuple[str, str]]:
    about = card.about
    model = about["model"]
    facts = [
        ("Part", clean(card.part)),
        ("Model", clean(model["name"])),
        ("Read from", clean(model["source"])),
        ("Weights", clean(model["weight_hash"])),
        ("Number format", clean(model["dtype"])),
    ]
    if "corpus" in about:
        corpus = about["corpus"]
        facts += [
            (
                "Corpus",
                f"{count(corpus['documents'], 'document')}, {corpus['bytes']:,} bytes, "
                f"{count(corpus['windows'], 'window')} of up to {corpus['window']} tokens",
            ),
            ("Positions", f"{corpus['positions']:,}, without the first of each window"),
        ]
        facts += [
            ("Left out", ", ".join(f"{n:,} {clean(why)}" for why, n in corpus["skipped"].items()))
        ][: bool(corpus["skipped"])]
    if "behaviour" in about:
        behaviour = about["behaviour"]
        facts.append(
            (
                "Behaviour",
                f"{clean(behaviour['name'])}, {count(behaviour['with_contrast'], 'prompt')} with "
                f"the contrast {spoken(behaviour['contrast'])}",
            )
        )
    facts.append(("Seed", str(about["seed"])))
    return facts
