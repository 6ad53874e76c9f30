"""What of the GPU benchmark any device can run: the laws, and the large model's measurements."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from casestudy.engine.climb import Climb
from tests.measure.worlds import VARIANTS, decoder

CPU = torch.device("cpu")


def test_laws_are_checked_in_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "VARIANTS", ("llama",))
    rows = gpu.laws(CPU, torch.float32)
    assert {row["variant"] for row in rows} <= set(VARIANTS)
    for row in rows:
        assert not row["failed"]
        assert row["ledger_gap"] < 1e-4
        assert row["sweep_gap"] <= row["sweep_bound"]
        assert row["cells_checked"] > 100


def test_a_broken_law_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "VARIANTS", ("gpt2",))
    right = Climb.climb
    monkeypatch.setattr(Climb, "climb", lambda self: right(self) + 0.01)
    monkeypatch.setattr(gpu, "SITES", ("resid_pre", "z"))
    (row,) = gpu.laws(CPU, torch.float32)
    assert set(row["failed"]) == {"resid_pre", "z"}


def test_the_large_models_measurements_at_tiny_size() -> None:
    model = decoder("llama", dtype=torch.float32)
    row = gpu.large(model, n=2, length=6)
    assert row["head_shares"] == model.config.n_layers * model.config.n_heads
    assert row["cells"] == model.config.n_layers * 6 * 2  # positions, prompts
    assert row["ledger_gap"] < 1e-4
    assert row["sweep_gap"] < 1e-4
    assert row["parameters"] == sum(x.numel() for _, x in model.weights.named())


def test_without_a_card_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    gpu.main()
    assert "no CUDA device" in capsys.readouterr().out
