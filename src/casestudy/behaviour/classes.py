"""Which kinds of token are there: capitals after a space, digits, quotation marks, …?

A `ClassSet` puts each token of a vocabulary into one named class: the first class whose regular
expression matches at the start of the token's text. So the classes never overlap, and every token
has one. Patterns are those of the `regex` package: Unicode-aware, with properties such as
`\\p{Lu}`. Cost: one pass over the vocabulary, once per tokenizer and set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import regex
import torch
from jaxtyping import Int
from torch import Tensor

from casestudy.errors import BehaviourError, unknown
from casestudy.model.tokens import Tokenizer

MATCH_SECONDS = 1.0
"""The time limit of one pattern on one token, so that endless backtracking is an error."""


def compile_pattern(pattern: str, of: str) -> regex.Pattern[str]:
    """A compiled pattern.

    Raises: BehaviourError for an invalid pattern, naming its owner and the reason.
    """
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise BehaviourError(
            f"the pattern {pattern!r} of {of} does not compile: {error}",
            allowed="a regular expression of the `regex` package",
        ) from error


@dataclass(frozen=True)
class TokenClass:
    """One kind of token.

    Attributes:
        name: its label in results.
        pattern: matched at the start of a token's text; end it with `\\Z` to match the whole text.
        required: whether a vocabulary without such a token is an error.
    """

    name: str
    pattern: str
    required: bool = True

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise BehaviourError(f"the class with the pattern {self.pattern!r} has no name")
        compile_pattern(self.pattern, f"class {self.name!r}")


@dataclass(frozen=True)
class ClassSet:
    """Ordered classes; each token of a vocabulary belongs to one of them.

    Attributes:
        name: of the set.
        classes: tried in order; a token belongs to the first class whose pattern matches.
        end_of_text: the class of the end-of-text token, found by its id; with None the token is
            in `other`, like all other control tokens and ids without a text.
        other: the class of all tokens that no pattern matches.
    """

    name: str
    classes: tuple[TokenClass, ...]
    end_of_text: str | None = "end of text"
    other: str = "other"

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise BehaviourError(
                    f"class set {self.name!r} has two classes called {name!r}",
                    allowed="different names",
                )
            seen.add(name)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every class, in order, `other` last."""
        end = () if self.end_of_text is None else (self.end_of_text,)
        return (*(c.name for c in self.classes), *end, self.other)

    def index(self, name: str) -> int:
        """A class's number.

        Raises: BehaviourError listing the existing classes.
        """
        if name not in self.names:
            came = f"class set {self.name!r} has no class {name!r}"
            raise unknown(BehaviourError, came, name, self.names)
        return self.names.index(name)

    def extend(self, *classes: TokenClass, name: str | None = None) -> ClassSet:
        """This set with additional classes, which are tried first."""
        return ClassSet(
            name or f"{self.name}+",
            (*classes, *self.classes),
            self.end_of_text,
            self.other,
        )

    def of_vocabulary(
        self, tokenizer: Tokenizer, d_vocab: int | None = None
    ) -> Int[Tensor, " d_vocab"]:
        """Each token's class, as its number in `names`.

        Args:
            tokenizer: whose tokens.
            d_vocab: the model's number of logits, if it differs from the tokenizer's number of
                tokens; ids without a text are in `other`.

        Raises: BehaviourError for a required class without tokens, naming its pattern.
        """
        d_vocab = tokenizer.d_vocab if d_vocab is None else d_vocab
        return _classes_of(self, tokenizer, d_vocab).clone()

    def ids(self, name: str, tokenizer: Tokenizer, d_vocab: int | None = None) -> tuple[int, ...]:
        """The tokens of one class.

        Raises: BehaviourError if the class is unknown or has no token in this vocabulary.
        """
        number, d_vocab = self.index(name), tokenizer.d_vocab if d_vocab is None else d_vocab
        found = _ids_of(self, tokenizer, d_vocab)[number]
        if not found:
            raise BehaviourError(
                f"no token of this vocabulary is of class {name!r}",
                hint="Choose a class that `class_mass` shows with tokens",
            )
        return found


@dataclass(frozen=True)
class ClassContrast:
    """log p(answer class) - log p(counterpart class), for two classes of a behaviour's set."""

    name: str
    answer: str
    counterpart: str

    def __post_init__(self) -> None:
        if self.answer == self.counterpart:
            raise BehaviourError(
                f"class contrast {self.name!r} weighs {self.answer!r} against itself",
                allowed="two different classes",
            )


_LETTERS = (
    # str.isupper and str.islower of one letter are these properties; a title-case digraph ("ǅ")
    # opens a capitalised word
    ("Capital", r"[\p{Uppercase}\p{Lt}]"),
    ("lower", r"\p{Lowercase}"),
    ("digit", r"\p{Nd}"),
)
# " 's" and " 't" continue a word; they are not quotation marks
_QUOTE = r"[^\S\n\r]?(?!['’](?:s|t|re|ve|m|ll|d)\Z)[\p{Pi}\p{Pf}\p{Ps}\p{Pe}\"'`]"

STANDARD = ClassSet(
    "standard",
    (
        *(TokenClass(f"space+{name}", f" {one}", required=False) for name, one in _LETTERS),
        *(TokenClass(name, one, required=False) for name, one in _LETTERS),
        TokenClass("newline", r"[^\S\n\r]*[\n\r]", required=False),
        TokenClass("quote or bracket", _QUOTE, required=False),
    ),
)
"""Classes of tokens that may follow a full stop, in any script. Letters without case: `other`."""

