"""How is a decoder wired by hand, and how is a method that ranks its edges judged?

The stream is cut into named parts: `token` holds each word's own direction, `position` each
position's, and a head or an MLP writes into a part of its own, so that who reads whom is plain from
the slices. Normalisation is off. Heads and neurons that nobody wired are bystanders with small
random weights, since a method has to tell a circuit from a background; `noise=0.0` has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
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
from casestudy.results.components import respelled
from casestudy.results.result import Array
from casestudy.results.stats import auroc

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


class Wires:
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
        self.W_E, self.W_pos = zeros(d_vocab, self.d_model), zeros(N_CTX, self.d_model)
        self.W_E[:, self["token"]] = eye(d_vocab)
        self.W_pos[:, self["position"]] = eye(N_CTX)
        self.W_Q, self.W_K, self.W_V = (zeros(*heads, self.d_model, D_HEAD) for _ in range(3))
        self.W_O, self.b_Q = zeros(*heads, D_HEAD, self.d_model), zeros(*heads, D_HEAD)
        self.W_in, self.b_in = zeros(N_LAYERS, self.d_model, D_MLP), zeros(N_LAYERS, D_MLP)
        self.W_out = zeros(N_LAYERS, D_MLP, self.d_model)
        self.W_U, self.b_U = zeros(self.d_model, d_vocab), zeros(d_vocab)

    def __getitem__(self, part: str) -> slice:
        return self._parts[part]

    def ids(self, words: Iterable[str]) -> list[int]:
        """Words as token ids, which are also their directions in the stream."""
        return [self.words.index(word) for word in words]

    def look_back(self, layer: int, head: int) -> None:
        """Let a head look one position back."""
        self.W_Q[layer, head, self["position"], :N_CTX] = SHARP * eye(N_CTX).roll(-1, 1)
        self.W_K[layer, head, self["position"], :N_CTX] = eye(N_CTX)

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
        alone, rest = (frozenset(map(respelled, edges.split())) for edges in (necessary, others))
        behaviour = Behaviour(name, question, prompts, answers="given")
        model = self._model(name, noise, seed)
        return KnownCircuit(name, model, behaviour, alone | rest, alone, why)

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


def zeros(*shape: int) -> Tensor:
    """Weights of nothing yet, in float64."""
    return torch.zeros(*shape, dtype=torch.float64)


def eye(n: int) -> Float[Tensor, "n n"]:
    """A copy of every direction."""
    return torch.eye(n, dtype=torch.float64)


def numbers(*values: float) -> Float[Tensor, " n"]:
    """These values, in float64."""
    return torch.tensor(values, dtype=torch.float64)
