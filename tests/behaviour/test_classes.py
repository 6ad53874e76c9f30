"""Classes share out a vocabulary: each token has exactly one, whatever the patterns."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.behaviour.answers import is_space_capital
from casestudy.behaviour.classes import (
    ASCII_2024,
    STANDARD,
    ClassContrast,
    ClassSet,
    TokenClass,
    _is_plain,
    class_set,
    matching,
)
from casestudy.errors import BehaviourError
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer

PATTERNS = st.sampled_from(
    [r" [A-Z]", r"\p{L}", r" ?\p{L}+\Z", r"\d", r"[aeiou]", r".*ing\Z", r"(?i) he", r"\W", r" "]
)


def texts_of(classes: ClassSet, name: str, tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.string(id) for id in classes.ids(name, tokenizer)}


@settings(max_examples=15)
@given(st.lists(PATTERNS, max_size=5))
def test_classes_partition_the_vocabulary(toy_model: Model, patterns: list[str]) -> None:
    tokenizer = toy_model.tokenizer
    classes = ClassSet(
        "mine", tuple(TokenClass(f"{i}", p, required=False) for i, p in enumerate(patterns))
    )
    of = classes.of_vocabulary(tokenizer)
    assert of.shape == (tokenizer.d_vocab,)
    sizes = of.bincount(minlength=len(classes.names))
    assert sizes.sum() == tokenizer.d_vocab
    assert len(sizes) == len(classes.names)
    for i, name in enumerate(classes.names):
        if sizes[i]:
            assert len(classes.ids(name, tokenizer)) == sizes[i]


@settings(max_examples=15)
@given(st.lists(PATTERNS, min_size=2, max_size=4, unique=True))
def test_the_first_match_wins(toy_model: Model, patterns: list[str]) -> None:
    tokenizer = toy_model.tokenizer
    classes = ClassSet(
        "mine",
        tuple(TokenClass(f"{i}", p, required=False) for i, p in enumerate(patterns)),
        end_of_text=None,
    )
    of = classes.of_vocabulary(tokenizer)
    taken: set[int] = set()
    for i, pattern in enumerate(patterns):
        matched = set(matching(tokenizer, pattern, tokenizer.d_vocab))
        assert set((of == i).nonzero().flatten().tolist()) == matched - taken
        taken |= matched


def test_the_standard_set_says_what_it_names(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    assert {" He", " The", " I"} <= texts_of(STANDARD, "space+Capital", tokenizer)
    assert {" he", " the"} <= texts_of(STANDARD, "space+lower", tokenizer)
    assert {"He", "A"} <= texts_of(STANDARD, "Capital", tokenizer)
    assert {" 3", " 0"} <= texts_of(STANDARD, "space+digit", tokenizer)
    assert {"3", "0"} <= texts_of(STANDARD, "digit", tokenizer)
    assert "\n" in texts_of(STANDARD, "newline", tokenizer)
    assert {'"', " (", '."'} - texts_of(STANDARD, "quote or bracket", tokenizer) == {'."'}
    assert texts_of(STANDARD, "end of text", tokenizer) == {"<|endoftext|>"}
    assert {"'s", "."} <= texts_of(STANDARD, "other", tokenizer)


def test_space_capital_is_what_the_answer_rule_calls_it(gpt2_tokenizer: Tokenizer) -> None:
    of = STANDARD.of_vocabulary(gpt2_tokenizer)
    for id, text in enumerate(gpt2_tokenizer.vocabulary()):
        assert (of[id] == STANDARD.index("space+Capital")) == is_space_capital(text), text


@pytest.mark.parametrize(
    ("text", "name"),
    [(" Über", "space+Capital"), ("Édouard", "Capital"), (" émile", "space+lower"),
     (" Ж", "space+Capital"), (" ж", "space+lower"), ("ǅ", "Capital"), ("字", "other"),
     (" ٣", "space+digit"), ("“", "quote or bracket"), (" «", "quote or bracket"),
     ("\n\n", "newline"), (" \n", "newline"), ("'ll", "other"), ("'tis", "quote or bracket")],
)  # fmt: skip
def test_it_reads_every_script(text: str, name: str) -> None:
    first = next(
        (c.name for c in STANDARD.classes if c.pattern and _matches(c.pattern, text)), "other"
    )
    assert first == name


def _matches(pattern: str, text: str) -> bool:
    import regex

    return regex.match(pattern, text) is not None


def test_the_recorded_set_is_ascii_and_has_its_order(gpt2_tokenizer: Tokenizer) -> None:
    assert ASCII_2024.names == (
        "space_upper", "space_lower", "space_digit",
        "nospace_upper", "nospace_lower", "nospace_digit", "other",
    )  # fmt: skip
    of = ASCII_2024.of_vocabulary(gpt2_tokenizer)
    assert ASCII_2024.names[of[gpt2_tokenizer.single(" He")]] == "space_upper"
    assert ASCII_2024.names[of[gpt2_tokenizer.single("\n")]] == "other"
    assert ASCII_2024.names[of[50256]] == "other"
    assert class_set("ascii-2024") is ASCII_2024


def test_ids_that_stand_for_no_text_are_other(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    of = STANDARD.of_vocabulary(tokenizer, tokenizer.d_vocab + 5)
    assert (of[-5:] == STANDARD.index("other")).all()
    torch.testing.assert_close(of[:-5], STANDARD.of_vocabulary(tokenizer))


def test_a_set_can_be_extended_and_its_owner_cannot_spoil_it(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    mine = STANDARD.extend(TokenClass("pronoun", r" (?:He|She|It)\Z"))
    assert texts_of(mine, "pronoun", tokenizer) == {" He", " She", " It"}
    assert " He" not in texts_of(mine, "space+Capital", tokenizer)
    of = STANDARD.of_vocabulary(tokenizer)
    of[:] = 0
    assert (STANDARD.of_vocabulary(tokenizer) != 0).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenClass("x", "(("), r"pattern '\(\(' of class 'x' does not compile"),
        (lambda: TokenClass(" ", "a"), "has no name"),
        (lambda: ClassSet("s", (TokenClass("x", "a"), TokenClass("x", "b"))), "two classes"),
        (lambda: ClassSet("s", (TokenClass("other", "a"),)), "two classes called 'other'"),
        (lambda: STANDARD.index("capital"), "Did you mean 'Capital'"),
        (lambda: class_set("acsii"), "Allowed: standard, ascii-2024"),
        (lambda: ClassContrast("m", "a", "a"), "against itself"),
    ],
)
def test_what_is_not_well_formed_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BehaviourError, match=message):
        make()


def test_a_pattern_that_takes_nothing_is_named(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    nothing = STANDARD.extend(TokenClass("runes", r"\p{Runic}"))
    with pytest.raises(BehaviourError, match=r"p\{Runic\}' of class 'runes' takes no token"):
        nothing.of_vocabulary(tokenizer)
    late = ClassSet("s", (*STANDARD.classes, TokenClass("he", r" He\Z")))
    with pytest.raises(BehaviourError, match=r"earlier classes take them.*'space\+Capital'"):
        late.of_vocabulary(tokenizer)
    with pytest.raises(BehaviourError, match="matches no token"):
        matching(tokenizer, r"\p{Runic}", tokenizer.d_vocab)
    empty = ClassSet("s", (TokenClass("runes", r"\p{Runic}", required=False),))
    with pytest.raises(BehaviourError, match="no token of this vocabulary is of class 'runes'"):
        empty.ids("runes", tokenizer)


def test_a_pattern_that_backtracks_for_ever_is_stopped(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casestudy.behaviour.classes.MATCH_SECONDS", 0.01)
    slow = ClassSet("s", (TokenClass("slow", r"(.|..|.\w)+(.|..|.\w)+(.|..|.\w)+(?<!.)"),))
    with pytest.raises(BehaviourError, match=r"takes more than 0\.01 s on one token"):
        slow.of_vocabulary(toy_model.tokenizer)


@pytest.mark.parametrize(
    "pattern", [r"(a|a)+b", r"(a+)+b", r"(\w\w?)*b", r"(a|a){30}b", r"(?R)?b", "a?" * 30 + "a" * 30]
)
def test_only_patterns_that_end_soon_go_without_a_time_limit(pattern: str) -> None:
    assert not _is_plain(pattern)
    assert all(_is_plain(one.pattern) for one in (*STANDARD.classes, *ASCII_2024.classes))
