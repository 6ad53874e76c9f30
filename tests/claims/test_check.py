"""Findings: each number is what the measurement's own function gives, and each claim can fail."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casestudy as cs
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.claims import interventions
from casestudy.claims.check import Checked, Claim, Outcome, check, read_findings, verdict
from casestudy.claims.context import Unmeasurable, Values
from casestudy.claims.findings import KINDS
from casestudy.errors import FindingError
from casestudy.measure import patching
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.model.model import Model
from casestudy.results.stats import mean_interval
from tests.conftest import ROOT
from tests.helpers import call

EXAMPLE = ROOT / "docs" / "checks" / "full-stop-capitals.toml"
PAGE = ROOT / "docs" / "checking-explanations.md"
TEXTS = ("It was late. She went home.", "No one knew. He ran.", "So it was. They left us.")
PROMPTS = tuple(Prompt(text, groups=("odd",) if i % 2 else ()) for i, text in enumerate(TEXTS))
ASKED = Behaviour("test", "Why?", PROMPTS)
EDIT = "first letter lowered"


def checked(model: Model, *rows: dict[str, Any], of: Behaviour = ASKED) -> tuple[Outcome, ...]:
    """The outcomes of findings that claim little."""
    findings = [{"claim": "it is so", "at_least": -1e9} | row for row in rows]
    return check({"finding": findings}, model, behaviour=of).outcomes


def measured(model: Model, **row: Any) -> Outcome:
    (outcome,) = checked(model, row)
    assert outcome.verdict == "holds", outcome.why
    return outcome


@pytest.mark.slow
def test_the_bundled_explanation_holds() -> None:
    found = check(EXAMPLE)
    assert [one.claim for one in found.outcomes if one.verdict != "holds"] == []
    assert found.holds
    assert found.model == "tiny"


def test_the_page_knows_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"`{kind.measure}`" in page
        keys = {f.name.rstrip("_") for f in fields(kind)} - {"role", "position", "at"}  # type: ignore[arg-type]
        rows = [line for line in page.splitlines() if line.startswith(f"| `{kind.measure}`")]
        for key in keys - {"contrast", "of", "direction"}:
            assert any(f"`{key}`" in row for row in rows), (kind, key)
    example = page.split("```toml\n")[1].split("```")[0]
    inside = EXAMPLE.read_text(encoding="utf-8")
    assert example.split("[[finding]]")[1].strip() in inside


# The numbers


def test_parts_of_the_contrast_are_the_studys(toy_model: Model) -> None:
    difference = cs.logit_difference(toy_model, ASKED).select(contrast="lowercase").values
    found = measured(toy_model, measure="logit_difference")
    mean, lower, upper, n = (part[0] for part in mean_interval(difference[:, None]))
    assert (found.value, found.n, found.unit) == (pytest.approx(mean), n, "logits")
    assert (found.lower, found.upper) == (pytest.approx(lower), pytest.approx(upper))

    term = cs.ledger(toy_model, ASKED).select(contrast="lowercase", term="mlp 1").values
    share = measured(toy_model, measure="ledger", term="mlp 1", of="contrast")
    assert share.value == pytest.approx(term.mean() / difference.mean())
    assert share.unit == "share of the contrast (lowercase)"

    heads = cs.head_attribution(toy_model, ASKED).select(contrast="no_space", layer="1", head="3")
    head = measured(toy_model, measure="attribution", layer=1, head=3, contrast="no_space")
    assert head.value == pytest.approx(heads.values.mean())

    each = cs.neuron_attribution(toy_model, ASKED).select(contrast="lowercase", layer="0")
    neuron = measured(toy_model, measure="attribution", layer=0, neuron=7)
    assert neuron.value == pytest.approx(each.select(neuron="7").values.mean(), abs=1e-6)

    for norm in ("final", "own"):
        depth = cs.lens(toy_model, ASKED, norm=norm).select(contrast="lowercase", depth="1_mid")
        at = measured(toy_model, measure="lens", depth="1_mid", norm=norm)
        assert at.value == pytest.approx(depth.values.mean())


def test_predictions_and_masses_are_the_studys(toy_model: Model) -> None:
    masses = cs.class_mass(toy_model, ASKED).select(**{"class": "lower"}).values
    assert measured(toy_model, measure="class_mass", **{"class": "lower"}).value == pytest.approx(
        masses.mean()
    )
    for what in ("rank", "probability", "top-1"):
        scores = [
            cs.score_answer(toy_model, text, answer)
            for text, answer in zip(TEXTS, answers(toy_model)[0], strict=True)
        ]
        each = {
            "rank": [score.place for score in scores],
            "probability": [score.prob for score in scores],
            "top-1": [score.rank == 0 for score in scores],
        }
        found = measured(toy_model, measure="answer", what=what)
        assert found.value == pytest.approx(np.mean(each[what]))
    odd = measured(toy_model, measure="logit_difference", group="odd")
    assert odd.n == 1
    assert odd.lower is None


def test_attention_is_from_the_last_token_or_from_a_role(toy_model: Model) -> None:
    grid = cs.attention_by_role(toy_model, ASKED).select(layer="1", head="2", role="first word")
    last = measured(toy_model, measure="attention", layer=1, head=2, to="first word")
    assert last.value == pytest.approx(grid.values.mean(), abs=1e-6)
    # the final full stop is the last token here, so looking from it is the same
    role = {"from": "final full stop"}
    same = measured(toy_model, measure="attention", layer=1, head=2, to="first word", **role)
    assert same.value == pytest.approx(last.value, abs=1e-6)
    by_hand = []
    for text in TEXTS:
        pattern = cs.attention_pattern(toy_model, text).select(layer="1", head="2").values
        by_hand.append(pattern[1, 0])  # the first word is the first token after BOS
    found = measured(
        toy_model, measure="attention", layer=1, head=2, to="BOS", **{"from": "first word"}
    )
    assert found.value == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_patches_are_shares_of_the_difference(toy_model: Model) -> None:
    lowered = [text[0].lower() + text[1:] for text in TEXTS]
    contrast = cs.Contrast.between(toy_model, *answers(toy_model))
    pairs = patching.Pairs(*(toy_model.tokenize(list(side)) for side in (TEXTS, lowered)))
    for direction in ("denoising", "noising"):
        grid = patching.patch(toy_model, pairs, contrast, "z", direction=direction)
        where = {"site": "z", "layer": 1, "head": 2, "at": "all", "edit": EDIT}
        found = measured(toy_model, measure="patching", direction=direction, **where)
        expected = grid.normalised.select(layer="1", head="2")
        assert expected.lower is not None
        assert found.value == pytest.approx(float(expected.values), abs=1e-5)
        assert found.lower == pytest.approx(float(expected.lower), abs=1e-4)
        logits = measured(toy_model, measure="patching", direction=direction, of="logits", **where)
        effect = float(grid.effect.select(layer="1", head="2").values)
        assert logits.value == pytest.approx(effect, abs=1e-5)
        clean = contrast.value(cs.run(toy_model, list(TEXTS), logits="last").logits).mean()
        share = measured(toy_model, measure="patching", direction=direction, of="contrast", **where)
        assert share.value == pytest.approx(effect / float(clean), abs=1e-5)


@pytest.mark.parametrize("role", ["last token", "changed tokens"])
def test_a_pairs_own_roles_can_be_claimed_of_as_a_study_patches_them(
    toy_model: Model, role: str
) -> None:
    of = cs.Behaviour(
        prompts=tuple(
            Prompt(f"It was {word}.", " He", " he", corrupted=f"it was {word}.")
            for word in ("late", "old", "dark")
        ),
        answers="given",
    )
    place = {"measure": "patching", "edit": "given", "site": "attn_out", "layer": 1, "role": role}
    (outcome,) = checked(toy_model, place | {"at_least": -99.0}, of=of)
    found = patch_prompts(toy_model, of.prompts, "attn_out", by="role").normalised
    cell = found.select(layer="1", role=role)
    assert outcome.value == pytest.approx(float(cell.values), abs=1e-5)
    assert outcome.n == int(cell.n) == 3


def answers(model: Model) -> tuple[list[str], list[str]]:
    """The prompts' answers and their lower case."""
    logits = cs.run(model, list(TEXTS), logits="last").logits
    chosen = cs.choose_answers(model, PROMPTS, logits).chosen
    assert all(answer is not None for answer in chosen)
    return [a.text for a in chosen if a], [a.counterparts["lowercase"].label for a in chosen if a]


