"""Which behaviours come with the package?

`full-stop-capitals`, the flagship, has every prompt of the exploratory notebook this project starts
from ("How does GPT-2 Small predict capital letters after full stops?"): the plain sentence and its
cases, the numeric one, the ragged five, the eleven-token four and eight.
"""

from __future__ import annotations

import difflib

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError

_PROFESSOR = (
    "The enigmatic, silver-haired professor, known for his eccentric lectures on quantum "
    "entanglement and the nature of reality, embarked on a perilous journey through the "
    "mist-shrouded mountains of Bhutan, seeking an ancient, mystical artifact rumored to hold the "
    "key to unlocking the secrets of the universe, while his loyal assistant, a quick-witted and "
    "resourceful graduate student with a penchant for solving cryptic puzzles, followed close "
    "behind, armed only with a weathered journal, a compass, and an unwavering determination to "
    "unravel the mystery that had haunted her mentor for decades."
)
_REPEATED = "This is a sentence. This is another sentence."

FULL_STOP_CAPITALS: dict[str, tuple[str, ...]] = {
    "plain sentence": ("This is a sentence.",),
    "ragged five": (
        "Go.",
        "Hello.",
        "Matthew doesn't know what he is doing.",
        _REPEATED,
        _PROFESSOR,
    ),
    "eleven-token four": (
        "Filling up to eleven tokens.\nGo.",
        "Hello. Hello. Hello. Hello. Hello.",
        "Matthew really does not know what he is doing.",
        _REPEATED,
    ),
    "eleven-token eight": (
        "Filling up to eleven tokens.\nGo.",
        "Hello. Hello. Hello. Hello. Hello.",
        "Yeah Matt doesn't know what he is doing.",
        "That Will does not know where he is going.",
        "Someone should really help them out, I think.",
        "It is wonderful to be in Adelaide in March.",
        "Koalas are cute, but grumpy.",
        _REPEATED,
    ),
    "all lower": ("this is a sentence.",),
    "all upper": ("THIS IS A SENTENCE.",),
    "uncapitalised": ("this is an uncapitalised sentence.",),
    "numeric": ("The probability of me getting to the bottom of this circuit is not 0.",),
}
"""The notebook's prompts by the set they were run in; a prompt may stand in several sets."""

_ORDINARY = ("plain sentence", "ragged five", "eleven-token four", "eleven-token eight")


def _full_stop_capitals() -> Behaviour:
    groups: dict[str, tuple[str, ...]] = {}
    for group, texts in FULL_STOP_CAPITALS.items():
        for text in texts:
            groups[text] = (*groups.get(text, ()), group)
    return Behaviour(
        name="full-stop-capitals",
        question="How does the model come to write a capital letter after a full stop?",
        prompts=tuple(Prompt(text, groups=sets) for text, sets in groups.items()),
        about="Sentences that end in a full stop: plain, in lower and upper case, numeric, of "
        "unequal length, repeated. The answer is the model's first capitalised continuation. "
        "Headline means are over the ordinary sentences; the other cases are shown by group.",
        main=_ORDINARY,
    )


_PRESETS = {"full-stop-capitals": _full_stop_capitals}


def preset_names() -> tuple[str, ...]:
    """The presets that come with the package."""
    return tuple(_PRESETS)


def preset(name: str) -> Behaviour:
    """A behaviour by name.

    Raises: BehaviourError listing the presets.
    """
    if name not in _PRESETS:
        close = difflib.get_close_matches(name, _PRESETS, n=1)
        raise BehaviourError(
            f"no preset is called {name!r}",
            allowed=", ".join(_PRESETS),
            hint=f"Did you mean {close[0]}?" if close else None,
        )
    return _PRESETS[name]()
