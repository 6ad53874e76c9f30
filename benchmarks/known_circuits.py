"""Which edges should a method find, where the circuit is known because we wired it by hand?

Nine small decoders whose weights are set by hand, each with pairs of prompts and the edges that
carry the difference between them. A method that ranks edges can be wrong here, which on a trained
model nobody could tell. To hold one against them, score the edges of `circuit.model` over
`circuit.pairs` with `circuit.contrast` and compare with `circuit.edges`; docs/circuits.md has how
our own methods do.

The stream is cut into named parts: `token` holds each word's own direction, `position` each
position's, and a head or an MLP writes into a part of its own, so that who reads whom is plain from
the slices below. Normalisation is off. Heads and neurons that nobody wired are bystanders with
small random weights, since a method has to tell a circuit from a background; `noise=0.0` has none.

Edges are named sender->receiver: `embed->a0.h1<v>` is the embeddings' part in the values of layer
0's head 1, `a0.h1->m1` what MLP 1 reads of it, `m1->logits` what it says itself. An edge of the
circuit changes what it carries between clean and corrupted prompt, and the answer depends on it
through the mechanism told; `necessary` are those of them that undo the behaviour on their own when
one alone carries the corrupted prompt's value and everything after it is computed anew.

Cost: nothing to speak of; about a hundred edges, d_model below 64, a millisecond per pass.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.graph import Graph
from casestudy.errors import MeasureError
from casestudy.measure.patching import Pairs
from casestudy.model.config import ModelConfig
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer
from casestudy.model.weights import MLP, Attention, Block, Weights
from casestudy.results.result import Array
from casestudy.results.stats import auroc

PAIRS = 12
"""How many pairs of prompts a circuit comes with by default."""
NOISE = 0.05
"""Standard deviation of the bystanders' weights, where those wired are about 1."""
SHARP = 12.0
"""Score of a key that a head looks for, where others have 0: it gets over 0.99 of the attention."""
REST = SHARP / 2
"""Score of <s>, where a head looks that finds nothing: well above 0, well below `SHARP`."""

ROUNDING = 1e-9
"""Scores smaller than this share of the largest are rounding, and tie."""

BOS = "<s>"
N_LAYERS, N_HEADS, D_HEAD, D_MLP, N_CTX = 2, 4, 16, 8, 12


@dataclass(frozen=True)
class KnownCircuit:
    """A model, what is asked of it, and the edges that answer.

    Attributes:
        name: what tables call it.
        model: float64, with a tokenizer of a dozen words: `model.tokenize("a b c a")` works.
        behaviour: prompts with answer, counterpart and corrupted partner.
        edges: every edge of the circuit.
        necessary: those of them whose corruption, alone, undoes the behaviour.
        why: how it works, and which methods that is hard for.
    """

    name: str
    model: Model
    behaviour: Behaviour
    edges: frozenset[str]
    necessary: frozenset[str]
    why: str

    @cached_property
    def pairs(self) -> Pairs:
        """Clean and corrupted prompts as tokens, each pair of equal length."""
        corrupted = [prompt.corrupted or "" for prompt in self.behaviour.prompts]
        clean = [prompt.text for prompt in self.behaviour.prompts]
        return Pairs(self.model.tokenize(clean), self.model.tokenize(corrupted))

    @cached_property
    def contrast(self) -> Contrast:
        """logit(answer) - logit(counterpart), which the clean prompts make positive."""
        prompts = self.behaviour.prompts
        answers = [prompt.answer or "" for prompt in prompts]
        return Contrast.between(
            self.model, answers, [prompt.counterpart or "" for prompt in prompts]
        )

    def auroc(self, scores: EdgeScores | Mapping[str, float], *, signed: bool = False) -> float:
        """The chance that an edge of the circuit is ranked above one that is not; a tie is half.

        Args:
            scores: of every edge of the model; anybody's own by the edges' names.
            signed: rank them as they are, so that a negative score speaks against an edge; by size
                otherwise.

        Raises: MeasureError naming edges without a score, and names that are no edges.
        """
        values, true = self._values(scores)
        return auroc(values if signed else np.abs(values), true)

    def found(self, scores: EdgeScores | Mapping[str, float]) -> float:
        """How many of the circuit's edges are among as many with the largest scores, by size.

        Edges that tie for the last places share them. Raises: as `auroc`.
        """
        values, true = self._values(scores)
        sizes = np.abs(values)
        last = np.sort(sizes)[-len(self.edges)]
        above, tied = sizes > last, sizes == last
        left = len(self.edges) - above.sum()
        return float((above & true).sum() + left * (tied & true).sum() / tied.sum())

    def _values(self, scores: EdgeScores | Mapping[str, float]) -> tuple[Array, NDArray[np.bool_]]:
        """Scores in the order of the model's edges, and which of these are the circuit's."""
        names = Graph(self.model.config).names()
        if isinstance(scores, EdgeScores):
            of_edges = scores.values[scores.graph.real].tolist()
            scores = dict(zip(scores.graph.names(), of_edges, strict=True))
        odd = sorted(set(names) ^ scores.keys())
        if odd:
            raise MeasureError(
                f"{len(scores)} scores; {', '.join(odd[:3])} is not among them or no edge",
                allowed=f"a score for each of the {len(names)} edges",
            )
        values = np.array([scores[name] for name in names], dtype=np.float64)
        if np.isnan(values).any():
            raise MeasureError(
                f"{int(np.isnan(values).sum())} edges that were not scored", allowed="all of them"
            )
        values[np.abs(values) < ROUNDING * np.abs(values).max()] = 0.0
        return values, np.array([name in self.edges for name in names])


