"""Built-in exchanges of one word: of its kind, one place at a time, and never the same text."""

import pytest

from casestudy.behaviour.swaps import swaps


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("The dogs of the king", "The dog of the king"),
        ("The dogs of the king", "The dogs of the queen"),
        ("The dog of the king", "The dogs of the king"),
        ("The cities are", "The city are"),
        ("These boxes", "These box"),
        ("Mary gave it to", "John gave it to"),
        ("The men were", "The man were"),
        ("He was here", "She was here"),
        ("from 1732 to the year 17", "from 1733 to the year 17"),
        ("In France they speak", "In England they speak"),
    ],
)
def test_a_word_is_exchanged_for_another_of_its_kind(text: str, edited: str) -> None:
    assert edited in {swap.text for swap in swaps(text)}


@pytest.mark.parametrize("text", ["", "The glass is", "It was a bus", "王"])
def test_what_is_no_regular_plural_stays(text: str) -> None:
    assert not [s for s in swaps(text) if s.what.startswith(("glass →", "bus →", "is → i"))]


def test_one_place_at_a_time_and_each_text_once() -> None:
    text = "The dogs of the kings saw 17 dogs and Mary"
    found = swaps(text)
    assert len({swap.text for swap in found}) == len(found)
    for swap in found:
        assert swap.text != text
        before, after = swap.what.split(" → ")
        assert swap.text in {
            text[:i] + after + text[i + len(before) :]
            for i in range(len(text))
            if text.startswith(before, i)
        }
