"""Roles are where a reader would point, however the words are cut into tokens."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.prompts import Behaviour, Prompt, Role
from casestudy.behaviour.readouts import check_roles
from casestudy.behaviour.roles import (
    BOS,
    CHANGED,
    LAST,
    STANDARD_ROLES,
    changed_places,
    role_names,
    roles_of,
    with_pair_roles,
)
from casestudy.errors import BehaviourError
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer

FIRST, STARTS, EARLIER, WORD, FINAL = (role.name for role in STANDARD_ROLES)


def found(tokenizer: Tokenizer, prompt: Prompt, *roles: Role) -> dict[str, list[str]]:
    ids = tokenizer.tokenize(prompt.text, prepend_bos=True).rows()[0]
    places = roles_of(tokenizer, prompt, ids, roles)
    return {name: [tokenizer.string(ids[i]) for i in at] for name, at in places.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This is a sentence.",
         {FIRST: ["This"], STARTS: ["This"], WORD: [" sentence"], FINAL: ["."]}),
        ("Go.", {FIRST: ["Go"], STARTS: ["Go"], WORD: ["Go"], FINAL: ["."]}),
        ("no stop", {FIRST: ["no"], STARTS: ["no"]}),
        ("Hello. Hello. Hello.",
         {FIRST: ["Hello"], STARTS: ["Hello", " Hello", " Hello"], EARLIER: [".", "."],
          WORD: [" Hello"], FINAL: ["."]}),
        ("Wait... he left.",
         {FIRST: ["Wait"], STARTS: ["Wait", " he"], WORD: [" left"], FINAL: ["."]}),
        ("He left...", {FIRST: ["He"], STARTS: ["He"]}),
        ("He paid 3.50 there.",
         {FIRST: ["He"], STARTS: ["He"], WORD: [" there"], FINAL: ["."]}),
        ("It is not 0.", {FIRST: ["It"], STARTS: ["It"], WORD: [" 0"], FINAL: ["."]}),
        ('He said "Go."', {FIRST: ["He"], STARTS: ["He"], WORD: ["Go"], FINAL: ['."']}),
        ('"Stop!" he said. (Yes.)',
         {FIRST: ["Stop"], STARTS: ["Stop", " he", "Yes"], EARLIER: ["."], WORD: ["Yes"],
          FINAL: [".)"]}),
        ("Eleven tokens.\nGo.",
         {FIRST: ["Ele"], STARTS: ["Ele", "Go"], EARLIER: ["."], WORD: ["Go"], FINAL: ["."]}),
        ("...", {}),
        ("字。", {FIRST: ["\ufffd"], STARTS: ["\ufffd"]}),
    ],
)  # fmt: skip
def test_they_are_where_a_reader_would_point(
    gpt2_tokenizer: Tokenizer, text: str, expected: dict[str, list[str]]
) -> None:
    assert found(gpt2_tokenizer, Prompt(text)) == {BOS: ["<|endoftext|>"], **expected}


def test_a_word_of_several_tokens_opens_with_its_first_and_ends_with_its_last(
    gpt2_tokenizer: Tokenizer,
) -> None:
    roles = found(gpt2_tokenizer, Prompt("Filling is uncapitalised."), Role("all", r"\w+(?=\.)"))
    assert roles[FIRST] == ["F"]
    assert roles[WORD] == ["ised"]
    assert roles["all"] == [" unc", "ap", "ital", "ised"]


@given(st.text(min_size=1, max_size=30), st.booleans())
def test_every_position_is_the_prompts_own(toy_model: Model, text: str, bos: bool) -> None:
    tokenizer = toy_model.tokenizer
    try:
        ids = tokenizer.ids(text)
    except ValueError:
        return  # a lone surrogate is no text
    row = [tokenizer.bos_id, *ids] if bos else ids
    roles = roles_of(tokenizer, Prompt(text), row)
    assert (BOS in roles) == bos
    for name, places in roles.items():
        assert list(places) == sorted(set(places))
        assert all((bos and name != BOS) <= i < len(row) for i in places)
    if FINAL in roles:
        assert "." in tokenizer.string(row[roles[FINAL][0]])
        assert not set(roles[FINAL]) & set(roles.get(EARLIER, ()))


def test_own_roles_by_pattern_and_by_position(gpt2_tokenizer: Tokenizer) -> None:
    prompt = Prompt("Mary saw John and John ran.", roles={"verbs": (2, -2)})
    again = Role("again", r"(\b\p{Lu}\w+)\b.*\b(?P<role>\1)\b")
    names = Role("names", r"\p{Lu}\w+", which="not last")
    roles = found(gpt2_tokenizer, prompt, again, names, replace(names, name=FIRST, which="last"))
    assert roles["again"] == [" John"]
    assert roles["names"] == ["Mary", " John"]
    assert roles["verbs"] == [" saw", " ran"]
    assert roles[FIRST] == [" John"]


def test_role_names_are_the_same_for_every_chunk(toy_model: Model) -> None:
    prompts = (Prompt("Go.", roles={"mine": (0,)}), Prompt("Stay"))
    behaviour = Behaviour("x", "?", prompts, roles=(Role("o", "o"),))
    standard = [role.name for role in STANDARD_ROLES]
    assert role_names(behaviour) == (BOS, *standard, "o", "mine")


def test_a_role_found_in_no_prompt_is_named(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    behaviour = Behaviour("x", "?", (Prompt("Go."), Prompt("Stay.")), roles=(Role("ay", "ay"),))
    check_roles(tokenizer, behaviour)
    missing = replace(behaviour, roles=(*behaviour.roles, Role("question", r"\?")))
    with pytest.raises(BehaviourError, match="role 'question' is found in no prompt of 'x'"):
        check_roles(tokenizer, missing)
    check_roles(tokenizer, replace(behaviour, prompts=(Prompt(""), *behaviour.prompts)))
    beyond = replace(behaviour, prompts=(*behaviour.prompts, Prompt("No.", roles={"x": (9,)})))
    with pytest.raises(BehaviourError, match=r"role 'x' of 'No\.' is at token 9"):
        check_roles(tokenizer, beyond)


def test_what_is_not_well_formed_is_refused(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    ids = tokenizer.ids("Go.")
    with pytest.raises(BehaviourError, match=r"role 'x' of 'Go\.' is at token 2"):
        roles_of(tokenizer, Prompt("Go.", roles={"x": (2,)}), ids)
    with pytest.raises(BehaviourError, match="are not those of 'Stay'"):
        roles_of(tokenizer, Prompt("Stay"), ids)
    with pytest.raises(BehaviourError, match="role 'x' does not compile"):
        Role("x", "((")
    with pytest.raises(BehaviourError, match="has no name"):
        Role("", "a")
    with pytest.raises(BehaviourError, match="two roles called 'x'"):
        Behaviour("b", "?", (Prompt("Go."),), roles=(Role("x", "a"), Role("x", "b")))
    with pytest.raises(BehaviourError, match="takes more than 1 s"):
        Role("slow", r"(.|..|.\w)+(.|..|.\w)+(?<!.)").spans("a" * 40)


TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(TOKENS, TOKENS)
def test_what_a_partner_does_not_change_is_in_both(tokens: list[int], partner: list[int]) -> None:
    here, there = changed_places(tokens, partner), changed_places(partner, tokens)
    assert [t for i, t in enumerate(tokens) if i not in here] == [
        t for i, t in enumerate(partner) if i not in there
    ]
    if len(tokens) == len(partner):
        assert here == there == tuple(i for i, t in enumerate(tokens) if t != partner[i])


@given(TOKENS, st.none() | TOKENS)
def test_every_prompt_has_a_last_token_and_a_pair_its_changed_tokens(
    tokens: list[int], partner: list[int] | None
) -> None:
    roles = with_pair_roles({FIRST: (0,)}, tokens, partner)
    assert roles[LAST] == (len(tokens) - 1,)
    assert roles[FIRST] == (0,)
    assert roles.get(CHANGED, ()) == (() if partner is None else changed_places(tokens, partner))
    assert with_pair_roles({LAST: (0,)}, tokens, partner)[LAST] == (0,), "a role of its own stays"
