"""A study with little time: the first stage always, the rest as it fits, all of it in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.circuits.evidence import Choices
from casestudy.cli.options import read_budget
from casestudy.engine.packing import Budget, Planned, Progress
from casestudy.errors import CasestudyError
from casestudy.model.model import Model
from casestudy.results.result import Grid
from casestudy.study.clock import LEFT_OUT, Clock
from casestudy.study.settings import Execution, Search, Settings
from casestudy.study.study import Study, study

TEXTS = ("This is a sentence.", "It was late.", "She went home. He did not.")
FEW = Choices(random_circuits=0, exact_edges=0, replicates=0, faithful=0.3)
ONLY = ["predictions", "ledger", "patching", "circuit"]


def test_a_part_fits_while_its_estimate_is_left_and_estimates_learn() -> None:
    now = 0.0
    clock = Clock(10.0, lambda: now)
    assert clock.fits("a", clock.seconds(4, each=2.0))
    assert not clock.fits("b", clock.seconds(6, each=2.0))
    assert clock.why("b") == f"{LEFT_OUT} 10 s (about 12 s); the same command continues with it"
    with clock.timing(4):
        now = 2.0
    assert clock.fits("b", clock.seconds(6, each=2.0))  # 3 s, by what 4 units took
    assert not clock.left_out
    now = 8.0
    assert not clock.fits("c", 3.0)
    clock.skip("d")
    assert "no time was left" in clock.why("d")
    free = Clock(None, lambda: now)
    assert free.fits("a", 1e9)


def of(
    model: Model,
    folder: Path,
    seconds: float | None,
    said: list[str] | None = None,
    only: Sequence[str] = ONLY,
) -> Study:
    def tell(progress: Progress) -> None:
        if said is not None and isinstance(progress, Planned):
            said.append(progress.words)

    prompts = tuple(Prompt(text, answer=" He", counterpart=" he") for text in TEXTS)
    return study(
        Behaviour("test", "Why?", prompts, answers="given"),
        model,
        out=folder,
        only=only,
        settings=Settings(search=Search(FEW, family="all lowered")),
        execution=Execution(budget=Budget(seconds=seconds)),
        progress=tell,
    )


def reasons(made: Study) -> dict[str, str]:
    entries = made.manifest["not_measured"]
    return {e["what"]: e["why"] for e in entries if e["why"].startswith(LEFT_OUT)}


def test_what_does_not_fit_is_named_and_made_by_the_same_call_later(
    toy: Callable[..., Model], tmp_path: Path
) -> None:
    toy_model = toy(n_layer=1, n_head=2, n_embd=16)
    said: list[str] = []
    first = of(toy_model, tmp_path / "s", 1e-6, said)
    assert set(reasons(first)) == {"causal effects", "circuits"}
    assert any(words.startswith("left out: causal effects, circuits") for words in said)
    assert first.manifest["state"] == "running"
    assert "ledger.mean" in first.grids
    text = first.report().read_text()
    assert LEFT_OUT in text
    assert "less time than it takes" in text
    second = of(toy_model, tmp_path / "s", None)
    assert not reasons(second)
    assert second.manifest["state"] == "complete"
    assert "circuit.faithfulness" in second.grids
    whole = of(toy_model, tmp_path / "w", None, only=ONLY[:-1])
    assert any(name.startswith("patching.") for name in whole.grids)
    for name, grid in whole.grids.items():
        other = second.grids[name]
        assert isinstance(other, Grid)
        np.testing.assert_array_equal(grid.values, other.values)


def test_grids_that_fit_are_made_and_the_others_left(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads come first; when the estimates say so, the rest waits."""
    right = Clock.fit

    def fit(clock: Clock, parts: Sequence[str], seconds: float) -> bool:
        return right(clock, parts, seconds if list(parts) == ["patching.z.role"] else 1e9)

    monkeypatch.setattr(Clock, "fit", fit)
    made = of(toy_model, tmp_path / "s", 1e6)
    assert "patching.z.role" in made.grids
    assert "patching.resid_pre.role" not in made.grids
    left = reasons(made)
    assert {"patching.resid_pre.role", "patching.noising.z.role", "circuits"} <= set(left)
    assert "patching.z.role" not in left


def test_a_time_is_typed_with_its_unit() -> None:
    assert read_budget("2GB", "2m").seconds == 120
    assert read_budget("2GB", "90s").seconds == read_budget("2GB", "90").seconds == 90
    assert read_budget("2GB").seconds is None
    for typed in ("soon", "0s", "-1m", "inf"):
        with pytest.raises(CasestudyError, match=r"a time like 90s, 2m or 1h"):
            read_budget("2GB", typed)
