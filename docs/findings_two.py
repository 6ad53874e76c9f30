"""What do the stored figures say of two models beside each other, and of the published one alone?

Like docs/findings_page.py, words for more and less are made from the figures.
"""

from __future__ import annotations

from docs.findings_tables import (
    COMMA,
    FIRST,
    HELD,
    LOOKED,
    LOWERED,
    NAMES,
    NO_STOPS,
    OWN_LOWERED,
    Found,
    between,
    card_table,
    curves_table,
    decimals_sentence,
    edits_table,
    ledgers_table,
    masses_table,
    parts_table,
    share,
    shares,
    streams_table,
    table,
)

from casestudy.show.text import interval, listing, number, percent, signed

APART = 0.25
"""Two models disagree about an edit where the shares of contexts that it turns round are so far
apart."""
CASE = (LOWERED, FIRST, OWN_LOWERED)


def beside(found: Found) -> str:
    """The two models beside each other, and where they disagree."""
    models = [found[name] for name in NAMES]
    rows = [
        ["prompts, preset / mined", *(_both(m, lambda s: f"{s['prompts']['n']}") for m in models)],
        ["prefer the capital",
         *(_both(m, lambda s: percent(s["prompts"]["preferred"])) for m in models)],
        ["the answer is the likeliest token",
         *(_both(m, lambda s: percent(s["prompts"]["likeliest"])) for m in models)],
        ["by how much, preset", *(between(m["preset"]["written"]["difference"]) for m in models)],
        ["by how much, mined", *(between(m["mined"]["written"]["difference"]) for m in models)],
        *([f"written by {kind}, mined", *(_written(m, kind) for m in models)]
          for kind in ("embedding and position", "attention", "MLPs", "final norm bias (b_U)")),
        *([f"turned round by “{edit}”, mined", *(_turned(m, edit) for m in models)]
          for edit in (COMMA, LOWERED, FIRST, OWN_LOWERED, NO_STOPS)),
        ["heads that carry most of an edit, mined", *(map(_carriers, models))],
        ["capital after an abbreviation",
         *(_mass(m, "abbreviation", "space+Capital") for m in models)],
        ["digit after a decimal point", *(_mass(m, "decimal point", "digit") for m in models)],
        ["edges of the mined circuit", *(map(_edges, models))],
        ["held out, it carries", *(_faith(m, HELD) for m in models)],
        ["signs flipped at random, as many edges",
         *(_faith(m, f"{HELD}, signs flipped at random") for m in models)],
    ]  # fmt: skip
    return table(["", *NAMES.values()], rows) + "\n" + _apart(models)


def _both(model: Found, write: object) -> str:
    assert callable(write)
    return " / ".join(write(model[side]) for side in ("preset", "mined"))


def _written(model: Found, kind: str) -> str:
    kinds = model["mined"]["written"]["kinds"]
    return between(kinds[kind]) if kind in kinds else "has none"


def _turned(model: Found, edit: str) -> str:
    x = model["mined"]["edits"][edit]
    return f"{percent(x['flips'])} of {x['n']}"


def _carriers(model: Found) -> str:
    heads = model["mined"]["noising"]
    return f"“{model['preset']['edit']}”: " + listing(
        [f"{h['head']} ({number(h['mean'])})" for h in heads]
    )


def _mass(model: Found, kind: str, what: str) -> str:
    return shares(model["mined"]["kinds"]["mass"][kind][what])


def _edges(model: Found) -> str:
    card = model["mined"]["card"]
    n, all_of = card["summary"]["edges"]["value"], card["about"]["n_edges"]
    return f"{n:,.0f} of {all_of:,} ({percent(n / all_of)})"


def _faith(model: Found, figure: str) -> str:
    row = model["mined"]["card"]["summary"].get(figure)
    if row is None:
        return "not measured"
    return f"{number(row['value'])} ({interval(row['lower'], row['upper'])})"


def _apart(models: list[Found]) -> str:
    """Which edits the models disagree about, and what decides in each."""
    lines = []
    for edit in (COMMA, LOWERED, FIRST, OWN_LOWERED, NO_STOPS):
        a, b = (m["mined"]["edits"][edit]["flips"] for m in models)
        if abs(a - b) >= APART:
            lines.append(f"“{edit}” turns {percent(a)} round in `tiny` and {percent(b)} in SmolLM2")
    said = [
        f"In {name} {_decides(m)}; {_read_off(m)}."
        for name, m in zip(NAMES.values(), models, strict=True)
    ]
    apart = f"They disagree: {listing(lines)}." if lines else "They agree about every edit here."
    return f"**What decides?** {' '.join(said)} {apart}\n"


def _read_off(model: Found) -> str:
    """Which letter the case is read off, in contexts of several sentences."""
    text, own = (model["mined"]["edits"][name]["flips"] for name in (FIRST, OWN_LOWERED))
    if text >= own + APART:
        return "the case is read off the text's first letter"
    if own >= text + APART:
        return "the case is read off the first letter of the sentence that ends"
    return "no one letter decides the case"


def _decides(model: Found) -> str:
    """Whether stop or case turns the contrast round more often, by this model's mined contexts."""
    edits = model["mined"]["edits"]
    stop, case = edits[COMMA]["flips"], max(edits[name]["flips"] for name in CASE)
    if stop >= case + APART:
        words = "the stop decides, not the case of the text ({} against {} turned round)"
    elif case >= stop + APART:
        stop, case = case, stop
        words = "the case of the text decides more often than the stop ({} against {} turned round)"
    else:
        words = "stop and case turn the preference round about as often ({} and {})"
    return words.format(percent(stop), percent(case))