# The models


def induction_pair(n: int = PAIRS, *, seed: int = 0, noise: float = NOISE) -> KnownCircuit:
    """A B … A → B: a previous-token head, and an induction head that reads its keys (two layers).

    The corrupted prompt says the same of other letters, elsewhere: every step of the way differs.
    """
    letters = list("abcdefghijklmno")
    wires = _Wires(letters, previous=16, answer=16)
    token, every = wires["token"], _eye(16)
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
    wires = _Wires(
        [".", ",", *titles, *pronouns, *capitals, *words], which=3, sentence=1, capital=1
    )
    # head 0 at the stop: was that a word that can end a sentence?
    wires.look_back(0, 0)
    wires.W_V[0, 0, wires.ids(words + pronouns), 0] = 1
    wires.W_O[0, 0, 0, wires["sentence"]] = 1
    # head 1: which pronoun is it about?
    wires.look_for(0, 1, pronouns)
    wires.W_V[0, 1, wires.ids(pronouns), :3] = _eye(3)
    wires.W_O[0, 1, :3, wires["which"]] = 3 * _eye(3)
    # a neuron that fires where the sentence can end and a stop stands
    wires.W_in[1, wires.ids(["."]), 0] = 2
    wires.W_in[1, wires["sentence"], 0] = 2
    wires.b_in[1, 0] = -3
    wires.W_out[1, 0, wires["capital"]] = 2
    for forms, sign in ((wires.ids(capitals), 1.0), (wires.ids(pronouns), -1.0)):
        wires.W_U[wires["which"], forms] = _eye(3)
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
    wires = _Wires([*votes, "passed", "failed"], linear=True, first=1, second=1, verdict=1)
    for word, vote in votes.items():
        wires.W_V[0, 0, wires.ids([word]), 0] = wires.W_V[1, 0, wires.ids([word]), 0] = vote
    wires.W_O[0, 0, 0, wires["first"]] = 2
    wires.W_in[0, wires["first"], 0] = 1
    wires.W_out[0, 0, wires["second"]] = 2
    wires.W_V[1, 1, wires["second"], 0] = 1
    wires.W_O[1, 1, 0, wires["verdict"]] = 1
    wires.W_O[1, 0, 0, wires["verdict"]] = 4
    wires.W_U[wires["verdict"], wires.ids(["passed", "failed"])] = _numbers(1.0, -1.0)
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
    wires.W_V[0, 1, wires.ids(_NAMES), :6] = _eye(6)
    wires.W_O[0, 1, :6, wires["unread"]] = 3 * _eye(6)
    wires.W_V[1, 1, wires["unread"], :6] = _eye(6)
    wires.W_O[1, 1, :6, wires["unread"]] = -3 * _eye(6)
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
    wires.W_out[1, 7, wires["answer"]] = _numbers(1.0, 1.0, 1.0, -1.0, -1.0, -1.0)
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
        wires.W_V[0, head, wires.ids(_NAMES), :6] = _eye(6)
        wires.W_O[0, head, :6, wires["answer"]] = loudness * _eye(6)
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
    wires = _Wires([*_NAMES, *_WORDS, "nobody"], answer=6, said=1)
    every = _eye(6)
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
    wires.b_in[1, :2] = _numbers(0.1, -0.7)
    wires.W_out[1, :2, wires["verdict"]] = _numbers(4.0, -4.0)[:, None]
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


def _names_wires() -> _Wires:
    """Head 0 of layer 0 finds the name, and a neuron of MLP 1 per name says it."""
    wires = _Wires([*_NAMES, *_WORDS], found=6, answer=6, unread=6)
    every = _eye(6)
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


def _gate_wires() -> _Wires:
    """Head 0 of layer 0 finds red, head 1 finds blue."""
    wires = _Wires(["red", "blue", "grey", *_WORDS, "yes", "no"], evidence=2, verdict=1)
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