def test_what_is_whole_is_one_and_what_is_nothing_zero(toy_model: Model) -> None:
    nodes = ["m0", "m1", *(f"a{layer}.h{head}" for layer in range(2) for head in range(4))]
    circuit = {"measure": "circuit", "edit": EDIT}
    whole, rest, stream, neuron, same = checked(
        toy_model,
        circuit | {"nodes": nodes},
        circuit | {"nodes": nodes, "tested": "rest"},
        {"measure": "patching", "edit": EDIT, "site": "resid_pre", "layer": 0, "at": "all"},
        {"measure": "patching", "edit": EDIT, "layer": 0, "neuron": 3, "at": "all"},
        {"measure": "ablation", "site": "z", "layer": 1, "head": 0, "at": "last", "put_in": "mean",
         "group": "odd", "of": "contrast"},
    )  # fmt: skip
    assert whole.value == pytest.approx(1, abs=1e-5)
    assert rest.value == pytest.approx(0, abs=1e-5)
    assert stream.value == pytest.approx(1, abs=1e-4)
    assert neuron.value is not None
    assert abs(neuron.value) < 1
    assert same.value == pytest.approx(0, abs=1e-5)  # the mean of one prompt is its own


def test_ablation_is_the_change_it_makes(toy_model: Model) -> None:
    before = cs.run(toy_model, list(TEXTS), logits="last").logits
    edit = [cs.Edit.zero("z", 1, head=2)]
    after = cs.run(toy_model, list(TEXTS), edit=edit, logits="last").logits
    contrast = cs.Contrast.between(toy_model, *answers(toy_model))
    expected = (contrast.value(after) - contrast.value(before)).mean()
    found = measured(
        toy_model, measure="ablation", site="z", layer=1, head=2, at="all", put_in="zero"
    )
    assert found.value == pytest.approx(float(expected), abs=1e-5)


