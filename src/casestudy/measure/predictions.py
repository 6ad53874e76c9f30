"""Which next tokens does the model predict, and what rank and probability has an answer?

Top-k tokens with logit and probability at each prompt's last position, the answers' ranks (rank 0
is the first), and the exact log-probability of an answer of several tokens. Cost: the unembedding
at the needed positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.chat import written
from casestudy.behaviour.prompts import Behaviour, Prompt, Prompts, prompts_given, takes_prompts
from casestudy.behaviour.readouts import row_of, text_of, tokens_of
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.model.decoder import run, unembed
from casestudy.model.model import Model
from casestudy.model.notices import Notice
from casestudy.model.sites import Site
from casestudy.model.token import AnswerLike, Token
from casestudy.model.tokens import Tokens
from casestudy.results import names
from casestudy.results.result import Grid, Result, Table

TOP_K = 20


@takes_prompts
def predictions(
    model: Model,
    behaviour: Prompts,
    *,
    top_k: int = TOP_K,
) -> Table:
    """The most probable next tokens.

    Args:
        model: which predicts.
        behaviour: a behaviour, a text or texts (see `Prompts`).
        top_k: how many tokens per prompt.

    Rows:   one per prompt and rank, with token, id, logit and probability.
    Raises: PromptError for a prompt that cannot be run.
    """
    behaviour = written(model, Behaviour.of(behaviour))
    model = behaviour.read_by(model)
    trace = run(model, tokens_of(model, behaviour.prompts), logits="last")
    assert trace.logits is not None
    return top_tokens(model, trace.logits, range(len(behaviour)), top_k)


def top_tokens(
    model: Model, logits: Float[Tensor, "batch d_vocab"], labels: Sequence[int], top_k: int
) -> Table:
    """The table of `predictions`, from given logits; `labels` are the prompts' numbers."""
    top_k = min(top_k, logits.shape[1])
    best = logits.topk(top_k, dim=1)
    probs = _probabilities(logits).gather(1, best.indices)
    ids = best.indices.flatten().tolist()
    return Table(
        names.PREDICTIONS,
        {
            "prompt": [i for i in labels for _ in range(top_k)],
            "rank": list(range(top_k)) * len(labels),
            "token": model.tokenizer.labels(ids),
            "id": ids,
            "logit": best.values.flatten().tolist(),
            "prob": probs.flatten().tolist(),
        },
        "The most probable next tokens; rank 0 is the first.",
    )


