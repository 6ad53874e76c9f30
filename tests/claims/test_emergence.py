"""When does a behaviour emerge: which checkpoints, whose answers, and from when on."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import casestudy as cs
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.claims.emergence import Emergence, checkpoints, emergence, since
from casestudy.engine.packing import Progress
from casestudy.errors import ModelError, StudyError
from casestudy.results.result import Axis, Grid
from casestudy.study.measuring import State
from tests.helpers import call, write_gpt2

pytestmark = pytest.mark.slow

SHAPE = {"n_layer": 1, "n_embd": 16, "n_head": 2}
TEXTS = ("It was late.", "He ran home.", "No one knew.")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three checkpoints."""
    folder = tmp_path_factory.mktemp("steps")
    for seed, step in enumerate((64, 512, 1000)):
        write_gpt2(folder / f"step{step}", seed=seed, **SHAPE)
    return folder


def behaviour() -> Behaviour:
    return Behaviour("test", "Why?", tuple(map(Prompt, TEXTS)))


@pytest.fixture(scope="module")
def of_last(steps: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Emergence]:
    """The last checkpoint's answers, asked of all; and where the studies are."""
    folder = tmp_path_factory.mktemp("last")
    return folder, emergence(str(steps), behaviour(), out=folder)


@pytest.fixture(scope="module")
def of_own(steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Emergence:
    """Each checkpoint's own answers."""
    folder = tmp_path_factory.mktemp("own")
    return emergence(str(steps), behaviour(), out=folder, answers="own")


def test_a_folder_of_checkpoints_is_taken_in_the_order_of_its_numbers(steps: Path) -> None:
    found = checkpoints([str(steps)])
    assert [one.label for one in found] == ["step64", "step512", "step1000"]
    assert [one.model for one in found] == [str(steps / one.label) for one in found]
    some = checkpoints([str(steps)], ["step1000", "step64"])
    assert [one.label for one in some] == ["step1000", "step64"]


def test_revisions_and_several_models_are_named() -> None:
    found = checkpoints(["EleutherAI/pythia-70m"], ["step1", "step2"])
    assert [one.model for one in found] == [
        "EleutherAI/pythia-70m@step1",
        "EleutherAI/pythia-70m@step2",
    ]
    assert [one.label for one in checkpoints(["org/a", "org/b"])] == ["a", "b"]
    assert [one.label for one in checkpoints(["x/a", "y/a"])] == ["x/a", "y/a"]


def test_what_is_no_row_of_checkpoints_is_refused(steps: Path) -> None:
    with pytest.raises(ModelError, match=r"no checkpoint step7\. Allowed: step64, step512"):
        checkpoints([str(steps)], ["step64", "step7"])
    with pytest.raises(ModelError, match="2 models with revisions"):
        checkpoints(["a", "b"], ["step1", "step2"])
    for models, revisions in ((["gpt2"], []), (["gpt2"], ["r", "r"]), ([], [])):
        with pytest.raises(ModelError, match="two or more, each once"):
            checkpoints(models, revisions)


def test_every_checkpoint_is_asked_for_the_lasts_answers(
    of_last: tuple[Path, Emergence], of_own: Emergence
) -> None:
    found = of_last[1]
    asked = [study.store.columns("answers", ["prompt", "form", "token"]) for study in found.studies]
    assert asked[0].rows() == asked[1].rows() == asked[2].rows()
    chosen = [
        study.store.columns("answers", ["prompt", "form", "token"]) for study in of_own.studies
    ]
    assert chosen[2].rows() == asked[2].rows()
    assert chosen[0].rows() != asked[0].rows()
    np.testing.assert_array_equal(of_own.contrasts.values[:, -1], found.contrasts.values[:, -1])


def test_the_curves_are_the_studies_own_means(of_own: Emergence) -> None:
    found = of_own
    assert found.contrasts.axes[-1].labels == ("step64", "step512", "step1000")
    for i, study in enumerate(found.studies):
        mean = study.grids["logit_difference.mean"]
        for part in ("values", "lower", "upper", "n"):
            mine = getattr(found.contrasts, part)[:, i]
            np.testing.assert_array_equal(mine, getattr(mean, part))
        answers = study.store.columns("answers", ["form", "rank"])
        ranks = answers.filter(answers["form"] == "answer")["rank"].to_numpy()
        assert found.answers["rank"].values[i] == pytest.approx(ranks.mean() + 1)
        assert found.answers["top-1"].values[i] == pytest.approx((ranks == 0).mean())
        assert found.class_mass is not None
        assert found.class_mass.values[:, i].sum() == pytest.approx(1)


def test_a_stopped_run_goes_on(steps: Path, of_last: tuple[Path, Emergence]) -> None:
    folder, first = of_last
    told: list[tuple[str, int, int]] = []

    def tell(name: str, state: Progress) -> None:
        if isinstance(state, State):
            told.append((name, state.found, state.total))

    again = emergence(
        str(steps),
        behaviour(),
        out=folder,
        progress=tell,
    )
    assert told == [(name, 3, 3) for name in ("step1000", "step64", "step512", "step1000")]
    np.testing.assert_array_equal(again.contrasts.values, first.contrasts.values)


@pytest.mark.parametrize(
    ("ends", "label"),
    [
        ([(-1, 1), (0.1, 2), (1, 2)], "b"),
        ([(0.1, 2), (-1, 1), (1, 2)], "c"),  # once is not for good
        ([(-2, -1), (1, 2), (1, 2)], "b"),  # nor is the other side
        ([(1, 2), (1, 2), (-1, 1)], None),
        ([(1, 2), (np.nan, np.nan), (1, 2)], "c"),  # nothing is known of one prompt
        ([(-3, -2), (-2, -1), (-2, -1)], "a"),
    ],
)
def test_since_when(ends: list[tuple[float, float]], label: str | None) -> None:
    low, high = np.array(ends).T
    grid = Grid("g", (low + high) / 2, (Axis("checkpoint", ("a", "b", "c")),), "logits", low, high)
    assert since(grid) == label


def test_prompts_without_an_answer_at_the_end_are_left_out(steps: Path, tmp_path: Path) -> None:
    prompts = (Prompt(TEXTS[0]), Prompt(TEXTS[1], answer="no such single token at all"))
    asked = Behaviour("test", "Why?", prompts)
    found = emergence(str(steps), asked, out=tmp_path / "some")
    assert found.studies[0].manifest["behaviour"]["n_prompts"] == 1
    assert "1 prompts to which the last checkpoint has no answer" in str(found.studies[0].manifest)
    with pytest.raises(StudyError, match="no answer to any headline prompt"):
        emergence(str(steps), Behaviour("t", "?", prompts[1:]), out=tmp_path / "none")
    with pytest.raises(StudyError, match="predictions, and others beside them"):
        emergence(str(steps), asked, out=tmp_path / "x", only=("ledger",))


def test_revisions_of_a_cached_model_in_one_command(
    steps: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The hub's cache as huggingface_hub lays it out, without a network."""
    base = tmp_path / "hub" / "models--EleutherAI--pythia-70m"
    (base / "refs").mkdir(parents=True)
    for path in steps.iterdir():
        (base / "refs" / path.name).write_text(f"hash-of-{path.name}")
        (base / "snapshots").mkdir(exist_ok=True)
        (base / "snapshots" / f"hash-of-{path.name}").symlink_to(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cs.write_behaviour(behaviour(), tmp_path / "asked.toml")
    arguments = ["compare", str(tmp_path / "asked.toml"), "--model", "EleutherAI/pythia-70m"]
    arguments += ["--revisions", "step64,step1000", "--out", str(tmp_path / "out")]
    status, out, err = call(capsys, *arguments, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert [one["checkpoint"] for one in found["checkpoints"]] == ["step64", "step1000"]
    first = found["checkpoints"][0]
    assert first["model"] == "EleutherAI/pythia-70m@step64"
    assert first["contrasts"]["lowercase"]["n"] == 3
    assert first["answer"].keys() == {"rank", "top-1", "probability"}

    figure = tmp_path / "figure.html"
    status, out, err = call(capsys, *arguments, "--figure", str(figure))
    assert status == 0, err
    assert re.search(r"step64 +-?\d+\.\d{3} ", out)
    assert max(map(len, out.splitlines())) <= 80
    assert "<script src" not in figure.read_text(encoding="utf-8")

    status, out, err = call(capsys, *arguments[:4], "--revisions", "step64,step7", *arguments[6:])
    assert (status, out) == (2, "")
    assert "pythia-70m@step7 is not in the local cache" in " ".join(err.split())
    status, _, err = call(capsys, *arguments, "--answers", "best")
    assert status == 2
    assert "Allowed: last, own" in err


def test_two_checkpoints_of_the_same_weights_are_said_to_be_one(tmp_path: Path) -> None:
    for step, seed in (("step1", 0), ("step2", 1), ("step3", 0)):
        write_gpt2(tmp_path / "steps" / step, seed=seed, **SHAPE)
    found = emergence(str(tmp_path / "steps"), behaviour(), out=tmp_path / "out", answers="own")
    (same,) = found.same_weights
    assert same.startswith("step1 and step3 are one model")
    assert found.as_dict()["same_weights"] == [same]