def test_a_share_of_all_prompts_leaves_doubt(toy_model: Model) -> None:
    asked = Behaviour("t", "?", tuple(Prompt(t, answer=" It", counterpart=" it") for t in TEXTS))
    (first,) = checked(toy_model, {"measure": "answer", "what": "top-1"}, of=asked)
    assert first.value == 0
    assert (first.lower, first.upper) == (0, pytest.approx(3.8415 / 6.8415, rel=1e-4))


def test_the_place_is_by_size_among_its_like(toy_model: Model) -> None:
    grid = cs.head_attribution(toy_model, ASKED).select(contrast="lowercase")
    means = np.abs(grid.values[:, :-1].mean(-1))  # without the biases
    order = np.argsort(-means.ravel())
    for place in (0, 5):
        layer, head = divmod(int(order[place]), 4)
        where = {"measure": "attribution", "layer": layer, "head": head}
        enough, short = checked(
            toy_model, where | {"among_first": place + 1}, where | {"among_first": max(place, 1)}
        )
        assert enough.place == short.place == (place + 1,)
        assert enough.verdict == "holds"
        assert short.verdict == ("holds" if place == 0 else "fails")


# The verdict


@pytest.mark.parametrize(
    ("claim", "mean", "ends", "place", "expected"),
    [
        (Claim(at_least=0.2), 0.2, (0.1, 0.3), None, "holds"),
        (Claim(at_least=0.2), 0.19, (0.1, 0.3), None, "fails"),
        (Claim(at_least=0.2, confidently=True), 0.25, (0.1, 0.4), None, "fails"),
        (Claim(at_least=0.2, confidently=True), 0.25, (0.2, 0.4), None, "holds"),
        (Claim(at_least=0.2, confidently=True), 0.25, None, None, "not measurable"),
        (Claim(at_most=0.2, confidently=True), 0.1, (0.0, 0.21), None, "fails"),
        (Claim(at_least=0.0, at_most=1.0), 1.1, None, None, "fails"),
        (Claim(sign="positive"), 0.0, None, None, "fails"),
        (Claim(sign="negative"), -0.1, None, None, "holds"),
        (Claim(sign="negative", confidently=True), -0.1, (-0.3, 0.1), None, "fails"),
        (Claim(among_first=3), 0.1, None, (3, 1, 7), "holds"),
        (Claim(among_first=3, confidently=True), 0.1, (0.0, 1.0), (3, 1, 7), "fails"),
        (Claim(among_first=3, confidently=True), 0.1, (0.0, 1.0), (2, 1, 3), "holds"),
        (Claim(among_first=3, confidently=True), 0.1, (0.0, 1.0), (2,), "not measurable"),
        (Claim(at_least=0.2, among_first=3), 0.1, None, (2,), "fails"),
    ],
)
def test_each_claim_can_fail(
    claim: Claim,
    mean: float,
    ends: tuple[float, float] | None,
    place: tuple[int, ...] | None,
    expected: str,
) -> None:
    assert verdict(claim, mean, ends, place)[0] == expected


