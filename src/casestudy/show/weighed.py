"""Which tokens does a study compare, and how do sentences name them?

If every prompt has the same answer, or the same counterpart, sentences, axes and captions name that
token. If they differ between prompts, they are named by their form: "the answer", "its lower-case
form". Only the stored answers are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from casestudy.results import names
from casestudy.show.stored import StoredStudy
from casestudy.show.text import chip, clean, count, listing, visible

ANSWER = "the answer"
FORMS = {
    "counterpart": "its counterpart",
    "lowercase": "its lower-case form",
    "no_space": "the same word without its leading space",
    "lowercase_no_space": "its lower-case form without the leading space",
    **dict.fromkeys(names.WHOLES.values(), "the whole counterpart"),
}
"""The words for a counterpart's form, if the token differs between prompts."""

MOST_NAMED = 3
"""How many answers to name as examples, if they differ between prompts."""


@dataclass(frozen=True)
class Side:
    """The answer or the counterpart of a contrast.

    Attributes:
        form: its name if prompts have different tokens.
        token: the one token of all prompts; None if they differ.
    """

    form: str
    token: str | None = None

    @property
    def markup(self) -> Markup:
        """For a sentence on the page: the token as a chip, or the form in words."""
        return Markup("{}").format(self.form) if self.token is None else chip(self.token)

    @property
    def plain(self) -> str:
        """For an axis, a title or an alternative text."""
        return self.form if self.token is None else visible(self.token)

    @property
    def first(self) -> Side:
        """Its name at the start of a sentence, where "its" refers to nothing."""
        return Side(self.form.replace("its ", "the ", 1), self.token)


@dataclass(frozen=True)
class Weighed:
    """A contrast's two sides."""

    answer: Side
    counterpart: Side
    unit: str = "logits"

    @property
    def named(self) -> bool:
        """Whether both sides are one token each."""
        return self.answer.token is not None and self.counterpart.token is not None

    @property
    def against(self) -> Markup:
        """ "the answer against its lower-case form", for captions."""
        return Markup("{} against {}").format(self.answer.markup, self.counterpart.markup)

    @property
    def against_plain(self) -> str:
        """The same without markup."""
        return f"{self.answer.plain} against {self.counterpart.plain}"

    @property
    def difference(self) -> str:
        """The quantity, for an axis."""
        if self.unit == "nats":
            of = self.against_plain if self.named else "of the answers"
            return f"difference of log p, {of}, nats"
        if not self.named:
            return "logit difference, logits"
        return f"logit({self.answer.plain}) − logit({self.counterpart.plain}), logits"

    def by_sign(self, value: float) -> tuple[Side, Side]:
        """The preferred side and the other one, by the sign of their difference."""
        if value < 0:
            return self.counterpart.first, self.answer
        return self.answer, self.counterpart


def weighed(study: StoredStudy, contrast: str | None = None) -> Weighed:
    """The sides of a contrast, the study's main one by default."""
    name = study.contrast if contrast is None else contrast
    classes = _classes(study, name)
    if classes is not None:
        return classes
    if name in names.WHOLES.values():
        both = (_only(_answer_texts(study, side)) for side in names.SIDES)
        answer, other = both if name != names.WHOLES["first"] else (None, None)
        unit = "logits" if name == names.WHOLES["first"] else "nats"
        return Weighed(Side("the whole answer", answer), Side(FORMS[name], other), unit)
    answer, other = (_only(_tokens(study, part)) for part in ("answer", name))
    words = [ANSWER, form_of(name)]
    if study.contrasts and study.contrast in names.WHOLES.values():
        words = [f"the first token of {side}" for side in words]
    return Weighed(Side(words[0], answer), Side(words[1], other))


def form_of(contrast: str) -> str:
    """A contrast's counterpart by its form."""
    return FORMS.get(contrast, f"“{clean(contrast)}”")


def _classes(study: StoredStudy, contrast: str) -> Weighed | None:
    """A class contrast's sides: the two classes, by name."""
    behaviour = study.manifest.get("behaviour")
    asked = behaviour.get("class_contrast") if isinstance(behaviour, dict) else None
    if not isinstance(asked, dict) or asked.get("name") != contrast:
        return None
    answer, other = (Side(f"the class “{clean(asked.get(side, ''))}”") for side in names.SIDES)
    return Weighed(answer, other)


def _tokens(study: StoredStudy, form: str) -> list[str]:
    """The main prompts' tokens of one form, in order."""
    table = study.tables.get(names.ANSWERS)
    if table is None or not {"prompt", "form", "token"} <= set(table.columns):
        return []
    columns = (table.columns[name] for name in ("prompt", "form", "token"))
    cells = [(prompt, token) for prompt, f, token in zip(*columns, strict=True) if f == form]
    main = study.main_prompts([str(prompt) for prompt, _ in cells])
    return [str(cells[i][1]) for i in main]


def _answer_texts(study: StoredStudy, side: str) -> list[str]:
    """The main prompts' answers or counterparts; none where some are single tokens."""
    table = study.tables.get(names.ANSWER_TOKENS)
    if table is None or not {"prompt", "side", "place", "token"} <= set(table.columns):
        return []
    texts: dict[str, str] = {}
    for row in sorted(table.rows(), key=lambda row: (row["prompt"], row["place"])):
        if row["side"] == side:
            prompt = str(row["prompt"])
            texts[prompt] = texts.get(prompt, "") + str(row["token"])
    prompts = study.tables[names.PROMPTS].rows() if names.PROMPTS in study.tables else []
    every = [str(row["prompt"]) for row in prompts if row.get("error") is None]
    main = [every[i] for i in study.main_prompts(every)]
    return [texts[prompt] for prompt in main] if all(p in texts for p in main) else []


def _only(tokens: Sequence[str]) -> str | None:
    return tokens[0] if len(set(tokens)) == 1 else None


def examples(study: StoredStudy) -> Markup:
    """The most frequent answers, where they differ: " (·The in 5 prompts, ·He in 3, 2 others)"."""
    whole = study.contrast in names.WHOLES.values()
    found = _answer_texts(study, "answer") if whole else _tokens(study, "answer")
    common = Counter(found).most_common()
    if len(common) < 2:
        return Markup("")
    phrases = [Markup("{} in {}").format(chip(token), n) for token, n in common[:MOST_NAMED]]
    rest, other = len(common) - MOST_NAMED, "other answer" if whole else "other token"
    phrases += [Markup("{}").format(count(rest, other))] if rest > 0 else []
    return Markup(" ({})").format(Markup(listing(phrases)))
