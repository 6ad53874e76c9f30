"""Does a study of answers of several tokens have the whole answers beside their first tokens?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import numpy as np
import polars as pl
import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.behaviour.steps import any_several, steps_of
from casestudy.circuits.evidence import Choices
from casestudy.errors import BehaviourError, MeasureError, StudyError, TokenError
from casestudy.measure.answer_texts import WHOLE
from casestudy.measure.ledger import ledger
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.measure.whole_answers import whole_answers
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show.explorer.study_prompts import study_prompts_of
from casestudy.study.behaviour_pairs import behaviour_half
from casestudy.study.manifest import new_manifest
from casestudy.study.settings import Execution, Search, Settings
from casestudy.study.study import Study, open_study, study

PROMPTS = (
    Prompt("It was late. She went home.", " He slept", " he"),
    Prompt("He slept.", " It", " it"),
    Prompt("It was very late.", " He was", " He went"),
    Prompt("The dog ran.", " She sat", " it was late"),
)
MEASURED = ("predictions", "ledger", "lens", "attribution")


@pytest.fixture(scope="module")
def found(toy_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Study:
    behaviour = Behaviour("several", prompts=PROMPTS, answers="given")
    folder = tmp_path_factory.mktemp("several")
    one_by_one = Execution(chunk_tokens=8)
    return study(toy_model, behaviour, out=folder, only=MEASURED, execution=one_by_one)


def test_each_prompt_has_the_whole_answers_value(found: Study, toy_model: Model) -> None:
    alone = whole_answers(toy_model, PROMPTS)
    values = found.grids[names.LOGIT_DIFFERENCE].select(contrast=names.WHOLE).values
    np.testing.assert_allclose(values, alone.value.values, atol=1e-4)
    heads = found.grids[names.HEAD_SHARES].select(contrast=names.WHOLE).values
    np.testing.assert_allclose(heads, alone.grids[names.HEAD_SHARES].values, atol=1e-4)


def test_the_mean_ledger_closes(found: Study) -> None:
    mean = found.grids[names.mean(names.LEDGER)].select(contrast=names.WHOLE)
    total = found.grids[names.mean(names.LOGIT_DIFFERENCE)].select(contrast=names.WHOLE)
    assert np.nansum(mean.values) == pytest.approx(float(total.values), abs=1e-4)
    assert int(total.n) == len(PROMPTS)


def test_the_main_contrast_is_that_of_the_first_tokens(found: Study, toy_model: Model) -> None:
    first = [Prompt(PROMPTS[0].text, " He", " he"), PROMPTS[1]]
    alone = ledger(toy_model, Behaviour("first", prompts=tuple(first), answers="given"))
    main = found.grids[names.LEDGER].select(contrast="counterpart")
    np.testing.assert_allclose(main.values[:-1, :2], alone.values[0], atol=1e-4)
    assert main.axis("term").labels[-1] == names.ENTROPY
    assert np.isnan(main.values[-1]).all(), "a term that single tokens do not have"


def test_answers_that_begin_alike_are_compared_whole_alone(found: Study) -> None:
    main = found.grids[names.LOGIT_DIFFERENCE].select(contrast="counterpart").values
    assert np.isnan(main).tolist() == [False, False, True, False]
    assert found.tables[names.PROMPTS].columns["error"] == [None] * len(PROMPTS), "none left out"


PAIRS = (
    Prompt(
        "It was late. She went home.", " He slept", " he", corrupted="it was late. she went on."
    ),
    Prompt("It was late. He went home.", " It was", " it", corrupted="it was late. he went on."),
    Prompt("He slept. It was late.", " She", " she", corrupted="he slept. it was on."),
)


@pytest.fixture(scope="module")
def patched(toy_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Study:
    behaviour = Behaviour("pairs", prompts=PAIRS, answers="given")
    folder = tmp_path_factory.mktemp("pairs")
    return study(
        toy_model,
        behaviour,
        out=folder,
        only=["predictions", "patching"],
        settings=Settings(family="given"),
    )


@pytest.mark.parametrize("by", ["all", "role"])
def test_a_study_patches_whole_answers(
    patched: Study, toy_model: Model, by: Literal["all", "role"]
) -> None:
    site = "z" if by == "all" else "attn_out"
    alone = patch_prompts(toy_model, PAIRS, site, by=by)
    grid = patched.grids[names.raw(names.patching(site, by))]
    assert isinstance(grid, Grid)
    assert grid.unit == "nats"
    assert names.WHOLE in grid.about
    np.testing.assert_allclose(grid.values, alone.raw.values, atol=1e-4)
    clean = patched.grids[names.baselines(names.patching(site, by))].select(run="other")
    np.testing.assert_allclose(
        clean.values, whole_answers(toy_model, PAIRS).value.values, atol=1e-4
    )


def test_edits_are_scored_by_the_whole_answers(patched: Study, toy_model: Model) -> None:
    (row,) = [r for r in patched.tables[names.COUNTERFACTUALS].rows() if r["family"] == "given"]
    value = whole_answers(toy_model, PAIRS).value.values.mean()
    assert row["mean_clean"] == pytest.approx(value, abs=1e-4)
    assert row["n"] == len(PAIRS)


def test_a_study_says_how_answers_count(patched: Study, toy_model: Model) -> None:
    assert patched.manifest["settings"]["scoring"] == "sum"
    single = Behaviour("single", prompts=PAIRS[2:], answers="given")
    behaviour = Behaviour("pairs", prompts=PAIRS, answers="given")
    with pytest.raises(StudyError, match="scoring"):
        study(toy_model, behaviour, out=patched.store.folder, settings=Settings(scoring="mean"))
    assert "scoring" not in described(toy_model, single)


def described(model: Model, behaviour: Behaviour) -> dict[str, Any]:
    """The settings of a new study."""
    asked = (model, behaviour, Settings(), Execution(), [3] * len(behaviour), ["ledger"], {})
    several = any_several(model.tokenizer, behaviour.prompts)
    settings: dict[str, Any] = new_manifest(*asked, several=several)["settings"]
    return settings


def test_a_study_finds_the_circuit_of_whole_answers(
    toy: Callable[..., Model], tmp_path: Path
) -> None:
    model = toy(n_layer=1, n_head=2, n_embd=16)
    behaviour = Behaviour("pairs", prompts=PAIRS, answers="given")
    quick = Choices(random_circuits=1, exact_edges=3, replicates=0, faithful=0.5)
    asked = partial(study, model, behaviour, only=["predictions", "circuit"])
    found = asked(out=tmp_path / "a", settings=Settings(search=Search(quick, family="given")))
    about = found.manifest["circuit_about"]
    assert (about["metric_name"], about["unit"]) == (WHOLE, "nats")
    whole = whole_answers(model, PAIRS).value.values
    assert about["mean_clean"] == pytest.approx(whole.mean(), abs=1e-4)
    assert about["n_found_on"] == len(PAIRS)
    with pytest.raises(MeasureError, match="of the next token alone"):
        asked(out=tmp_path / "b", settings=Settings(search=Search(quick, "kl", "given")))
    with pytest.raises(MeasureError, match="answers of several tokens in pairs"):
        behaviour_half(model, behaviour)


def test_another_scoring_is_refused_and_read_as_no_other(toy_model: Model, tmp_path: Path) -> None:
    says = r"scoring 'avg'.*sum, mean, first"
    settings = Settings()
    object.__setattr__(settings, "scoring", "avg")  # past the annotation that the suite checks
    with pytest.raises(StudyError, match=says):
        study(
            toy_model,
            Behaviour("pairs", prompts=PAIRS, answers="given"),
            out=tmp_path / "s",
            settings=settings,
        )
    unchecked: Any = inspect.unwrap(steps_of)
    with pytest.raises(BehaviourError, match=says):
        unchecked(toy_model.tokenizer, PAIRS[0], "avg")


def test_the_report_says_what_is_compared(found: Study) -> None:
    page = Path(found.report()).read_text("utf-8")
    assert "some answers have several tokens" in page
    assert "the whole answer against the whole counterpart" in page


def test_the_report_calls_no_difference_of_log_probabilities_a_logit_difference(
    found: Study,
) -> None:
    page = Path(found.report()).read_text("utf-8")
    assert "The difference of every prompt" in page
    assert "The logit difference of every prompt" not in page
    assert "the residual stream where the answers’ tokens are predicted" in page
    assert "The dashed line is the difference itself" in page
    assert "and the entropy term." in page, "what the lens lacks at the end"
    assert "other biases" not in page
    assert re.search(r"the entropy term (gives|<b>)", page)


def test_the_report_opens_each_place_of_an_answer(found: Study, toy_model: Model) -> None:
    page = Path(found.report()).read_text("utf-8")
    steps = whole_answers(toy_model, PROMPTS).steps.rows()
    for i in range(len(PROMPTS)):
        mine = [row for row in steps if row["prompt"] == i]
        several = i != 1  # the second prompt's answers are single tokens
        links = set(re.findall(rf'class="tok" href="#(answer-{i}-\d+)"', page))
        assert links == ({f"answer-{i}-{n}" for n in range(len(mine))} if several else set())
        assert all(f'<section class="account" id="{link}"' in page for link in links)
        assert (f'id="answer-{i}-sum"' in page) == several
    terms = found.tables[names.STEP_TERMS].rows()
    by_step = {(row["prompt"], row["step"]): row["total"] for row in terms}
    for (prompt, step), total in by_step.items():
        own = [row["value"] for row in terms if (row["prompt"], row["step"]) == (prompt, step)]
        assert sum(own) == pytest.approx(total, abs=1e-4), "every place's ledger closes"


READ = (
    Prompt("It was late. She went home.", " He slept", " he", readout=-3),
    Prompt("He slept.", " It", " it"),
)


def test_the_explorer_reads_stored_prompts_as_the_study_did(
    toy_model: Model, tmp_path: Path
) -> None:
    behaviour = Behaviour("read", prompts=READ, answers="given")
    study(toy_model, behaviour, out=tmp_path / "s", only=["predictions", "ledger"])
    first, second = asked_of(tmp_path / "s", toy_model)
    ids = toy_model.tokenizer.ids(READ[0].text)
    place = len(ids) - 3 + toy_model.tokenizer.prepend_bos
    assert first["readout"] == str(place)
    assert (first["answer"], first["counterpart"]) == (" He slept", " he")
    assert "readout" not in second

    table = tmp_path / "s" / "tables" / f"{names.PROMPTS}.parquet"
    pl.read_parquet(table).drop("readout").write_parquet(table)  # as stored before
    (tmp_path / "s" / "tables" / f"{names.ANSWER_TOKENS}.parquet").unlink()
    first, _ = asked_of(tmp_path / "s", toy_model)
    assert first["answer"] == " He"
    assert "readout" not in first
    assert "answer-0-sum" not in Path(open_study(tmp_path / "s").report()).read_text("utf-8")


def asked_of(folder: Path, model: Model) -> list[dict[str, str]]:
    """What the explorer's page asks for each of a study's prompts."""
    prompts = study_prompts_of(folder).written_by(model.tokenizer).prompts
    return [dict(parse_qsl(query, keep_blank_values=True)) for _, query in prompts]


def test_a_strict_study_leaves_out_what_joining_changes(toy_model: Model, tmp_path: Path) -> None:
    joined = Prompt("It was late, hello wor", "ld was", " was")
    behaviour = Behaviour("joined", prompts=(*READ, joined), answers="given")
    model = toy_model.with_strict_tokens()
    found = study(model, behaviour, out=tmp_path / "s", only=["predictions"])
    assert found.manifest["settings"]["strict_tokens"] is True
    *_, why = found.tables[names.PROMPTS].columns["error"]
    assert "changes the prompt's own tokens" in why
    assert study_prompts_of(tmp_path / "s").strict
    with pytest.raises(StudyError, match="strict_tokens"):
        study(toy_model, behaviour, out=tmp_path / "s", only=["predictions"])
    with pytest.raises(TokenError, match="changes the prompt's own tokens"):
        whole_answers(model, joined)
    assert load("tiny", strict_tokens=True).tokenizer.strict
