"""A mean comes with its n and an interval that means what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudy.errors import MeasureError
from casestudy.results.result import Axis, Grid
from casestudy.results.stats import (
    UNITS,
    Sums,
    _ends,
    auroc,
    compare_groups,
    difference_interval,
    mean_interval,
    mean_over_prompts,
    permutation_test,
    possible_ends,
    ranking,
    ratio_in_parts,
    ratio_of_means,
    t_interval,
    units_of,
)


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


def test_many_units_are_piled_and_the_interval_stays() -> None:
    values = np.random.default_rng(3).normal(size=(4000, 1))
    mean, low, high, n = mean_interval(values)
    assert n[0] == 4000
    assert mean[0] == pytest.approx(values.mean())
    assert len(set(units_of(4000).tolist())) == UNITS
    # 1.96 standard errors each way; piles and resampling blur the width by some per cent
    assert (high - low)[0] == pytest.approx(2 * 1.96 / 4000**0.5, rel=0.15)


def test_sums_do_not_care_how_prompts_were_chunked() -> None:
    values = np.random.default_rng(4).normal(size=(50, 3))
    values[7] = np.nan
    unit = units_of(50, [f"d{i % 13}" for i in range(50)])
    whole, parts = Sums(13, 3), Sums(13, 3)
    whole.add(values, unit)
    for start in range(0, 50, 7):
        parts.add(values[start : start + 7], unit[start : start + 7])
    for a, b in zip(whole.interval(), parts.interval(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_prompts_without_a_document_are_documents_of_their_own() -> None:
    assert units_of(5, ["a", "", "a", "", "b"]).tolist() == [0, 1, 0, 2, 3]
    assert units_of(3, ["a", "a", "a"]).tolist() == [0, 1, 2], "one document tells nothing apart"


def test_few_documents_give_a_cluster_t_interval_by_hand() -> None:
    # two documents of two prompts, means 1 and 3: mean 2, residual sums -2 and 2,
    # error sqrt(2/1 * 8) / 4 = 1, t(1) = 12.706
    values = np.array([[1.0], [1.0], [3.0], [3.0]])
    mean, low, high, n = mean_interval(values, documents=["a", "a", "b", "b"])
    assert (mean[0], n[0]) == (2.0, 4)
    assert (low[0], high[0]) == (pytest.approx(2 - 12.706), pytest.approx(2 + 12.706))


def groups(
    effect: float, rng: np.random.Generator, *, documents: int = 30, within: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two groups' (sums, counts) per document, documents differing far more than prompts do."""
    base = rng.normal(scale=3, size=documents)
    sides = []
    for side in (0, 1):
        n = np.full(documents, 4.0)
        if not within:
            n[np.arange(documents) % 2 == side] = 0
        noise = rng.normal(size=documents) * np.sqrt(n)
        sides.append((n * (base + side * effect) + noise, n))
    return sides


@pytest.mark.parametrize("within", [True, False])
def test_the_permutation_test_errs_as_often_as_it_says(within: bool) -> None:
    rng = np.random.default_rng(5)
    p = []
    for _ in range(200):
        a, b = groups(0.0, rng, within=within)
        test = permutation_test(a, b, permutations=200)
        assert test is not None
        assert test.within is within
        p.append(test.p)
    # 5 % of 200 is 10; binomial, so 2 to 20 with all but certainty
    assert 2 <= sum(x <= 0.05 for x in p) <= 20


def test_within_documents_a_small_effect_is_seen_that_is_lost_between_them() -> None:
    rng = np.random.default_rng(6)
    inside = permutation_test(*groups(0.6, rng))
    between = permutation_test(*groups(0.6, rng, within=False))
    assert inside is not None
    assert between is not None
    assert inside.p < 0.01
    assert between.p > 0.05
    assert inside.difference == pytest.approx(-0.6, abs=0.4)


def test_too_few_units_are_not_tested() -> None:
    one, none = np.array([1.0, 0.0]), np.array([0.0, 0.0])
    assert permutation_test((one, one), (none, none)) is None


