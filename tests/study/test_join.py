"""What all chunks say together: means over who counts, by group, whatever was too large to join."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casestudy.study.join as join_module
from casestudy.behaviour.presets import preset
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.packing import Progress
from casestudy.errors import BehaviourError
from casestudy.model.model import Model
from casestudy.results.result import Table, worst_error
from casestudy.study.measuring import State
from casestudy.study.settings import Execution
from casestudy.study.study import open_study, study
from tests.study.killed import behaviour

ONLY = ["predictions", "ledger", "attribution"]


def test_the_flagship_counts_its_ordinary_sentences() -> None:
    flagship = preset("full-stop-capitals")
    in_groups = dict.fromkeys(flagship.groups, 0)
    for prompt in flagship.prompts:
        for name in prompt.groups:
            in_groups[name] += 1
    assert in_groups["ragged five"] == 5
    assert in_groups["eleven-token four"] == 4
    assert in_groups["eleven-token eight"] == 8
    twice = [p for p in flagship.prompts if p.text.startswith("This is a sentence. This is")]
    assert [len(p.groups) for p in twice] == [3], "one prompt stands in three sets"
    others = [p.text for p in flagship.prompts if not flagship.is_main(p)]
    assert {"THIS IS A SENTENCE.", "this is a sentence."} <= set(others)
    assert not {"This is a sentence.", twice[0].text} & set(others)


def test_a_main_group_that_nobody_is_in_is_refused() -> None:
    with pytest.raises(BehaviourError, match="names the main group 'x', which no prompt is in"):
        Behaviour("b", "?", (Prompt("Go.", groups=("y",)),), main=("x",))


def test_the_mean_is_over_main_groups_and_every_group_has_its_own(
    toy_model: Model, tmp_path: Path
) -> None:
    prompts = tuple(
        Prompt(f"Go {i}.", answer=" He", groups=("all", "odd") if i % 2 else ("all",))
        for i in range(7)
    )
    asked = Behaviour("b", "?", prompts, main=("odd",))
    done = study(asked, toy_model, out=tmp_path / "s", only=ONLY)
    values = done.grids["logit_difference"].values
    mean, by_group = done.grids["logit_difference.mean"], done.grids["logit_difference.by_group"]
    assert [axis.name for axis in by_group.axes] == ["group", "contrast"]
    np.testing.assert_allclose(mean.values, values[:, 1::2].mean(1))
    np.testing.assert_allclose(by_group.select(group="all").values, values.mean(1))
    np.testing.assert_allclose(by_group.select(group="odd").values, mean.values)
    assert by_group.n is not None
    assert by_group.n.tolist() == [[7] * 3, [3] * 3]
    assert "Mean over odd (the others are in by_group)" in mean.about
    assert done.manifest["behaviour"]["main"] == ["odd"]
    assert done.manifest["behaviour"]["n_main"] == 3
    assert done.manifest["behaviour"]["groups"] == {"all": 7, "odd": 3}
    assert done["group_tests"].columns["p"] == [], "they share prompts"  # type: ignore[union-attr]
    assert "ledger.check.mean" not in done.grids


def test_what_is_too_large_to_join_has_the_same_means_and_streams(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = study(
        behaviour(), toy_model, out=tmp_path / "w", only=ONLY, execution=Execution(chunk_tokens=24)
    )
    monkeypatch.setattr(join_module, "JOINED_CELLS", 60 * 6)
    monkeypatch.setattr(join_module, "TABLE_ROWS", 100)
    large = study(
        behaviour(), toy_model, out=tmp_path / "l", only=ONLY, execution=Execution(chunk_tokens=24)
    )
    assert "logit_difference" in large.grids
    assert "ledger" not in large.grids
    for name in whole.grids:
        if name.endswith((".mean", ".by_group")):
            np.testing.assert_array_equal(whole.grids[name].values, large.grids[name].values)
    assert "in the study's shards" in large.grids["ledger.mean"].about
    streamed = {
        int(label): grid.select(prompt=label).values
        for grid in large.store.stream("ledger")
        for label in grid.axis("prompt").labels
    }
    assert len(streamed) == 60
    for i, values in streamed.items():
        np.testing.assert_array_equal(values, whole.grids["ledger"].select(prompt=str(i)).values)
    table = large["predictions"]
    assert isinstance(table, Table)
    assert "order of the plan" in table.about
    key = ("prompt", "rank")
    rows = sorted(table.rows(), key=lambda row: [row[k] for k in key])
    assert rows == whole["predictions"].rows()  # type: ignore[union-attr]


def test_a_study_of_documents_compares_groups_and_ranks_heads(
    toy_model: Model, tmp_path: Path
) -> None:
    done = study(
        behaviour(), toy_model, out=tmp_path / "s", only=ONLY, execution=Execution(chunk_tokens=64)
    )
    (row,) = done["group_tests"].rows()  # type: ignore[union-attr]
    assert (row["group"], row["other"]) == ("even", "odd")
    assert 0 < row["p"] <= 1
    ranks = done["attribution.head.ranking"]
    assert isinstance(ranks, Table)
    assert len(ranks.columns["rank"]) == 8, "two layers of four heads"
    assert ranks.columns["rank"] == list(range(8))
    assert ranks.columns["n"] == [60] * 8
    assert "the interval resamples documents" in done.grids["ledger.mean"].about


def test_packing_wastes_little(toy_model: Model, tmp_path: Path) -> None:
    done = study(behaviour(), toy_model, out=tmp_path / "s", only=["predictions"])
    chunks: dict[str, list[Any]] = dict(done["chunks"].columns)  # type: ignore[union-attr]
    for own, computed in zip(chunks["tokens"], chunks["computed_tokens"], strict=True):
        assert own >= 0.9 * computed
    assert sum(chunks["prompts"]) == 60


def test_progress_tells_the_truth_over_resuming(toy_model: Model, tmp_path: Path) -> None:
    states: list[State] = []

    def stop(state: Progress) -> None:
        assert isinstance(state, State)
        states.append(state)
        if state.done >= 20:
            raise KeyboardInterrupt

    options: dict[str, Any] = {
        "out": tmp_path / "s",
        "only": ONLY,
        "execution": Execution(chunk_tokens=24),
    }
    with pytest.raises(KeyboardInterrupt):
        study(behaviour(), toy_model, progress=stop, **options)
    assert (states[0].done, states[0].left, states[0].rate) == (0, None, 0.0)
    stored = states[-1].done
    told: list[Progress] = []
    study(behaviour(), toy_model, progress=told.append, **options)
    again = [state for state in told if isinstance(state, State)]
    assert told[len(again) :] == [Progress("study", 1, 1, "measuring")]
    assert (again[0].done, again[0].found, again[0].total) == (stored, stored, 60)
    assert again[-1].done == 60
    assert again[-1].left == 0
    # prompts per second are this run's own, not what an earlier one stored
    first = again[1]
    assert first.rate > 0
    assert all(later.left is not None and later.left >= 0 for later in again[1:])
    assert again[-1].memory > 10**7


def test_the_worst_error_is_the_worst_against_its_own_bound() -> None:
    errors = [{"gap": 2e-5, "bound": 1e-3}, {"gap": 1e-5, "bound": 1e-4}, {}, {"other": 3.0}]
    assert worst_error(errors) == {"gap": 1e-5, "bound": 1e-4, "other": 3.0}
    assert worst_error([]) == {}


def test_a_stored_study_reads_only_what_is_asked(toy_model: Model, tmp_path: Path) -> None:
    study(behaviour(8), toy_model, out=tmp_path / "s", only=ONLY)
    (tmp_path / "s" / "arrays" / "ledger.safetensors").write_bytes(b"damaged")
    done = open_study(tmp_path / "s")
    assert done["logit_difference.mean"].values.size  # type: ignore[union-attr]
    with pytest.raises(Exception, match=r"ledger\.safetensors cannot be read"):
        done["ledger"]
