"""What tables do the stored figures of docs/findings.json make? The same for every model.

A side is what was measured of one model on one kind of prompts: the presets', or mined contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from casestudy.show.text import interval, number, percent, signed

Found = dict[str, Any]

LEAST = 0.1
"""Share of a contrast that an edit must change before shares of the change are given."""
NAMES = {"tiny": "`tiny`", "smollm2": "SmolLM2"}
"""The models that are measured, as the page names them."""

LOWERED, STARTS, FIRST, COMMA = (
    "all lowered",
    "sentence starts lowered",
    "first letter lowered",
    "final stop to comma",
)
MAIN_EDITS = (LOWERED, STARTS, FIRST, COMMA)
OWN_LOWERED = "last sentence's first letter lowered"
REST_LOWERED = "all but these two letters lowered"
NO_STOPS = "earlier stops to commas"
OWN = "the last sentence's first word"
LOOKED, HELD = "faithfulness where it was looked for", "faithfulness on pairs held out"
METHOD = "eap-ig-inputs, absolute"


def between(x: Found, write: Callable[[float], str] = signed) -> str:
    """A mean with its interval."""
    return f"{write(x['mean'])} ({interval(x['low'], x['high'])})"


def shares(x: Found) -> str:
    """A share of probability with its interval in points."""
    low, high = max(x["low"], 0), min(x["high"], 1)
    return f"{percent(x['mean'])} ({percent(low)} to {percent(high)})"


def decimals_sentence(found: Found, trained_on: bool) -> str:
    """What decimal points of all books add to those of the kept-out ones.

    Args:
        found: a model's figures.
        trained_on: whether the model was trained on the other books.
    """
    d = found["decimals"]
    own = f"of these contexts {d['kept_out']} are of kept-out books"
    own += ", and the model was trained on the others" if trained_on else ""
    return (
        f"The kept-out books hold no more in contexts of this length. All {d['all_books']} books "
        f"of the corpus hold "
        f"{d['found']:,} decimal points that end a token; after {d['n']} of them, from "
        f"{d['books']} books, digits get {shares(d['mass']['digit'])} and capitals "
        f"{shares(d['mass']['space+Capital'])}, where books are resampled ({own})."
    )


def share(value: float) -> str:
    """A share of a difference with two decimals, and no sign before nothing."""
    return number(round(value, 2) + 0.0)


def claim(holds: bool, words: str) -> str:
    """Words that the figures have to bear out.

    Raises: ValueError where they do not, and the page has to say something else.
    """
    if not holds:
        raise ValueError(f"the figures no longer say: {words}")
    return words


def clear(x: Found) -> bool:
    """Whether an interval leaves zero out."""
    return bool(x["low"] > 0 or x["high"] < 0)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns but the first are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parts_table(p: Found, m: Found, *, most: int = 12) -> str:
    """Who writes the contrast: the parts by kind, and the `most` largest MLPs in order."""
    kinds = list(p["kinds"])
    rows = [[kind, between(p["kinds"][kind]), between(m["kinds"][kind])] for kind in kinds]
    layers = sorted(range(len(m["mlps"])), key=lambda i: -abs(m["mlps"][i]["mean"]))[:most]
    rows += [[f"mlp {i}", between(p["mlps"][i]), between(m["mlps"][i])] for i in sorted(layers)]
    rows.append(["in all", between(p["difference"]), between(m["difference"])])
    n = [side["difference"]["n"] for side in (p, m)]
    heads = ["written by", f"preset, n = {n[0]}", f"mined sentence ends, n = {n[1]}"]
    return table(heads, rows)


def edits_table(p: Found, m: Found) -> str:
    """What each edit does to the contrast, and how often it turns it round."""

    def cells(x: Found | None) -> list[str]:
        return ["", ""] if x is None else [moved(x), f"{percent(x['flips'])} of {x['n']}"]

    names = (*MAIN_EDITS, OWN_LOWERED, REST_LOWERED, NO_STOPS)
    rows = [[name, *cells(p["edits"].get(name)), *cells(m["edits"].get(name))] for name in names]
    heads = ["edit", "preset", "turned round", "several sentences, mined", "turned round"]
    return table(heads, rows)


def moved(x: Found) -> str:
    """A contrast before and after an edit."""
    return f"{signed(x['clean']['mean'])} → {between(x['edited'])}"


def streams_table(p: Found, m: Found) -> str:
    """What clean residual streams restore, by edit and place, before layers 0, 1 and the last."""

    def cell(side: Found, edit: str, place: str) -> str:
        values = side["places"][edit]["shares"].get(place)
        # the preset's sentences are mostly alone: this role is the first word there
        if values is None or (side is p and place == OWN):
            return ""
        if not changes_enough(side["edits"][edit]):
            return "–"
        return " / ".join("–" if values[i] is None else share(values[i]) for i in (0, 1, -1))

    rows = [
        [edit, place, cell(p, edit, place), cell(m, edit, place)]
        for edit in MAIN_EDITS
        for place in ("first word", OWN, "earlier full stops", "final full stop")
    ]
    n = [p["places"][edit]["n"] for edit in (LOWERED, COMMA)]
    heads = ["edit", "place", f"preset, n = {n[0]} or {n[1]}"]
    return table([*heads, f"several sentences, n = {m['places'][LOWERED]['n']}"], rows)


def changes_enough(x: Found) -> bool:
    """Whether an edit changes the contrast by enough for shares of that change to say something."""
    clean, edited = x["clean"]["mean"], x["edited"]["mean"]
    return bool(abs(clean - edited) >= LEAST * abs(clean))


def masses_table(m: Found) -> str:
    """The next token's classes after each kind of stop."""
    k, taken = m["kinds"], m["taken"]
    classes = ("space+Capital", "space+lower", "digit", "newline")
    rows = [[f"{kind}, n = {taken[kind]}", *(shares(k["mass"][kind][c]) for c in classes),
             shares(k["lowered"][kind])] for kind in taken]  # fmt: skip
    return table(["after", *classes, "space+Capital, text lowered"], rows)