ASCII_2024 = ClassSet(
    "ascii-2024",
    (
        TokenClass("space_upper", r"\s[A-Z]\w*", required=False),
        TokenClass("space_lower", r"\s[a-z]\w*", required=False),
        TokenClass("space_digit", r"\s[0-9]\w*", required=False),
        TokenClass("nospace_upper", r"[A-Z]\w*", required=False),
        TokenClass("nospace_lower", r"[a-z]\w*", required=False),
        TokenClass("nospace_digit", r"[0-9]\w*", required=False),
    ),
    end_of_text=None,
)
"""The ASCII patterns of the 2024 notebook this project starts from, in its order."""

CAPITAL_MASS = ClassContrast("capital mass", "space+Capital", "space+lower")
"""The flagship's question: how much more probable is a capital than a lower-case letter?"""

CLASS_SETS = {s.name: s for s in (STANDARD, ASCII_2024)}


def class_set(name: str) -> ClassSet:
    """A class set that comes with the package.

    Raises: BehaviourError listing them.
    """
    if name not in CLASS_SETS:
        raise unknown(BehaviourError, f"no class set is called {name!r}", name, CLASS_SETS)
    return CLASS_SETS[name]


@lru_cache(maxsize=256)
def matching(tokenizer: Tokenizer, pattern: str, d_vocab: int) -> tuple[int, ...]:
    """The tokens whose text a pattern matches from its start; control tokens have no text.

    Raises: BehaviourError naming a pattern that does not compile or matches no token.
    """
    compiled = compile_pattern(pattern, "a token class")
    found = _matched(compiled, _texts(tokenizer, d_vocab))
    if not found:
        raise BehaviourError(
            f"the pattern {pattern!r} matches no token of this vocabulary",
            hint="A word in mid-sentence carries its leading space, as in ' He'",
        )
    return tuple(found)


@lru_cache(maxsize=32)
def _classes_of(classes: ClassSet, tokenizer: Tokenizer, d_vocab: int) -> Int[Tensor, " d_vocab"]:
    return _classes_of_texts(classes, tokenizer.eos_id, _texts(tokenizer, d_vocab), d_vocab)


@lru_cache(maxsize=32)
def _ids_of(classes: ClassSet, tokenizer: Tokenizer, d_vocab: int) -> tuple[tuple[int, ...], ...]:
    """The tokens of each class."""
    of = _classes_of(classes, tokenizer, d_vocab)
    return tuple(tuple((of == i).nonzero()[:, 0].tolist()) for i in range(len(classes.names)))


# By the texts, not by the tokenizer: checkpoints of one model have equal vocabularies, and GPT-2's
# takes seconds.
@lru_cache(maxsize=8)
def _classes_of_texts(
    classes: ClassSet, eos_id: int | None, texts: tuple[tuple[int, str], ...], d_vocab: int
) -> Int[Tensor, " d_vocab"]:
    other = len(classes.names) - 1
    of = torch.full((d_vocab,), other, dtype=torch.long)
    if classes.end_of_text is not None and eos_id is not None:
        of[eos_id] = classes.index(classes.end_of_text)
    free: Sequence[tuple[int, str]] = texts
    for number, one in enumerate(classes.classes):
        compiled = compile_pattern(one.pattern, f"class {one.name!r}")
        taken = set(_matched(compiled, free))
        if one.required and not taken:
            raise BehaviourError(
                f"the pattern {one.pattern!r} of class {one.name!r} takes no token of this "
                f"vocabulary{_taken_by(compiled, classes.classes[:number], texts)}",
                allowed="a pattern that takes at least one token",
            )
        of[list(taken)] = number
        free = [(id, text) for id, text in free if id not in taken]
    return of


def _taken_by(
    compiled: regex.Pattern[str],
    earlier: Sequence[TokenClass],
    texts: Sequence[tuple[int, str]],
) -> str:
    """The earlier classes that contain all tokens which a pattern matches."""
    ids = _matched(compiled, texts)
    if not ids:
        return ""
    text = dict(texts)[ids[0]]
    first = next(c.name for c in earlier if regex.match(c.pattern, text))
    return f"; {len(ids)} match, but earlier classes take them ({text!r} is {first!r})"


@lru_cache(maxsize=8)
def _texts(tokenizer: Tokenizer, d_vocab: int) -> tuple[tuple[int, str], ...]:
    """(id, text) of every token that has a text and a logit."""
    return tuple(
        (id, text)
        for id, text in enumerate(tokenizer.vocabulary()[:d_vocab])
        if text and not tokenizer.is_special(id)
    )


def _is_plain(pattern: str) -> bool:
    """Whether no token's text can take a pattern long: it has one repetition, or a dozen choices,
    but not both, since choices multiply when repeated. A call with a time limit takes six times as
    long as one without.
    """
    inside = regex.sub(r"\\[pP]\{[^}]*\}|(?<=\()\?(?:<?[=!]|:)", "", pattern)
    if regex.search(r"\(\?", inside):  # recursion, conditions, flags, names
        return False
    repeated, choices = (sum(map(inside.count, signs)) for signs in ("*+{", "?|"))
    return repeated + choices <= 1 or (repeated == 0 and choices <= 12)


def _matched(compiled: regex.Pattern[str], texts: Sequence[tuple[int, str]]) -> list[int]:
    """The ids whose text a pattern matches from its start."""
    match, seconds = compiled.match, MATCH_SECONDS
    if _is_plain(compiled.pattern):
        return [id for id, text in texts if match(text)]
    try:
        return [id for id, text in texts if match(text, timeout=seconds)]
    except TimeoutError as error:
        raise BehaviourError(
            f"the pattern {compiled.pattern!r} takes more than {seconds:g} s on one token",
            hint="Avoid nested repetition such as (a+)+",
        ) from error
