"""What `print` shows fits into a screen, whatever the object holds, and hides nothing in it."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.behaviour.presets import preset, preset_names
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.drawing import LINES, WIDTH
from casestudy.model.model import Model
from casestudy.results.result import Axis, Grid, Table
from casestudy.study.study import study

TEXT = st.text(max_size=200)


def screen(value: object) -> str:
    """What is printed, if it fits."""
    shown = str(value)
    assert shown == repr(value)
    lines = shown.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    assert all(line.isprintable() for line in lines)
    return shown


@given(
    st.lists(st.integers(0, 7), min_size=0, max_size=4),
    TEXT,
    st.booleans(),
    st.lists(TEXT, max_size=9),
)
@settings(max_examples=40)
def test_grids_of_any_shape_and_label(
    shape: list[int], text: str, ends: bool, labels: list[str]
) -> None:
    values = np.full(shape, np.nan)
    more = values if ends else None
    named = [[labels[i] if i < len(labels) else str(i) for i in range(n)] for n in shape]
    axes = tuple(Axis(f"axis{i}", tuple(names)) for i, names in enumerate(named))
    shown = screen(Grid("g", values, axes, text, lower=more, upper=more, n=more, about=text))
    assert all(f"axis{i} {n}" in shown for i, n in enumerate(shape))


@given(st.dictionaries(TEXT, st.just([1.5, None, "a\nb" * 50] * 20), max_size=30), TEXT)
@settings(max_examples=25)
def test_tables_of_any_width(columns: dict[str, list[object]], about: str) -> None:
    shown = screen(Table("t", columns, about))
    assert f"{60 if columns else 0} rows × {len(columns)} columns" in shown


@given(st.lists(TEXT, min_size=1, max_size=40), TEXT)
@settings(max_examples=25)
def test_behaviours_of_any_prompts(texts: list[str], question: str) -> None:
    prompts = tuple(Prompt(text, groups=(text,)) for text in texts)
    shown = screen(Behaviour("b", question, prompts))
    assert f"{len(texts)}" in shown


def test_every_preset_with_its_question() -> None:
    for name in preset_names():
        behaviour = preset(name)
        assert behaviour.question in " ".join(screen(behaviour).split())


def test_a_model_says_what_it_is(toy_model: Model) -> None:
    shown = screen(toy_model)
    config = toy_model.config
    for fact in (
        *(toy_model.source[:20], config.family, f"{config.n_layers} × {config.n_heads}"),
        *(f"{config.d_model:,}", f"{config.d_vocab:,} tokens", "float32", "every text starts with"),
    ):
        assert fact in shown
    tensors = dict(toy_model.weights.named())
    if toy_model.weights.tied:
        tensors.pop("W_U", None)
    assert f"{sum(t.numel() for t in tensors.values()):,}" in shown
    assert "not added" in screen(toy_model.with_bos(False))


def test_a_study_gives_its_question_n_measurements_and_headline(
    toy_model: Model, tmp_path: Path
) -> None:
    prompts = tuple(Prompt(t, answer=" He", counterpart=" he") for t in ("Go.", "It was late."))
    own = Behaviour("own", "Why?", prompts, answers="given")
    done = study(own, toy_model, out=tmp_path / "s", only=["predictions", "ledger"])
    shown = screen(done)
    assert "Why?" in shown
    assert "predictions, ledger" in shown
    mean = done.grids["logit_difference.mean"].values[0]
    assert f"{mean:+.3f} logits" in shown
    assert "n = 2" in shown
