"""What does a measurement get to see?

One `Batch`: some prompts of a behaviour, the single run made of them, and the contrasts chosen from
its predictions. A measurement declares the sites it reads; the run keeps the union of what all of
them ask, so that a study is one streaming pass and never holds more than a batch's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.answers import FORMS, Answers, choose_answers
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.result import Axis, Result
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import Trace, run
from casestudy.model.model import Model
from casestudy.model.sites import Keep
from casestudy.model.tokens import Tokens


@dataclass(frozen=True)
class Batch:
    """Prompts, their run, and what is contrasted.

    Attributes:
        index: each prompt's place in the behaviour; results are labelled with it.
        trace: the run, with logits at the last positions.
        contrasts: by name, the main one first.
    """

    model: Model
    index: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    tokens: Tokens
    trace: Trace
    answers: Answers
    contrasts: tuple[Contrast, ...]

    @property
    def logits(self) -> Float[Tensor, "batch d_vocab"]:
        """At each prompt's last position."""
        assert self.trace.logits is not None
        return self.trace.logits

    @property
    def prompt_axis(self) -> Axis:
        """The axis along which this batch's results are joined to other batches'."""
        return Axis("prompt", tuple(map(str, self.index)))

    @property
    def contrast_axis(self) -> Axis:
        """One label per contrast."""
        return Axis("contrast", tuple(c.name for c in self.contrasts))


@dataclass(frozen=True)
class Measurement:
    """One question asked of every batch.

    Attributes:
        name: as in `casestudy run --only NAME`.
        keep: the sites it reads, given the model's shape.
        measure: from a batch to named results with a prompt axis (grids) or column (tables).
    """

    name: str
    keep: Callable[[ModelConfig], Sequence[Keep]]
    measure: Callable[[Batch], list[Result]]


def run_batch(
    model: Model,
    behaviour: Behaviour,
    index: Sequence[int],
    measurements: Sequence[Measurement],
    *,
    prepend_bos: bool | None = None,
    top_k: int = 100,
) -> Batch:
    """Run some prompts of a behaviour once, keeping what the measurements ask."""
    prompts = tuple(behaviour.prompts[i] for i in index)
    tokens = model.tokenize([p.text for p in prompts], prepend_bos=prepend_bos)
    keep = [k for m in measurements for k in m.keep(model.config)]
    trace = run(model, tokens, keep=keep, logits="last")
    assert trace.logits is not None
    answers = choose_answers(model, prompts, trace.logits, rule=behaviour.answers, top_k=top_k)
    forms = FORMS if behaviour.answers == "space-capital" else ("counterpart",)
    contrasts = tuple(answers.contrast(model, form) for form in forms)
    return Batch(model, tuple(index), prompts, tokens, trace, answers, contrasts)
