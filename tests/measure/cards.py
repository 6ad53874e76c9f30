"""A small world for cards: random decoders that read texts of w0 … w16, and a corpus of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.behaviour.windows import Window
from casestudy.measure.part_activity import Activity, activities_in
from casestudy.measure.parts import CardPart
from casestudy.model.model import Model
from tests.measure.batches import spoken
from tests.measure.worlds import D_VOCAB, decoder


def speaking(variant: str, **options: object) -> Model:
    """A random decoder with a tokenizer of words."""
    return spoken(decoder(variant, **options))  # type: ignore[arg-type]


def corpus(documents: int = 12, words: int = 40, *, seed: int = 0) -> Mapping[str, str]:
    """Random texts by document."""
    rng = random.Random(seed)
    return {
        f"doc {i}": " ".join(f"w{rng.randrange(D_VOCAB)}" for _ in range(words))
        for i in range(documents)
    }


def only_activity(
    model: Model,
    part: CardPart,
    windows: Iterable[Window],
    *,
    k: int,
    most_windows: int,
    seed: int = 0,
) -> Activity:
    """Where one part is active."""
    (found,) = activities_in(model, [part], windows, k=k, most_windows=most_windows, seed=seed)
    return found


def behaviour(n: int = 4, *, seed: int = 1) -> Behaviour:
    """Random prompts of unequal length with an answer and a counterpart."""
    rng = random.Random(seed)
    prompts = [
        Prompt(" ".join(f"w{rng.randrange(D_VOCAB)}" for _ in range(4 + i % 3)), "w3", "w4")
        for i in range(n)
    ]
    return Behaviour("pairs", "Why?", tuple(prompts), answers="given")