def _probabilities(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
    return logits.double().softmax(1)


@dataclass(frozen=True)
class AnswerScore:
    """An answer's rank and probability after a prompt.

    Attributes:
        tokens: the answer's tokens, in order.
        log_prob: natural logarithm of its probability, by the chain rule over its tokens.
        rank, logit: of a single token among the next-token predictions; None for several tokens.
        notices: about the tokenisation of the answer, if it needs one.
    """

    answer: str
    tokens: tuple[Token, ...]
    log_prob: float
    rank: int | None
    logit: float | None
    notices: tuple[Notice, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The answer's tokens, as ids."""
        return tuple(token.id for token in self.tokens)

    @property
    def prob(self) -> float:
        """The answer's probability."""
        return math.exp(self.log_prob)

    @property
    def place(self) -> int | None:
        """The rank counted from 1, as a person counts; None for several tokens."""
        return None if self.rank is None else self.rank + 1

    def standing(self) -> dict[str, Any]:
        """Where an answer stands, for JSON; of several tokens, without a rank."""
        if len(self.tokens) > 1:
            tokens = [token.label for token in self.tokens]
            found = {"tokens": tokens, "ids": list(self.ids), "log_prob": self.log_prob}
            return {"answer": self.answer, **found, "prob": self.prob}
        (token,) = self.tokens
        return {"token": token.label, "id": token.id, "rank": self.place, "prob": self.prob}


def score_answer(model: Model, prompt: str | Prompt, answer: AnswerLike) -> AnswerScore:
    """The exact log-probability of an answer of one or more tokens after a prompt.

    Args:
        model: which predicts.
        prompt: a text, "" for BOS alone; or a Prompt, after its readout.
        answer: a text, read as it continues the prompt (see `Tokenizer.continuation`); or
            "id:1234", an id or a list of ids.

    Raises: TokenError for an empty answer; PromptError when both together exceed the context;
        BehaviourError for a readout that the prompt does not have.
    """
    (asked,) = prompts_given(prompt)
    follows = model.tokenizer.continuation(text_of(model.tokenizer, asked), answer)
    ids = list(follows.ids)
    head = row_of(model.tokenizer, asked)
    row = head + ids
    # The last token is only predicted, never read.
    tokens = Tokens.of([model.tokenizer.check_length(row[:-1])]).to(model.device)
    trace = run(model, tokens, keep=[Site.FINAL_NORMED], logits="last")
    at = slice(len(head) - 1, len(row) - 1)
    logits = unembed(model.config, model.weights, trace[Site.FINAL_NORMED][0, at])
    log_probs = logits.double().log_softmax(1)
    log_prob = float(sum(log_probs[i, id] for i, id in enumerate(ids)))
    single = len(ids) == 1
    return AnswerScore(
        answer if isinstance(answer, str) else "id:" + ",".join(map(str, ids)),
        tuple(model.tokenizer.token(id) for id in ids),
        log_prob,
        rank=int((logits[0] > logits[0, ids[0]]).sum()) if single else None,
        logit=float(logits[0, ids[0]]) if single else None,
        notices=follows.notices,
    )


def measure_predictions(batch: Batch) -> list[Result]:
    """Top-k, answers with their counterparts, skipped candidates, and the logit differences."""
    return [
        top_tokens(batch.model, batch.logits, batch.index, TOP_K),
        _answers(batch),
        _passed_over(batch),
        Grid(
            names.LOGIT_DIFFERENCE,
            torch.stack([c.value(batch.logits) for c in batch.contrasts]).cpu().numpy(),
            (batch.contrast_axis, batch.prompt_axis),
            "logits",
            about="logit(answer) - logit(counterpart) at each prompt's last position",
        ),
    ]


def _answers(batch: Batch) -> Table:
    probs = _probabilities(batch.logits)
    columns: dict[str, list[object]] = {
        name: [] for name in ("prompt", "form", "token", "id", "rank", "logit", "prob")
    }
    for row, (label, answer) in enumerate(zip(batch.index, batch.answers.chosen, strict=True)):
        if answer is None:
            continue
        for form, token in {"answer": answer.token, **answer.counterparts}.items():
            id = token.id
            logit = batch.logits[row, id]
            rank = int((batch.logits[row] > logit).sum())
            values = (label, form, token.label, id, rank, float(logit), float(probs[row, id]))
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
    return Table(
        names.ANSWERS, columns, "Each prompt's answer and counterparts; rank 0 is the first."
    )


def _passed_over(batch: Batch) -> Table:
    passed = batch.answers.passed_over
    return Table(
        names.PASSED_OVER,
        {
            "prompt": [batch.index[p.prompt] for p in passed],
            "candidate": [p.candidate.label for p in passed],
            "rank": [p.rank for p in passed],
            "why": [p.why for p in passed],
        },
        "Predictions that could not be the answer, and why.",
    )


PREDICTIONS = Measurement("predictions", lambda model: (), measure_predictions)


def logit_difference(model: Model, behaviour: Prompts) -> Grid:
    """The contrasts of a behaviour's prompts.

    Shape:  (contrast, prompt), at each prompt's last position.
    Unit:   logits; NaN if a prompt has no such answer and counterpart.
    """
    batch = run_whole(model, behaviour, [PREDICTIONS])
    return next(r for r in measure_predictions(batch) if isinstance(r, Grid))
