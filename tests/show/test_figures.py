"""Figures from Python: centred at zero, labelled, and true to the numbers they were given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import casestudy
import casestudy.show.plotly_figures as figures
from casestudy.behaviour.prompts import Prompt
from casestudy.claims.check import Checked, Outcome
from casestudy.claims.compare import Comparison
from casestudy.claims.emergence import Emergence
from casestudy.errors import MeasureError
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.model.model import Model
from casestudy.results.result import Axis, Grid, Table
from casestudy.show import marks, svg
from tests.show import studies
from tests.show.pages import Page

HOSTILE = "<script>alert(1)</script><b>%{x}{{ 7 }}"


def grid(*axes: str, size: int = 3, **more: Any) -> Grid:
    shape = (size,) * len(axes)
    values = np.linspace(-1.0, 2.0, size ** len(axes)).reshape(shape)
    return Grid("made", values, tuple(Axis.count(name, size) for name in axes), "logits", **more)


def test_a_heatmap_is_diverging_and_centred_at_zero() -> None:
    (trace,) = figures.heatmap(grid("layer", "head")).data
    assert trace.zmin == -trace.zmax == -2.0
    assert trace.colorscale[1] == (0.5, figures.PAPER)
    assert "layer" in trace.hovertemplate
    assert "head" in trace.hovertemplate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_tensors_of_any_type_are_taken_as_they_are(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, -2], [3, 0]], dtype=dtype).requires_grad_(dtype.is_floating_point)
    (trace,) = figures.heatmap(tensor).data
    assert np.array_equal(trace.z, [[1, -2], [3, 0]])


def test_a_line_brings_its_interval_as_a_band() -> None:
    curve = grid("depth")
    sure = grid("depth", lower=curve.values - 1, upper=curve.values + 1)
    band, line = figures.line(sure).data
    assert max(band.y) == pytest.approx(curve.values.max() + 1)
    assert np.array_equal(line.y, curve.values)
    assert len(figures.line(curve).data) == 1


def test_a_scatter_says_which_point_is_which() -> None:
    x, y = grid("layer", "head"), grid("layer", "head")
    (trace,) = figures.scatter(x, y).data
    assert trace.text[5] == "layer 1, head 2"
    with pytest.raises(MeasureError, match="equally many"):
        figures.scatter([1, 2], [1])


LONG = [f"attribution patching, {kind} of the rest, held out" for kind in ("mean", "zero", "max")]


@pytest.mark.parametrize(
    "mark",
    [
        marks.Waterfall(LONG, [1.0, 2.0, 3.0], 6.0),
        marks.Bars(LONG, [1.0, 2.0, 3.0], "logits"),
        marks.Strip(LONG, [[1.0], [2.0], [3.0]], "logits"),
        marks.Histograms(LONG, [0.0, 1.0], np.ones((3, 1)), [None] * 3, [None] * 3, "logits"),
        marks.Heatmap(np.eye(3), LONG, ["a", "b", "c"], "logits"),
        marks.Heatmap(np.eye(3), ["a", "b", "c"], LONG, "logits", slanted=True),
        marks.Lines(LONG, [marks.Series("one", [1.0, 2.0, 3.0])], "logits"),
        marks.Lines(["a"], [marks.Series(name, [1.0]) for name in LONG], "logits"),
    ],
    ids=lambda mark: type(mark).__name__,
)
def test_labels_that_are_cut_stay_distinct(mark: marks.Mark) -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", str(svg.draw(mark).body))
    cut = [text for text in texts if text.startswith("att")]
    assert len(set(cut)) == len(cut) == 3


NASTY = ["</text></svg><script>", "\"onload='x()'", "<b>&amp;"]
SVG = {"svg", "g", "rect", "text", "line", "circle", "polygon", "polyline", "title"}


@pytest.mark.parametrize(
    "mark",
    [
        marks.Waterfall(NASTY, [1.0, 2.0, 3.0], 6.0, NASTY[0], total_label=NASTY[1]),
        marks.Bars(NASTY, [1.0, 2.0, 3.0], NASTY[0], shown=NASTY),
        marks.Strip(NASTY, [[1.0], [2.0], [3.0]], NASTY[0]),
        marks.Histograms(NASTY, [0.0, 1.0], np.ones((3, 1)), [None] * 3, [None] * 3, NASTY[0]),
        marks.Heatmap(np.eye(3), [f"{x}1" for x in NASTY], NASTY, *NASTY, heads="row"),
        marks.Heatmap(np.eye(3), ["a", "b", "c"], NASTY, *NASTY, slanted=True, tokens=True),
        marks.Lines(NASTY, [marks.Series(x, [1.0] * 3) for x in NASTY], NASTY[0], NASTY[1]),
        marks.Layered({x: (i, 0) for i, x in enumerate(NASTY)}, [(NASTY[0], NASTY[1], 1.0)]),
    ],
    ids=lambda mark: type(mark).__name__,
)
def test_no_text_of_a_drawing_is_read_as_markup(mark: marks.Mark) -> None:
    page = Page(str(svg.draw(mark).svg(NASTY[0] + NASTY[1], NASTY * 40)))
    assert {tag for tag, _ in page.tags} <= SVG
    assert not [name for _, attributes in page.tags for name in attributes if name == "onload"]
    assert "</text>" in page.text


def test_a_waterfall_ends_at_its_total() -> None:
    ledger = studies.ledger(3)[3].select(contrast="lowercase")
    (trace,) = figures.waterfall(ledger).data
    assert trace.measure[-1] == "absolute"
    assert sum(trace.y[:-1]) == pytest.approx(trace.y[-1])
    with pytest.raises(MeasureError, match=r"grid\.select"):
        figures.waterfall(studies.ledger(3)[3])


def test_plotting_a_grid_says_where_it_was_cut() -> None:
    ledger = studies.ledger(3)[1]
    figure = ledger.plot(contrast="no_space")
    assert figure.data[0].type == "waterfall"
    assert "contrast no_space" in figure.layout.title.text
    assert "prompt 0" in figure.layout.title.text
    with pytest.raises(MeasureError, match="no contrast 'upside down'"):
        ledger.plot(contrast="upside down")
    with pytest.raises(MeasureError, match="no axis 'layer'"):
        ledger.plot(layer="0")


@pytest.mark.parametrize(
    ("axes", "kind"),
    [
        (("depth",), "scatter"),
        (("class",), "bar"),
        (("layer", "head"), "heatmap"),
        (("score", "layer", "head"), "heatmap"),
        ((), "scatter"),
    ],
)
def test_every_shape_of_grid_has_a_figure(axes: tuple[str, ...], kind: str) -> None:
    assert grid(*axes).plot().data[0].type == kind


def test_wrong_dimensions_are_refused_with_advice() -> None:
    with pytest.raises(MeasureError, match="a heatmap of 3 dimensions"):
        figures.heatmap(np.zeros((2, 2, 2)))
    with pytest.raises(MeasureError, match="2 rows for 3 values"):
        figures.heatmap(np.zeros((3, 2)), rows=["a", "b"])


def test_labels_are_text_in_plotly_too() -> None:
    (trace,) = figures.heatmap(np.zeros((1, 1)), rows=[HOSTILE], cols=[" it"]).data
    assert "<" not in trace.customdata[0, 0, 0]
    assert trace.customdata[0, 0, 1] == "·it"


@pytest.mark.parametrize("axes", [(), ("term",), ("class",), ("layer", "head"), ("a", "b", "c")])
def test_a_notebook_shows_a_grid_without_script_or_network(axes: tuple[str, ...]) -> None:
    page = Page(grid(*axes, about=HOSTILE)._repr_html_())
    assert page.loads == []
    assert not page.all("script")
    assert "made" in page.text
    assert HOSTILE in page.text
    assert page.all("svg") or not axes


def test_a_notebook_shows_the_first_rows_of_a_table_as_text() -> None:
    page = Page(Table("rows", {"token": [HOSTILE, " it"] * 20, "x": [0.5] * 40})._repr_html_())
    assert "40 rows, 20 shown" in page.text
    assert not page.all("script")
    assert "·it" in page.text


def test_unmeasured_is_not_drawn_as_zero() -> None:
    one = grid("layer", "head")
    one.values[1, 1] = np.nan
    assert 'class="c nan"' in one._repr_html_()
    assert np.isnan(figures.heatmap(one).data[0].z[1, 1])
    assert "nothing was measured" in Grid("none", np.array(np.nan), (), "logits")._repr_html_()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.sampled_from(["term", "class"]))
def test_any_finite_numbers_can_be_shown(values: list[float], axis: str) -> None:
    shown = Grid("any", np.array(values), (Axis.count(axis, len(values)),), "logits")
    assert not re.search(r"\bnan\b", shown._repr_html_().split("</style>")[1])


@pytest.mark.parametrize("axes", [("term",), ("class",), ("layer", "head")])
def test_a_notebook_tells_each_value_on_hover(axes: tuple[str, ...]) -> None:
    one = grid(*axes)
    shown = one._repr_html_()
    titles = re.findall(r"<title>([^<]*)</title>", shown)
    assert len(titles) == one.values.size + (axes == ("term",))
    place = ", ".join(f"{axis.name} {axis.labels[0]}" for axis in one.axes)
    value = float(titles[0].removeprefix(f"{place}: ").split()[0].replace("\u2212", "-"))
    assert value == pytest.approx(one.values.ravel()[0], abs=0.006)


def test_a_title_gives_the_interval_and_n_and_is_text() -> None:
    axis = Axis("class", (HOSTILE,))
    low, high, n = np.array([1.0]), np.array([3.0]), np.array([14])
    one = Grid("made", np.array([2.0]), (axis,), "logits", lower=low, upper=high, n=n)
    assert marks.Data.of(one).titles() == [f"class {HOSTILE}: 2.00 logits [1.00 to 3.00], n = 14"]
    assert HOSTILE not in one._repr_html_()


def test_a_long_axis_is_cut_in_a_notebook_and_said_to_be() -> None:
    shown = Grid("long", np.ones(5000), (Axis.count("class", 5000),), "logits")._repr_html_()
    assert "the first 64 of 5,000 along class" in shown
    assert shown.count("<title>") == 64


def test_prompts_are_drawn_as_boxes() -> None:
    per_prompt = studies.ledger(5)[0]
    boxes = per_prompt.plot().data
    assert [box.type for box in boxes] == ["box"] * 3
    assert sum(len(box.x) for box in boxes) == per_prompt.values.size
    assert boxes[0].boxpoints == "all"
    assert studies.ledger(500)[0].plot().data[0].boxpoints == "outliers"


def test_a_table_is_drawn_by_its_measured_column() -> None:
    tables = {r.name: r for r in studies.full() if isinstance(r, Table)}
    ranking = tables["attribution.head.ranking"].plot()
    assert list(ranking.data[0].x) == ["1, 0", "0, 3"]
    assert list(ranking.data[0].y) == [0.9, -0.6]
    predictions = tables["predictions"].plot(prompt=1, most=5)
    assert len(predictions.data[0].y) == 5
    assert "the first 5 of 20 rows" in predictions.layout.title.text
    neurons = tables["attribution.neuron"].plot().data[0]
    assert neurons.error_y.array == pytest.approx([0.05] * 12)
    edits = tables["counterfactuals"].plot(value="half_share")
    assert list(edits.data[0].y) == [1.0, 1 / 3]
    with pytest.raises(MeasureError, match="no column 'colour'"):
        tables["predictions"].plot(colour="red")
    with pytest.raises(MeasureError, match="no column of words"):
        Table("words", {"word": ["a"]}).plot()


def test_a_trace_draws_one_prompts_activation_and_lists_what_it_kept(toy_model: Model) -> None:
    prompts = ["This is a sentence.", "Go."]
    trace = casestudy.run(toy_model, prompts, keep=["pattern", "resid_post"], logits="last")
    tokens = toy_model.tokenizer.strings(toy_model.tokenize(prompts).rows()[1])
    figure = trace.plot(("pattern", 1), prompt=1, tokens=tokens, head="2")
    assert figure.data[0].z == pytest.approx(trace.of(("pattern", 1), 1)[2].numpy())
    assert "pattern, layer 1 (head 2)" in figure.layout.title.text
    with pytest.raises(MeasureError, match=f"1 tokens for {len(tokens)} positions"):
        trace.plot(("pattern", 1), prompt=1, tokens=["Go"])
    page = Page(trace._repr_html_())
    assert "Trace of 2 prompts" in page.text
    assert "resid_post, layer 0" in page.text
    assert str(tuple(trace["pattern", 0].shape)) in page.text


def test_patches_draw_their_share_of_the_difference(toy_model: Model) -> None:
    prompt = Prompt("It was late.", corrupted="it was late.", answer=" It", counterpart=" it")
    patched = patch_prompts(toy_model, [prompt], "z", by="all")
    assert patched.plot().data[0].z == pytest.approx(patched.normalised.values, nan_ok=True)
    assert "share of the difference" in patched._repr_html_()


def test_what_holds_several_results_shows_the_one_that_says_most() -> None:
    columns = {
        "measurement": ["ledger", "lens"],
        "cell": ["mlp 5", "0_pre"],
        "unit": ["logits", "logits"],
        "a_n": [14, 14],
        "difference": [0.5, -0.2],
        "lower": [0.4, None],
        "upper": [0.7, None],
    }
    rows, none = Table("comparison", columns), Table("none", {"what": []})
    compared = Comparison(("a", "b"), ("a", "b"), none, True, {"both": 14}, rows, none, ())
    bars = compared.plot().data[0]
    assert list(bars.y) == [0.5, -0.2]
    assert list(bars.x) == ["ledger, mlp 5", "lens, 0_pre"]
    assert bars.error_y.array[0] == pytest.approx(0.2)
    assert np.isnan(bars.error_y.array[1])
    assert "2 rows" in compared._repr_html_()
    over = grid("contrast", "checkpoint")
    emerged = Emergence((), (), over, {}, None, {})
    assert [line.type for line in emerged.plot().data] == ["scatter"] * 3
    outcomes = (Outcome("it does", "above 1", "holds", 2.0, 1.5, 2.5, 14, "logits"),)
    checked = Checked("toy", "made", outcomes)
    assert list(checked.plot().data[0].y) == [2.0]
    assert "it does" in checked._repr_html_()


def test_a_study_shows_its_ledger_and_what_it_holds(tmp_path: Path) -> None:
    study = casestudy.open_study(studies.write(tmp_path / "s").folder)
    assert study.plot().data[0].type == "waterfall"
    page = Page(study._repr_html_())
    assert "full-stop-capitals on toy" in page.text
    assert "logit_difference.mean" in page.text
    assert page.all("svg")


def test_attention_views_say_which_axes_they_need() -> None:
    with pytest.raises(MeasureError, match="layer='0'"):
        figures.attention_heads(grid("layer", "head", "query_pos", "key_pos"))


def test_figures_are_reached_from_the_package() -> None:
    assert casestudy.figures.heatmap is figures.heatmap
    assert {"heatmap", "line", "scatter", "waterfall"} <= set(dir(casestudy.figures))


def test_figures_load_no_torch() -> None:
    code = (
        "import sys, numpy as np; from casestudy.results.result import Axis, Grid; "
        "g = Grid('g', np.zeros(2), (Axis.count('depth', 2),), 'logits'); g._repr_html_(); "
        "g.plot(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
