"""Laws 3 and 5: neighbours do not matter, and a study that died goes on to the same numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casestudy as cs
import casestudy.study.executors as executors
import casestudy.study.study as study_module
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.packing import Progress
from casestudy.engine.workers import cores_set
from casestudy.errors import BehaviourError, StudyError
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from casestudy.results.result import Grid, Table
from casestudy.study import measuring, neurons
from casestudy.study.chosen import NAMES
from casestudy.study.measuring import plan_chunks
from casestudy.study.settings import Execution, Settings
from casestudy.study.study import Study, open_study

TEXTS = ("Go.", "This is a sentence.", "It was late. She went home.", "Hello. Hello.", "No. Yes.")


# Patches have tests of their own, and cost more than all the rest.
MEASURED = tuple(study_module.MEASUREMENTS)


def study(*arguments: Any, **options: Any) -> Study:
    return study_module.study(*arguments, **({"only": MEASURED} | options))


def behaviour(*texts: str) -> Behaviour:
    prompts = tuple(Prompt(text, answer=" He", groups=("g",)) for text in texts)
    return Behaviour("test", "Why?", prompts)


def test_nothing_that_is_shared_has_the_path_of_the_model(
    toy_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = toy_folder(n_positions=256)
    model = cs.load(folder, device="cpu")
    made = study(behaviour("Go."), model, out=tmp_path / "s", only=["predictions", "ledger"])
    described = made.manifest["model"]
    assert (described["name"], described["source"]) == (folder.name, f"folder: {folder.name}")
    assert described["weight_hash"] == model.weight_hash
    for file in (tmp_path / "s" / "manifest.json", made.report()):
        assert str(folder.parent) not in file.read_text(encoding="utf-8"), file
    # a study of 0.1.0, which stored the path, goes on
    made.store.manifest["model"]["source"] = str(folder)
    made.store.save_manifest()
    study(behaviour("Go."), model, out=tmp_path / "s", only=["predictions", "ledger"])


def grids(folder: Path) -> dict[str, Grid]:
    return open_study(folder).grids


def test_results_do_not_depend_on_chunks_or_order(toy_model: Model, tmp_path: Path) -> None:
    study(
        behaviour(*TEXTS), toy_model, out=tmp_path / "one", execution=Execution(chunk_tokens=10**6)
    )
    study(behaviour(*TEXTS), toy_model, out=tmp_path / "many", execution=Execution(chunk_tokens=1))
    study(
        behaviour(*TEXTS[::-1]),
        toy_model,
        out=tmp_path / "back",
        execution=Execution(chunk_tokens=20),
    )
    with cores_set(3):  # chunks at the same time
        study(
            behaviour(*TEXTS),
            toy_model,
            out=tmp_path / "cores",
            execution=Execution(chunk_tokens=1),
        )
    assert open_study(tmp_path / "cores").manifest["plan"]["cores"] == 3
    names = ("one", "many", "back", "cores")
    one, many, back, cores = (grids(tmp_path / name) for name in names)
    assert one.keys() == many.keys()
    for name, grid in one.items():
        if name == "ledger.check" or "prompt" not in [axis.name for axis in grid.axes]:
            continue  # a check holds rounding errors themselves
        scale = np.nanmax(np.abs(grid.values))
        np.testing.assert_allclose(many[name].values, grid.values, atol=1e-5 * scale, err_msg=name)
        np.testing.assert_array_equal(cores[name].values, many[name].values, err_msg=name)
        turned = back[name].take("prompt", [str(i) for i in reversed(range(len(TEXTS)))])
        np.testing.assert_allclose(turned.values, grid.values, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("survived", [0, 1, 3])
@pytest.mark.slow
def test_a_study_that_died_goes_on_to_the_same_bits(
    toy_model: Model, tmp_path: Path, monkeypatch: Any, survived: int
) -> None:
    whole = study(
        behaviour(*TEXTS), toy_model, out=tmp_path / "whole", execution=Execution(chunk_tokens=1)
    )
    with monkeypatch.context() as patch:
        patch.setattr(executors, "run_batch", dies_after(survived))
        with pytest.raises(KeyboardInterrupt):
            study(
                behaviour(*TEXTS),
                toy_model,
                out=tmp_path / "killed",
                execution=Execution(chunk_tokens=1),
            )
    assert open_study(tmp_path / "killed").manifest["state"] == "running"
    resumed = study(behaviour(*TEXTS), toy_model, out=tmp_path / "killed")
    assert resumed.manifest["state"] == "complete"
    for name, grid in whole.grids.items():
        np.testing.assert_array_equal(resumed.grids[name].values, grid.values, err_msg=name)
    for name, table in whole.tables.items():
        timeless = {c: v for c, v in table.columns.items() if c != "seconds"}
        again = {c: v for c, v in resumed.tables[name].columns.items() if c != "seconds"}
        assert again == timeless, name


def dies_after(chunks: int) -> Any:
    real, done = executors.run_batch, []

    def run_batch(*args: Any, **kwargs: Any) -> Any:
        if len(done) == chunks:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **kwargs)

    return run_batch


def test_a_bad_prompt_costs_only_itself(toy_model: Model, tmp_path: Path) -> None:
    good = study(
        behaviour("Go.", "Yes."),
        toy_model.with_bos(False),
        out=tmp_path / "good",
    )
    bad = study(
        behaviour("Go.", "", "no " * 500, "Yes."),
        toy_model.with_bos(False),
        out=tmp_path / "bad",
    )
    prompts = bad["prompts"]
    assert isinstance(prompts, Table)
    assert prompts.columns["error"][0] is None
    assert "prompt 1 is empty" in prompts.columns["error"][1]
    assert "prompt 2 is 501 tokens long" in prompts.columns["error"][2]
    np.testing.assert_allclose(
        bad.grids["logit_difference.mean"].values, good.grids["logit_difference.mean"].values
    )


def test_a_tokenizer_of_a_model_that_reads_more_costs_the_long_prompts_only(
    toy: Callable[..., Model], toy_model: Model, tmp_path: Path
) -> None:
    """The context is the model's that runs, whichever model the tokenizer came with."""
    short = replace(toy(n_positions=16), tokenizer=toy_model.tokenizer)
    assert (toy_model.tokenizer.n_ctx, short.tokenizer.n_ctx) == (64, 16)
    only = ["predictions", "ledger"]
    good = study(behaviour("Go.", "Yes."), short, out=tmp_path / "good", only=only)
    long = study(behaviour("Go.", "no " * 15, "Yes."), short, out=tmp_path / "long", only=only)
    prompts = long["prompts"]
    assert isinstance(prompts, Table)
    errors = prompts.columns["error"]
    assert errors[0] is errors[2] is None
    assert "prompt 1 is 17 tokens long. Allowed: at most 16, BOS included" in errors[1]
    for name in ("logit_difference", "ledger"):
        kept = long.grids[name].axis("prompt").labels.index("2")
        np.testing.assert_allclose(
            np.take(long.grids[name].values, [0, kept], axis=long.grids[name].dim("prompt")),
            good.grids[name].values,
        )


