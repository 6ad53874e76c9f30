"""Which behaviours come with the package?

`full-stop-capitals`, the flagship, has every prompt of the exploratory notebook that this project
started from ("How does GPT-2 Small predict capital letters after full stops?"): the plain sentence
and its cases, the numeric one, the ragged five, the eleven-token four and eight. It also has all of
them in lower and in upper case, which the notebook planned. `decimal-point` is about its numeric
prompt. `ioi` (Wang et al. 2022), `greater-than` (Hanna et al. 2023) and `agreement` (Linzen et al.
2016) are the field's reference behaviours. All are written so that GPT-2's tokenizer and the
bundled one read them.
"""

from __future__ import annotations

import regex

from casestudy.behaviour.classes import CAPITAL_MASS, STANDARD, ClassContrast, TokenClass
from casestudy.behaviour.preset_names import PRESETS
from casestudy.behaviour.preset_pairs import (
    DECIMAL_CONTEXTS,
    FULL_STOP_SENTENCES,
    GREATER_THAN_YEARS,
    IOI_NAMES,
)
from casestudy.behaviour.prompts import Behaviour, Prompt, Role
from casestudy.errors import BehaviourError, unknown

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
    "uncapitalised": ("this is an uncapitalised sentence.",),
    "numeric": ("The probability of me getting to the bottom of this circuit is not 0.",),
}
"""The notebook's prompts by the set they were run in; a prompt may be in several sets."""

_ORDINARY = ("plain sentence", "ragged five", "eleven-token four", "eleven-token eight")


def lower_sentence_starts(text: str) -> str:
    """The notebook's corruption of the eleven-token eight: each sentence's first letter lowered."""
    start = regex.compile(r"(?:\A|\.\s)\p{Lu}")
    return start.sub(lambda match: match.group().lower(), text)


def _full_stop_capitals() -> Behaviour:
    sets = dict(FULL_STOP_CAPITALS)
    ordinary = [text for name in _ORDINARY for text in sets[name]]
    sets["all lower"] = tuple(text.lower() for text in ordinary)
    # Upper case takes many more tokens: the longest would not fit the bundled model's context.
    sets["all upper"] = tuple(text.upper() for text in ordinary if text != _PROFESSOR)
    groups: dict[str, tuple[str, ...]] = {}
    for group, texts in sets.items():
        for text in dict.fromkeys(texts):
            groups[text] = (*groups.get(text, ()), group)
    corrupted = {text: lower_sentence_starts(text) for text in sets["eleven-token eight"]}
    return Behaviour(
        name="full-stop-capitals",
        question="How does the model come to write a capital letter after a full stop?",
        prompts=tuple(
            Prompt(text, groups=names, corrupted=corrupted.get(text))
            for text, names in groups.items()
        ),
        about="Sentences that end in a full stop: plain, in lower and upper case, numeric, of "
        "unequal length, repeated. The answer is the model's first capitalised continuation. "
        "Headline means are over the ordinary sentences; the other cases are shown by group.",
        class_contrast=CAPITAL_MASS,
        main=_ORDINARY,
        circuit_prompts=tuple(map(Prompt, FULL_STOP_SENTENCES)),
    )


_NUMBERS = (
    ("The probability of it is not", "0", "known"),
    ("The value of the number is close to", "3", "this"),
    ("The distance is about", "2", "right"),
    ("The price rose by", "1", "half"),
    ("The mean of the numbers was", "6", "small"),
    ("He found a length of", "5", "rope"),
    ("The rate was less than", "8", "that"),
    ("The temperature fell to", "9", "nothing"),
)
"""Contexts that can end in a number or in a word: the number, and the word, before the stop."""


_WHOLE = (
    "He was born in the year 1809.",
    "The war lasted until 1865.",
    "There were 100 men, and they lost 24.",
    "She lived at number 7.",
)


