"""Numbers and tokens read the way people write them, and nothing in a text can do harm."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup, escape

from casestudy.show.text import (
    clean,
    columns,
    filled,
    how_they_differ,
    interval,
    joined,
    number,
    ordinal,
    percent,
    prompt_excerpt,
    shorten,
    signed,
    told_apart,
    visible,
)


@given(st.text(st.characters(exclude_categories=())))
def test_cleaned_text_can_be_written_and_hides_nothing(text: str) -> None:
    shown = clean(text)
    shown.encode("utf-8")
    harmful = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert set(harmful) <= {"\n", "\t"}
    assert not set(shown) & set(
        "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200e\u200f\ufeff\u00ad"
    )
    assert clean(shown) == shown


ANY = st.text(st.characters(exclude_categories=()))


@given(ANY, ANY)
def test_a_text_is_cleaned_character_by_character(text: str, more: str) -> None:
    assert clean(text + more) == clean(text) + clean(more)
    assert columns(text + more) == columns(text) + columns(more)
    assert visible(text + more) == "".join(map(visible, text + more)) or not text + more


VALUES = st.one_of(
    *(st.text("<>&\"'{}% a日\u202e"), st.integers(), st.floats(), st.none(), st.booleans()),
    st.text("<>&\"'").map(Markup),
    st.floats().map(np.float64),
    st.lists(st.text('<&"', max_size=3), max_size=2),
)


@given(st.lists(VALUES, max_size=5), st.text('<p class="50%">%s%%'))
def test_whatever_is_filled_in_is_escaped_unless_it_is_markup(
    values: list[object], literal: str
) -> None:
    template = literal + "".join(f"{{}}{literal}" for _ in values)
    assert filled(template, *values) == Markup(template).format(*values)
    texts = [value for value in values if isinstance(value, str)]
    assert joined(texts) == Markup("").join(texts)
    assert type(joined(texts)) is type(filled(template, *values)) is Markup


def test_a_template_has_as_many_fields_as_there_are_values() -> None:
    assert filled("<b>{}</b>", "</b><script>") == f"<b>{escape('</b><script>')}</b>"
    for values in ((), ("a", "b")):
        with pytest.raises(TypeError):
            filled("<b>{}</b>", *values)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" He", "·He"),
        ("\n\n", "↵↵"),
        ("\t", "⇥"),
        ("", "‹empty›"),
        ("\x00", "␀"),
        ("é", "é"),
        ("👨\u200d👩", "👨\u200d👩"),
    ],
)
def test_white_space_in_tokens_shows(token: str, shown: str) -> None:
    assert visible(token) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.234, "1.23"),
        (-1.234, "−1.23"),
        (0.0, "0.00"),
        (-0.0, "0.00"),
        (0.0026, "0.0026"),
        (3.14e-7, "3.1e−7"),
        (1234567.0, "1.2e6"),
        (None, "not measured"),
        (float("nan"), "not measured"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_signs_shares_and_intervals() -> None:
    assert signed(0.5) == "+0.50"
    assert signed(-0.5) == "−0.50"
    assert [percent(s) for s in (1.0, 0.123, 0.0123, 0.00012, 0.0)] == [
        "100\u00a0%",
        "12\u00a0%",
        "1.2\u00a0%",
        "0.01\u00a0%",
        "0\u00a0%",
    ]
    assert interval(-1.5, 0.00049) == "−1.50 to 0.0005"
    assert interval(float("nan"), 1.0) == "no interval"
    assert [ordinal(i) for i in (1, 2, 3, 4, 11, 12, 21, 102, 111)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "102nd", "111th")
    ]


@given(st.text(), st.integers(4, 40))
def test_shortened_text_fits(text: str, width: int) -> None:
    assert columns(shorten(text, width)) <= width


@given(st.lists(st.text("ab …(2) \n", max_size=60), max_size=12), st.integers(9, 40))
def test_labels_that_differ_are_cut_so_that_they_differ(labels: list[str], width: int) -> None:
    cut = told_apart(labels, width)
    assert all(columns(text) <= width for text in cut)
    assert len(set(cut)) == len(set(labels))
    assert all(text == label for label, text in zip(labels, cut, strict=True) if len(label) < 9)


@given(st.lists(st.text(max_size=30), max_size=9), st.lists(st.text(max_size=30), max_size=9))
def test_two_values_that_differ_are_shown_so_that_they_differ(a: list[str], b: list[str]) -> None:
    for one, other in ((a, b), ("".join(a), "".join(b)), (len(a), len(b))):
        shown = how_they_differ(one, other, 24)
        assert max(map(columns, shown)) <= 24
        if one != other and not isinstance(one, list):
            assert shown[0] != shown[1]
    assert how_they_differ(["lens", "circuit"], ["circuit"], 24) == ("lens", "—")


def test_what_labels_share_is_cut_before_what_tells_them_apart() -> None:
    rows = ["the attention layers of the small model", "the attention layers of the large model"]
    assert told_apart([*rows, "b_U"], 22) == [
        "the attent…small model",
        "the attent…large model",
        "b_U",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It was late. ", "It was late.·"),
        ("\n It was\nlate.\t", "↵·It was\nlate.⇥"),
        ("It was late.", "It was late."),
        ("", "(BOS alone)"),
        ("  ", "··"),
    ],
)
def test_white_space_at_a_prompts_ends_is_visible(text: str, shown: str) -> None:
    assert prompt_excerpt(text, 80) == shown
