"""An AUROC is the share of pairs that are in order, and its interval resamples whole units."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.errors import MeasureError
from casestudy.results.auroc import BINS, auroc_interval

VALUES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


def by_pairs(a: np.ndarray, b: np.ndarray) -> float:
    """Every pair, a tie counting half."""
    return float(((a[:, None] > b).mean() + (a[:, None] >= b).mean()) / 2)


@settings(max_examples=50)
@given(VALUES, VALUES)
def test_it_is_the_share_of_pairs_in_order(a: list[float], b: list[float]) -> None:
    scores, true = np.array(a + b), np.array([True] * len(a) + [False] * len(b))
    area, *_ = auroc_interval(scores, true, np.arange(len(scores)))
    assert area == pytest.approx(by_pairs(np.array(a), np.array(b)))


@pytest.mark.parametrize("n", [60, 4 * BINS])
def test_the_interval_is_that_of_resampled_units(n: int) -> None:
    """Also where there are more distinct scores than bins."""
    rng, units = np.random.default_rng(0), 15
    unit, true = np.arange(n) % units, rng.random(n) < 0.5
    scores = rng.normal(size=n) + true + unit / units
    area, lower, upper, count = auroc_interval(scores, true, unit, seed=3)
    assert count == units
    assert lower < area < upper
    sides = [[scores[(unit == u) & (true == side)] for u in range(units)] for side in (True, False)]
    pairs = np.array([[(a[:, None] > b).sum() for b in sides[1]] for a in sides[0]])
    first, second = (np.array([len(part) for part in side]) for side in sides)
    draws = np.random.default_rng(3).multinomial(units, np.full(units, 1 / units), size=1000)
    areas = ((draws @ pairs) * draws).sum(1) / ((draws @ first) * (draws @ second))
    np.testing.assert_allclose((lower, upper), np.quantile(areas, (0.025, 0.975)), atol=1 / BINS)


def test_few_units_have_no_interval_and_one_side_no_area() -> None:
    scores, true = np.arange(18.0), np.arange(18) % 2 == 0
    _, lower, upper, units = auroc_interval(scores, true, np.arange(18) // 2)
    assert np.isnan([lower, upper]).all()
    assert units == 9
    with pytest.raises(MeasureError, match="at least one of each"):
        auroc_interval(scores, np.ones(18, dtype=bool), np.arange(18))