def test_what_the_prompts_say_nothing_about_is_no_pass(toy_model: Model) -> None:
    short = Behaviour("t", "?", (Prompt("Go."),))
    place = {"layer": 0, "site": "resid_pre", "measure": "patching"}
    rows: tuple[dict[str, Any], ...] = (
        place | {"edit": "year changed", "at": "all"},
        place | {"edit": "given", "at": "all"},
        place | {"edit": "final stop to comma", "role": "earlier full stops"},
        {"measure": "attention", "layer": 0, "head": 0, "to": "earlier full stops"},
        {"measure": "logit_difference", "confidently": True},
    )
    outcomes = checked(toy_model, *rows, of=short)
    assert {one.verdict for one in outcomes} == {"not measurable"}
    assert [one.why.split(":")[0] for one in outcomes] == [
        "no pair of the edit 'year changed' fits",
        "no prompt brings a corrupted partner",
        "no prompt has the role earlier full stops",
        "no prompt has it",
        "one prompt or document has no interval",
    ]
    assert not Checked("m", "b", outcomes).holds


def test_a_share_of_nothing_is_no_number() -> None:
    values = Values(np.array([[1.0], [2.0]]), 0, (0, 1), "logits")
    assert values.as_share(np.array([1.0, 3.0]), "share").cells.mean() == pytest.approx(0.75)
    with pytest.raises(Unmeasurable, match="what it would be a share of is zero"):
        values.as_share(np.array([1.0, -1.0]), "share")


# The file

