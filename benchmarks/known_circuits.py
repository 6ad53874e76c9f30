"""Which edges should a method find, where the circuit is known because we wired it by hand?

Nine small decoders whose weights are set by hand, each with pairs of prompts and the edges that
carry the difference between them. A method that ranks edges can be wrong here, which on a trained
model nobody could tell. To hold one against them, score the edges of `circuit.model` over
`circuit.pairs` with `circuit.contrast` and compare with `circuit.edges`; docs/circuits.md has how
our own methods do.

`wiring` has the parts of the stream, the words for wiring a head, and the bystanders.

Edges are named sender->receiver, here by MIB's short names: `embed->a0.h1<v>` is the embeddings'
part in the values of layer 0's head 1, `a0.h1->m1` what MLP 1 reads of it, `m1->logits` what it
says itself. An edge of the circuit changes what it carries between clean and corrupted prompt, and
the answer depends on it through the mechanism told; `necessary` are those of them that undo the
behaviour on their own when one alone carries the corrupted prompt's value and everything after it
is computed anew.

Cost: nothing to speak of; about a hundred edges, d_model below 64, a millisecond per pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from benchmarks.wiring import SHARP, KnownCircuit, Wires, eye, numbers

from casestudy.behaviour.prompts import Prompt

PAIRS = 12
"""How many pairs of prompts a circuit comes with by default."""
NOISE = 0.05
"""Standard deviation of the bystanders' weights, where those wired are about 1."""


