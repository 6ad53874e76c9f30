"""Which words of a prompt can be replaced by another word of the same kind?

A small built-in list, without a model: singular and plural, names, numbers, pronouns, opposites and
other words of one kind. Each edit replaces one word at one place in the text. The edits are
suggestions for a corrupted prompt; `measure/partners` finds out whether an edit keeps the number of
tokens and how it changes the contrast. English only. Cost: negligible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import regex

MOST_OTHERS = 2
"""How many other words to try from a kind with many words, such as names."""


@dataclass(frozen=True)
class Swap:
    """One word replaced.

    Attributes:
        kind: of replacement ("singular or plural").
        what: the two words ("dogs → dog").
        text: the whole edited prompt.
    """

    kind: str
    what: str
    text: str


_KINDS: dict[str, tuple[str, ...]] = {
    "singular or plural": (
        *("man men", "woman women", "child children", "person people", "foot feet", "mouse mice"),
        *("tooth teeth", "goose geese", "wife wives", "life lives", "knife knives", "leaf leaves"),
        *("wolf wolves", "is are", "was were", "has have", "does do", "this these", "that those"),
    ),
    "name": ("Mary John Anna Tom Lucy Ben Sarah James Emma David Alice Peter Kate Paul Jane Mark",),
    "pronoun": ("he she", "his her", "him her", "himself herself", "I you", "my your", "we they"),
    "gender": (
        *("king queen", "boy girl", "man woman", "father mother", "brother sister", "son daughter"),
        *("uncle aunt", "prince princess", "husband wife", "boys girls", "kings queens"),
    ),
    "number word": ("one two three four five six seven eight nine ten",),
    "place": (
        "France England Japan Germany Italy Spain China Russia India Canada",
        "Paris London Tokyo Berlin Rome Madrid Beijing Moscow Delhi Ottawa",
    ),
    "time": (
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "January February March April June July August September October November December",
        *("yesterday tomorrow", "morning evening", "day night", "summer winter"),
    ),
    "opposite": (
        *("good bad", "big small", "old young", "hot cold", "happy sad", "first last", "up down"),
        *("left right", "open closed", "high low", "early late", "long short", "new old"),
        *("always never", "before after", "with without", "more less", "all none", "rich poor"),
    ),
    "other of its kind": (
        *("dog cat horse", "dogs cats horses", "red blue green", "water wine milk", "car train"),
        *("house garden", "school church", "doctor teacher", "book letter", "books letters"),
    ),
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION = _words(
    "a an and are as at be but by can could did do does for from had has have he her his i if in "
    "into is it its may me might must my no nor not of on or our over she should so that the their "
    "them then there these they this those to under up was we were what when where which who will "
    "with would you your"
)
_BEFORE_NOUN = _words("a an the my your his her its our their this that every each one")
_WORD = r"\p{L}+"


def swaps(text: str) -> tuple[Swap, ...]:
    """Every replacement of one word, or of a number's last digit, that the list has for a text.

    They are in the order of the text, without repetitions.
    """
    found: dict[str, Swap] = {}
    for match in regex.finditer(rf"{_WORD}|\d+", text):
        for kind, other in _others(text, match):
            edited = text[: match.start()] + other + text[match.end() :]
            found.setdefault(edited, Swap(kind, f"{match.group()} → {other}", edited))
    return tuple(found.values())


def _others(text: str, match: regex.Match[str]) -> Iterator[tuple[str, str]]:
    """Other words for the one matched, with their kinds."""
    word = match.group()
    if word.isdigit():
        yield "number", word[:-1] + str((int(word[-1]) + 1) % 10)
        return
    known = False
    for kind, groups in _KINDS.items():
        for group in map(str.split, groups):
            place = next((i for i, one in enumerate(group) if _same(one, word)), None)
            if place is not None:
                known = known or kind == "singular or plural"
                others = [*group[place + 1 :], *group[:place]]
                yield from ((kind, _cased(other, word)) for other in others[:MOST_OTHERS])
    if not known and (other := _number_changed(text, match)):
        yield "singular or plural", other


def _same(listed: str, word: str) -> bool:
    """Whether two words are equal; words other than names may have a capital."""
    return listed == word or (listed.islower() and listed == word.lower())


def _cased(other: str, word: str) -> str:
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


def _number_changed(text: str, match: regex.Match[str]) -> str | None:
    """The plural or singular of a regular noun; None if the word is probably not a noun."""
    word = match.group()
    if word.lower() in _FUNCTION or len(word) < 3:
        return None
    if regex.search(r"(?<!s|u|i)s\Z", word):
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        return word[:-2] if regex.search(r"(?:x|ch|sh|ss)es\Z", word) else word[:-1]
    before = regex.findall(_WORD, text[: match.start()])[-1:]
    after = regex.findall(_WORD, text[match.end() :])[:1]
    noun = bool(before) and before[0].lower() in _BEFORE_NOUN
    if not noun or not (not after or after[0].lower() in _FUNCTION) or word.endswith("s"):
        return None
    if regex.search(r"[^aeiou]y\Z", word):
        return word[:-1] + "ies"
    return word + ("es" if regex.search(r"(?:x|ch|sh|ss)\Z", word) else "s")
