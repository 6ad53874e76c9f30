"""Write docs/findings.md's blocks: how two models come to write a capital after a stop.

    python -m docs.findings [MODEL …] [--corpus FOLDER] [--parts]

Run it from the repository's root. Measures `tiny`, and `smollm2` where it is installed, on the
presets and on contexts mined from the kept-out books (those of `training.corpus.HELD_OUT`; no other
is read), keeps the numbers in findings.json and words them in findings.md. What is not measured
anew, for want of the books or of the model, stays as it is. Nothing is drawn at random without a
seed. `--parts` measures single heads, neurons and the direction. Cost: five minutes for `tiny`,
an hour of one core for `smollm2`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from docs.findings_decimals import decimals
from docs.findings_heads import measure_heads
from docs.findings_kept import difference, mean, number
from docs.findings_page import PAGE, RESULTS, filled
from docs.findings_parts import measure_single_parts
from docs.findings_tables import (
    COMMA,
    LOWERED,
    MAIN_EDITS,
    NO_STOPS,
    OWN,
    OWN_LOWERED,
    REST_LOWERED,
    Found,
)
from numpy.typing import NDArray
from training.corpus import HELD_OUT

import casestudy
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import FAMILIES, Family, Score, propose
from casestudy.behaviour.mining import mine
from casestudy.behaviour.presets import preset
from casestudy.behaviour.prompts import Behaviour, Role
from casestudy.behaviour.roles import STANDARD_ROLES
from casestudy.circuits.card import Card, circuit_card
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.evidence import Choices
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.errors import CasestudyError
from casestudy.measure.attention import attention_by_role
from casestudy.measure.attribution import HEADS
from casestudy.measure.class_mass import CLASS_MASS, class_mass
from casestudy.measure.edit_scores import score
from casestudy.measure.ledger import LEDGER
from casestudy.measure.patching import Direction, Pairs, pairs_of, patch
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results import names
from casestudy.results.components import layer_kind
from casestudy.results.names import B_U
from casestudy.results.result import Grid

CORPUS = "CASESTUDY_CORPUS"

KINDS = ("sentence end", "abbreviation", "decimal point")
MINED, LONGEST = 900, 64


@dataclass(frozen=True)
class Plan:
    """How much is measured of a model, and on which edit.

    Attributes:
        preset, mined: how the circuits are looked for.
        edit: the family of edits whose pairs heads and circuits are looked for on: the one that
            undoes the behaviour in this model.
        patched: most pairs that are patched.
        pairs, longest: most mined pairs of the circuit, and their most tokens.
    """

    preset: Choices
    mined: Choices
    edit: str = LOWERED
    patched: int = 40
    pairs: int = 48
    longest: int = 32


PLANS = {
    "tiny": Plan(
        preset=Choices(random_circuits=5),
        mined=Choices(random_circuits=3, replicates=50, exact_edges=100),
    ),
    "smollm2": Plan(
        edit=COMMA,
        patched=24,
        pairs=24,
        preset=Choices(random_circuits=2, exact_edges=100),
        mined=Choices(random_circuits=1, replicates=20, exact_edges=50),
    ),
}

_START = next(role.pattern for role in STANDARD_ROLES if role.name == "sentence starts")
OWN_ROLE = Role(OWN, _START, which="last", take="first")
"""In a prompt of one sentence it is the first word."""
PLACES = ("first word", OWN, "earlier full stops", "final full stop")


def paragraph(text: str) -> str:
    """What contexts of one paragraph share: they are prefixes of each other."""
    return text[:60]


def measured(batch: Batch, measurement: Measurement, name: str) -> Grid:
    """One grid of a measurement that the batch was run for."""
    found = next(result for result in measurement.measure(batch) if result.name == name)
    assert isinstance(found, Grid)
    return found


def batch_of(model: Model, behaviour: Behaviour, index: Sequence[int]) -> Batch:
    """Some prompts, run with all that is read of them here."""
    return run_batch(model, behaviour, index, [LEDGER, HEADS, CLASS_MASS])


# Does it?


def predicted(batch: Batch) -> Found:
    """How often the answer is preferred, and is the likeliest token of all."""
    contrast, logits = batch.contrasts[0], batch.logits
    likeliest = logits.argmax(-1).tolist()
    top = [
        answer.token.id == best
        for answer, best in zip(batch.answers.chosen, likeliest, strict=True)
        if answer is not None
    ]
    return {
        "n": len(top),
        "preferred": number(float((contrast.value(logits) > 0).double().mean())),
        "likeliest": number(float(np.mean(top))),
    }


# Who writes it?


def parts(terms: Sequence[str], values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """A ledger's terms (term, prompt), put together by kind."""
    kinds: dict[str, NDArray[np.float64]] = {}
    for name, row in zip(terms, values, strict=True):
        kind = {"embed": "embedding and position", "pos_embed": "embedding and position"}.get(name)
        kind = kind or {"attn": "attention", "mlp": "MLPs"}.get(layer_kind(name) or "", name)
        kinds[kind] = kinds.get(kind, 0) + row
    return kinds


