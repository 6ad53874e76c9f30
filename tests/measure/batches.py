"""A batch made by hand: random prompts and contrasts, for measurements that take any."""

from __future__ import annotations

import random
from dataclasses import replace

from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from casestudy.behaviour.answers import Answers
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.batch import Batch, Measurement
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from tests.measure.worlds import D_VOCAB, contrast


def rows(lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    """Random prompts of these lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(D_VOCAB) for _ in range(n)] for n in lengths]


def batch_of(
    model: Model, rows: list[list[int]], measurement: Measurement, *, seed: int = 0
) -> Batch:
    """These prompts' run, a random contrast of single tokens and one of two classes."""
    model, tokens = spoken(model), Tokens.of(rows)
    trace = run(model, tokens, keep=measurement.keep(model), logits="last")
    prompts = tuple(Prompt(say(row)) for row in rows)
    assert trace.logits is not None
    classes = [(0, 3, 5, 8), (1, 2, 9)]
    contrasts = (
        contrast(len(rows), seed=seed),
        Contrast.of_classes(
            trace.logits,
            [classes[0]] * len(rows),
            [classes[1]] * len(rows),
            name="classes",
            answers=("A",) * len(rows),
            counterparts=("B",) * len(rows),
        ),
    )
    answers = Answers((None,) * len(rows))
    behaviour = Behaviour("test", "?", prompts)
    index = tuple(range(len(rows)))
    return Batch(model, index, prompts, tokens, trace, answers, contrasts, behaviour)


def alone(batch: Batch, i: int, measurement: Measurement) -> Batch:
    """One prompt of a batch, run by itself."""
    tokens = batch.tokens[[i]]
    trace = run(batch.model, tokens, keep=measurement.keep(batch.model), logits="last")
    contrasts = tuple(c[[i]] for c in batch.contrasts)
    prompts, answers = (batch.prompts[i],), Answers((None,))
    return Batch(batch.model, (i,), prompts, tokens, trace, answers, contrasts, batch.behaviour)


def spoken(model: Model) -> Model:
    """The same model with a tokenizer that reads "w1 w2 w3" as three tokens."""
    words = HFTokenizer(WordLevel({f"w{i}": i for i in range(D_VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return replace(model, tokenizer=replace(model.tokenizer, backend=words))


def say(row: list[int]) -> str:
    """A text of these tokens."""
    return " ".join(f"w{i}" for i in row)
