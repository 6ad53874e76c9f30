"""What is asked of a model, of which prompts?

A `Behaviour` is the thing under study: its prompts, the question they put, and how answers are
chosen. A `Prompt` may bring its own answer, counterpart, corrupted partner and roles; what it does
not bring is chosen or found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from casestudy.errors import BehaviourError

AnswerRule = Literal["space-capital", "given"]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what the model reads (BOS is added by the model's rule, not here).
        answer: the token whose preference is explained; None to choose it from the predictions.
        counterpart: what it is contrasted with; None to derive it from the answer.
        corrupted: a partner prompt in which the behaviour should be gone.
        group: which set of the behaviour it belongs to ("ragged five"), or its category.
        document: where it came from, so that intervals can resample documents.
        roles: positions named by the user, as token indices (BOS counts where it is prepended).
    """

    text: str
    answer: str | None = None
    counterpart: str | None = None
    corrupted: str | None = None
    group: str = ""
    document: str = ""
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Behaviour:
    """A question and the prompts that put it.

    Attributes:
        name: short, for file names and the command line.
        question: the question in words, the report's title.
        prompts: in order; results are labelled by index.
        answers: "space-capital" takes each prompt's first space+Capital prediction and its
            lower-case form unless the prompt gives its own; "given" requires both.
        about: a sentence or two on what the prompts vary.
    """

    name: str
    question: str
    prompts: tuple[Prompt, ...]
    answers: AnswerRule = "space-capital"
    about: str = ""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise BehaviourError(f"behaviour {self.name!r} has no prompts", allowed="at least one")
        if self.answers == "given":
            for i, prompt in enumerate(self.prompts):
                if prompt.answer is None or prompt.counterpart is None:
                    raise BehaviourError(
                        f"prompt {i} of {self.name!r} lacks its answer or counterpart",
                        allowed="both, where answers are given",
                    )

    def __len__(self) -> int:
        return len(self.prompts)