def written(batch: Batch, units: Sequence[str] | None = None) -> Found:
    """The main contrast's ledger and its heads."""
    grid = measured(batch, LEDGER, names.LEDGER)
    terms, values = grid.axis("term").labels, grid.values[0]
    present = [i for i in range(len(terms)) if not np.isnan(values[i]).all()]
    terms, values = tuple(terms[i] for i in present), values[present]
    heads = measured(batch, HEADS, names.HEAD_SHARES).values[0]  # layer head prompt
    heads = heads[:, :-1]
    order = np.argsort(-np.abs(heads.mean(2)).ravel())[:3]
    return {
        "difference": mean(values.sum(0), units),
        "kinds": {kind: mean(row, units) for kind, row in parts(terms, values).items()},
        "mlps": [mean(values[terms.index(f"mlp {layer}")], units)
                 for layer in range(len(heads))],
        "heads": [
            {"head": f"{i // heads.shape[1]}.{i % heads.shape[1]}"}
            | mean(heads[divmod(int(i), heads.shape[1])], units)
            for i in order
        ],
        "b_U": mean(values[terms.index(B_U)], units) if B_U in terms else None,
    }  # fmt: skip


# Where does it come from?


def families(batch: Batch, which: Iterable[Family]) -> list[Score]:
    """Every family's pairs, edited and run."""
    prompts = [replace(prompt, corrupted=None) for prompt in batch.prompts]
    return list(score(batch.model, propose(batch.model, prompts, tuple(which)), batch.contrasts[0]))


def edits(scores: Iterable[Score], units: Sequence[str] | None) -> dict[str, Found]:
    """What each family does to the contrast."""
    return {
        s.family: {
            "n": s.n,
            "aligned": aligned(s).n,
            "before_last": s.before_last.n,
            "clean": mean(s.clean, chosen(units, s)),
            "edited": mean(s.corrupted, chosen(units, s)),
            "flips": number(s.flip_share),
        }
        for s in scores
    }


def chosen(units: Sequence[str] | None, s: Score) -> list[str] | None:
    """The units of a family's pairs."""
    return None if units is None else [units[pair.index] for pair in s.pairs]


def aligned(s: Score) -> Score:
    """The pairs of as many tokens."""
    return s.only(lambda pair: pair.aligned == "position")


def paired(batch: Batch, s: Score) -> tuple[Pairs, Contrast]:
    """A family's aligned pairs with their contrasts."""
    assert s.n
    pairs = pairs_of(batch.model, s.pairs, roles=[OWN_ROLE])
    return pairs, batch.contrasts[0][[pair.index for pair in s.pairs]]


def by_place(batch: Batch, s: Score, places: Sequence[str] = PLACES) -> Found:
    """Clean streams put into the edited run at each place, layer by layer; nothing where no edit
    leaves a prompt its number of tokens."""
    if not s.n:
        return {"n": 0, "shares": {}}
    pairs, contrast = paired(batch, s)
    grid = patch(batch.model, pairs, contrast, "resid_pre", by="role").normalised
    names = grid.axis("role").labels
    shares = {p: [number(v) for v in grid.values[:, names.index(p)]]
              for p in places if p in names}  # fmt: skip
    return {"n": s.n, "shares": shares}


