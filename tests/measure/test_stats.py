"""A mean comes with its n and an interval that means what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudy.measure.result import Axis, Grid
from casestudy.measure.stats import mean_interval, mean_over_prompts


def test_three_numbers_by_hand() -> None:
    # mean 2, standard deviation 1, t(2) = 4.303: 2 ± 4.303 / sqrt(3)
    mean, lower, upper, n = mean_interval(np.array([[1.0], [2.0], [3.0]]))
    assert (mean[0], n[0]) == (2.0, 3)
    assert upper[0] - 2 == pytest.approx(4.303 / 3**0.5)
    assert 2 - lower[0] == pytest.approx(4.303 / 3**0.5)


def test_one_number_has_no_interval_and_none_has_no_mean() -> None:
    values = np.array([[1.0, np.nan]])
    mean, lower, upper, n = mean_interval(values)
    assert mean[0] == 1.0
    assert np.isnan([lower[0], upper[0], mean[1]]).all()
    assert n.tolist() == [1, 0]


@given(st.integers(2, 30), st.integers(0, 2**16))
def test_what_was_not_measured_does_not_count(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(n, 2))
    with_holes = np.concatenate([values, np.full((3, 2), np.nan)])
    for a, b in zip(mean_interval(values)[:1], mean_interval(with_holes)[:1], strict=True):
        np.testing.assert_allclose(a, b)
    assert mean_interval(with_holes)[3].tolist() == [n, n]


def test_an_interval_does_not_depend_on_the_cells_beside_it() -> None:
    values = np.random.default_rng(0).normal(size=(20, 3))
    alone, together = mean_interval(values[:, 1:2]), mean_interval(values)
    assert alone[1][0] == pytest.approx(together[1][1])
    assert alone[2][0] == pytest.approx(together[2][1])


def test_the_bootstrap_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    _, lower, upper, _ = mean_interval(rng.normal(size=(40, 2000)))
    covered = ((lower < 0) & (upper > 0)).mean()
    # the percentile bootstrap is a little short at n = 40: 0.93 to 0.95 is expected
    assert 0.91 < covered < 0.97


def test_prompts_of_one_book_are_not_independent() -> None:
    rng = np.random.default_rng(2)
    books = np.repeat(rng.normal(size=(6, 1)), 20, axis=0)
    names = [str(i // 20) for i in range(120)]
    _, low, high, _ = mean_interval(books)
    _, low_doc, high_doc, _ = mean_interval(books, documents=names)
    assert (high_doc - low_doc)[0] > 2 * (high - low)[0]


def test_the_mean_of_a_grid_loses_only_its_prompt_axis() -> None:
    axes = (Axis("layer", ("0", "1")), Axis.count("prompt", 12))
    values = np.arange(24.0).reshape(2, 12)
    mean = mean_over_prompts(Grid("g", values, axes, "logits"))
    assert mean.name == "g.mean"
    assert mean.values.tolist() == [5.5, 17.5]
    assert mean.n is not None
    assert mean.n.tolist() == [12, 12]
    assert mean.axes == (Axis("layer", ("0", "1")),)