HEAD = {"measure": "attribution", "layer": 1, "head": 2}
PATCH = {"measure": "patching", "edit": EDIT, "site": "z", "layer": 0, "head": 1, "at": "all"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"measure": "ledgers", "term": "embed"}, "Did you mean 'ledger'"),
        ({"term": "embed"}, "a finding without its measure"),
        ({"measure": "ledger"}, "ledger without term. Allowed: term"),
        ({"measure": "attribution", "layer": 1}, "Allowed: head, layer or layer, neuron"),
        (HEAD | {"heads": 2}, "Did you mean 'head'"),
        (HEAD | {"head": "2"}, "head is '2'. Allowed: a whole number"),
        (HEAD | {"head": 4}, "head 4, of a model with 4. Allowed: 0 to 3"),
        (HEAD | {"layer": 2}, "layer 2, of a model with 2. Allowed: 0 to 1"),
        (HEAD | {"of": "everything"}, "of 'everything'. Allowed: logits, contrast"),
        (HEAD | {"contrast": "lower"}, "Allowed: lowercase, no_space"),
        (HEAD | {"group": "even"}, "group 'even'. Allowed: odd"),
        (HEAD | {"at_least": "much"}, "at_least is 'much'. Allowed: a number"),
        (HEAD | {"between": [1]}, "between is [1]. Allowed: [low, high]"),
        (HEAD | {"between": [2, 1], "at_least": None}, "Allowed: low before high"),
        (HEAD | {"sign": "up"}, "Allowed: positive, negative"),
        (HEAD | {"among_first": 0}, "among_first is 0"),
        (HEAD | {"confidently": "yes"}, "Allowed: true or false"),
        (HEAD | {"at_least": None}, "nothing is claimed of the number"),
        ({"measure": "ledger", "term": "mlp 2"}, "term 'mlp 2'. Allowed: embed"),
        ({"measure": "class_mass", "class": "upper"}, "class 'upper'"),
        ({"measure": "answer", "what": "top1"}, "Did you mean 'top-1'"),
        ({"measure": "attention", "layer": 0, "head": 0, "to": "full stop"}, "'final full stop'"),
        ({"measure": "attention", "layer": 0, "head": 0, "to": "BOS", "from": "x"}, "role 'x'"),
        ({"measure": "attribution", "layer": 0, "neuron": 128}, "neuron 128, of a model with 128"),
        ({"measure": "flips", "edit": "first letters lowered"}, f"Did you mean {EDIT!r}"),
        (PATCH | {"site": "attn"}, "no site is called 'attn'"),
        (PATCH | {"site": "attn_scores"}, "site 'attn_scores'"),
        (PATCH | {"site": "mlp_out"}, "mlp_out with a head"),
        (PATCH | {"site": "embed"}, "embed with a layer"),
        (PATCH | {"role": "first word"}, "not exactly one place in the prompt"),
        (PATCH | {"at": "start"}, "at 'start'. Allowed: last, all"),
        (PATCH | {"direction": "up"}, "Allowed: denoising, noising"),
        (PATCH | {"neuron": 1}, "a neuron with a site or a head"),
        ({"measure": "flips", "edit": EDIT, "among_first": 1}, "a number that stands alone"),
        (
            {"measure": "patching", "edit": EDIT, "layer": 0, "neuron": 1, "at": "all"}
            | {"among_first": 1},
            "a number that stands alone",
        ),
        ({"measure": "circuit", "edit": EDIT}, "a circuit without edges or nodes"),
        ({"measure": "circuit", "edit": EDIT, "nodes": ["a9.h9"]}, "no node 'a9.h9'"),
        ({"measure": "circuit", "edit": EDIT, "edges": ["m0->m0"]}, "no edge 'm0->m0'"),
        ({"measure": "circuit", "edit": EDIT, "edges": "m0"}, "Allowed: a list of texts"),
    ],
)
def test_findings_about_nothing_are_refused(
    toy_model: Model, row: dict[str, Any], says: str
) -> None:
    finding = {k: v for k, v in ({"claim": "so", "at_least": 0.0} | row).items() if v is not None}
    with pytest.raises(FindingError) as error:
        check({"finding": [finding]}, toy_model, behaviour=ASKED)
    assert says in str(error.value)
    assert "“so”" in str(error.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (HEAD | {"head": 4}, "head 4, of a model with 4"),
        (HEAD | {"layer": 2}, "layer 2, of a model with 2"),
        (HEAD | {"contrast": "lower"}, "contrast 'lower'"),
        (HEAD | {"group": "even"}, "group 'even'. Allowed: odd"),
        ({"measure": "ledger", "term": "mlp 2"}, "term 'mlp 2'"),
        ({"measure": "class_mass", "class": "upper"}, "class 'upper'"),
        ({"measure": "attention", "layer": 0, "head": 0, "to": "full stop"}, "'final full stop'"),
        ({"measure": "attention", "layer": 0, "head": 0, "to": "BOS", "from": "x"}, "role 'x'"),
        ({"measure": "attribution", "layer": 0, "neuron": 128}, "neuron 128, of a model with 128"),
        (PATCH | {"layer": 9}, "layer 9, of a model with 2"),
        ({"measure": "circuit", "edit": EDIT, "nodes": ["a9.h9"]}, "no node 'a9.h9'"),
    ],
)
def test_a_finding_that_does_not_apply_is_not_measurable_and_costs_no_other(
    toy_model: Model, row: dict[str, Any], says: str
) -> None:
    before, here, after = checked(toy_model, {"measure": "logit_difference"}, row, HEAD)
    assert here.verdict == "not measurable"
    assert says in here.why
    assert here.value is None
    alone = checked(toy_model, {"measure": "logit_difference"}, HEAD)
    # beyond rounding (law 3): what is kept decides how the last layer is computed
    values = [one.value for one in alone]
    assert [before.value, after.value] == pytest.approx(values, rel=1e-5), "as without it"
    assert [before.verdict, after.verdict] == ["holds", "holds"]
    assert not Checked("m", "b", (before, here, after)).holds


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (HEAD | {"heads": 2}, "Did you mean 'head'"),
        (HEAD | {"layer": -1}, "layer -1. Allowed: 0 and more"),
        (HEAD | {"of": "everything"}, "of 'everything'"),
        ({"measure": "answer", "what": "top1"}, "Did you mean 'top-1'"),
        ({"measure": "flips", "edit": "first letters lowered"}, f"Did you mean {EDIT!r}"),
        (PATCH | {"site": "attn"}, "no site is called 'attn'"),
        (PATCH | {"role": "first word"}, "not exactly one place in the prompt"),
        ({"measure": "flips", "edit": EDIT, "among_first": 1}, "a number that stands alone"),
    ],
)
def test_a_malformed_finding_is_refused_before_any_sweep_whatever_stands_beside_it(
    toy_model: Model, row: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interventions, "patch", lambda *_, **__: pytest.fail("swept"))
    absent = HEAD | {"layer": 2}
    with pytest.raises(FindingError) as error:
        checked(toy_model, PATCH, absent, row)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("finding = 3", "no finding"),
        ("", "no finding"),
        ("modle = 'tiny'", "Did you mean 'model'"),
        ("[[finding]]\nmeasure = 'lens'", "finding 1 without its claim"),
        ("[[finding]", "is not TOML in UTF-8"),
        ("[[finding]]\nclaim='a'\nmeasure='logit_difference'\nsign='positive'", "no model"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text)
    with pytest.raises(FindingError, match=says.replace("[", r"\[")):
        check(path)
    with pytest.raises(FindingError, match="cannot be read"):
        read_findings(tmp_path / "nothing.toml")


