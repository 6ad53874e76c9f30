"""How do the stored figures of docs/findings.json read?

Every sentence of docs/findings.md that holds a figure is made here, from the results and from GPT-2
small's recorded figures, and so are its words for more and less: measured anew, none can be stale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from docs import findings_two as two
from docs.findings_directions import directions_page
from docs.findings_heads import heads_page
from docs.findings_parts import parts_page
from docs.findings_tables import (
    COMMA,
    FIRST,
    HELD,
    METHOD,
    NO_STOPS,
    OWN,
    OWN_LOWERED,
    REST_LOWERED,
    Found,
    between,
    card_table,
    claim,
    clear,
    curves_table,
    decimals_sentence,
    edits_table,
    ledgers_table,
    masses_table,
    parts_table,
    share,
    streams_table,
)

from casestudy.show.text import interval, listing, number, percent, signed

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "findings.md", HERE / "findings.json"
RECORDED = HERE.parent / "tests" / "golden" / "data"


def answer(found: Found) -> str:
    """The page in a paragraph."""
    p, m = found["preset"], found["mined"]
    top = p["noising"][0]
    first, own = m["edits"][FIRST], m["edits"][OWN_LOWERED]
    same = "the same head" if m["noising"][0]["head"] == top["head"] else "another head"
    written = p["written"]["kinds"]
    most = max(written, key=lambda kind: written[kind]["mean"])
    return (
        f"Most of the preference is written by the {most} "
        f"({signed(written[most]['mean'])} of {number(p['written']['difference']['mean'])} logits "
        f"on the preset's sentences). Whether there is one depends on a single letter far away: "
        f"head {top['head']} alone carries {number(top['mean'])} of what lowering the text "
        f"changes ({same} on mined contexts: {number(m['noising'][0]['mean'])}). In contexts of "
        f"several sentences it is the text's first letter, "
        f"which takes the contrast from {signed(first['clean']['mean'])} to "
        f"{signed(first['edited']['mean'])}; the last sentence's own first letter takes it from "
        f"{signed(own['clean']['mean'])} to {signed(own['edited']['mean'])}.\n"
    )


def parts(found: Found) -> str:
    """Who writes the capital."""
    p, m = found["preset"]["written"], found["mined"]["written"]
    attention = [side["kinds"]["attention"] for side in (p, m)]
    said = ["cannot be told from none" if not clear(x) else signed(x["mean"]) for x in attention]
    heads = [listing([f"{h['head']} ({signed(h['mean'])})" for h in side["heads"]])
             for side in (p, m)]  # fmt: skip
    books = found["mined"]["by_book"].values()
    share = [side["b_U"]["mean"] / side["difference"]["mean"] for side in (p, m)]
    flips = found["mined"]["comma_flips"]
    return (
        parts_table(p, m)
        + f"\nThe sum of the attention layers {said[0]} on the preset and {_is(said[1])} on mined "
        f"contexts. b_U, which is the same whatever the prompt says, is {percent(share[0])} of the "
        f"contrast there and {percent(share[1])} here. The largest direct shares of heads are "
        f"those of {heads[0]} on the preset and {heads[1]} on mined contexts: small, whatever "
        f"they may do for later layers. From book to book the mean goes from "
        f"{number(min(books))} to {number(max(books))} logits.\n\n"
        f"In {percent(found['mined']['first_person'])} of the mined contexts the likeliest "
        f"capitalised word is “I”, which has a capital anywhere. After a comma instead of the "
        f"stop the contrast turns round in {percent(flips['I'])} of these and in "
        f"{percent(flips['other'])} of the others: for “I” it is not a question about full stops.\n"
    )


def _is(words: str) -> str:
    return words if words.startswith("cannot") else f"is {words}"


def places(found: Found) -> str:
    """Where the information comes from."""
    p, m = found["preset"], found["mined"]
    return _edits(p, m) + _streams(p, m) + _one_head(p, m)


def _edits(p: Found, m: Found) -> str:
    text = "Edits of the text, and what they do to the contrast:\n\n" + edits_table(p, m)
    kept = [m["edits"][n]["edited"]["mean"] / m["edits"][n]["clean"]["mean"]
            for n in (FIRST, OWN_LOWERED, REST_LOWERED, NO_STOPS)]  # fmt: skip
    first = m["edits"][FIRST]["edited"]["mean"]
    turned = "reverses it" if first < 0 else "leaves its sign"
    text += (
        f"\nIn mined contexts of several sentences, lowering the text's first letter {turned} "
        f"({signed(first)} in the mean), lowering the last sentence's own first letter leaves "
        f"{percent(kept[1])} of the contrast, lowering everything but these two letters leaves "
        f"{percent(kept[2])}, and commas for all earlier stops leave {percent(kept[3])}. "
    )
    return text + (
        "So the case is read off the start of the text, not off the sentence that ends; earlier "
        "stops need not be there.\n\n"
        if kept[0] < min(kept[1:])
        else "So the start of the text is not what decides.\n\n"
    )


def _streams(p: Found, m: Found) -> str:
    text = "Clean residual streams put into the edited run, one place at a time, as a share of "
    text += "the difference before layers 0, 1 and the last:\n\n" + streams_table(p, m)
    early, late = (m["places"][FIRST]["shares"]["final full stop"][i] for i in (1, -1))
    alone = p["places"][FIRST]["shares"]["final full stop"][1]
    words = [x["places"][FIRST]["shares"]["first word"] for x in (p, m)]
    moved = claim(
        all(w[0] > 0.8 and w[1] < 0.1 for w in words),
        "What the other edits change leaves the first word within layer 0:",
    )
    rest = claim(late > early, "The rest is at other tokens, and some of it is fetched later.")
    comma = p["places"][COMMA]["shares"]["final full stop"]
    if min(comma) > 0.99:
        text += (
            "\n“Final stop to comma” puts everything at the last token in every layer, by "
            "construction: nothing before it differs. It says that the stop is needed, and nothing "
            "about where else the model looks. "
        )
    return text + (
        f"{moved} the final stop "
        f"holds {number(alone)} of the preset's difference before layer 1 and {number(early)} in "
        f"contexts of several sentences (“{FIRST}”), {number(late)} before the last layer. "
        f"{rest}\n\n"
    )


def _one_head(p: Found, m: Found) -> str:
    top, other = p["noising"][0], m["noising"][0]
    looks, theirs = p["looks"], m["looks"]
    one = claim(
        top["head"] == other["head"] and min(top["low"], other["low"]) > 0.8, "One head does it."
    )
    return (
        f"{one} Its output of the edited run in the clean one takes "
        f"{between(top, number)} of the preset's difference away for head {top['head']}, next "
        f"{_next(p)}; on mined contexts {between(other, number)} for head {other['head']}, next "
        f"{_next(m)}. Two plain runs and one edit, without the machinery of patching, give "
        f"{number(p['by_hand'])} and {number(m['by_hand'])}. From the final stop it gives "
        f"{percent(looks['first word'])} of its attention to the first word on the preset and "
        f"{percent(theirs['first word'])} in contexts of several sentences, where the last "
        f"sentence's first word gets {percent(theirs[OWN])} and earlier stops "
        f"{percent(theirs['earlier full stops'])}.\n"
    )


def _next(side: Found) -> str:
    return _heads(side["noising"][1:])


def _heads(heads: Sequence[Found]) -> str:
    return listing([f"{h['head']} ({number(h['mean'])})" for h in heads])


def kinds(found: Found) -> str:
    """Decimal points and abbreviations."""
    k = found["mined"]["kinds"]
    text = "Probability after mined contexts:\n\n" + masses_table(found["mined"])
    d = found["preset"]["decimal"]
    n = {group: x["digit"]["n"] for group, x in d["mass"].items()}
    digit = [
        f"{percent(x['digit']['mean'])} after a {group} (n = {n[group]})"
        for group, x in d["mass"].items()
    ]
    text += f"\nOn the `decimal-point` preset digits get {listing(digit)}.\n\n"
    text += "What each part writes beyond what it writes at sentence ends, with b_U's change:\n\n"
    text += ledgers_table(found["mined"])
    a, b = k["decimal_ledger"], k["abbreviation_ledger"]
    largest = max((x for x in a if x != "sum"), key=lambda part: abs(a[part]["mean"]))
    gone = min((x for x in b if x != "sum"), key=lambda part: b[part]["mean"])
    text += (
        f"\nDigits gain {number(a['sum']['mean'])} nats over capitals at a decimal point, most of "
        f"it from the {largest} ({signed(a[largest]['mean'])}), with attention's "
        f"{signed(a['attention']['mean'])}. After an abbreviation a capital "
        f"{'loses' if b['sum']['mean'] < 0 else 'gains'} {number(abs(b['sum']['mean']))} nats "
        f"against lower case, and the {gone} {_change(b[gone]['mean'])} "
        f"({signed(b[gone]['mean'])}). "
    )
    change = k["mass_difference"]["abbreviation"]
    title = claim(
        k["lowered"]["abbreviation"]["mean"]
        < k["mass"]["abbreviation"]["space+Capital"]["mean"] / 2,
        "so the capital of the name that follows a title hangs on the text's case as well.",
    )
    text += (
        f"A newline, which ends paragraphs, {'falls' if change['newline']['mean'] < 0 else 'rises'}"
        f" by {number(100 * abs(change['newline']['mean']), 0)} points. In lowered text a "
        f"capital follows an abbreviation in {percent(k['lowered']['abbreviation']['mean'])}, "
        f"{title}\n\n"
    )
    last = d["shares"]["last word before the stop"]
    stop = d["shares"]["final full stop"]
    crossed = next((i for i in range(len(stop)) if stop[i] > last[i]), None)
    tells = claim(
        last[0] > 0.9 and stop[0] < 0.1, "What tells a decimal point is the word before it."
    )
    none = claim(d["heads"][0]["mean"] < 0.5, "No single head brings it:")
    where = "in no layer" if crossed is None else f"from layer {crossed} on"
    text += (
        f"{tells} Number against word in the same "
        f"context ({d['n']} pairs): all is at that word before layer 0 ({number(last[0])}), the "
        f"stop has more of it than the word {where}, and {number(stop[3])} before layer "
        f"3. {none} the largest noising effects are "
        f"{_heads(d['heads'])}.\n"
    )
    return text


def _change(x: float) -> str:
    return "write less of it" if x < 0 else "write more of it"


def circuit(found: Found) -> str:
    """The cards."""
    p, m = found["preset"]["card"], found["mined"]["card"]

    text = card_table(p, m) + "\n"
    text += "Faithfulness held out, by share of the edges, beside the controls:\n\n"
    text += curves_table(p, m)
    strongest = [listing([f"`{e['edge']}` ({number(e['score'])})" for e in x["edges"][:4]])
                 for x in (p, m)]  # fmt: skip
    path = claim(
        all(
            {"embed->head 0.2<v>", "head 0.2->mlp 0", "mlp 5->logits"}
            <= {e["edge"] for e in x["edges"][:4]}
            for x in (p, m)
        ),
        ": the head that reads the first word, the MLP after it, and the MLPs that write.",
    )
    carried, own = found["mined"]["carried"], m["summary"][HELD]
    edges = (int(x["summary"]["edges"]["value"]) for x in (p, m))
    first, second = edges
    text += (
        f"\nThe strongest edges are {strongest[0]} on the preset, and {strongest[1]} on mined "
        f"sentence ends (estimates by EAP-IG, in logits)"
        f"{path}\n\n"
        f"**Does it carry over?** The preset's circuit keeps {between(carried, number)} of the "
        f"difference on the {carried['n']} mined pairs, which it has never seen; the circuit "
        f"looked for there keeps {number(own['value'])} of the held-out ones. "
        f"{found['mined']['shared_edges']} edges are in both, of {first} and {second}. "
        f"It carries over {'no worse' if _holds(carried, p) else 'less well'} than it holds on the "
        f"preset's own held-out sentences ({number(p['summary'][HELD]['value'])}, "
        f"n = {p['summary'][HELD]['n']}).\n"
    )
    return text


def _holds(carried: Found, p: Found) -> bool:
    return bool(carried["high"] >= p["summary"][HELD]["value"])


def gaps(found: Found) -> str:
    """What is not explained."""
    p, m = found["preset"], found["mined"]
    left = [1 - x["card"]["summary"][HELD]["value"] for x in (p, m)]
    zero = m["card"]["summary"][f"{HELD}, zero ablation"]
    at = m["card"]["shares"].index("0.1")
    chance = m["card"]["curves"]["random circuits of the same size"][at]
    flipped = [x["card"]["curves"]["signs flipped at random"][at] for x in (p, m)]
    true = [x["card"]["curves"][METHOD][at] for x in (p, m)]
    single = [x["card"]["summary"]["incompleteness, single nodes"] for x in (p, m)]
    late = 1 - m["places"][FIRST]["shares"]["final full stop"][-1]
    lines = [
        f"{percent(left[0])} of the preset's held-out difference and {percent(left[1])} of the "
        f"mined one are outside the smallest circuits, which were cut at 85 % of what they were "
        f"looked for on; the preset's {p['card']['about']['n_judged_on']} held-out pairs are few.",
        f"The circuits are not complete: without one of their nodes circuit and model differ by "
        f"{number(single[0]['value'])} and {number(single[1]['value'])} of the difference in the "
        f"mean ({single[0]['about'].split(';')[0]}, {single[1]['about'].split(';')[0]}). The model "
        f"has ways round a missing node that the circuit has not.",
        f"With all other edges at zero the mined circuit keeps {number(zero['value'])} "
        f"({interval(zero['lower'], zero['upper'])}): it works among the other parts' usual "
        f"output, not alone.",
        f"The control with signs turned at random reaches {number(flipped[0])} and "
        f"{number(flipped[1])} at a tenth of the edges, where the method has {number(true[0])} and "
        f"{number(true[1])}. Ranking by size finds the same large parts whatever the sign, so at "
        f"such sizes the curve says little about which edges; random circuits, at "
        f"{share(chance)}, are too "
        f"weak a control to say it.",
        f"Before the last layer {percent(late)} of what lowering the first letter changes in "
        f"contexts of several sentences is not at the final stop. The "
        f"heads that do most after {m['noising'][0]['head']} carry little of it: {_next(m)}.",
        f"The decimal points are all from "
        f"{'one book' if m['kinds']['decimal_books'] == 1 else 'few books'} (n = "
        f"{m['taken']['decimal point']}), and of `whole number` the preset has "
        f"{p['decimal']['mass']['whole number']['digit']['n']} prompts. How the model weighs a "
        f"number at a sentence's end is open. {decimals_sentence(found, trained_on=True)}",
        f"Mined intervals resample paragraphs; over {m['books']} books they say nothing about "
        f"others. Circuits were looked for in pairs of at most {m['longest']} tokens, most of "
        f"them one sentence.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def recorded() -> Found:
    """What was printed and plotted of GPT-2 small, and what the page says of it."""
    data = json.loads((RECORDED / "gpt2_small.json").read_text("utf-8"))
    eight = data["batches"]["eleven_token_batch_8"]
    patching = json.loads((RECORDED / "resid_pre_patching.json").read_text("utf-8"))["value"]
    layers = eight["layer_attribution"]
    sums = {
        kind: sum(v for label, v in zip(layers["labels"], layers["value"], strict=True)
                  if label.endswith(kind))
        for kind in ("mlp_out", "attn_out")
    }  # fmt: skip
    heads = {f"{i}.{j}": v for i, row in enumerate(eight["head_attribution"]["value"])
             for j, v in enumerate(row)}  # fmt: skip
    top = max(heads, key=lambda head: heads[head])
    first = [row[1] for row in patching]
    last = [row[-1] for row in patching]
    check = eight["lens_check_lowercase"]
    return {
        "mlps": sums["mlp_out"], "attention": sums["attn_out"],
        "calculated": check["calculated"], "original": check["original"],
        "head": top, "head_share": heads[top], "first": first, "last": last,
        "takes_over": next(i for i in range(len(last)) if last[i] > first[i]),
    }  # fmt: skip


def gpt2(found: Found) -> str:
    """The recorded figures."""
    r, p = recorded(), found["preset"]["written"]["kinds"]
    over = r["takes_over"]
    ours_lead = "more" if p["MLPs"]["mean"] > p["attention"]["mean"] else "less"
    ours = found["preset"]["places"][FIRST]["shares"]
    early = ours["final full stop"][1] > ours["first word"][1]
    leads = "more" if r["mlps"] > r["attention"] else "less"
    return (
        f"*Recorded, not computed here*: GPT-2 small on the preset's eight prompts of eleven "
        f"tokens. The MLP layers write {number(r['mlps'])} of {number(r['calculated'])} logits and "
        f"the attention layers {number(r['attention'])}; with b_U, which that sum leaves out, the "
        f"difference is {number(r['original'])}. Head {r['head']} leads with "
        f"{number(r['head_share'])}. Of what lowering sentence starts changes, the first word's "
        f"stream carries {number(r['first'][0])} before layer 0 and {number(r['first'][over - 1])} "
        f"before layer {over - 1}; from layer {over} on the last token takes over "
        f"({number(r['last'][over])} against {number(r['first'][over])}), up to "
        f"{number(r['last'][-1])} before the last.\n\n"
        f"The MLPs write {leads} than attention there, and {ours_lead} in `tiny`. What the first "
        f"word's case says has to be carried to the stop; in `tiny` that has happened "
        f"{'by layer 1' if early else 'later than layer 1'}, in GPT-2 small by layer {over}.\n"
    )


def _of_tiny(make: Callable[[Found], str]) -> Callable[[Found], str]:
    return lambda found: make(found["tiny"])


_TINY = {
    "answer": answer,
    "parts": parts,
    "places": places,
    "kinds": kinds,
    "circuit": circuit,
    "gaps": gaps,
}

BLOCKS: dict[str, Callable[[Found], str]] = {
    "two": lambda found: two.short(found) + "\n" + two.beside(found),
    **{name: _of_tiny(make) for name, make in _TINY.items()},
    "single-parts": parts_page,
    "directions": directions_page,
    "smollm2": two.published,
    "heads": heads_page,
    "gpt2": _of_tiny(gpt2),
}
"""The page's blocks, in order, from all models' figures."""


def ends(name: str) -> tuple[str, str]:
    """What stands before and after a block."""
    return f"<!-- {name}: made by `make findings` -->\n", f"<!-- end of {name} -->\n"


def filled(page: str, found: Found) -> str:
    """The page with every block made from the results."""
    for name, make in BLOCKS.items():
        start, end = ends(name)
        before, rest = page.split(start)
        _, after = rest.split(end)
        page = f"{before}{start}\n{make(found)}\n{end}{after}"
    return page