def induction_pair(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """A B … A → B: a previous-token head, and an induction head that reads its keys (two layers).

    The corrupted prompt says the same of other letters, elsewhere: every step of the way differs.
    """
    letters = list("abcdefghijklmno")
    wires = Wires(letters, previous=16, answer=16)
    token, every = wires["token"], eye(16)
    wires.look_back(0, 0)
    wires.W_V[0, 0, token] = every
    wires.W_O[0, 0, :, wires["previous"]] = every
    wires.W_Q[1, 0, token] = SHARP * every
    wires.W_K[1, 0, wires["previous"]] = every
    wires.W_V[1, 0, token] = every
    wires.W_O[1, 0, :, wires["answer"]] = 4 * every
    wires.W_U[wires["answer"]] = every

    def pair(rng: random.Random) -> Prompt:
        n = 4 + rng.randrange(4)
        names, places = rng.sample(letters, 2 * n), rng.sample(range(n - 2), 2)
        # elsewhere in the corrupted prompt: else looking there would be looking at the answer
        (clean, b), (corrupted, d) = (
            (" ".join([*said, said[place]]), said[place + 1])
            for said, place in zip((names[:n], names[n:]), places, strict=True)
        )
        return _prompt(clean, b, d, corrupted)

    return wires.circuit(
        "induction pair",
        "Which letter came after this one before?",
        _drawn(pair, n, seed),
        necessary="embed->a0.h0<v> a0.h0->a1.h0<k> embed->a1.h0<q> embed->a1.h0<v> a1.h0->logits",
        why="Head 0 of layer 0 looks one position back and copies the letter there; head 0 of "
        "layer 1 looks for the position whose previous letter is the present one, and says the "
        "letter that stands there. Its attention is saturated: a small change of query or key "
        "changes nothing, a whole one everything.",
        noise=noise,
        seed=seed,
    )


def capital_after_full_stop(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """A capital after a full stop, but not after a comma, nor after the stop of an abbreviation.

    Half the pairs differ in the stop (a comma instead), half in the word before it (Mr, Dr).
    """
    pronouns, titles, words = ["he", "she", "it"], ["Mr", "Dr"], ["cat", "sat", "ran", "dog"]
    capitals = [word.capitalize() for word in pronouns]
    wires = Wires([".", ",", *titles, *pronouns, *capitals, *words], which=3, sentence=1, capital=1)
    # head 0 at the stop: was that a word that can end a sentence?
    wires.look_back(0, 0)
    wires.W_V[0, 0, wires.ids(words + pronouns), 0] = 1
    wires.W_O[0, 0, 0, wires["sentence"]] = 1
    # head 1: which pronoun is it about?
    wires.look_for(0, 1, pronouns)
    wires.W_V[0, 1, wires.ids(pronouns), :3] = eye(3)
    wires.W_O[0, 1, :3, wires["which"]] = 3 * eye(3)
    # a neuron that fires where the sentence can end and a stop stands
    wires.W_in[1, wires.ids(["."]), 0] = 2
    wires.W_in[1, wires["sentence"], 0] = 2
    wires.b_in[1, 0] = -3
    wires.W_out[1, 0, wires["capital"]] = 2
    for forms, sign in ((wires.ids(capitals), 1.0), (wires.ids(pronouns), -1.0)):
        wires.W_U[wires["which"], forms] = eye(3)
        wires.W_U[wires["capital"], forms] = sign
        wires.b_U[forms] = -sign

    def pair(rng: random.Random) -> Prompt:
        said = [rng.choice(words) for _ in range(2 + rng.randrange(5))]
        pronoun = rng.choice(pronouns)
        said.insert(rng.randrange(len(said)), pronoun)
        edited = [*said[:-1], rng.choice(titles), "."] if rng.random() < 0.5 else [*said, ","]
        clean, corrupted = " ".join([*said, "."]), " ".join(edited)
        return _prompt(clean, pronoun.capitalize(), pronoun, corrupted)

    return wires.circuit(
        "capital after a full stop",
        "Capital or small letter?",
        _drawn(pair, n, seed),
        necessary="embed->a0.h0<v> a0.h0->m1 embed->m1 m1->logits",
        why="Head 0 of layer 0 tells the stop whether a word came before it or an abbreviation; a "
        "neuron of MLP 1 fires where both that and the stop are there, and writes the capital. "
        "Another head says which pronoun it is, equally for either case, so it cancels from the "
        "contrast. Where the neuron is off it has no gradient.",
        noise=noise,
        seed=seed,
    )


def linear_model(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """No normalisation, no activation function, constant attention: gradients are exact here.

    Queries and keys are zero, the bystanders' too, so every head averages what it sees.
    """
    votes = {"aye": 1.0, "nay": -1.0, "hm": 0.0}
    wires = Wires([*votes, "passed", "failed"], linear=True, first=1, second=1, verdict=1)
    for word, vote in votes.items():
        wires.W_V[0, 0, wires.ids([word]), 0] = wires.W_V[1, 0, wires.ids([word]), 0] = vote
    wires.W_O[0, 0, 0, wires["first"]] = 2
    wires.W_in[0, wires["first"], 0] = 1
    wires.W_out[0, 0, wires["second"]] = 2
    wires.W_V[1, 1, wires["second"], 0] = 1
    wires.W_O[1, 1, 0, wires["verdict"]] = 1
    wires.W_O[1, 0, 0, wires["verdict"]] = 4
    wires.W_U[wires["verdict"], wires.ids(["passed", "failed"])] = numbers(1.0, -1.0)
    other = {"aye": "nay", "nay": "aye", "hm": "hm"}

    def pair(rng: random.Random) -> Prompt:
        said = ["aye"] * (4 + rng.randrange(3)) + ["nay"] + ["hm"] * rng.randrange(3)
        rng.shuffle(said)
        # the first word is seen most often by a head that averages averages
        said.insert(0, "aye")
        flipped = [other[word] for word in said]
        return _prompt(" ".join(said), "passed", "failed", " ".join(flipped))

    return wires.circuit(
        "linear",
        "Which side has the majority?",
        _drawn(pair, n, seed),
        necessary="embed->a0.h0<v> a0.h0->m0 m0->a1.h1<v> a1.h1->logits embed->a1.h0<v> "
        "a1.h0->logits",
        why="Two heads count votes, one of them by way of an MLP and a third head. Everything is "
        "linear, so an edge's gradient times its change is its effect.",
        noise=noise,
        seed=seed,
    )


def decoy_head(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """A head that is as attentive and louder than the one that matters, and that nobody reads."""
    wires = _names_wires()
    wires.look_for(0, 1, _NAMES)
    wires.W_V[0, 1, wires.ids(_NAMES), :6] = eye(6)
    wires.W_O[0, 1, :6, wires["unread"]] = 3 * eye(6)
    wires.W_V[1, 1, wires["unread"], :6] = eye(6)
    wires.W_O[1, 1, :6, wires["unread"]] = -3 * eye(6)
    return wires.circuit(
        "decoy head",
        "Who was named?",
        _drawn(_name_pair, n, seed),
        necessary=_NAME_EDGES,
        why="Head 0 of layer 0 finds the name, and MLP 1 says it. Head 1 looks at the same word "
        "and writes it three times as loud, to a part of the stream that only head 1 of layer 1 "
        "reads, which writes there too. Attention and activity point at the decoys; nothing "
        "depends on them.",
        noise=noise,
        seed=seed,
    )


def threshold_decoy(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """A head whose neuron is barely on: a steep gradient, a large change, and hardly an effect."""
    wires = _names_wires()
    wires.look_for(0, 1, _NAMES)
    wires.W_V[0, 1, wires.ids(_NAMES[3:]), 0] = 1
    wires.W_O[0, 1, 0, wires["unread"].start] = -6
    wires.W_in[1, wires["unread"].start, 7] = 1
    wires.b_in[1, 7] = 0.1
    wires.W_out[1, 7, wires["answer"]] = numbers(1.0, 1.0, 1.0, -1.0, -1.0, -1.0)
    return wires.circuit(
        "threshold decoy",
        "Who was named?",
        _drawn(_name_pair, n, seed),
        necessary=_NAME_EDGES,
        why="As the decoy head, but a neuron reads the decoy, which speaks for the names of the "
        "clean prompts and is on by a hair: 0.1, and 6 less in the corrupted prompt. The slope "
        "there times the change is 12 logits, and the whole change takes away 0.2.",
        noise=noise,
        seed=seed,
    )


def cancelling_heads(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """Two loud heads that say the opposite of each other: either matters, both together do not."""
    wires = _names_wires()
    for head, loudness in ((1, 6.0), (2, -6.0)):
        wires.look_for(0, head, _NAMES)
        wires.W_V[0, head, wires.ids(_NAMES), :6] = eye(6)
        wires.W_O[0, head, :6, wires["answer"]] = loudness * eye(6)
    return wires.circuit(
        "cancelling heads",
        "Who was named?",
        _drawn(_name_pair, n, seed),
        necessary=_NAME_EDGES,
        why="As the decoy head, but heads 1 and 2 say the name to the logits, one for it and one "
        "against it, each louder than the circuit. Together they say nothing, so the smallest "
        "circuit leaves both out; whoever changes one of them at a time sees a large effect.",
        noise=noise,
        seed=seed,
    )


def backup_head(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """A head that speaks where the first one does not: ablating the first changes little.

    The corrupted prompt names nobody, so its activations ablate.
    """
    wires = Wires([*_NAMES, *_WORDS, "nobody"], answer=6, said=1)
    every = eye(6)
    for layer in (0, 1):
        wires.look_for(layer, 0, _NAMES)
        wires.W_V[layer, 0, wires.ids(_NAMES), :6] = every
        wires.W_O[layer, 0, :6, wires["answer"]] = 4 * every
    wires.W_O[0, 0, :6, wires["said"]] = 1
    wires.W_Q[1, 0, wires["said"], 0] = -2  # where the name is said, it looks for none
    wires.W_U[wires["answer"], wires.ids(_NAMES)] = every
    wires.b_U[wires.ids(["nobody"])] = 2

    def pair(rng: random.Random) -> Prompt:
        before, after = _words(rng, 0), _words(rng, 1)
        name = rng.choice(_NAMES)
        clean, corrupted = ([*before, word, *after] for word in (name, rng.choice(_WORDS)))
        return _prompt(" ".join(clean), name, "nobody", " ".join(corrupted))

    return wires.circuit(
        "backup head",
        "Who was named, if anybody?",
        _drawn(pair, n, seed),
        necessary="a0.h0->logits",
        others="embed->a0.h0<k> embed->a0.h0<v> a0.h0->a1.h0<q> embed->a1.h0<k> embed->a1.h0<v> "
        "a1.h0->logits",
        why="Head 0 of layer 0 says the name and notes that it is said; head 0 of layer 1 would "
        "say it too, and rests where it reads the note. Whatever silences the first head wakes "
        "the second, and the second is silent in both runs: one replacement at a time sees the "
        "last step of the first head and nothing else.",
        noise=noise,
        seed=seed,
    )


def and_gate(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """Two heads, both needed: noising finds either, denoising one of them restores nothing."""
    wires = _gate_wires()
    wires.W_in[1, wires["evidence"], 0] = 1
    wires.b_in[1, 0] = -1.2
    wires.W_out[1, 0, wires["verdict"]] = 4
    return wires.circuit(
        "AND",
        "Red and blue?",
        _drawn(_gate_pair, n, seed),
        necessary=_GATE_EDGES + " m1->logits",
        why="One head sees red, one sees blue, and a neuron of MLP 1 fires where both are there. "
        "The corrupted prompt has neither, so giving it one of them back restores nothing.",
        noise=noise,
        seed=seed,
    )


def or_gate(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """Two heads, either enough: denoising finds each, noising one of them changes nothing."""
    wires = _gate_wires()
    wires.W_in[1, wires["evidence"], :2] = 1
    wires.b_in[1, :2] = numbers(0.1, -0.7)
    wires.W_out[1, :2, wires["verdict"]] = numbers(4.0, -4.0)[:, None]
    return wires.circuit(
        "OR",
        "Red or blue?",
        _drawn(_gate_pair, n, seed),
        necessary="m1->logits",
        others=_GATE_EDGES,
        why="The heads of AND; two neurons of MLP 1 say yes just as loudly for one of red and blue "
        "as for both. Without either the other is enough, and where both are there the slope is "
        "zero.",
        noise=noise,
        seed=seed,
    )


KNOWN: Mapping[str, Callable[..., KnownCircuit]] = {
    function.__name__: function
    for function in (
        *(induction_pair, capital_after_full_stop, linear_model, decoy_head, threshold_decoy),
        *(cancelling_heads, backup_head, and_gate, or_gate),
    )
}
"""Every circuit by its function's name; each takes `n`, `seed` and `noise`."""


# What several of them share


_NAMES = ["Ann", "Bob", "Cid", "Dan", "Eve", "Flo"]
_WORDS = ["walked", "home", "again", "today"]
_NAME_EDGES = "embed->a0.h0<v> a0.h0->m1 m1->logits"
_GATE_EDGES = "embed->a0.h0<k> embed->a0.h0<v> a0.h0->m1 embed->a0.h1<k> embed->a0.h1<v> a0.h1->m1"


def _names_wires() -> Wires:
    """Head 0 of layer 0 finds the name, and a neuron of MLP 1 per name says it."""
    wires = Wires([*_NAMES, *_WORDS], found=6, answer=6, unread=6)
    every = eye(6)
    wires.look_for(0, 0, _NAMES)
    wires.W_V[0, 0, wires.ids(_NAMES), :6] = every
    wires.W_O[0, 0, :6, wires["found"]] = every
    wires.W_in[1, wires["found"], :6] = every
    wires.W_out[1, :6, wires["answer"]] = 4 * every
    wires.W_U[wires["answer"], wires.ids(_NAMES)] = every
    return wires


def _name_pair(rng: random.Random) -> Prompt:
    """The same words about one of the first three names, and about one of the others."""
    before, after = _words(rng, 0), _words(rng, 1)
    name, other = rng.choice(_NAMES[:3]), rng.choice(_NAMES[3:])
    clean, corrupted = (" ".join([*before, who, *after]) for who in (name, other))
    return _prompt(clean, name, other, corrupted)


def _gate_wires() -> Wires:
    """Head 0 of layer 0 finds red, head 1 finds blue."""
    wires = Wires(["red", "blue", "grey", *_WORDS, "yes", "no"], evidence=2, verdict=1)
    for head, colour in enumerate(("red", "blue")):
        wires.look_for(0, head, [colour])
        wires.W_V[0, head, wires.ids([colour]), 0] = 1
        wires.W_O[0, head, 0, wires["evidence"].start + head] = 1
    wires.W_U[wires["verdict"], wires.ids(["yes"])] = 1
    wires.b_U[wires.ids(["no"])] = 1.5
    return wires


def _gate_pair(rng: random.Random) -> Prompt:
    colours = ["red", "blue"]
    rng.shuffle(colours)
    said = [*_words(rng, 0), colours[0], *_words(rng, 0), colours[1], *_words(rng, 1)]
    grey = ["grey" if word in colours else word for word in said]
    return _prompt(" ".join(said), "yes", "no", " ".join(grey))


def _words(rng: random.Random, least: int) -> list[str]:
    return [rng.choice(_WORDS) for _ in range(least + rng.randrange(3))]


def _drawn(pair: Callable[[random.Random], Prompt], n: int, seed: int) -> tuple[Prompt, ...]:
    rng = random.Random(seed)
    return tuple(pair(rng) for _ in range(n))


def _prompt(clean: str, answer: str, counterpart: str, corrupted: str) -> Prompt:
    return Prompt(clean, answer=f" {answer}", counterpart=f" {counterpart}", corrupted=corrupted)