def by_head(batch: Batch, s: Score, direction: Direction) -> list[Found]:
    """The three heads that matter most, all positions together."""
    pairs, contrast = paired(batch, s)
    grid = patch(batch.model, pairs, contrast, "z", by="all", direction=direction).normalised
    assert grid.lower is not None
    assert grid.upper is not None
    width = grid.values.shape[1]
    order = np.argsort(-np.abs(grid.values).ravel())[:3]
    return [
        {"head": f"{i // width}.{i % width}", "mean": number(grid.values.ravel()[i]),
         "low": number(grid.lower.ravel()[i]), "high": number(grid.upper.ravel()[i])}
        for i in order
    ]  # fmt: skip


def by_hand(batch: Batch, s: Score, head: str) -> float | None:
    """The same for one head with two plain runs and an edit, and no machinery of patching."""
    layer, index = map(int, head.split("."))
    pairs, contrast = paired(batch, s)
    model = batch.model
    theirs = run(model, pairs.corrupted, keep=[Site.Z.at(layers=layer)], logits="last")

    def exchange(x: Any) -> Any:
        x = x.clone()
        x[:, :, index] = theirs["z", layer][:, :, index]
        return x

    ours = run(model, pairs.clean, logits="last").logits
    mixed = run(model, pairs.clean, edit=[Edit(Site.Z, layer, exchange)], logits="last").logits
    assert ours is not None
    assert mixed is not None
    assert theirs.logits is not None
    a, b, c = (float(contrast.value(x).mean()) for x in (ours, theirs.logits, mixed))
    return number((c - a) / (b - a))


def looks(model: Model, behaviour: Behaviour, head: str) -> dict[str, float | None]:
    """Where a head looks from the last token, by place."""
    layer, index = head.split(".")
    behaviour = replace(behaviour, roles=(*behaviour.roles, OWN_ROLE), main=())
    grid = attention_by_role(model, behaviour)
    values = grid.select(layer=layer, head=index)
    names = values.axis("role").labels
    dim = values.dim("prompt")
    there = np.isfinite(values.values).any(axis=dim)  # no prompt of this model may have the place
    means = np.nansum(values.values, axis=dim) / np.isfinite(values.values).sum(axis=dim).clip(1)
    return {place: number(means[i]) if there[i] else None for place in ("BOS", *PLACES)
            if place in names for i in (names.index(place),)}  # fmt: skip


# How faithful is the smallest circuit?


def told(made: Card) -> Found:
    """A card's figures."""
    summary = {
        name: {key: (number(v) if isinstance(v, float) else v) for key, v in row.items()}
        for name, row in made.summary().items()
    }
    grid = made[names.CIRCUIT_FAITHFULNESS]
    assert isinstance(grid, Grid)
    curves = {
        name: [number(v) for v in row]
        for name, row in zip(grid.axis("method").labels, grid.values, strict=True)
    }
    sizes = made[names.CIRCUIT_SIZES]
    assert isinstance(sizes, Grid)
    nodes, edges = made[names.CIRCUIT_NODES], made[names.CIRCUIT_EDGES]
    rows = [dict(row) for row in nodes.rows()]  # type: ignore[union-attr]
    return {
        "about": {k: made.about[k] for k in ("n_found_on", "n_judged_on", "held_out", "n_edges")},
        "summary": summary,
        "shares": list(grid.axis("proportion").labels),
        "sizes": [int(n) for n in sizes.values[0]],
        "curves": curves,
        "nodes": [{"node": r["node"], "without": number(r["faithfulness_without"])} for r in rows],
        "edges": [
            {"edge": f"{r['source']}->{r['target']}", "score": number(r["score"])}
            for r in list(edges.rows())[:6]  # type: ignore[union-attr]
        ],
    }


# The two halves