def test_groups_that_share_prompts_are_not_compared_and_holm_corrects() -> None:
    sums = {}
    for i, name in enumerate("abc"):
        sums[name] = Sums(20, 1)
        sums[name].add(np.random.default_rng(i).normal(size=(20, 1)) + 5 * i, np.arange(20))
    table = compare_groups(sums, {frozenset("ab")}, 0, "lowercase")
    pairs = list(zip(table.columns["group"], table.columns["other"], strict=True))
    assert pairs == [("a", "c"), ("b", "c")]
    assert all(p < 0.01 for p in table.columns["p"])
    assert table.columns["p_holm"] == [pytest.approx(2 * p) for p in table.columns["p"]]


def test_a_ranking_says_how_stable_it_is() -> None:
    rng = np.random.default_rng(7)
    # heads 0.0 and 1.1 stand out, the rest are noise; "bias" is no head
    effect = np.array([[9.0, 0.0, 50.0], [0.0, -6.0, 50.0]])
    values = effect[None, None] + rng.normal(size=(40, 1, 2, 3))
    axes = (
        *(Axis("contrast", ("lowercase",)), Axis.count("layer", 2)),
        *(Axis("head", ("0", "1", "bias")), Axis.count("prompt", 40)),
    )
    grid = Grid("heads", np.moveaxis(values, 0, -1), axes, "logits")
    sums = Sums(40, 6)
    sums.add(values.reshape(40, 6), np.arange(40))
    table = ranking(grid, sums, contrast="lowercase", top=2)
    rows = table.rows()
    assert [(r["layer"], r["head"]) for r in rows[:2]] == [("0", "0"), ("1", "1")]
    assert [r["in_top_2"] for r in rows] == [1.0, 1.0, 0.0, 0.0]
    assert [(r["rank_lower"], r["rank_upper"]) for r in rows[:2]] == [(0, 0), (1, 1)]
    assert rows[2]["rank_upper"] == 3


@pytest.mark.parametrize(("n", "quantile"), [(9, 2.306), (10, 2.262), (11, 2.228), (31, 2.042)])
def test_sums_give_the_t_interval_of_their_values(n: int, quantile: float) -> None:
    values = np.random.default_rng(n).normal(3, 2, size=(n, 4))
    mean, lower, upper = t_interval(values.sum(0), (values**2).sum(0), n)
    half = quantile * values.std(0, ddof=1) / n**0.5
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(upper - mean, half, rtol=1e-3)
    np.testing.assert_allclose(mean - lower, half, rtol=1e-3)


def test_sums_of_one_value_have_no_interval_and_of_equal_ones_no_width() -> None:
    assert np.isnan(t_interval(np.array([2.0]), np.array([4.0]), 1)[1:]).all()
    tenth = np.full(30, 0.1)
    mean, lower, _ = t_interval(tenth.sum(keepdims=True), (tenth**2).sum(keepdims=True), 30)
    assert lower[0] == pytest.approx(mean[0], abs=1e-8)


def sums_of(values: list[float], unit: list[int], units: int) -> Sums:
    made = Sums(units, 1)
    made.add(np.array(values)[:, None], np.array(unit))
    return made


def test_prompts_on_both_sides_are_paired_with_themselves() -> None:
    a, b = [1.0, 5.0, 9.0], [2.0, 7.0, 12.0]
    found = difference_interval(sums_of(a, [0, 1, 2], 3), sums_of(b, [0, 1, 2], 3))
    by_hand = mean_interval(np.subtract(b, a)[:, None])
    np.testing.assert_allclose(found, by_hand[:3])


def test_sides_with_nothing_in_common_are_two_samples() -> None:
    a, b = [1.0, 5.0, 9.0], [2.0, 7.0, 12.0, 3.0]
    difference, lower, upper = difference_interval(
        sums_of(a, [0, 1, 2], 7), sums_of(b, [3, 4, 5, 6], 7)
    )
    # Welch's error, with t of the smaller side's two degrees of freedom
    error = (np.var(a, ddof=1) / 3 + np.var(b, ddof=1) / 4) ** 0.5
    assert difference[0] == pytest.approx(np.mean(b) - np.mean(a))
    assert upper[0] - difference[0] == pytest.approx(4.303 * error)
    assert difference[0] - lower[0] == pytest.approx(4.303 * error)


