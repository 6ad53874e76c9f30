"""A role's value is the mean over its positions, and absent where the role is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.errors import MeasureError
from casestudy.results.by_role import by_role
from casestudy.results.result import Axis, Grid
from casestudy.results.stats import mean_over_prompts

NAMES = ("BOS", "stop", "never")


def grid(values: np.ndarray, *axes: str) -> Grid:
    return Grid(
        "g", values, tuple(Axis.count(a, n) for a, n in zip(axes, values.shape, strict=True)), "x"
    )


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.permutations(["prompt", "pos", "layer"]))
def test_it_is_the_mean_over_the_roles_positions(seed: int, axes: list[str]) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"prompt": 3, "pos": 5, "layer": 2}
    values = rng.normal(size=[sizes[a] for a in axes])
    places = [tuple(sorted(rng.choice(5, rng.integers(0, 4), replace=False))) for _ in range(3)]
    roles = [{"BOS": (0,), "stop": tuple(map(int, p))} for p in places]
    result = by_role(grid(values, *axes), roles, NAMES)
    assert [a.name for a in result.axes] == [a if a != "pos" else "role" for a in axes]
    assert result.axis("role").labels == NAMES
    for i in range(3):
        for layer in range(2):
            row = np.moveaxis(
                values, [axes.index(a) for a in ("prompt", "layer", "pos")], [0, 1, 2]
            )
            cells = row[i, layer]
            got = result.select(prompt=str(i), layer=str(layer))
            assert got.select(role="BOS").values == pytest.approx(cells[0])
            stop = float(got.select(role="stop").values)
            if places[i]:
                assert stop == pytest.approx(cells[list(places[i])].mean())
            else:
                assert np.isnan(stop)
            assert np.isnan(got.select(role="never").values)


def test_unequal_prompts_are_averaged_by_role() -> None:
    values = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    roles = [{"stop": (1,)}, {"stop": (2,), "BOS": (0,)}]
    mean = mean_over_prompts(by_role(grid(values, "prompt", "pos"), roles, NAMES))
    assert mean.select(role="stop").values == pytest.approx(3.5)
    assert mean.n is not None
    assert mean.n.tolist() == [1, 2, 0]


def test_cells_that_were_not_measured_are_left_out() -> None:
    values = np.array([[np.nan, 2.0], [np.nan, np.nan]])
    result = by_role(grid(values, "prompt", "pos"), [{"BOS": (0, 1)}] * 2, ["BOS"])
    assert result.values[0, 0] == 2.0
    assert np.isnan(result.values[1, 0])


def test_roles_must_fit_the_grid() -> None:
    values = np.zeros((2, 3))
    with pytest.raises(MeasureError, match="1 prompts' roles for the 2"):
        by_role(grid(values, "prompt", "pos"), [{}], NAMES)
    with pytest.raises(MeasureError, match="role 'stop' is at position 3 of prompt 1"):
        by_role(grid(values, "prompt", "pos"), [{}, {"stop": (3,)}], NAMES)
    with pytest.raises(MeasureError, match="no axis 'key_pos'"):
        by_role(grid(values, "prompt", "pos"), [{}, {}], NAMES, axis="key_pos")
