"""Does the page of two whole answers show each token's account, and nothing that could run?"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import casestudy as cs
from casestudy.measure.explanation import Explanation
from casestudy.model.model import Model
from casestudy.show.whole_answers import whole_answers_html

HOSTILE = "<script>window.ran = 1</script>"


@pytest.fixture(scope="module")
def found(toy: Callable[..., Model]) -> Explanation:
    answers = (f" He {HOSTILE}", " She slept.")
    return cs.explain(toy(seed=5), f"It was late. {HOSTILE}", *answers)


def test_each_token_that_counts_opens_its_account(found: Explanation) -> None:
    page = whole_answers_html(found)
    assert found.whole is not None
    n = len(found.whole.steps.columns["step"])
    accounts = re.findall(r'<section class="account" id="(token-\d+)"', page)
    assert accounts == [f"token-{i}" for i in range(n)]
    strips = [re.findall(r'class="tok" href="#(token-\d+)"', part) for part in page.split("<p>")]
    links = [link for strip in strips for link in strip]
    assert set(links) == set(accounts)
    assert len(links) == n + 1, "the first token that differs is in both strips"
    sums = [float(s.replace("−", "-")) for s in re.findall(r"Sum of the terms (\S+),", page)]
    assert sums[0] == pytest.approx(found.logit_difference, abs=1e-3)
    assert sum(sums[1:]) == pytest.approx(found.logit_difference, abs=n * 1e-4)


def test_a_token_that_both_answers_begin_with_opens_nothing(toy: Callable[..., Model]) -> None:
    page = whole_answers_html(cs.explain(toy(seed=5), "It was late.", " He slept", " He went"))
    tokens = re.findall(r'<(a|span) class="tok"[^>]*><bdi>·He<', page)
    assert tokens == ["span", "span"]


def test_texts_are_escaped(found: Explanation) -> None:
    page = whole_answers_html(found)
    assert "<script>window" not in page
    assert "&lt;script&gt;window.ran" in page