def measure_preset(model: Model, plan: Plan) -> tuple[Found, Card]:
    """All that the presets say, and the circuit found on the flagship's pairs."""
    behaviour = preset("full-stop-capitals")
    batch = batch_of(model, behaviour, behaviour.main_prompts)
    scores = families(batch, (f for f in FAMILIES if f.name in MAIN_EDITS))
    pairs = {s.family: aligned(s) for s in scores}
    undone = pairs[plan.edit]
    noising = by_head(batch, undone, "noising")
    made = circuit_card(model, *paired(batch, undone), plan.preset)
    ordinary = replace(behaviour, prompts=batch.prompts, main=())
    numbers = preset("decimal-point")
    found = {
        "weight_hash": model.weight_hash,
        "edit": plan.edit,
        "prompts": predicted(batch),
        "written": written(batch),
        "edits": edits(scores, None),
        "places": {name: by_place(batch, pairs[name]) for name in MAIN_EDITS},
        "noising": noising,
        "denoising": by_head(batch, undone, "denoising"),
        "by_hand": by_hand(batch, undone, noising[0]["head"]),
        "looks": looks(model, ordinary, noising[0]["head"]),
        "card": told(made),
        "decimal": decimal(model, numbers),
    }
    return found, made


def decimal(model: Model, behaviour: Behaviour) -> Found:
    """A number before the stop against a word there, in the same contexts."""
    batch = batch_of(model, behaviour, range(len(behaviour)))
    mass = measured(batch, CLASS_MASS, names.CLASS_MASS)
    classes = mass.axis("class").labels
    groups = {g: [i for i, p in enumerate(batch.prompts) if g in p.groups]
              for g in behaviour.groups}  # fmt: skip
    given = aligned(score(model, propose(model, batch.prompts, ()), batch.contrasts[0])[0])
    given = given.only(lambda pair: "number" in pair.clean.groups)
    places = ("last word before the stop", "final full stop")
    return {
        "mass": {g: {c: mean(mass.values[classes.index(c), some])
                     for c in ("digit", "space+Capital", "newline")}
                 for g, some in groups.items()},
        **by_place(batch, given, places),
        "heads": by_head(batch, given, "noising") if given.n else [],
    }  # fmt: skip


def several(text: str) -> bool:
    """Whether a context has more than one sentence."""
    return len(OWN_ROLE.spans(text)) == 1 and OWN_ROLE.spans(text) != _first(text)


def _first(text: str) -> list[tuple[int, int]]:
    return Role("first", _START, which="first").spans(text)


def _own_lowered(text: str) -> str | None:
    spans = OWN_ROLE.spans(text)
    if not spans:
        return None
    at = spans[0][0]
    return text[:at] + text[at].lower() + text[at + 1 :]


def _between_lowered(text: str) -> str | None:
    """All but the first word and the last sentence's, which keep their letters."""
    first, own = _first(text), OWN_ROLE.spans(text)
    if not first or not own or first == own:
        return None
    head, tail = first[0][0] + 1, own[0][0]
    return text[:head] + text[head:tail].lower() + text[tail] + text[tail + 1 :].lower()


def _dots_to_commas(text: str) -> str | None:
    role = next(r for r in STANDARD_ROLES if r.name == "earlier full stops")
    spans = role.spans(text)
    for start, end in spans:
        text = text[:start] + "," + text[end:]
    return text if spans else None


EDITS = (
    *(f for f in FAMILIES if f.name in MAIN_EDITS),
    Family(OWN_LOWERED, _own_lowered, "no word"),
    Family(REST_LOWERED, _between_lowered, "one sentence"),
    Family(NO_STOPS, _dots_to_commas, "no earlier stop"),
)