def _decimal_point() -> Behaviour:
    prompts = []
    for start, number, word in _NUMBERS:
        numeric, verbal = f"{start} {number}.", f"{start} {word}."
        prompts.append(Prompt(numeric, corrupted=verbal, groups=("number",)))
        prompts.append(Prompt(verbal, corrupted=numeric, groups=("word",)))
    numeric = FULL_STOP_CAPITALS["numeric"][0]
    prompts.append(Prompt(numeric, groups=("number",)))
    prompts += [Prompt(text, groups=("whole number",)) for text in _WHOLE]
    return Behaviour(
        name="decimal-point",
        question="How does the model tell a decimal point from a full stop?",
        prompts=tuple(prompts),
        answers="classes",
        about="The same contexts before a number and before a word, and whole numbers at the end "
        "of a sentence. The answer is the likeliest digit, its counterpart the likeliest "
        "capitalised word; positive means that the stop is read as a decimal point. Headline means "
        "are over the numbers.",
        class_contrast=ClassContrast("digit mass", "digit", "space+Capital"),
        main=("number",),
        circuit_prompts=tuple(
            Prompt(f"{start} {number}.", corrupted=f"{start} {word}.")
            for start, number, word in DECIMAL_CONTEXTS
        ),
    )


_IOI = (
    ("When {} and {} went to the shop, {} gave the bag to", "John", "Mary"),
    ("When {} and {} went to the house, {} gave the money to", "Tom", "James"),
    ("When {} and {} went to the church, {} gave the book to", "Henry", "Arthur"),
    ("After {} and {} had a drink, {} gave the money to", "Martin", "Amy"),
    ("Then, {} and {} had a long talk, and {} gave a letter to", "Frank", "Alice"),
    ("After {} and {} came to the house, {} handed the key to", "Jane", "Peter"),
    ("While {} and {} were at the school, {} read a book to", "Paul", "Anna"),
    ("When {} and {} sat in the garden, {} told a story to", "Jack", "Lucy"),
)
_NAME = r"\p{Lu}\p{L}+"


def _abba_and_baba(template: str, a: str, b: str) -> tuple[Prompt, Prompt]:
    """A template's two prompts, which differ in the name that is repeated."""
    abba, baba = template.format(a, b, b), template.format(a, b, a)
    return (
        Prompt(abba, f" {a}", f" {b}", corrupted=baba, groups=("ABBA",)),
        Prompt(baba, f" {b}", f" {a}", corrupted=abba, groups=("BABA",)),
    )


def _ioi() -> Behaviour:
    again = r"\b(?P=role)\b"
    return Behaviour(
        name="ioi",
        question="How does the model name the indirect object and not the subject?",
        prompts=tuple(prompt for row in _IOI for prompt in _abba_and_baba(*row)),
        circuit_prompts=tuple(
            _abba_and_baba(template, *(names[::-1] if i % 2 else names))[(i + k) % 2]
            for k, names in enumerate(IOI_NAMES)
            for i, (template, *_) in enumerate(_IOI)
        ),
        answers="given",
        about="Indirect object identification (Wang et al. 2022): of two names, one is repeated, "
        "and the other is the answer. Each prompt's corrupted partner repeats the other name, so "
        "that answer and counterpart change places and what every token gets alike (b_U) cancels "
        "in the mean.",
        roles=(
            Role("indirect object",
                 rf"(?<=\s)(?P<role>{_NAME})\b(?!.*{again})(?<!{again}.*\s(?P=role))"),
            Role("subject 1", rf"\b(?P<role>{_NAME})\b(?=.*{again})"),
            Role("subject 2", rf"\b(?P<name>{_NAME})\b.*\b(?P<role>(?P=name))\b"),
        ),
    )  # fmt: skip


_YEARS = (
    ("war", 17, 32), ("journey", 16, 54), ("work", 15, 43), ("search", 17, 68),
    ("strike", 18, 41), ("trial", 16, 27), ("peace", 15, 76), ("voyage", 17, 45),
)  # fmt: skip


def _span_of_years(noun: str, century: int, year: int) -> Prompt:
    template = f"The {noun} lasted from the year {century}{{}} to the year {century}"
    tens, ones = divmod(year, 10)
    return Prompt(
        template.format(year),
        corrupted=template.format("01"),
        answer_class=rf"(?:{tens}[{ones + 1}-9]|[{tens + 1}-9]\d?)\Z",
        counterpart_class=rf"(?:{tens}[0-{ones}]|[0-{tens - 1}]\d?)\Z",
    )