class _Wires:
    """A decoder of two layers with no weights yet, to be wired by hand.

    `wires["answer"]` is a part of the stream. A word's id is also the index of its own direction,
    since the part `token` comes first.
    """

    def __init__(self, words: Sequence[str], *, linear: bool = False, **parts: int) -> None:
        self.words, self.linear = [BOS, *words], linear
        sizes = {"token": len(self.words), "position": N_CTX, **parts}
        ends = list(itertools.accumulate(sizes.values()))
        self._parts = {
            name: slice(end - size, end)
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        }
        d_vocab, self.d_model = len(self.words), ends[-1]
        heads = (N_LAYERS, N_HEADS)
        self.W_E, self.W_pos = _zeros(d_vocab, self.d_model), _zeros(N_CTX, self.d_model)
        self.W_E[:, self["token"]] = _eye(d_vocab)
        self.W_pos[:, self["position"]] = _eye(N_CTX)
        self.W_Q, self.W_K, self.W_V = (_zeros(*heads, self.d_model, D_HEAD) for _ in range(3))
        self.W_O, self.b_Q = _zeros(*heads, D_HEAD, self.d_model), _zeros(*heads, D_HEAD)
        self.W_in, self.b_in = _zeros(N_LAYERS, self.d_model, D_MLP), _zeros(N_LAYERS, D_MLP)
        self.W_out = _zeros(N_LAYERS, D_MLP, self.d_model)
        self.W_U, self.b_U = _zeros(self.d_model, d_vocab), _zeros(d_vocab)

    def __getitem__(self, part: str) -> slice:
        return self._parts[part]

    def ids(self, words: Iterable[str]) -> list[int]:
        """Words as token ids, which are also their directions in the stream."""
        return [self.words.index(word) for word in words]

    def look_back(self, layer: int, head: int) -> None:
        """Let a head look one position back."""
        self.W_Q[layer, head, self["position"], :N_CTX] = SHARP * _eye(N_CTX).roll(-1, 1)
        self.W_K[layer, head, self["position"], :N_CTX] = _eye(N_CTX)

    def look_for(self, layer: int, head: int, words: Iterable[str]) -> None:
        """Let a head look for some words from anywhere, and rest on <s> where there are none."""
        self.b_Q[layer, head, :2] = 1
        self.W_K[layer, head, self.ids(words), 0] = SHARP
        self.W_K[layer, head, self.ids([BOS]), 1] = REST

    def circuit(
        self,
        name: str,
        question: str,
        prompts: tuple[Prompt, ...],
        *,
        necessary: str,
        others: str = "",
        why: str,
        noise: float,
        seed: int,
    ) -> KnownCircuit:
        """What was wired, among bystanders, and what is asked of it."""
        alone = frozenset(necessary.split())
        behaviour = Behaviour(name, question, prompts, answers="given")
        return KnownCircuit(
            name, self._model(name, noise, seed), behaviour, alone | set(others.split()), alone, why
        )

    def _model(self, name: str, noise: float, seed: int) -> Model:
        generator = torch.Generator().manual_seed(seed)
        heads = self.W_O.any(-1).any(-1)[..., None, None]
        neurons = self.W_out.any(-1)

        def filled(W: Tensor, wired: Tensor) -> Tensor:
            """The weights of what was wired, and noise for the bystanders."""
            drawn = noise * torch.randn(W.shape, generator=generator, dtype=W.dtype)
            return torch.where(wired, W, drawn)

        # zero in the linear model for bystanders too
        W_Q, W_K = (W if self.linear else filled(W, heads) for W in (self.W_Q, self.W_K))
        W_V, W_O = (filled(W, heads) for W in (self.W_V, self.W_O))
        W_in, W_out = filled(self.W_in, neurons[:, None]), filled(self.W_out, neurons[..., None])
        blocks = tuple(
            Block(
                Attention(W_Q[i], W_K[i], W_V[i], W_O[i], b_Q=self.b_Q[i]),
                MLP(W_in[i], W_out[i], b_in=self.b_in[i]),
            )
            for i in range(N_LAYERS)
        )
        weights = Weights(self.W_E, blocks, self.W_U, W_pos=self.W_pos, b_U=self.b_U)
        config = ModelConfig(
            family="hand-made",
            n_layers=N_LAYERS,
            d_model=self.d_model,
            n_heads=N_HEADS,
            d_head=D_HEAD,
            d_mlp=D_MLP,
            d_vocab=len(self.words),
            n_ctx=N_CTX,
            n_kv_heads=N_HEADS,
            attn_scale=(1.0,) * N_LAYERS,
            activation="identity" if self.linear else "relu",
            tied_unembedding=False,
        )
        return Model(config, weights, self._tokenizer(), name=name, source="wired by hand")

    def _tokenizer(self) -> Tokenizer:
        backend = HFTokenizer(
            WordLevel({word: id for id, word in enumerate(self.words)}, unk_token=BOS)
        )
        backend.pre_tokenizer = WhitespaceSplit()
        backend.add_special_tokens([BOS])
        return Tokenizer.of(
            backend, bos_id=0, eos_id=None, family_prepends=True, declared=None, n_ctx=N_CTX
        )


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def _eye(n: int) -> Float[Tensor, "n n"]:
    return torch.eye(n, dtype=torch.float64)


def _numbers(*numbers: float) -> Float[Tensor, " n"]:
    return torch.tensor(numbers, dtype=torch.float64)