def measure_mined(model: Model, books: Sequence[Path], known: Card, plan: Plan) -> Found:
    """All that the kept-out books say."""
    mined = mine(books, model.tokenizer, n=MINED, seed=0, max_tokens=LONGEST)
    behaviour = mined.behaviour
    index = [i for i, p in enumerate(behaviour.prompts) if p.category in KINDS]
    behaviour = replace(behaviour, prompts=tuple(behaviour.prompts[i] for i in index))
    of_kind = {k: [i for i, p in enumerate(behaviour.prompts) if p.category == k] for k in KINDS}
    ends = batch_of(model, behaviour, of_kind["sentence end"])
    units = [paragraph(p.text) for p in ends.prompts]
    differences = np.array(ends.contrasts[0].value(ends.logits).tolist())
    by_book = {
        book: number(differences[[p.document == book for p in ends.prompts]].mean())
        for book in sorted({p.document for p in ends.prompts})
    }
    some = [i for i, p in enumerate(ends.prompts) if several(p.text)]
    many = batch_of(model, behaviour, [of_kind["sentence end"][i] for i in some])
    their = [units[i] for i in some]
    scores = families(many, EDITS)
    first_person = np.array([answer == " I" for answer in ends.contrasts[0].answers])
    comma = families(ends, (f for f in FAMILIES if f.name == COMMA))[0]
    flipped = comma.clean * comma.corrupted < 0
    undone = evenly(aligned(next(s for s in scores if s.family == plan.edit)), plan.patched)
    noising = by_head(many, undone, "noising")
    return {
        "weight_hash": model.weight_hash,
        "books": len(books),
        "prompts": predicted(ends),
        "taken": {k: len(of_kind[k]) for k in KINDS},
        "written": written(ends, units),
        "by_book": by_book,
        "first_person": number(first_person.mean()),
        "comma_flips": {"I": number(flipped[first_person].mean()),
                        "other": number(flipped[~first_person].mean())},
        "several": len(some),
        "edits": edits(scores, their),
        "places": {s.family: by_place(many, evenly(aligned(s), plan.patched))
                   for s in scores if s.family in MAIN_EDITS},
        "noising": noising,
        "by_hand": by_hand(many, undone, noising[0]["head"]),
        "looks": looks(model, replace(behaviour, prompts=many.prompts), noising[0]["head"]),
        "kinds": kinds(model, behaviour, of_kind),
        **circuit(model, ends, known, plan),
    }  # fmt: skip