def _greater_than() -> Behaviour:
    return Behaviour(
        name="greater-than",
        question="How does the model end a span of years with a later year?",
        prompts=tuple(_span_of_years(*row) for row in _YEARS),
        circuit_prompts=tuple(_span_of_years(*row) for row in GREATER_THAN_YEARS),
        answers="classes",
        about='Greater-than (Hanna et al. 2023): after "from the year 1732 to the year 17", later '
        "years (33 to 99) against the others (00 to 32). GPT-2 writes a year's last two digits as "
        "one token. A tokenizer that writes digits singly, as the bundled model's, can only be "
        "asked for the tens: larger ones against smaller ones, since an equal one decides nothing. "
        "The corrupted partner starts in the year 01, so that almost any end is later.",
        classes=STANDARD.extend(
            *(TokenClass(f"tens {tens}", rf"{tens}\d?\Z") for tens in range(10)), name="tens"
        ),
        roles=(
            Role("start year", r"(?P<role>\d\d) to the year"),
            Role("century", r"to the year (?P<role>\d+)"),
        ),
    )


_PLURALS = {
    **{noun: f"{noun}s" for noun in ("boy", "girl", "friend", "soldier", "officer", "brother")},
    **{noun: f"{noun}s" for noun in ("house", "ship", "horse", "tree")},
    **{"man": "men", "woman": "women"},
}
"""Nouns that are one token in either number."""

_VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))

_NO_ATTRACTOR = (
    ("The {} who left", ("boy", "girl", "officer", "woman")),
    ("The {} over there", ("man", "friend", "brother", "soldier")),
)
_ATTRACTOR = (
    ("The {} near the {}", (("boy", "house"), ("officer", "ship"), ("woman", "tree"))),
    ("The {} behind the {}", (("man", "horse"), ("girl", "tree"), ("soldier", "house"))),
)


def _agreement() -> Behaviour:
    prompts: list[Prompt] = []

    def add(template: str, subject: str, attractor: tuple[str, ...], group: str) -> None:
        """One prompt; its corrupted partner has the subject in the other number."""
        other = {**_PLURALS, **{b: a for a, b in _PLURALS.items()}}[subject]
        singular, plural = _VERBS[len(prompts) // 2 % len(_VERBS)]
        verbs = (singular, plural) if subject in _PLURALS else (plural, singular)
        corrupted = template.format(other, *attractor)
        text = template.format(subject, *attractor)
        prompts.append(Prompt(text, *verbs, corrupted=corrupted, groups=(group,)))

    for template, nouns in _NO_ATTRACTOR:
        for noun in nouns:
            for subject in (noun, _PLURALS[noun]):
                add(template, subject, (), "no attractor")
    for template, both in _ATTRACTOR:
        for noun, other in both:
            for attractor in (other, _PLURALS[other]):
                for subject in (noun, _PLURALS[noun]):
                    same = (subject in _PLURALS) == (attractor in _PLURALS)
                    group = "attractor of the same number" if same else "attractor"
                    add(template, subject, (attractor,), group)
    return Behaviour(
        name="agreement",
        question="How does the model choose a verb in the number of its subject?",
        prompts=tuple(prompts),
        answers="given",
        about="Subject-verb agreement (Linzen et al. 2016; Marks et al. 2025): a singular or "
        "plural subject, then a relative clause or an adverb (no attractor), or a second noun of "
        "the other number (attractor) or of the same. The answer is the verb in the subject's "
        "number, its counterpart the verb in the other. Each prompt's corrupted partner has its "
        "subject in the other number and is otherwise the same.",
        roles=(
            Role("subject", r"^The (?P<role>\w+)"),
            Role("attractor", r" the (?P<role>\w+)$"),
        ),
    )


_MAKERS = (_full_stop_capitals, _decimal_point, _ioi, _greater_than, _agreement)
_PRESETS = dict(zip(PRESETS, _MAKERS, strict=True))


def preset_names() -> tuple[str, ...]:
    """The presets that come with the package."""
    return PRESETS


def preset(name: str) -> Behaviour:
    """A behaviour by name.

    Raises: BehaviourError listing the presets.
    """
    if name not in _PRESETS:
        described = ", ".join(_PRESETS) + ", or the path of a behaviour file"
        came = f"no preset is called {name!r}"
        raise unknown(BehaviourError, came, name, _PRESETS, described=described)
    return _PRESETS[name]()
