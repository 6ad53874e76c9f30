"""What does the model write after a prompt, and how sure is it of each token?

The prompt is run once, and then each token alone: its queries meet the keys and values of all
before it, which are kept (a KV cache). So n tokens cost a pass over the prompt and n rows. The
parts are the decoder's and those of `rows`, so every architecture that runs generates.

Each step keeps the token that was chosen and its runner-up, the most probable other token, for
their contrast is what the other measurements explain: `Generated.behaviour` has a prompt for each
token, with the ids that were read, not with text that might be tokenised otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.chat import written
from casestudy.behaviour.prompts import Behaviour, Prompt, Prompts
from casestudy.behaviour.readouts import row_of, text_of
from casestudy.engine.rows import attn_out, mlp_out, through_block
from casestudy.errors import MeasureError, PromptError
from casestudy.model.decoder import (
    apply_norm,
    attend,
    embed_ids,
    position_queries_and_keys,
    project,
    run,
    unembed,
    visible_keys,
)
from casestudy.model.model import Model
from casestudy.model.token import Token

MOST = 10_000
"""Tokens that may be asked for."""
Stop = Literal["length", "end of text", "context"]


@dataclass(frozen=True)
class GeneratedToken:
    """One token that the model wrote.

    Attributes:
        token: which; the most probable one, unless it was sampled.
        rank: its rank among the predictions, from 0.
        prob: its probability, whatever the temperature.
        runner_up, runner_up_prob: the most probable other token.
        difference: logit(token) - logit(runner_up), negative where a less probable one was sampled.
    """

    token: Token
    rank: int
    prob: float
    runner_up: Token
    runner_up_prob: float
    difference: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the rank from 1."""
        return {
            "token": self.token.label,
            "id": self.token.id,
            "rank": self.rank + 1,
            "prob": self.prob,
            "runner_up": {
                "token": self.runner_up.label,
                "id": self.runner_up.id,
                "prob": self.runner_up_prob,
            },
            "logit_difference": self.difference,
        }


@dataclass(frozen=True)
class Generated:
    """What a model wrote after a prompt.

    Attributes:
        model: its name.
        prompt: the text that was read.
        ids: the same as ids, BOS included.
        steps: the tokens written, in order.
        texts: the text before each of them, and the whole at the end; one more than the steps.
        stopped: why there is no further token: as many as asked for, a token that ends the text,
            or the context is full.
        temperature, seed: of sampling; temperature 0 takes the most probable token.
        parse_special: whether the prompt's text was read with its special tokens.
    """

    model: str
    prompt: str
    ids: tuple[int, ...]
    steps: tuple[GeneratedToken, ...]
    texts: tuple[str, ...]
    stopped: Stop
    temperature: float = 0.0
    seed: int = 0
    parse_special: bool = False

    @property
    def text(self) -> str:
        """What was written, without the prompt."""
        return self.texts[-1][len(self.prompt) :]

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens written."""
        return tuple(step.token for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return self.text

    def ids_before(self, step: int) -> tuple[int, ...]:
        """The ids that were read when a step's token was chosen."""
        return (*self.ids, *(token.id for token in self.tokens[:step]))

    def behaviour(self) -> Behaviour:
        """A prompt for each token written: answer is the token, counterpart its runner-up.

        Every measurement and study takes it. The prompts carry the ids that were read, and are of
        one document: intervals over them have one text behind them.
        """
        prompts = tuple(
            Prompt(
                self.texts[i],
                answer=step.token.by_id,
                counterpart=step.runner_up.by_id,
                ids=self.ids_before(i),
                document="generated",
                next_token=step.token.label,
            )
            for i, step in enumerate(self.steps)
        )
        return Behaviour(
            "generated",
            "Why did the model write these tokens?",
            prompts,
            answers="given",
            about=f"{len(self)} tokens that {self.model} wrote after one prompt, each against its "
            "runner-up.",
            parse_special=self.parse_special,
        )


