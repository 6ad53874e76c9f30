"""Grids and tables know what they are, and refuse to be joined wrongly."""

import numpy as np
import pytest

from casestudy.errors import MeasureError
from casestudy.results.result import Axis, Grid, Table, concatenate, concatenate_tables


def grid(values: np.ndarray, prompts: str = "01", positions: int = 3) -> Grid:
    axes = (Axis("prompt", tuple(prompts)), Axis.count("pos", positions))
    return Grid("g", values, axes, "logits", error={"gap": float(np.nanmax(values))})


def test_values_must_fit_the_axes() -> None:
    with pytest.raises(MeasureError, match=r"g: values \(2, 2\) on axes prompt pos"):
        grid(np.zeros((2, 2)))


def test_selecting_a_label_drops_its_axis() -> None:
    row = grid(np.arange(6.0).reshape(2, 3)).select(prompt="1")
    assert row.values.tolist() == [3, 4, 5]
    assert [axis.name for axis in row.axes] == ["pos"]


def test_selecting_what_is_not_there_says_what_is() -> None:
    with pytest.raises(MeasureError, match=r"no prompt '7'.*Allowed: 0, 1"):
        grid(np.zeros((2, 3))).select(prompt="7")
    with pytest.raises(MeasureError, match=r"no axis 'layer'.*Allowed: prompt, pos"):
        grid(np.zeros((2, 3))).select(layer="0")


def test_chunks_of_unequal_width_are_joined_with_absent_cells_not_zeros() -> None:
    joined = concatenate([grid(np.ones((2, 3))), grid(np.full((1, 4), 2.0), "5", 4)])
    assert joined.axis("prompt").labels == ("0", "1", "5")
    assert np.isnan(joined.values[:2, 3]).all()
    assert joined.error["gap"] == 2.0
    long = joined.to_polars()
    assert len(long) == 10, "what was not measured has no row"


def test_chunks_that_disagree_are_refused() -> None:
    other = Grid("g", np.zeros((1, 2)), (Axis("prompt", ("5",)), Axis("pos", ("a", "b"))), "logits")
    with pytest.raises(MeasureError, match="disagree on axis pos"):
        concatenate([grid(np.zeros((2, 3))), other])


def test_taking_reorders_every_part() -> None:
    swapped = grid(np.arange(6.0).reshape(2, 3)).take("prompt", ["1", "0"])
    assert swapped.values[0].tolist() == [3, 4, 5]
    assert swapped.axis("prompt").labels == ("1", "0")


def test_exports_keep_labels_values_and_unit() -> None:
    frame = grid(np.arange(6.0).reshape(2, 3)).to_pandas()
    assert frame.loc[5].to_dict() == {"prompt": "1", "pos": "2", "value": 5.0, "unit": "logits"}


def test_a_table_has_columns_of_one_length() -> None:
    with pytest.raises(MeasureError, match="unequal length"):
        Table("t", {"a": [1], "b": []})
    both = concatenate_tables([Table("t", {"a": [1]}), Table("t", {"a": [2]})])
    assert both.rows() == [{"a": 1}, {"a": 2}]
