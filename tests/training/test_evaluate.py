"""Evaluation counts what it says it counts."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from training.chart import Series, line_chart, ticks
from training.corpus import read_corpus, split
from training.model import ModelConfig, initial_parameters
from training.snapshots import DRAWN, figure
from training.windows import encode_books

from training import evaluate as ev
from training import snapshots, train

pytestmark = pytest.mark.slow


@pytest.fixture
def reader(tokenizer: Tokenizer) -> ev.Reader:
    """A model that finds every token equally likely."""
    config = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=256)
    weights = initial_parameters(config, torch.Generator().manual_seed(0))
    weights["transformer.ln_f.weight"].zero_()
    return ev.Reader(weights, config, tokenizer)


def test_classes_are_what_tokens_look_like(tokenizer: Tokenizer) -> None:
    classes = ev.Classes(tokenizer)

    def of(text: str) -> set[str]:
        (index,) = tokenizer.encode(text).ids
        return {name for name, mask in vars(classes).items() if mask[index]}

    assert of(" The") == {"capital"}
    assert of(" I") == {"capital", "i"}
    assert of(" the") == {"lower"}
    assert of(' "') == of('"') == {"quote"}
    assert of("\n") == {"newline"}
    assert of("7") == {"digit"}
    assert of("The") == of(" 7") == of(".") == set()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the house. He", "sentence end ."),
        ("the house? He", "sentence end ?"),
        ("the house!\n", "sentence end !"),
        ('the house." He', "closing quote"),
        ("was 3.5 feet", "decimal point"),
        ("in 1815. He", "after a number"),
        ("when Mr. Smith", "after a title"),
        ("the U. S. army", "after an initial"),
        ("the house, he", "comma"),
        ("the house. of", None),
        ("etc.; and", None),
    ],
)
def test_kinds_of_stop(tokenizer: Tokenizer, text: str, kind: str | None) -> None:
    texts = [tokenizer.decode([index]) for index in range(tokenizer.get_vocab_size())]
    ids = np.array(tokenizer.encode(text).ids, dtype=np.uint16)
    marks = [at for at in range(1, len(ids) - 1) if texts[ids[at]][0] in ".?!,"]
    assert ev.kind_of_stop(texts, ids, marks[0]) == kind


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary(
    reader: ev.Reader, make_corpus: Callable[..., Path]
) -> None:
    _, (book,) = split(read_corpus(make_corpus()))
    (encoded,) = encode_books([book], reader.tokenizer)
    assert len(encoded.ids) > 600  # several windows
    expected = len(encoded.ids) * math.log2(8192) / len(book.text.encode())
    assert ev.bits_per_byte(reader, encoded, book.text) == pytest.approx(expected, rel=1e-5)


def test_padding_does_not_change_a_context(tokenizer: Tokenizer) -> None:
    config = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=64)
    generator = torch.Generator().manual_seed(0)
    weights = initial_parameters(config, generator)
    weights = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in weights.items()}
    reader = ev.Reader(weights, config, tokenizer)
    contexts = [reader.encode(text) for text in ("Go.", "It was a long day. He", "Hello.")]
    together = reader.log_probs(contexts)
    for row, context in zip(together, contexts, strict=True):
        torch.testing.assert_close(row, reader.log_probs([context])[0])


def test_everything_is_measured_and_written(
    reader: ev.Reader, make_corpus: Callable[..., Path]
) -> None:
    _, books = split(read_corpus(make_corpus()))
    found = ev.evaluate(reader, books, per_kind=6, limit=600)
    assert found.flips["flips"].value < 1
    for mean in found.flips.values():
        assert mean.n == 6
    text = ev.markdown(found)
    assert "| bits per byte, kept-out books | <= 1.60 |" in text
    assert "**no**" in text
    assert json.loads(json.dumps(dataclasses.asdict(found)))["flips"]["flips"]["n"] == 6


def test_a_folder_without_a_model_is_refused(
    make_corpus: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ev.main(["--corpus", str(make_corpus()), "--model", str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_every_snapshot_is_a_row_of_the_table(
    make_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, run = make_corpus(), tmp_path / "run"
    shape = ["--d-model", "16", "--n-heads", "2", "--n-layers", "1", "--batch-tokens", "512"]
    length = ["--tokens", "1024", "--no-compile", "--threads", "1"]
    assert train.main(["--corpus", str(corpus), "--run", str(run), *shape, *length]) == 0
    shutil.copy(train.BUNDLED / "tokenizer.json", run / "final")
    monkeypatch.setattr(snapshots, "PER_KIND", 4)
    flags = ["--corpus", str(corpus), "--run", str(run), "--model", str(run / "final")]
    assert snapshots.main([*flags, "--out", str(tmp_path), "--threads", "1"]) == 0
    with open(tmp_path / "emergence.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["tokens"] for row in rows] == ["0", "1024"]
    assert {*snapshots.DRAWN} < {*rows[0]}
    assert (tmp_path / "emergence.svg").is_file()


def test_a_chart_is_wellformed_and_names_its_lines() -> None:
    lines = [Series("a < b", [0.0, 1e4, 1e6], [0.0, 0.5, 1.0], markers=True)]
    chart = line_chart(lines, "T & t", "x", "y", (0.0, 1.0))
    root = ET.fromstring(chart)
    assert root.tag.endswith("svg")
    assert "a &lt; b" in chart
    assert chart.count("<circle") == 2  # zero has no logarithm


def test_ticks_are_round() -> None:
    assert ticks(1e4, 5e6, log=True) == [1e4, 1e5, 1e6]
    assert ticks(0.0, 1.0, log=False) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_emergence_figure_draws_each_share() -> None:
    keys = [*DRAWN, "tokens"]
    rows = [{key: float(10**power) for key in keys} for power in (4, 5, 6)]
    assert figure(rows).count("<circle") == 3 * (len(keys) - 1)