def test_the_command_says_by_its_status_whether_all_hold(
    toy_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cs.write_behaviour(ASKED, tmp_path / "asked.toml")
    path = tmp_path / "findings.toml"
    path.write_text(
        'behaviour = "asked.toml"\nmodel = "nowhere/nothing"\n'
        '[[finding]]\nclaim = "a difference there is"\nmeasure = "logit_difference"\n'
        "at_least = -1000\n"
    )
    model = str(toy_folder())
    status, out, err = call(capsys, "check", str(path), "--model", model)
    assert (status, err) == (0, "")
    assert "holds: a difference there is" in out
    assert out.endswith("1 of 1 hold\n")
    assert max(map(len, out.splitlines())) <= 80

    path.write_text(path.read_text() + "at_most = -100\n")
    status, out, err = call(capsys, "check", str(path), "--model", model, "--json")
    assert (status, err) == (1, "")
    (outcome,) = json.loads(out)["outcomes"]
    assert outcome["verdict"] == "fails"
    assert outcome["value"] > -100
    assert outcome["must"] == "at least -1000 and at most -100"

    absent = (
        '[[finding]]\nclaim = "a head"\nmeasure = "attribution"\n'
        'layer = 99\nhead = 0\nsign = "positive"\n'
    )
    path.write_text(path.read_text().replace("at_most = -100\n", "") + absent)
    status, out, err = call(capsys, "check", str(path), "--model", model)
    assert (status, err) == (1, "")
    assert "not measurable: a head" in out
    assert "holds: a difference there is" in out

    longer = tmp_path / "longer.toml"
    longer.write_text(
        'answers = "given"\n[[prompts]]\ntext = "It was late."\n'
        'answer = " He slept"\ncounterpart = " She sat"\n'
    )
    whole = ("--model", model, "--behaviour", str(longer))
    status, _, err = call(capsys, "check", str(path), *whole)
    assert status == 1
    assert "measured on the first tokens of answer and counterpart" in " ".join(err.split())

    path.write_text(path.read_text().replace(absent, "head = 3\n"))
    status, out, err = call(capsys, "check", str(path), "--model", model)
    assert (status, out) == (2, "")
    assert "logit_difference has the key 'head'" in " ".join(err.split())