def test_a_side_of_one_unit_has_no_interval() -> None:
    found = difference_interval(sums_of([1.0, 3.0], [0, 0], 3), sums_of([2.0, 4.0], [1, 2], 3))
    assert found[0][0] == 1.0
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("paired", [True, False])
def test_a_differences_interval_covers_about_as_often_as_it_says(paired: bool) -> None:
    rng = np.random.default_rng(2)
    n, cells = 30, 1000
    common = rng.normal(size=(n, cells))
    sides = []
    for side in range(2):
        made = Sums(n if paired else 2 * n, cells)
        own = common if paired else rng.normal(size=(n, cells))
        values = own + 0.3 * rng.normal(size=(n, cells)) + side
        made.add(values, np.arange(n) + (0 if paired else side * n))
        sides.append(made)
    _, lower, upper = difference_interval(*sides)
    assert 0.91 < ((lower < 1) & (upper > 1)).mean() < 0.98
    # pairing takes out what the prompts have in common
    assert (upper - lower).mean() == pytest.approx(0.3 if paired else 1.07, rel=0.1)


def test_parts_of_a_ratio_have_its_mean_and_its_spread() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0, 0.2, (4000, 12))
    other = base + rng.normal(3, 1, base.shape)
    values = base + 0.5 * (other - base) + rng.normal(0, 0.5, base.shape)
    ratio = ratio_of_means(values, base, other)
    parts = ratio_in_parts(values, base, other)
    np.testing.assert_allclose(parts.mean(-1), ratio)
    # the spread that the parts promise is the one that the ratio has over samples of prompts
    promised = (parts.var(-1, ddof=1) / parts.shape[-1]).mean() ** 0.5
    assert promised == pytest.approx(ratio.std(), rel=0.1)
    assert np.isnan(ratio_in_parts(values, base, base)).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_counts_the_pairs_that_stand_right(drawn: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in drawn], dtype=np.float64)
    true = np.array([is_true for _, is_true in drawn])
    if true.all() or not true.any():
        with pytest.raises(MeasureError, match="at least one of each"):
            auroc(scores, true)
        return
    right = [(a > b) + (a == b) / 2 for a in scores[true] for b in scores[~true]]
    assert auroc(scores, true) == pytest.approx(np.mean(right))


def test_auroc_of_what_was_not_measured_is_refused() -> None:
    with pytest.raises(MeasureError, match="NaN"):
        auroc(np.array([1.0, np.nan]), np.array([True, False]))


def test_quantiles_taken_together_are_those_taken_column_by_column() -> None:
    drawn = np.random.default_rng(0).standard_normal((1000, 9))
    drawn[3:9, 2] = np.nan
    drawn[1:, 5] = np.nan
    expected = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    assert np.array_equal(_ends(drawn), expected)


@given(st.integers(2, 12), st.integers(0, 2**16))
def test_no_interval_of_what_is_bounded_leaves_its_bounds(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).beta(0.3, 0.3, size=(n, 3))
    grid = Grid("p", values, (Axis.count("prompt", n), Axis.count("class", 3)), "probability")
    mean = mean_over_prompts(grid)
    assert mean.lower is not None
    assert mean.upper is not None
    assert (mean.lower >= 0).all()
    assert (mean.upper <= 1).all()
    assert ((mean.lower <= mean.values) & (mean.values <= mean.upper)).all()
    a, b = Sums(n, 3), Sums(n, 3)
    a.add(values, np.arange(n))
    b.add(1 - values, np.arange(n))
    _, lower, upper = difference_interval(a, b, unit="probability")
    assert (lower >= -1).all()
    assert (upper <= 1).all()


@pytest.mark.parametrize("unit", ["faithfulness", "share of the difference between the runs"])
def test_a_ratio_of_two_has_its_mean_and_no_interval(unit: str) -> None:
    two, three = np.array([[-0.2], [0.6]]), np.array([[-0.2], [0.6], [0.3]])
    mean, lower, upper, n = mean_interval(two, unit=unit)
    assert (mean[0], n[0]) == (pytest.approx(0.2), 2)
    assert np.isnan([lower[0], upper[0]]).all()
    assert np.isfinite(mean_interval(three, unit=unit)[1:3]).all()
    assert np.isfinite(mean_interval(two, unit="logits")[1:3]).all()
    assert np.isnan(possible_ends(unit, *np.ones((2, 1)), np.array([2]), difference=True)).all()