def test_a_behaviour_reads_special_tokens_as_it_asks(toy_model: Model, tmp_path: Path) -> None:
    plain = behaviour("<|endoftext|>Go.", "Stay.")
    asked, reading = replace(plain, parse_special=True), toy_model.with_special()
    for measure in (cs.predictions, cs.ledger, cs.class_mass, cs.logit_lens, cs.controls):
        here, there = measure(toy_model, asked), measure(reading, plain)
        columns = [{k: repr(v) for k, v in vars(r).items()} for r in (here, there)]
        assert columns[0] == columns[1], measure.__name__
    one = study(asked, toy_model, out=tmp_path / "one", only=["predictions"])
    assert one.manifest["settings"]["parse_special"] is True
    (ids, _) = one.tables["prompts"].columns["token_ids"]
    assert ids == reading.tokenize("Go.").rows()[0], "the special token is BOS, which stands once"
    with pytest.raises(StudyError, match="parse_special"):
        study(plain, toy_model, out=tmp_path / "one", only=["predictions"])


def test_bos_alone_is_a_prompt_like_any_other(toy_model: Model, tmp_path: Path) -> None:
    both = study(behaviour("", "It was late."), toy_model, out=tmp_path / "s")
    assert both.tables["prompts"].columns["error"] == [None, None]
    alone = cs.ledger(toy_model, behaviour(""))
    ours = both.grids["ledger"].values[..., :1]
    np.testing.assert_allclose(ours, alone.values, rtol=1e-5, atol=1e-5)
    rows = [r for r in both.tables["predictions"].rows() if r["prompt"] == 0]
    (bos,) = Tokens.of([[toy_model.tokenizer.bos_id]]).rows()
    assert rows[0]["id"] == int(run(toy_model, [bos], logits="last").logits[0].argmax())
    assert "(BOS alone)" in both.report().read_text()


