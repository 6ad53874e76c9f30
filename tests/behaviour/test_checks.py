"""The checks that several measurements share, and the hint of the nearest name."""

import numpy as np
import pytest

from casestudy.behaviour.checks import check_different, check_finite
from casestudy.errors import BehaviourError, MeasureError, did_you_mean, one_of, unknown
from casestudy.model.model import Model


def test_identical_pairs_are_named(toy_model: Model) -> None:
    clean = toy_model.tokenize(["It was late.", "She went.", "He slept."])
    check_different(clean, toy_model.tokenize(["it was late.", "she went.", "he slept."]))
    with pytest.raises(MeasureError, match="identical in prompts 0, 2"):
        check_different(clean, toy_model.tokenize(["It was late.", "she went.", "He slept."]))
    with pytest.raises(MeasureError, match="3 prompts and 1 partners"):
        check_different(clean, toy_model.tokenize(["it was late."]))


def test_values_that_are_not_finite_are_named() -> None:
    check_finite(np.zeros((2, 3)))
    values = np.zeros((2, 3))
    values[0, 2], values[1, 0] = np.nan, np.inf
    with pytest.raises(MeasureError, match=r"the clean run gave NaN or infinity in prompts 4, 8"):
        check_finite(values, "the clean run", [4, 6, 8])
    with pytest.raises(MeasureError, match=r"a run gave NaN or infinity\. Try"):
        check_finite(values)


def test_the_nearest_name_is_a_hint_whatever_its_case() -> None:
    assert did_you_mean("KL", ["contrast", "kl"]) == "Did you mean 'kl'?"
    assert did_you_mean("zzz", ["contrast", "kl"]) is None
    assert did_you_mean("a", []) is None


def test_a_name_is_one_of_those_allowed_or_an_error_says_which() -> None:
    assert one_of("by", "role", ("position", "role"), MeasureError) == "role"
    with pytest.raises(MeasureError) as raised:
        one_of("by", "roles", ("position", "role"), MeasureError)
    assert str(raised.value) == "by 'roles'. Allowed: position, role. Did you mean 'role'?"
    error = unknown(BehaviourError, "no such", "x1", ["x1y", "b"], described="a name")
    assert isinstance(error, BehaviourError)
    assert str(error) == "no such. Allowed: a name. Did you mean 'x1y'?"
