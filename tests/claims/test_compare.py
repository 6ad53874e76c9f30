"""Two studies side by side: what is the same, what differs, and what only one of them has."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casestudy as cs
import casestudy.study.join as joining
from casestudy.behaviour.classes import STANDARD, ClassContrast, TokenClass
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.claims.compare import Comparison, compare
from casestudy.errors import StudyError
from casestudy.model.model import Model
from casestudy.results.stats import Sums, difference_interval, mean_interval
from casestudy.study.store import Store
from casestudy.study.study import Study
from tests.helpers import call

pytestmark = pytest.mark.slow

WORDS = ("late", "cold", "warm", "dark", "true", "new", "old", "good", "bad", "hot", "wet", "dry")
TEXTS = tuple(f"It was {word}. She went home." for word in WORDS)
ONLY = ("predictions", "class_mass", "ledger", "attribution")
MASS = ClassContrast("capital mass", "space+Capital", "space+lower")


def behaviour(texts: tuple[str, ...] = TEXTS, *, documents: int = 0, **options: Any) -> Behaviour:
    prompts = tuple(
        Prompt(
            text,
            answer=" He",
            counterpart=" he",
            document=f"book {i % documents}" if documents else "",
        )
        for i, text in enumerate(texts)
    )
    return Behaviour("test", "Why?", prompts, answers="given", **options)


def ran(model: Model, of: Behaviour, out: Path, only: tuple[str, ...] | None = ONLY) -> Study:
    return cs.study(of, model, out=out, only=only)


def row(found: Comparison, measurement: str, **where: str) -> dict[str, Any]:
    (one,) = (r for r in found.of(measurement) if all(r[k] == v for k, v in where.items()))
    return one


@pytest.fixture(scope="module")
def studies(
    toy: Callable[..., Model], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Study, Study]:
    """One behaviour on two checkpoints; the second study has its prompts in another order."""
    folder = tmp_path_factory.mktemp("compared")
    first = ran(toy(), behaviour(class_contrast=MASS), folder / "a")
    turned = behaviour(TEXTS[::-1], class_contrast=MASS)
    return first, ran(toy(seed=1), turned, folder / "b")


def test_a_study_does_not_differ_from_itself(studies: tuple[Study, Study]) -> None:
    found = compare(studies[0], studies[0].store.folder)
    assert found.differs.rows() == found.absent.rows() == []
    for one in found.rows.rows():
        assert (one["difference"], one["clear"], one["size"]) == (0, False, 0), one
    # two tables keep means without their prompts, so that theirs are two samples
    paired = [r for r in found.rows.rows() if r["measurement"] != "attribution.neuron"]
    assert {(r["lower"], r["upper"]) for r in paired} == {(0.0, 0.0)}


def test_the_same_prompts_are_paired_by_their_text(studies: tuple[Study, Study]) -> None:
    found = compare(*studies)
    assert found.paired
    assert found.prompts == {"both": 12, "a": 0, "b": 0}
    a, b = (study.grids["logit_difference"].select(contrast="counterpart") for study in studies)
    each = b.values[::-1] - a.values
    mean, lower, upper, n = mean_interval(each[:, None].astype(float))
    one = row(found, "logit_difference", contrast="counterpart")
    assert one["difference"] == pytest.approx(mean[0])
    assert (one["lower"], one["upper"]) == pytest.approx((lower[0], upper[0]))
    assert (one["a_n"], one["b_n"]) == (n[0], n[0])
    assert (one["a"], one["b"]) == pytest.approx((a.values.mean(), b.values.mean()))
    own = studies[0].grids["logit_difference.mean"].select(contrast="counterpart")
    assert own.lower is not None
    assert one["a_lower"] == pytest.approx(float(own.lower))


def test_what_differs_most_comes_first(studies: tuple[Study, Study]) -> None:
    rows = compare(*studies).rows.rows()
    order = [(not r["clear"], -r["size"]) for r in rows]
    assert order == sorted(order)
    terms = [r for r in rows if r["measurement"] == "ledger"]
    largest = max(abs(r[side]) for r in terms for side in "ab")
    for one in terms:
        assert one["size"] == pytest.approx(abs(one["difference"]) / largest)


def test_the_manifests_differences_are_listed(studies: tuple[Study, Study]) -> None:
    found = compare(*studies)
    differs = {r["what"]: (r["a"], r["b"]) for r in found.differs.rows()}
    assert {"model.weight_hash", "behaviour.hash"} <= differs.keys()
    assert "settings.top_k" not in differs
    assert any("checkpoints of one model" in note for note in found.notes)


def test_other_prompts_are_two_samples(toy_model: Model, tmp_path: Path) -> None:
    one = ran(toy_model, behaviour(TEXTS[:5]), tmp_path / "a", ("predictions",))
    other = ran(toy_model, behaviour(TEXTS[5:]), tmp_path / "b", ("predictions",))
    found = compare(one, other)
    assert not found.paired
    assert found.prompts == {"both": 0, "a": 5, "b": 7}
    sides = [study.grids["logit_difference"].values[0].astype(float) for study in (one, other)]
    error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in sides))
    difference = sides[1].mean() - sides[0].mean()
    result = row(found, "logit_difference")
    assert result["difference"] == pytest.approx(difference)
    assert result["upper"] == pytest.approx(difference + 2.776 * error)
    with pytest.raises(StudyError, match="no prompt is in both"):
        compare(one, other, paired=True)


def test_only_prompts_that_both_have_are_paired(toy: Callable[..., Model], tmp_path: Path) -> None:
    one = ran(toy(), behaviour(TEXTS[:8]), tmp_path / "a", ("predictions",))
    other = ran(toy(seed=1), behaviour(TEXTS[2:]), tmp_path / "b", ("predictions",))
    found = compare(one, other)
    assert found.paired
    assert found.prompts == {"both": 6, "a": 2, "b": 4}
    a, b = (study.grids["logit_difference"].values[0] for study in (one, other))
    assert row(found, "logit_difference")["difference"] == pytest.approx((b[:6] - a[2:]).mean())
    # the overlap is kept in mind where they are two samples, too, but every prompt counts
    unpaired = row(compare(one, other, paired=False), "logit_difference")
    assert (unpaired["a_n"], unpaired["b_n"]) == (8, 10)
    assert unpaired["difference"] == pytest.approx(b.mean() - a.mean())


def test_documents_are_resampled_where_they_are_known(
    toy: Callable[..., Model], tmp_path: Path
) -> None:
    of = behaviour(documents=3)
    folders = [tmp_path / "a", tmp_path / "b"]
    one, other = (
        ran(toy(seed=i), of, folder, ("predictions",)) for i, folder in enumerate(folders)
    )
    made = []
    for study in (one, other):
        sums = Sums(3, 1)
        sums.add(study.grids["logit_difference"].values[0][:, None], np.arange(12) % 3)
        made.append(sums)
    difference, lower, upper = difference_interval(*made)
    found = row(compare(one, other), "logit_difference")
    assert (found["difference"], found["lower"], found["upper"]) == pytest.approx(
        (difference[0], lower[0], upper[0])
    )


def test_what_only_one_has_is_named_and_never_zero(
    studies: tuple[Study, Study], toy: Callable[..., Model], tmp_path: Path
) -> None:
    less = ran(toy(seed=1), behaviour(), tmp_path / "less", ("predictions", "ledger"))
    found = compare(studies[0], less)
    absent = {r["what"]: r["only_in"] for r in found.absent.rows()}
    assert absent["class_mass"] == absent["attribution.head"] == "a"
    assert "class_mass" not in found.rows.columns["measurement"]
    # the class contrast is no contrast of the other, and neither is its entropy term
    named = {r["what"]: r["why"] for r in found.absent.rows() if r["what"].startswith("ledger")}
    assert named["ledger: contrast capital mass"] == "the classes are defined otherwise"


def test_classes_of_another_definition_are_not_compared(
    studies: tuple[Study, Study], toy_model: Model, tmp_path: Path
) -> None:
    classes = STANDARD.extend(TokenClass("pronoun", r" (?:He|She)\Z"), name="with pronouns")
    of = behaviour(class_contrast=MASS, classes=classes)
    found = compare(studies[0], ran(toy_model, of, tmp_path / "b", ("predictions", "class_mass")))
    why = {r["what"]: r["why"] for r in found.absent.rows()}
    assert why["class_mass"] == "the classes are defined otherwise"
    assert why["logit_difference: contrast capital mass"] == "the classes are defined otherwise"
    assert {r["contrast"] for r in found.of("logit_difference")} == {"counterpart"}


def test_layers_of_another_model_are_not_compared(
    studies: tuple[Study, Study], toy: Callable[..., Model], tmp_path: Path
) -> None:
    deeper = ran(toy(n_layer=3), behaviour(class_contrast=MASS), tmp_path / "b")
    found = compare(studies[0], deeper)
    why = {r["what"]: r["why"] for r in found.absent.rows()}
    assert why["attribution.head"] == "the models have other layers or heads"
    cells = {r["cell"] for r in found.of("ledger")}
    assert "embed" in cells
    assert not any(cell.startswith(("attn", "mlp")) for cell in cells)
    assert found.of("class_mass")


def test_patches_are_compared_as_shares_and_as_logits(toy_model: Model, tmp_path: Path) -> None:
    study = ran(toy_model, behaviour(TEXTS[:3]), tmp_path / "a", ("predictions", "patching"))
    found = compare(study, study)
    for name in ("patching.resid_pre.role", "patching.resid_pre.role.effect"):
        stored = study.grids[name]
        assert len(found.of(name)) == (stored.n > 0).sum()
        for one in found.of(name):
            layer, role = one["cell"].removeprefix("layer ").split(", ")
            own = stored.select(layer=layer, role=role)
            assert own.lower is not None
            assert one["a"] == pytest.approx(float(own.values), abs=1e-9)
            assert one["a_lower"] == pytest.approx(float(own.lower), abs=1e-9)

    # of other edits, or none that the manifest names, they are not compared
    other = Store.open(shutil.copytree(tmp_path / "a", tmp_path / "b"))
    name = "patching.resid_pre.role"
    for family, why in (("all lowered", "other edits: “"), (None, "is not in the manifest")):
        other.manifest["patch_families"][name] = family
        absent = {r["what"]: r["why"] for r in compare(study, other).absent.rows()}
        assert why in absent[name]
        assert why in absent[f"{name}.effect"]


def test_too_much_to_join_is_compared_from_the_shards(
    studies: tuple[Study, Study],
    toy: Callable[..., Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined = compare(*studies)
    monkeypatch.setattr(joining, "JOINED_CELLS", 0)
    parts = [
        ran(toy(seed=i), of, tmp_path / str(i))
        for i, of in enumerate(
            (behaviour(class_contrast=MASS), behaviour(TEXTS[::-1], class_contrast=MASS))
        )
    ]
    assert "ledger" not in parts[0].grids
    streamed = compare(*parts)
    key = ("measurement", "contrast", "cell")
    want = {tuple(r[k] for k in key): r for r in joined.rows.rows()}
    got = {tuple(r[k] for k in key): r for r in streamed.rows.rows()}
    assert got.keys() == want.keys()
    for cell, one in got.items():
        for part in ("a", "b", "difference", "lower", "upper"):
            assert one[part] == pytest.approx(want[cell][part], abs=1e-5), (cell, part)


def test_studies_of_other_questions_are_refused(
    studies: tuple[Study, Study], toy_model: Model, tmp_path: Path
) -> None:
    prompts = tuple(Prompt(text, answer=" He") for text in TEXTS[:3])
    other = ran(toy_model, Behaviour("o", "Why?", prompts), tmp_path / "o", ("predictions",))
    with pytest.raises(StudyError, match=r"share no contrast: counterpart.*lowercase"):
        compare(studies[0], other)
    masses = ran(toy_model, behaviour(), tmp_path / "m", ("class_mass",))
    ledger = ran(toy_model, behaviour(), tmp_path / "l", ("ledger",))
    with pytest.raises(StudyError, match="no measurement that can be compared"):
        compare(masses, ledger)


def test_an_unfinished_study_is_refused(studies: tuple[Study, Study], tmp_path: Path) -> None:
    manifest = json.loads((studies[0].store.folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    with pytest.raises(StudyError, match="is not finished"):
        compare(studies[0], tmp_path)


def test_the_command_prints_what_it_found(
    studies: tuple[Study, Study], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(study.store.folder) for study in studies]
    status, out, err = call(capsys, "compare", *folders, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["prompts"] == {"both": 12, "a": 0, "b": 0}
    assert found["rows"][0].keys() >= {
        "measurement",
        "cell",
        "a",
        "b",
        "difference",
        "lower",
        "n",
    } - {"n"}

    status, out, err = call(capsys, "compare", *folders, "--top", "3")
    assert status == 0, err
    assert "12 prompts in both" in out
    assert "logit_difference counterpart" in out
    assert "intervals leave out zero" in " ".join(out.split())
    without = sum(row["lower"] is None for row in found["rows"])
    assert (f"{without} differences have no interval" in " ".join(out.split())) == (without > 0)
    assert "checkpoints of one model" in " ".join(err.split())

    status, out, err = call(capsys, "compare", folders[0])
    assert (status, out) == (2, "")
    assert "1 study and no --model. Allowed: two studies' folders, or" in " ".join(err.split())


def test_rows_without_a_difference_are_counted_and_not_shown(
    studies: tuple[Study, Study], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(studies[0].store.folder)
    status, out, _ = call(capsys, "compare", folder, folder)
    assert status == 0
    assert re.search(r"^All \d+ other cells are equal in A and B", out, re.MULTILINE)
    assert "differs most" not in out
    assert "what differs" not in out


def test_rounding_is_no_difference_and_one_model_is_said_to_be_one(
    studies: tuple[Study, Study], toy: Callable[..., Model], tmp_path: Path
) -> None:
    turned = ran(toy(), behaviour(TEXTS[::-1], class_contrast=MASS), tmp_path / "turned")
    found = compare(studies[0], turned)
    assert not any(one["clear"] for one in found.rows.rows())
    assert found.notes[0].startswith("A and B are one model")
    assert compare(studies[0], studies[0].store.folder).notes[0].startswith("A and B are the same")
    assert "bit for bit" not in " ".join(compare(*studies).notes)
    wide = ran(toy(dtype="float64"), behaviour(class_contrast=MASS), tmp_path / "wide")
    said = compare(studies[0], wide).notes[0]
    assert said.startswith("A and B were read from one place")
    assert "as float32 and as float64" in said
    assert not any("read from one place" in note for note in compare(*studies).notes)
