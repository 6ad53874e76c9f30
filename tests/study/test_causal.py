"""A study's patches: made where pairs allow, none twice, and the same after a kill."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casestudy.study.causal as causal
import casestudy.study.circuit as circuit
from casestudy.behaviour import counterfactual
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.batch import Batch
from casestudy.errors import MeasureError, StudyError
from casestudy.measure import edit_scores
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.results.result import Result, Table
from casestudy.study.settings import Settings
from casestudy.study.store import Store
from casestudy.study.study import Study, study

TEXTS = ("This is a sentence.", "It was late.", "She went home. He did not.")


def behaviour(*texts: str) -> Behaviour:
    prompts = tuple(Prompt(text, answer=" He", counterpart=" he") for text in texts)
    return Behaviour("test", "Why?", prompts, answers="given")


def patched(model: Model, folder: Path, *texts: str) -> Study:
    return study(behaviour(*texts), model, out=folder, only=["predictions", "patching"])


def test_every_grid_has_shares_effects_raw_values_and_its_check(
    toy_model: Model, tmp_path: Path
) -> None:
    done = patched(toy_model, tmp_path / "s", *TEXTS)
    names = {n for n in done.grids if n.startswith("patching.")}
    roots = {n.removesuffix(".known.raw") for n in names if n.endswith(".known.raw")}
    assert {"patching.resid_pre.role", "patching.attn_out.last", "patching.z.last"} <= roots
    for root in roots:
        shares = done.grids[root]
        assert shares.error["gap"] <= shares.error["bound"]
        assert "family" in shares.about
        assert f"{root}.effect" in names
        assert shares.n is not None
        assert set(done.manifest["patch_plans"]) == roots
    assert not any(entry["what"] == "causal effects" for entry in done.manifest["not_measured"])


def test_a_family_asked_for_by_name_is_patched_on(toy_model: Model, tmp_path: Path) -> None:
    asked = Settings(family="first letter lowered")
    run = partial(study, behaviour(*TEXTS), toy_model, only=["predictions", "patching"])
    done = run(out=tmp_path / "s", settings=asked)
    assert set(done.manifest["patch_families"].values()) == {"first letter lowered"}
    with pytest.raises(StudyError, match="family"):
        run(out=tmp_path / "s")
    with pytest.raises(StudyError, match="Did you mean 'all lowered'"):
        run(out=tmp_path / "t", settings=Settings(family="all lowerd"))


def test_families_are_scored_with_their_exclusions(toy_model: Model, tmp_path: Path) -> None:
    table = patched(toy_model, tmp_path / "s", *TEXTS)["counterfactuals"]
    assert isinstance(table, Table)
    rows = {row["family"]: row for row in table.rows()}
    assert rows["final stop to comma"]["n"] == len(TEXTS)
    assert rows["year changed"]["n"] == 0
    assert "no year (3)" in rows["year changed"]["why"]


def test_a_killed_study_makes_only_the_grids_that_are_missing(
    toy_model: Model, tmp_path: Path, monkeypatch: Any
) -> None:
    whole = patched(toy_model, tmp_path / "whole", *TEXTS)
    real, kept = Store.write_final, []

    def write_final(store: Store, results: Sequence[Result]) -> None:
        if any(result.name.startswith("patching.") for result in results):
            kept.append(results)
            if len(kept) in kills:
                raise KeyboardInterrupt
        real(store, results)

    kills = {2, 5}  # within grids that are made together, and again
    with monkeypatch.context() as context:
        context.setattr(Store, "write_final", write_final)
        for _ in kills:
            with pytest.raises(KeyboardInterrupt):
                patched(toy_model, tmp_path / "killed", *TEXTS)
    resumed = patched(toy_model, tmp_path / "killed", *TEXTS)
    assert set(resumed.grids) == set(whole.grids)
    for name in whole.grids:
        np.testing.assert_array_equal(resumed.grids[name].values, whole.grids[name].values)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed/arrays").iterdir()}
    patched(toy_model, tmp_path / "killed", *TEXTS)
    for path in (tmp_path / "killed/arrays").glob("patching.*"):
        assert path.stat().st_mtime_ns == times[path.name], "nothing is made twice"


def rows_of(done: Study) -> list[dict[str, Any]]:
    return done.tables["counterfactuals"].rows()


def killed_before_its_first_grid(model: Model, folder: Path, patch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with patch.context() as context:
        context.setattr(causal, "patch_sites", die)
        with pytest.raises(KeyboardInterrupt):
            patched(model, folder, *TEXTS)


def test_a_study_that_continues_scores_no_edit_again(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = patched(toy_model, tmp_path / "whole", *TEXTS)
    killed_before_its_first_grid(toy_model, tmp_path / "killed", monkeypatch)
    monkeypatch.setattr(causal, "pair_values", lambda *_: pytest.fail("scored again"))
    resumed = patched(toy_model, tmp_path / "killed", *TEXTS)
    np.testing.assert_equal(
        resumed.tables["counterfactuals"].rows(), whole.tables["counterfactuals"].rows()
    )
    for name in whole.grids:
        np.testing.assert_array_equal(resumed.grids[name].values, whole.grids[name].values)
    assert not (tmp_path / "killed" / "steps").exists(), "the scores go once the study is complete"


def test_kept_scores_of_other_edits_are_computed_anew(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = patched(toy_model, tmp_path / "whole", *TEXTS)
    killed_before_its_first_grid(toy_model, tmp_path / "killed", monkeypatch)
    store, step = Store.open(tmp_path / "killed"), (causal.SCORES, causal.SCORES)
    arrays, of = store.read_step(*step)
    other = {**of, "edits": of["edits"][1:]}
    store.write_step(*step, {"values": arrays["values"][:, 1:] + 1}, other)
    again = patched(toy_model, tmp_path / "killed", *TEXTS)
    np.testing.assert_equal(
        again.tables["counterfactuals"].rows(), whole.tables["counterfactuals"].rows()
    )


def test_the_circuit_scores_only_the_edits_that_patching_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_answer = ("He counted: one, two,", "The answer is 3,")
    texts = (*TEXTS, no_answer[0], "It was so.", "We sat down.", no_answer[1])
    prompts = tuple(Prompt(text) for text in texts)
    asked = Behaviour("test", "Why?", prompts[:4], circuit_prompts=prompts[4:])
    kept: list[tuple[Batch, tuple[counterfactual.Score, ...]]] = []
    computed: list[set[int]] = []

    def pair_values(*on: Any) -> Any:
        computed.append({pair.index for pair in on[1].pairs})
        return edit_scores.pair_values(*on)

    def kept_scores(subject: Any, batch: Batch, *name: str) -> Any:
        kept.append((batch, causal.kept_scores(subject, batch, *name)))
        raise MeasureError("enough")

    monkeypatch.setattr(causal, "pair_values", pair_values)
    monkeypatch.setattr(causal, "_before_last", lambda *_: [])
    monkeypatch.setattr(causal, "_at_last", lambda *_: [])
    monkeypatch.setattr(circuit, "kept_scores", kept_scores)
    model, stages = load("tiny"), ["predictions", "patching", "circuit"]
    study(asked, model, out=tmp_path / "s", only=stages, settings=Settings(top_k=5))
    assert computed == [{0, 1, 2, 3}, {4, 5, 6}]
    ((batch, scores),) = kept
    proposals = counterfactual.propose(model, batch.prompts, roles=asked.roles)
    fresh = edit_scores.score(model, proposals, batch.contrasts[0])
    for known, new in zip(scores, fresh, strict=True):
        assert (known.family, known.pairs, known.excluded) == (new.family, new.pairs, new.excluded)
        np.testing.assert_allclose(known.clean, new.clean, rtol=1e-5)
        np.testing.assert_allclose(known.corrupted, new.corrupted, rtol=1e-5)
    without = {e.index for s in scores for e in s.excluded if "no contrast" in e.why}
    assert without == {3, 6}


def test_prompts_that_no_edit_fits_leave_no_grid_and_say_so(
    toy_model: Model, tmp_path: Path
) -> None:
    done = patched(toy_model, tmp_path / "s", "1 2 3", "4 5 6")
    assert not [name for name in done.grids if name.startswith("patching.")]
    table = done["counterfactuals"]
    assert isinstance(table, Table)
    assert sum(table.columns["n"]) == 0
    again = patched(toy_model, tmp_path / "s", "1 2 3", "4 5 6")
    for each in (done, again):
        reasons = [entry["what"] for entry in each.manifest["not_measured"]]
        assert reasons.count("causal effects") == 1, "said once, however often it is run"


def test_at_most_so_many_prompts_evenly_taken(monkeypatch: Any) -> None:
    monkeypatch.setattr(causal, "MOST_PAIRS", 4)
    many = behaviour(*(f"{i}." for i in range(10)))
    assert causal.chosen_prompts(many, range(10)) == [0, 2, 5, 7]
    assert causal.chosen_prompts(many, [1, 3]) == [1, 3]


def test_a_grid_whose_check_fails_costs_no_other_and_is_named(
    toy_model: Model, tmp_path: Path, monkeypatch: Any
) -> None:
    whole = patched(toy_model, tmp_path / "whole", *TEXTS)
    real = causal.patch_sites

    def patch_sites(*args: Any, **kwargs: Any) -> Any:
        failed = MeasureError("the sweep differs from full forward passes by 1e-3")
        found = real(*args, **kwargs)
        return {site: failed if site == "attn_out" else one for site, one in found.items()}

    with monkeypatch.context() as context:
        context.setattr(causal, "patch_sites", patch_sites)
        partly = patched(toy_model, tmp_path / "partly", *TEXTS)
    missing = set(whole.grids) - set(partly.grids)
    assert missing
    assert all("attn_out" in name for name in missing)
    said = {entry["what"]: entry["why"] for entry in partly.manifest["not_measured"]}
    assert "differs from full forward passes" in said["patching.attn_out.last"]
    again = patched(toy_model, tmp_path / "partly", *TEXTS)
    assert set(again.grids) == set(whole.grids), "what failed is tried again"
    assert "patching.attn_out.last" not in {e["what"] for e in again.manifest["not_measured"]}


def test_a_noising_grid_that_mirrors_denoising_is_not_made(
    toy_model: Model, tmp_path: Path
) -> None:
    abba, baba = ("When {} and {} went to the shop, {} gave the bag to".format(*names)
                  for names in (("Tom", "James", "James"), ("Tom", "James", "Tom")))  # fmt: skip
    one = Prompt(abba, " Tom", " James", corrupted=baba)
    mirror = Prompt(baba, " James", " Tom", corrupted=abba)

    def grids(*prompts: Prompt) -> Study:
        asked = Behaviour("ioi", "Who?", prompts, answers="given")
        settings = Settings(family="given")
        return study(asked, toy_model, out=tmp_path / str(len(prompts)), settings=settings,
                     only=["predictions", "patching"])  # fmt: skip

    both, alone = grids(one, mirror), grids(one)
    assert "patching.noising.z.all" in alone.grids
    assert "patching.z.all" in both.grids
    assert "patching.noising.z.all" not in both.grids
    (why,) = (entry["why"] for entry in both.manifest["not_measured"]
              if entry["what"] == "patching.noising.z.all")  # fmt: skip
    assert "mirror" in why
    # what was left out is what was made, of the mirrored pair and with the other sign
    noised, denoised = (alone.grids["patching.noising.z.all.raw"], both.grids["patching.z.all.raw"])
    np.testing.assert_allclose(
        noised.values.squeeze(), -denoised.select(prompt="1").values.squeeze(), atol=1e-5
    )