@torch.no_grad()
def generate(
    model: Model,
    prompt: Prompts,
    *,
    n: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[str | int | Token] = (),
) -> Generated:
    """Have the model write up to n tokens after a prompt.

    Args:
        model: which writes.
        prompt: one text, prompt, or behaviour with one (`casestudy.chat`).
        n: at most so many tokens.
        temperature: 0 takes the most probable token each time; otherwise logits are divided by it
            and a token is drawn.
        seed: of the draws.
        stop: tokens that end the text beside the checkpoint's own (the tokenizer's EOS, and those
            of generation_config.json); the ending token is the last one of the result.

    Raises: PromptError for several prompts, one that cannot be run, and settings out of range;
        TokenError for a stop that is not one token; MeasureError for logits that are not finite.
    """
    if not 1 <= n <= MOST:
        raise PromptError(f"{n} tokens to generate", allowed=f"1 to {MOST:,}")
    if not 0 <= temperature < float("inf"):
        raise PromptError(f"temperature {temperature}", allowed="0, or a positive number")
    behaviour = written(model, Behaviour.of(prompt))
    if len(behaviour) != 1:
        raise PromptError(f"{len(behaviour)} prompts to continue", allowed="one")
    model, (one,) = behaviour.read_by(model), behaviour.prompts
    tokenizer = model.tokenizer
    ids = row_of(tokenizer, one)
    ends = {tokenizer.token(token).id for token in stop} | tokenizer.end_ids
    ends |= set() if tokenizer.eos_id is None else {tokenizer.eos_id}
    chooser = torch.Generator().manual_seed(seed)
    cache = Cache(model, min(len(ids) + n, model.config.n_ctx))
    steps: list[GeneratedToken] = []
    fresh, stopped = ids, "length"
    while len(steps) < n:
        if cache.length + len(fresh) > model.config.n_ctx:
            stopped = "context"
            break
        steps.append(_step(model, cache.read(fresh), temperature, chooser))
        fresh = [steps[-1].token.id]
        if fresh[0] in ends:
            stopped = "end of text"
            break
    text = text_of(tokenizer, one)
    written_ids = [step.token.id for step in steps]
    texts = tuple(text + tokenizer.continued(written_ids[:i]) for i in range(len(steps) + 1))
    return Generated(
        model.name,
        text,
        tuple(ids),
        tuple(steps),
        texts,
        stopped,  # type: ignore[arg-type]
        temperature,
        seed,
        tokenizer.parse_special,
    )


def _step(
    model: Model, logits: Float[Tensor, " d_vocab"], temperature: float, chooser: torch.Generator
) -> GeneratedToken:
    """The token that is written at these logits, and its runner-up."""
    probs = logits.double().softmax(0)
    best = logits.topk(2).indices.tolist()
    chosen = best[0]
    if temperature > 0:
        drawn = (logits.double() / temperature).softmax(0).cpu()
        chosen = int(torch.multinomial(drawn, 1, generator=chooser))
    other = best[1] if chosen == best[0] else best[0]
    return GeneratedToken(
        model.tokenizer.token(chosen),
        int((logits > logits[chosen]).sum()),
        float(probs[chosen]),
        model.tokenizer.token(other),
        float(probs[other]),
        float(logits[chosen].double() - logits[other].double()),
    )


class Cache:
    """Each layer's keys (normalised and rotated) and values, of the tokens read so far.

    Attributes:
        length: how many they are.
    """

    def __init__(self, model: Model, room: int) -> None:
        config, W_E = model.config, model.weights.W_E
        shape = (config.n_layers, 1, room, config.n_kv_heads, config.d_head)
        self.model = model
        self.length = 0
        self._keys, self._values = W_E.new_empty(shape), W_E.new_empty(shape)
        self._ids: list[int] = []

    def read(self, ids: Sequence[int]) -> Float[Tensor, " d_vocab"]:
        """The logits after some more tokens.

        Raises: MeasureError where they are not finite, naming the layer.
        """
        model, config = self.model, self.model.config
        row = torch.tensor([list(ids)], device=model.device)
        x = embed_ids(config, model.weights, row, first=self.length)
        positions = torch.arange(self.length, self.length + len(ids), device=model.device)
        self.length += len(ids)
        self._ids += ids
        for layer in range(config.n_layers):
            x = self._block(layer, x, positions)
        x = apply_norm(config, model.weights.final_norm, x[0, -1])
        logits = unembed(config, model.weights, x)
        if not bool(logits.isfinite().all()):
            run(model, self._ids, logits="last")  # which says where
            raise MeasureError("the logits are not finite")
        return logits

    def _block(
        self, layer: int, x: Float[Tensor, "batch new d_model"], positions: Tensor
    ) -> Float[Tensor, "batch new d_model"]:
        """One layer over the new tokens, whose keys and values it adds."""
        config, block = self.model.config, self.model.weights.blocks[layer]

        def attention(x: Tensor) -> tuple[Tensor, Tensor]:
            attn = block.attn
            normed = apply_norm(config, block.attn_norm, x)
            q = project(normed, attn.W_Q, attn.b_Q)
            k = project(normed, attn.W_K, attn.b_K)
            q, k = position_queries_and_keys(config, attn, layer, q, k, positions, positions)
            keys, values = self._keys[layer], self._values[layer]
            keys[:, positions] = k
            values[:, positions] = project(normed, attn.W_V, attn.b_V)
            keys, values = keys[:, : self.length], values[:, : self.length]
            every = torch.arange(self.length, device=x.device)
            visible = visible_keys(config, layer, positions, every)
            z = attend(config, layer, q, keys, values, visible)
            return x, attn_out(config, block, z)

        return through_block(config, x, attention, lambda x: mlp_out(config, block, x))