def test_no_prompt_at_all_is_an_error(toy_model: Model, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no prompt can be run; the first: prompt 0 is empty"):
        study(behaviour("", ""), toy_model.with_bos(False), out=tmp_path / "s")
    assert not (tmp_path / "s").exists(), "nothing is made for nothing"


def test_a_prompt_without_an_answer_is_listed_with_the_reason(
    toy_model: Model, tmp_path: Path
) -> None:
    prompts = (Prompt("Go."), Prompt("Yes.", answer=" He"))
    done = study(
        Behaviour("b", "?", prompts), toy_model, out=tmp_path / "s", settings=Settings(top_k=1)
    )
    table = done["prompts"]
    assert isinstance(table, Table)
    assert "no usable space+Capital token" in table.columns["error"][0]
    assert np.isnan(done.grids["logit_difference"].values[:, 0]).all()
    assert done.grids["logit_difference.mean"].n is not None
    assert done.grids["logit_difference.mean"].n.tolist() == [1, 1, 1]


def test_a_changed_setting_is_refused_naming_it(toy_model: Model, tmp_path: Path) -> None:
    study(behaviour("Go."), toy_model, out=tmp_path / "s")
    with pytest.raises(StudyError, match=r"settings\.top_k: stored 100, now 50"):
        study(behaviour("Go."), toy_model, out=tmp_path / "s", settings=Settings(top_k=50))
    with pytest.raises(StudyError, match="behaviour"):
        study(behaviour("Go!"), toy_model, out=tmp_path / "s")


def test_unknown_measurements_are_refused(toy_model: Model) -> None:
    with pytest.raises(StudyError, match="no measurement is called tea"):
        study(behaviour("Go."), toy_model, only=["tea"])


def test_model_and_behaviour_come_in_either_order(toy_model: Model, tmp_path: Path) -> None:
    asked, only = behaviour("Go."), ["predictions"]
    for i, pair in enumerate([(toy_model, asked), (asked, toy_model)]):
        done = study(*pair, out=tmp_path / str(i), only=only)
        assert done.manifest["model"]["weight_hash"] == toy_model.weight_hash
    for names in (("full-stop-capitals", "tiny"), ("tiny", "full-stop-capitals")):
        done = study(*names, out=tmp_path / "-".join(names), only=only)
        assert done.manifest["behaviour"]["name"] == "full-stop-capitals"
        assert done.manifest["model"]["name"] == "tiny"
    for pair, says in (
        (("tiny", "no-preset"), "neither 'tiny' nor 'no-preset' is a behaviour.*decimal-point"),
        ((toy_model, toy_model), "two models"),
        ((asked, asked), "two behaviours"),
    ):
        with pytest.raises(BehaviourError, match=says):
            study(*pair)


def test_every_name_is_measured_by_something() -> None:
    # of the chunks' stage each measurement is a name, of the others each stage
    stages = [name for name in study_module.STAGES if name != measuring.NAME]
    # neurons are looked for where Settings(neurons=...) asks for it, by no name of --only
    assert (*study_module.MEASUREMENTS, *stages) == (*NAMES, neurons.NAME)
    assert {m.name for m in study_module._MEASURED} == set(study_module.MEASUREMENTS)


def test_what_is_skipped_is_not_measured(toy_model: Model, tmp_path: Path) -> None:
    done = study(toy_model, behaviour("Go."), out=tmp_path / "s", skip=["lens", "attention"])
    assert set(done.manifest["measurements"]) == set(MEASURED) - {"lens", "attention"}
    with pytest.raises(StudyError, match="no measurement is called tea"):
        study(toy_model, behaviour("Go."), skip=["tea"])
    with pytest.raises(StudyError, match="nothing is left to measure"):
        study(toy_model, behaviour("Go."), only=["lens"], skip=["lens"])


def test_a_study_can_be_reported_after_each_stage(toy_model: Model, tmp_path: Path) -> None:
    kept: list[tuple[str, bool]] = []

    def renew(progress: Progress) -> None:
        if progress.stage == study_module.STUDY:
            assert open_study(tmp_path / "s").report().read_text().startswith("<!doctype html")
            grids = open_study(tmp_path / "s").grids
            kept.append((progress.note, any(name.startswith("patching.") for name in grids)))

    prompts = tuple(Prompt(text, answer=" He", counterpart=" he") for text in TEXTS[1:3])
    asked = Behaviour("test", "Why?", prompts, answers="given")
    only = ["predictions", "ledger", "patching"]
    study(toy_model, asked, out=tmp_path / "s", only=only, progress=renew)
    assert kept == [("measuring", False), ("patching", True)]


def test_chunks_hold_every_prompt_once_within_the_budget() -> None:
    lengths = [5, None, 3, 50, 4, 4, 7, None, 12]
    chunks = plan_chunks(lengths, chunk_tokens=12, chunk_prompts=2)
    assert sorted(i for chunk in chunks for i in chunk) == [0, 2, 3, 4, 5, 6, 8]
    for chunk in chunks:
        width = max(lengths[i] or 0 for i in chunk)
        assert len(chunk) == 1 or width * len(chunk) <= 12
        assert len(chunk) <= 2


def test_the_plan_of_a_stored_study_is_made_again() -> None:
    # lengths and chunks of a study stored before the planner was shared
    lengths = [
        *(8, 20, 7, None, 14, 6, 22, 10, 13, 5, 13, 11, 14, 16, None),
        *(17, 10, 13, None, 22, 5, 23, 14, 21, 18, 18, 12, 6, None, 13),
    ]
    assert plan_chunks(lengths, chunk_tokens=96) == [
        *([9, 20], [5, 27, 2], [0, 7, 16], [11, 26, 8, 10, 17, 29]),
        *([4, 12, 22, 13], [15, 24, 25, 1], [23, 6, 19, 21]),
    ]


def test_a_result_is_found_by_name(toy_model: Model, tmp_path: Path) -> None:
    done = study(behaviour("Go."), toy_model, out=tmp_path / "s", only=["predictions"])
    with pytest.raises(StudyError, match=r"has no 'ledger'.*Allowed: .*answers"):
        done["ledger"]