def published(found: Found) -> str:
    """SmolLM2's own tables, with what they say."""
    p, m = found["smollm2"]["preset"], found["smollm2"]["mined"]
    return "\n".join(
        [
            "### Which parts write its capital\n",
            parts_table(p["written"], m["written"], most=6),
            _heads(p, m),
            "### Where its information comes from\n",
            edits_table(p, m),
            "Clean residual streams put into the edited run, as a share of the difference before "
            "layers 0, 1 and the last; a dash where the edit changes less than a tenth of the "
            "contrast:\n",
            streams_table(p, m),
            _carried(p, m),
            "### Its decimal points and abbreviations\n",
            masses_table(m),
            _digits(p),
            ledgers_table(m),
            "### Its circuit\n",
            f"Pairs are of the family “{p['edit']}”.\n",
            card_table(p["card"], m["card"]),
            "Faithfulness held out, by share of the edges, beside the controls:\n",
            curves_table(p["card"], m["card"]),
            "### What is not explained of it\n",
            _left(found["smollm2"], p, m),
        ]
    )


def _heads(p: Found, m: Found) -> str:
    heads = [listing([f"{h['head']} ({signed(h['mean'])})" for h in side["written"]["heads"]])
             for side in (p, m)]  # fmt: skip
    books = m["by_book"].values()
    return (
        f"The {len(p['written']['mlps'])} MLPs' largest six on mined contexts are shown. The "
        f"largest direct shares of heads are those of {heads[0]} on the preset and {heads[1]} on "
        f"mined contexts. From book to book the mean goes from {number(min(books))} to "
        f"{number(max(books))} logits. In {percent(m['first_person'])} of the mined contexts the "
        f"likeliest capitalised word is “I”.\n"
    )


def _carried(p: Found, m: Found) -> str:
    top = [side["noising"][0] for side in (p, m)]
    alone = (
        "one head carries most of it"
        if min(h["mean"] for h in top) > 0.5
        else "no single head carries half of it"
    )
    looks = {place: x for place, x in m["looks"].items() if x is not None}
    where = listing([f"{percent(x)} to {place}" for place, x in looks.items()])
    return (
        f"Of what “{p['edit']}” changes, {alone}: put in from the edited run, the output of "
        f"{_listed(p)} takes so much away on the preset, and of {_listed(m)} on mined contexts. "
        f"Two plain runs and one edit, without the machinery of patching, give "
        f"{number(p['by_hand'])} and {number(m['by_hand'])} for the first. From the final stop "
        f"head {top[1]['head']} gives, of its attention on mined contexts of several "
        f"sentences, {where}.\n"
    )


def _listed(side: Found) -> str:
    return listing([f"{h['head']} ({between(h, number)})" for h in side["noising"]])


def _digits(p: Found) -> str:
    mass = p["decimal"]["mass"]
    digit = [f"{percent(x['digit']['mean'])} after a {group} (n = {x['digit']['n']})"
             for group, x in mass.items()]  # fmt: skip
    return (
        f"On the `decimal-point` preset digits get {listing(digit)}. What each kind of part writes "
        f"beyond what it writes at sentence ends:\n"
    )


def _left(model: Found, p: Found, m: Found) -> str:
    cards = [side["card"] for side in (p, m)]
    left = [1 - card["summary"][HELD]["value"] for card in cards]
    found = [card["summary"][LOOKED]["value"] for card in cards]
    flipped = [card["summary"].get(f"{HELD}, signs flipped at random") for card in cards]
    zero = m["card"]["summary"][f"{HELD}, zero ablation"]
    lines = [
        f"{percent(left[0])} of the preset's held-out difference and {percent(left[1])} of the "
        f"mined one are outside the smallest circuits, which reach {share(found[0])} and "
        f"{share(found[1])} where they were looked for.",
        *(
            [f"Circuits of as many edges found with signs flipped at random carry "
             f"{number(flipped[0]['value'])} and {number(flipped[1]['value'])}: the nearer that "
             f"is, the less the edges themselves are shown to matter."]
            if all(flipped) else []
        ),
        f"With all other edges at zero the mined circuit keeps {number(zero['value'])} "
        f"({interval(zero['lower'], zero['upper'])}).",
        f"Circuits were looked for on {cards[0]['about']['n_found_on']} and "
        f"{cards[1]['about']['n_found_on']} pairs, and judged on "
        f"{cards[0]['about']['n_judged_on']} and {cards[1]['about']['n_judged_on']}, of at most "
        f"{m['longest']} tokens.",
        f"The mined decimal points (n = {m['taken']['decimal point']}) are from "
        f"{m['kinds']['decimal_books']} of {m['books']} books. "
        f"{decimals_sentence(model, trained_on=False)}",
    ]  # fmt: skip
    return "".join(f"- {line}\n" for line in lines)


def short(found: Found) -> str:
    """SmolLM2's answer in a sentence or two."""
    m = found["smollm2"]["mined"]
    kinds = m["written"]["kinds"]
    most = max(kinds, key=lambda kind: kinds[kind]["mean"])
    likeliest = m["prompts"]["likeliest"]
    return (
        f"SmolLM2 prefers the capital by {between(m['written']['difference'])} logits on mined "
        f"sentence ends (n = {m['prompts']['n']}); it is the likeliest token of all in "
        f"{percent(likeliest)} of them. Most is written by the {most} "
        f"({signed(kinds[most]['mean'])}). Here {_decides(found['smollm2'])}; "
        f"in `tiny` {_decides(found['tiny'])}. In SmolLM2 {_read_off(found['smollm2'])}; in "
        f"`tiny` {_read_off(found['tiny'])}.\n"
    )