def evenly(s: Score, most: int) -> Score:
    """At most so many pairs, evenly taken."""
    keep = {s.pairs[i * s.n // most].index for i in range(most)} if s.n > most else None
    return s if keep is None else s.only(lambda pair: pair.index in keep)


def kinds(model: Model, behaviour: Behaviour, of_kind: dict[str, list[int]]) -> Found:
    """What differs between kinds of stops: class masses, ledgers, and in lower case."""
    masses, lowered, ledgers, units = {}, {}, {}, {}
    digits = preset("decimal-point").class_contrast
    for kind, some in of_kind.items():
        batch = batch_of(model, behaviour, some)
        mass = measured(batch, CLASS_MASS, names.CLASS_MASS)
        masses[kind] = dict(zip(mass.axis("class").labels, mass.values, strict=True))
        units[kind] = [paragraph(p.text) for p in batch.prompts]
        low = class_mass(model, [p.text.lower() for p in batch.prompts])
        lowered[kind] = dict(zip(low.axis("class").labels, low.values, strict=True))
        for name, asked in (("capital", behaviour.class_contrast), ("digit", digits)):
            grid = measured(
                batch_of(model, replace(behaviour, class_contrast=asked), some),
                LEDGER,
                names.LEDGER,
            )
            ledgers[name, kind] = parts(grid.axis("term").labels, grid.values[-1])
            ledgers[name, kind]["sum"] = grid.values[-1].sum(0)
    shown = ("space+Capital", "space+lower", "digit", "newline")

    def against(name: str, kind: str) -> Found:
        a, b = (ledgers[name, k] for k in (KINDS[0], kind))
        return {p: difference(a[p], b[p], (units[KINDS[0]], units[kind])) for p in a}

    return {
        "mass": {k: {c: mean(masses[k][c], units[k]) for c in shown} for k in KINDS},
        "lowered": {k: mean(lowered[k]["space+Capital"], units[k]) for k in KINDS},
        "mass_difference": {
            k: {c: difference(masses[KINDS[0]][c], masses[k][c], (units[KINDS[0]], units[k]))
                for c in shown} for k in KINDS[1:]
        },
        "abbreviation_ledger": against("capital", "abbreviation"),
        "decimal_ledger": against("digit", "decimal point"),
        "decimal_books": len({behaviour.prompts[i].document for i in of_kind["decimal point"]}),
    }  # fmt: skip


def circuit(model: Model, ends: Batch, known: Card, plan: Plan) -> Found:
    """A circuit of the mined pairs, and what each of the two circuits carries on them."""
    short = [f for f in FAMILIES if f.name == plan.edit]
    s = aligned(families(ends, short)[0])
    s = evenly(s.only(lambda pair: pair.last < plan.longest), plan.pairs)
    pairs, contrast = paired(ends, s)
    documents = [ends.prompts[pair.index].document for pair in s.pairs]
    made = circuit_card(model, pairs, contrast, plan.mined, documents=documents)
    carried = evaluate_circuit(model, pairs, contrast, [known.circuit, made.circuit])
    values, low, high = carried.interval()
    shared = set(known.circuit.edges) & set(made.circuit.edges)
    return {
        "card": told(made),
        "carried": {"mean": number(values[0]), "low": number(low[0]), "high": number(high[0]),
                    "n": len(pairs.clean)},
        "shared_edges": len(shared),
        "longest": plan.longest,
    }  # fmt: skip


def carriers(model: Model, plan: Plan) -> list[Found]:
    """The head that carries most of what an edit of the preset changes: of the lowered text, and of
    the edit that undoes the behaviour."""
    behaviour = preset("full-stop-capitals")
    batch = batch_of(model, behaviour, behaviour.main_prompts)
    edits = dict.fromkeys((LOWERED, plan.edit))
    scores = families(batch, (f for f in FAMILIES if f.name in edits))
    return [
        {"edit": s.family, "n": aligned(s).n} | by_head(batch, aligned(s), "noising")[0]
        for s in scores
    ]


def books_in(folder: Path) -> list[Path]:
    """The kept-out books that a folder has."""
    return [path for name in HELD_OUT if (path := folder / name).is_file()]


def measure(name: str, folder: Path, before: Found | None) -> Found | None:
    """Both halves of a model, or the presets' with the mined one as it was."""
    try:
        model, plan = casestudy.load(name), PLANS[name]
    except CasestudyError as problem:
        print(f"{name} stays as it was: {problem}", file=sys.stderr)
        return before
    print(f"{name}: the presets", file=sys.stderr)
    found, made = measure_preset(model, plan)
    heads = measure_heads(model)
    books = books_in(folder)
    if not books:
        print(f"no kept-out book in {folder}: the mined figures stay as they are; name a folder "
              f"with --corpus or {CORPUS}", file=sys.stderr)  # fmt: skip
        kept = {key: (before or {}).get(key) for key in ("mined", "decimals", "parts", "direction")}
        return {"preset": found, "heads": heads, **kept}
    print(f"{name}: contexts of {len(books)} books", file=sys.stderr)
    return {
        "preset": found,
        "heads": heads,
        "mined": measure_mined(model, books, made, plan),
        "decimals": decimals(model, folder, [*HELD_OUT]),
        **measure_single_parts(name, model, folder, [*HELD_OUT], carriers(model, plan)),
    }


def measure_single(name: str, folder: Path, before: Found) -> Found:
    """A model's figures with those of its single parts measured anew, where that can be done."""
    try:
        model = casestudy.load(name)
    except CasestudyError as problem:
        print(f"{name} stays as it was: {problem}", file=sys.stderr)
        return before
    heads = carriers(model, PLANS[name])
    return before | measure_single_parts(name, model, folder, [*HELD_OUT], heads)


def main() -> None:
    """Measure, keep the numbers, and put the words into the page."""
    parser = argparse.ArgumentParser(description="Measure docs/findings.md again.")
    parser.add_argument("models", nargs="*", default=list(PLANS), metavar="MODEL")
    parser.add_argument("--corpus", type=Path, default=os.environ.get(CORPUS, "../shared/corpus"))
    parser.add_argument(
        "--parts", action="store_true", help="single heads, neurons, direction"
    )  # Small matrices: a second thread mostly waits for the first, and for long on a busy machine.
    torch.set_num_threads(1)
    before = json.loads(RESULTS.read_text("utf-8"))
    asked = parser.parse_args()
    again = measure_single if asked.parts else measure
    found = before | {name: again(name, asked.corpus, before.get(name)) for name in asked.models}
    RESULTS.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text("utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