def ledgers_table(m: Found) -> str:
    """What each kind of part writes beyond what it writes at sentence ends."""
    a, b = m["kinds"]["decimal_ledger"], m["kinds"]["abbreviation_ledger"]
    return table(
        ["part", "decimal point: digit against capital", "abbreviation: capital against lower"],
        [[part, between(a[part]), between(b[part])] for part in a],
    )


def card_table(p: Found, m: Found) -> str:
    """The figures of two circuits' cards."""

    def row(label: str, figure: str, **how: Any) -> list[str]:
        return [label, *(_figure(side["summary"].get(figure), **how) for side in (p, m))]

    rows = [
        ["pairs it was looked for on / judged on",
         *(f"{x['about']['n_found_on']} / {x['about']['n_judged_on']}" for x in (p, m))],
        row(f"edges, of {p['about']['n_edges']:,}", "edges", digits=0),
        row("nodes", "nodes", digits=0),
        row("faithfulness where it was looked for", LOOKED),
        row("faithfulness held out", HELD),
        row("the same, other edges at their mean", f"{HELD}, mean ablation"),
        row("the same, other edges at zero", f"{HELD}, zero ablation"),
        row("CPR", f"CPR ({METHOD})"),
        row("CMD", f"CMD ({METHOD})"),
        row("incompleteness, single nodes", "incompleteness, single nodes", about=True),
        row("incompleteness, sets", "incompleteness, sets of nodes", about=True),
        row("minimality, least of a node", "minimality, least of a node", about=True),
        row("edge overlap under resampling", "edge overlap under resampling"),
        row("rank correlation with exact patching", "rank correlation with exact patching",
            about=True),
    ]  # fmt: skip
    return table(["", "preset", "mined sentence ends"], rows)


def _figure(row: Found | None, *, digits: int = 2, about: bool = False) -> str:
    if row is None:
        return "not measured"
    text = number(row["value"], digits)
    if row["lower"] is not None:
        text += f" ({interval(row['lower'], row['upper'])})"
    return f"{text}: {row['about']}" if about else text


def curves_table(p: Found, m: Found) -> str:
    """Faithfulness held out, by share of the edges, beside the controls."""
    curves = (METHOD, "eap-ig-inputs, signed", "random circuits of the same size",
              "signs flipped at random")  # fmt: skip
    rows = [[f"{side}: {name}", *("" if v is None else share(v) for v in x["curves"][name])]
            for side, x in (("preset", p), ("mined", m)) for name in curves]  # fmt: skip
    return table(["first edges by score", *(percent(float(s)) for s in p["shares"])], rows)
