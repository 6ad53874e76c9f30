"""Which question is studied, on which prompts?

A `Behaviour` is what a study explains: a question, its prompts, how answers are chosen, and which
token classes and positions are measured. A `Prompt` may have its own answer, counterpart, corrupted
prompt and roles; otherwise casestudy chooses or finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from operator import index
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

import regex

from casestudy.behaviour.classes import STANDARD, ClassContrast, ClassSet, compile_pattern
from casestudy.behaviour.main_groups import in_main_groups
from casestudy.drawing import cut, described, some
from casestudy.errors import BehaviourError, PromptError
from casestudy.model.chat import Chat, Written

if TYPE_CHECKING:
    from casestudy.model.model import Model

AnswerRule = Literal["space-capital", "given", "classes"]
Which = Literal["all", "first", "last", "not last"]
Take = Literal["all", "first", "last"]


QUESTION = "Why does the model prefer this next token?"
"""The question of a behaviour that puts none."""


@dataclass(frozen=True)
class Role:
    """A semantic position, found in any prompt by a pattern on its text.

    Attributes:
        name: its label in results.
        pattern: a regular expression to search for in the text; the role is the span of its group
            `role`, or the whole match if it has no such group.
        which: all matches, or the first, the last, or all but the last.
        take: which tokens of a span to use: all, the first (which has a word's capital) or the
            last (which can attend to the whole word).
    """

    name: str
    pattern: str
    which: Which = "all"
    take: Take = "all"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise BehaviourError(f"the role with the pattern {self.pattern!r} has no name")
        compile_pattern(self.pattern, f"role {self.name!r}")

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The spans of the role in a text, as (start, end) in characters; no empty matches.

        Raises: BehaviourError for a pattern that takes more than a second.
        """
        compiled = regex.compile(self.pattern)
        group = "role" if "role" in compiled.groupindex else 0
        try:
            found = [m.span(group) for m in compiled.finditer(text, timeout=1.0)]
        except TimeoutError as error:
            raise BehaviourError(
                f"the pattern {self.pattern!r} of role {self.name!r} takes more than 1 s on "
                f"{text[:40]!r}",
                hint="Avoid nested repetition such as (a+)+",
            ) from error
        found = [span for span in found if span[0] < span[1]]
        chosen = {"all": found, "first": found[:1], "last": found[-1:], "not last": found[:-1]}
        return chosen[self.which]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: the prompt, without BOS, which the model adds by its own rule; an empty text is BOS
            alone.
        answer: the token whose preference is explained; None to choose it from the predictions.
        counterpart: the token that the answer is compared with; None to derive it from the answer.
        answer_class, counterpart_class: patterns of token classes (see `TokenClass`) that replace
            the behaviour's class contrast for this prompt; both or neither.
        corrupted: a partner prompt in which the behaviour should be absent.
        groups: the groups of the behaviour that it belongs to ("ragged five").
        category: the kind of prompt ("sentence end", "abbreviation").
        document: the document that it comes from; intervals resample documents.
        next_token: the token that followed in the source text, if there is one.
        roles: positions named by the user, as token indices; BOS counts if it is prepended, and
            negative indices count from the end.
        readout: where the next token is read: a token index, counted as for `roles`, or a role
            (its last token); by default after the last token (see `readouts`).
        ids: its tokens, BOS included, where they are not those that its text would give again
            (text that a model wrote).
    """

    text: str
    answer: str | None = None
    counterpart: str | None = None
    corrupted: str | None = None
    groups: tuple[str, ...] = ()
    document: str = ""
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    category: str = ""
    next_token: str | None = None
    answer_class: str | None = None
    counterpart_class: str | None = None
    readout: int | str | Role | None = None
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(map(index, self.ids)))
            if not self.ids:
                raise BehaviourError(
                    f"prompt {self.text[:60]!r} has an empty list of ids",
                    allowed="at least one id, or no ids",
                )
        if (self.answer_class is None) != (self.counterpart_class is None):
            raise BehaviourError(
                f"prompt {self.text[:60]!r} has one class pattern", allowed="both, or neither"
            )
        for pattern in (self.answer_class, self.counterpart_class):
            if pattern is not None:
                compile_pattern(pattern, f"prompt {self.text[:60]!r}")
        for name, places in self.roles.items():
            if not places:
                raise BehaviourError(
                    f"role {name!r} of prompt {self.text[:60]!r} has no position",
                    allowed="at least one, or no such role",
                )


def prompts_given(given: object) -> tuple[Prompt, ...]:
    """A text or a prompt, or several of them, as prompts.

    Raises: PromptError for what is neither.
    """
    several = [given] if isinstance(given, str | Prompt) else given
    if not isinstance(several, Iterable):
        raise PromptError(f"prompts {given!r}"[:100], allowed="texts or Prompts")
    made = tuple(Prompt(one) if isinstance(one, str) else one for one in several)
    for i, prompt in enumerate(made):
        if not isinstance(prompt, Prompt):
            raise PromptError(
                f"prompt {i} is {prompt!r}"[:100], allowed="texts, Prompts, or a Behaviour"
            )
    return made


@dataclass(frozen=True)
class Behaviour:
    """A question with its prompts.

    Attributes:
        name: short, for file names and the command line.
        question: the question in words; the title of the report.
        prompts: in order, as Prompts or texts; results are labelled by index.
        answers: "space-capital" takes each prompt's first space+Capital prediction and its
            lower-case form; "classes" the most probable token of each of the two contrasted
            classes; a prompt's own answer and counterpart replace these. "given" requires both.
        about: a sentence or two on what the prompts vary.
        classes: the token classes, for class masses and class contrasts.
        class_contrast: the two classes to compare; None for no class contrast, except for prompts
            with patterns of their own.
        roles: positions to average over besides the standard ones (see `roles`).
        main: the groups of prompts for a study's headline means; empty for all. The others are
            measured and shown by group.
        circuit_prompts: further prompts of the same kind, on which circuits are looked for and
            evaluated besides the main ones; no other measurement uses them.
        notes: what was left out when the file was read; it does not affect the measurements.
        parse_special: whether the text of a special token ("<|endoftext|>") in its prompts is read
            as that token; otherwise the model's setting applies (see `read_by`).
        chat: that its texts are messages (`Chat`), or were written from messages by a chat template
            (`Written`; see `casestudy.chat`); None for texts that are read as they are.
    """

    name: str = "prompts"
    question: str = QUESTION
    prompts: tuple[Prompt, ...] = ()
    answers: AnswerRule = "space-capital"
    about: str = ""
    classes: ClassSet = STANDARD
    class_contrast: ClassContrast | None = None
    roles: tuple[Role, ...] = ()
    main: tuple[str, ...] = ()
    circuit_prompts: tuple[Prompt, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    parse_special: bool = False
    chat: Chat | Written | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", prompts_given(self.prompts))
        object.__setattr__(self, "circuit_prompts", prompts_given(self.circuit_prompts))
        if not self.prompts:
            raise BehaviourError(f"behaviour {self.name!r} has no prompts", allowed="at least one")
        if self.answers == "given":
            for i, prompt in enumerate((*self.prompts, *self.circuit_prompts)):
                if prompt.answer is None or prompt.counterpart is None:
                    raise BehaviourError(
                        f"prompt {i} of {self.name!r} lacks its answer or counterpart",
                        allowed="both, where answers are given",
                    )
        if self.class_contrast is not None:
            self.classes.index(self.class_contrast.answer)
            self.classes.index(self.class_contrast.counterpart)
        if self.answers == "classes" and not self.has_classes:
            raise BehaviourError(
                f"{self.name!r} takes its answers from classes and names none",
                allowed="a class_contrast, or class patterns with the prompts",
            )
        patterns = {role.name: role for role in self.roles}
        for name in ("prompts", "circuit_prompts"):
            given: tuple[Prompt, ...] = getattr(self, name)
            if any(prompt.readout in patterns for prompt in given):
                # so that a prompt can be read without its behaviour at hand
                read = (
                    replace(p, readout=patterns[p.readout])
                    if isinstance(p.readout, str) and p.readout in patterns
                    else p
                    for p in given
                )
                object.__setattr__(self, name, tuple(read))
        names = [role.name for role in self.roles]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise BehaviourError(f"{self.name!r} has two roles called {repeated[0]!r}")
        strangers = [name for name in self.main if name not in self.groups]
        if strangers:
            raise BehaviourError(
                f"{self.name!r} names the main group {strangers[0]!r}, which no prompt is in",
                allowed=", ".join(self.groups) or "no main group where no prompt has a group",
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        main = sum(map(self.is_main, self.prompts))
        headline = "" if main == len(self) else f", {main:,} of them for headline means"
        partners = sum(prompt.corrupted is not None for prompt in self.prompts)
        return described(
            f"Behaviour {self.name}",
            {
                "question": self.question,
                "prompts": f"{len(self):,}{headline}",
                "answers": self.answers,
                "corrupted": f"{partners:,} prompts bring a partner" if partners else "",
                "groups": some(self.groups),
                "classes": "contrasted" if self.has_classes else "",
                "roles": some(self.own_roles),
            },
            (f"  {i:>3}  {_spoken(prompt)}" for i, prompt in enumerate(self.prompts[:MOST_SHOWN])),
        ) + (f"\n  … {len(self) - MOST_SHOWN:,} more" if len(self) > MOST_SHOWN else "")

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Every group of its prompts, in the order of first appearance."""
        return tuple(dict.fromkeys(name for prompt in self.prompts for name in prompt.groups))

    def is_main(self, prompt: Prompt) -> bool:
        """Whether a prompt counts for the headline means."""
        return in_main_groups(prompt.groups, self.main)

    @cached_property
    def main_prompts(self) -> list[int]:
        """The indices of the prompts that count for the headline means."""
        return [i for i, prompt in enumerate(self.prompts) if self.is_main(prompt)]

    @cached_property
    def with_circuit_prompts(self) -> Behaviour:
        """The same with its circuit prompts after its prompts."""
        whole = (*self.prompts, *self.circuit_prompts)
        return replace(self, prompts=whole, circuit_prompts=())

    def read_by(self, model: Model) -> Model:
        """The model, with this behaviour's setting for the texts of special tokens.

        Raises: BehaviourError for messages that no chat template has written yet.
        """
        if isinstance(self.chat, Chat):
            raise BehaviourError(
                f"the prompts of {self.name!r} are messages", hint="Say casestudy.chat(model, …)"
            )
        if self.chat is not None:
            return model.with_chat(self.prompts[0].text)
        return model.with_special() if self.parse_special else model

    @cached_property
    def has_classes(self) -> bool:
        """Whether the behaviour or any of its prompts has a class contrast."""
        return self.class_contrast is not None or any(
            prompt.answer_class is not None for prompt in self.prompts
        )

    @cached_property
    def own_roles(self) -> tuple[str, ...]:
        """The roles its patterns or its prompts define, by name."""
        given = (name for prompt in self.prompts for name in prompt.roles)
        return tuple(dict.fromkeys([*(role.name for role in self.roles), *given]))

    @classmethod
    def of(cls, prompts: Prompts) -> Behaviour:
        """Make a behaviour of a text, texts or prompts, with the flagship's rules; return a
        behaviour unchanged.

        Raises: BehaviourError for no prompt at all, PromptError for a prompt that is not a text.
        """
        if isinstance(prompts, Behaviour):
            return prompts
        return cls("prompts", "What comes next?", prompts_given(prompts))


MOST_SHOWN = 10
"""Prompts that `print` shows of a behaviour."""


def _spoken(prompt: Prompt) -> str:
    sides = [repr(side) for side in (prompt.answer, prompt.counterpart) if side is not None]
    text = cut(prompt.text, 48)
    return text + (f"  {' against '.join(sides)}" if sides else "")


Prompts = Behaviour | Prompt | str | Sequence[str | Prompt]
"""The input of every measurement: a behaviour, a text or texts, a prompt or prompts."""


def reader_of(model: Model, prompts: Prompts) -> Model:
    """The model with a behaviour's setting (see `Behaviour.read_by`); unchanged for texts."""
    return prompts.read_by(model) if isinstance(prompts, Behaviour) else model


P = ParamSpec("P")
R = TypeVar("R")


def takes_prompts(call: Callable[P, R]) -> Callable[P, R]:
    """`prompts=` for `behaviour=` too, as 0.1.0 named it in the function that this decorates."""

    @wraps(call)
    def renamed(*args: P.args, **options: P.kwargs) -> R:
        if "prompts" in options and "behaviour" not in options:
            options["behaviour"] = options.pop("prompts")
        return call(*args, **options)

    return renamed
