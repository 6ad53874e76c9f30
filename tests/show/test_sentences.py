"""A report's sentences name what was asked, say only what applies, and call weak evidence weak."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casestudy.results.result import Axis, Grid, Table
from casestudy.results.stats import mean_over_prompts
from casestudy.show import wording
from casestudy.show.blocks import Listing
from casestudy.show.report import write_report
from casestudy.show.sections import circuit, summary
from casestudy.show.stored import StoredStudy
from casestudy.show.text import clean, percent, visible
from casestudy.show.weighed import weighed
from casestudy.show.wording import Mean
from casestudy.study.store import Store
from tests.show import studies
from tests.show.pages import Page


def page_of(store: Store) -> Page:
    return Page(write_report(store).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(studies.write(tmp_path_factory.mktemp("full") / "s", studies.full()))


def _answers(answer: list[str], counterpart: list[str]) -> Table:
    n, forms = len(answer), ("answer", "counterpart")
    pairs = list(zip(answer, counterpart, strict=True))
    return Table(
        "answers",
        {
            "prompt": [i for i in range(n) for _ in forms],
            "form": list(forms) * n,
            "token": [token for pair in pairs for token in pair],
            "id": [1, 2] * n,
            "rank": [0, 7] * n,
            "logit": [9.0, 5.0] * n,
            "prob": [0.4, 0.01] * n,
        },
    )


def _own_question(values: list[float], pairs: Table, **changes: object) -> list[object]:
    """A study of a reader's own pairs, as far as the first paragraph needs it."""
    difference = Grid(
        "logit_difference",
        np.array([values]),
        (Axis("contrast", ("counterpart",)), Axis.count("prompt", len(values))),
        "logits",
    )
    prompts = studies.tables(("The dogs of the king",) * len(values))[0]
    return [difference, mean_over_prompts(difference), prompts, pairs]


GENERAL = "Why does the model prefer this next token?"


@given(
    st.lists(st.floats(0.5, 4), min_size=3, max_size=12),
    st.sampled_from((1, -1)),
    st.sampled_from((" were", "x", "\n", " Über")),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_shared_pair_is_named_the_way_round_it_is_preferred(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[float], sign: int, answer: str
) -> None:
    n = len(sizes)
    found = _own_question([sign * v for v in sizes], _answers([answer] * n, [" was"] * n))
    store = studies.write(
        tmp_path_factory.mktemp("own") / "s",
        found,
        texts=("The dogs of the king",) * n,
        behaviour={"name": "dogs", "question": GENERAL, "answers": "given"},
    )
    study = StoredStudy.read(store)
    mean = Mean.of(study.grids["logit_difference.mean"], contrast="counterpart")
    first, second = (visible(answer), "·was")[::sign]
    title = summary.title(study)
    if mean.clear:
        assert title.startswith(f"toy prefers {first} to {second} by ")
        assert f"toy prefers {first} to {second} by" in summary.paragraphs(study)[0].striptags()
    else:
        assert "no clear preference" in title
    assert title.endswith(f"(n\u00a0=\u00a0{n})")
    assert weighed(study).difference == f"logit({visible(answer)}) − logit(·was), logits"


def test_an_authors_question_stays_the_title(tmp_path: Path) -> None:
    store = studies.write(tmp_path / "s")
    question = store.manifest["behaviour"]["question"]
    assert summary.title(StoredStudy.read(store)) == question


def test_the_general_questions_are_those_of_behaviours_without_one() -> None:
    from casestudy.behaviour.prompts import QUESTION, Behaviour

    assert set(summary.GENERAL) == {QUESTION, Behaviour.of("x").question}


def test_the_presets_prompts_are_not_the_readers() -> None:
    from casestudy.behaviour.presets import preset_names
    from casestudy.show.sections.patching import PRESETS

    assert set(PRESETS) == set(preset_names())


def test_answers_that_differ_are_exemplified_and_called_by_their_form(tmp_path: Path) -> None:
    answers = [" It", " It", " He", " We"]
    found = _own_question([1.0, 2.0, 1.5, 2.5], _answers(answers, [a.lower() for a in answers]))
    page = page_of(studies.write(tmp_path / "s", found))
    assert "prefers the answer to its counterpart by" in page.text
    assert "(·It in 2, ·He in 1 and ·We in 1)" in page.text


def _without_bias() -> list[Grid]:
    """A ledger of a model whose final norm has no bias."""
    grids = studies.ledger(4)
    terms = grids[1].axis("term").labels
    keep = [t for t in terms if t not in (studies.B_U, "pos_embed")]
    ledger = grids[1].take("term", keep)
    return [grids[0], ledger, grids[2], mean_over_prompts(ledger), grids[4]]


def test_nothing_is_said_of_a_bias_or_positions_that_the_model_does_not_have(
    tmp_path: Path,
) -> None:
    lens = [r for r in studies.full() if r.name.startswith("lens") and isinstance(r, Grid)]
    store = studies.write(tmp_path / "s", [*_without_bias(), *lens, *studies.tables(studies.TEXTS)])
    page = page_of(store)
    assert "The ledger: every term" in page.text
    assert "The difference by depth" in page.text
    assert "b_U" not in page.text
    assert "position embeddings" not in page.text
    assert "token embeddings" in page.text


def test_a_control_that_does_not_apply_is_not_named(tmp_path: Path) -> None:
    contrast, prompt = Axis("contrast", studies.CONTRASTS), Axis.count("prompt", 4)
    values = np.ones((3, 3, 4))
    values[:, 1] = np.nan
    controls = Axis("control", ("difference", "b_U", "unigram"))
    grid = Grid("controls.logits", values, (contrast, controls, prompt), "logits")
    shuffled = Grid(
        "controls.logits",
        np.concatenate([values, values[:, :1]], 1),
        (contrast, Axis("control", (*controls.labels, "shuffled")), prompt),
        "logits",
    )
    settings = {"prepend_bos": False, "top_k": 100}
    base = [*_without_bias(), *studies.tables(studies.TEXTS)]
    for i, one in enumerate((grid, shuffled)):
        found = [*base, one, mean_over_prompts(one)]
        page = page_of(studies.write(tmp_path / str(i), found, settings=settings))
        assert "after BOS alone" not in page.text
        assert "b_U alone" not in page.text
        assert ("words in another order" in page.text) == (one is shuffled)


def test_no_verdict_is_given_where_no_bound_is_promised(tmp_path: Path) -> None:
    grids = studies.ledger(4)
    loose = Grid(**{**vars(grids[1]), "error": {"gap": 0.02, "bound": float("inf")}})
    results = [grids[0], loose, *grids[2:], *studies.tables(studies.TEXTS)]
    page = page_of(studies.write(tmp_path / "s", results))
    assert "by at most 0.02 logits" in page.text
    assert "none promised" in page.text
    assert "shown only" in page.text
    assert "closes" not in page.text


def test_heads_are_counted_without_the_layers_biases(full: Page) -> None:
    assert "chosen for being large out of 12" in full.text


def test_ranks_start_at_one_and_counts_have_no_decimals(full: Page, tmp_path: Path) -> None:
    odd = Table("odd", {"rank": [0, 1], "edges": [3628.0, 2.0], "none": [None, 1.5]})
    results = [*studies.ledger(4), *studies.tables(studies.TEXTS), odd]
    page = page_of(studies.write(tmp_path / "s", results))
    assert "3,628" in page.text
    assert "3628.00" not in page.text
    tables = [json.loads(text) for text in _scripts(page, "cells-data")]
    ranked = [t for t in tables if "rank" in t or "Place" in t]
    assert ranked or tables
    listed = [json.loads(text)["rank"] for text in _scripts(full, "cells-data") if '"rank"' in text]
    assert all(min(ranks) >= 1 for ranks in listed)


def _scripts(page: Page, kind: str) -> list[str]:
    return re.findall(rf'<script type="application/json" class="{kind}">(.*?)</script>', page.html)


def _circuit(value: float, n: int, flipped: float, larger: float) -> list[object]:
    summary_table = studies._summary()
    summary_table["value"][2] = value
    summary_table["lower"][2], summary_table["upper"][2] = value - 0.1, value + 0.1
    summary_table["n"][2] = n
    methods = ("eap", "signs flipped at random")
    values = np.array([[0.1, value, larger, 1.0], [0.0, flipped, flipped, 1.0]])
    axes = (Axis("method", methods), studies._proportions())
    grid = Grid("circuit.faithfulness", values, axes, "share")
    base = [*studies.ledger(4), *studies.tables(studies.TEXTS)]
    return [*base, grid, Table("circuit.summary", summary_table, "Figures.")]


@given(
    st.floats(0.5, 1.0),
    st.integers(2, 30),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
@settings(max_examples=20, deadline=None)
def test_a_circuits_sentence_names_the_strong_control_and_calls_weak_evidence_weak(
    tmp_path_factory: pytest.TempPathFactory, value: float, n: int, flipped: float, larger: float
) -> None:
    folder = tmp_path_factory.mktemp("circuit") / "s"
    study = StoredStudy.read(studies.write(folder, _circuit(value, n, flipped, larger)))
    said = circuit.sentence(study).striptags().replace("\u00a0", " ")
    assert f"carry {percent(flipped)}".replace("\u00a0", " ") in said
    weak = n < circuit.FEW or flipped >= circuit.CLOSE * value
    assert ("weak evidence" in said) == weak
    assert ("does not hold at larger sizes" in said) == (min(larger, 1.0) < 0.8 * value)


def test_what_the_card_says_of_a_circuit_is_read_and_not_derived_anew(tmp_path: Path) -> None:
    """The curve says neither; a study of version 0.1.0 has only the curve."""
    results = _circuit(0.9, 20, 0.1, 0.95)
    for figure, value, about in (
        ("faithfulness on pairs held out, signs flipped at random", 0.4, "1 is the whole model"),
        ("least faithfulness at larger sizes", 0.3, "at 0.05 of all edges; a spike"),
    ):
        row = {"figure": figure, "value": value, "lower": None, "upper": None, "n": 20}
        for name, cell in (row | {"about": about}).items():
            results[-1].columns[name].append(cell)
    said = circuit.sentence(StoredStudy.read(studies.write(tmp_path / "s", results))).striptags()
    said = said.replace("\u00a0", " ")
    assert "finds circuits of that size that carry 40 %" in said
    assert "with 5.0 % of the edges, the circuit by the same scores carries 30 %" in said


def test_a_circuits_sizes_are_whole_numbers_in_a_table(tmp_path: Path) -> None:
    methods = ("eap", "relp", "relp, mean ablation")
    axes = (Axis("method", methods), Axis("proportion", ("0.01", "1")))
    faithful = np.array([[0.4, 1.0], [0.2, 1.0], [0.1, 1.0]])
    sizes = np.array([[17.0, 3628.0], [23.0, 3629.0], [23.0, 3629.0]])
    found = [
        Grid("circuit.faithfulness", faithful, axes, "share"),
        Grid("circuit.sizes", sizes, axes, "edges"),
    ]
    store = studies.write(tmp_path / "s", [*studies.ledger(4), *found])
    table = circuit.faithfulness(StoredStudy.read(store))[-1]
    assert isinstance(table, Listing)
    shown = [[clean(cell) for cell in row] for row in table.rows]
    assert shown == [["1.0\u00a0%", "17", "23"], ["100\u00a0%", "3,628", "3,629"]]


def test_a_circuit_of_every_part_is_not_said_to_have_some(tmp_path: Path) -> None:
    results = _circuit(0.9, 20, 0.1, 0.95)
    results[-1].columns["value"][1] = 16.0  # 3 layers of 4 heads and an MLP, and the embeddings
    page = page_of(studies.write(tmp_path / "s", results))
    assert "edges (1.8 % of all) carries 90 %" in page.text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("stop", "case", "verdict"),
    [
        (0.9, 1.0, "Both the full stop and the case of the text decide."),
        (0.9, 0.1, "The full stop decides, not the case of the text."),
        (0.1, 0.9, "The case of the text decides, not the full stop."),
        (0.1, 0.2, "Neither the full stop nor the case of the text decides alone."),
    ],
)
def test_whether_the_stop_or_the_case_decides_is_said_from_the_edits(
    tmp_path: Path, stop: float, case: float, verdict: str
) -> None:
    columns = {
        "family": ["final stop to comma", "all lowered", "final stop to colon"],
        "n": [14, 12, 2],
        "flip_share": [stop, case, 1.0],  # the last has too few prompts to decide anything
    }
    results = [
        *studies.ledger(4),
        *studies.tables(studies.TEXTS),
        Table("counterfactuals", columns),
    ]
    page = page_of(studies.write(tmp_path / "s", results))
    assert verdict in page.text
    assert f"(“final stop to comma”) reverses it in {100 * stop:.0f} % of 14 prompts" in page.text


def test_given_partners_are_the_readers_own(tmp_path: Path) -> None:
    columns = {"family": ["given", "all lowered"], "n": [9, 9], "flip_share": [1.0, 0.2]}
    found = _own_question([1.0, 2.0, 1.5, 2.5], _answers([" were"] * 4, [" was"] * 4))
    layer, head = Axis.count("layer", 2), Axis.count("head", 3)
    grid = Grid("patching.z.all", np.full((2, 3), 0.6), (layer, head), "share")
    page = page_of(
        studies.write(
            tmp_path / "s",
            [*found, Table("counterfactuals", columns), grid],
            behaviour={"name": "dogs", "question": GENERAL, "answers": "given"},
            patch_families={"patching.z.all": "given"},
        )
    )
    assert "Your corrupted prompts reverse it in 100 % of 9 pairs." in page.text
    assert "Patched from the clean run into the run of your corrupted prompts, " in page.text
    assert "“given”" not in page.text


def test_an_effect_of_nothing_is_no_largest_effect(tmp_path: Path) -> None:
    axes = (Axis.count("layer", 2), Axis.count("head", 3))
    grid = Grid("patching.z.all", np.zeros((2, 3)), axes, "share")
    results = [*studies.ledger(4), *studies.tables(studies.TEXTS), grid]
    page = page_of(studies.write(tmp_path / "s", results))
    assert "changes nothing anywhere" in page.text
    assert "largest effect is" not in page.text


def _at_roles(site: str, *cells: list[float]) -> Grid:
    axes = (Axis.count("layer", len(cells)), Axis("role", ("changed tokens", "last token")))
    return Grid(f"patching.{site}.role", np.array(cells), axes, "share")


@given(st.integers(1, 6), st.floats(0.91, 1.0), st.floats(0.15, 0.6))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_an_early_mlp_is_passed_over_only_where_the_pairs_change_the_token_it_reads(
    tmp_path_factory: pytest.TempPathFactory, moved: int, early: float, late: float
) -> None:
    layers = 6
    stream = [[1.0, 0.0] if i < moved else [0.3, 0.7] for i in range(layers)]
    quiet = [[0.0, 0.0] for _ in range(layers)]
    attn = [*quiet[:3], [0.0, late], *quiet[:2]]
    found = [*studies.ledger(4), *studies.tables(studies.TEXTS)]
    streams = [_at_roles("resid_pre", *stream), _at_roles("attn_out", *attn)]

    def said(at: int, layer: int) -> str:
        cells = [list(row) for row in quiet]
        cells[layer][at] = early
        folder = tmp_path_factory.mktemp("early") / "s"
        store = studies.write(folder, [*found, *streams, _at_roles("mlp_out", *cells)])
        return " ".join(p.striptags() for p in summary.paragraphs(StoredStudy.read(store)))

    at_changed = said(0, 0)
    assert "attn 3, last token restores" in at_changed
    assert (
        f"only re-encode these tokens, with an effect of up to {early:.2f} (mlp 0, " in at_changed
    )
    for at, layer in ((1, 0), (0, 2), *(((0, 1),) if moved < 2 else ())):
        elsewhere = said(at, layer)
        assert f"mlp {layer}, " in elsewhere
        assert "re-encode" not in elsewhere


def _by_role(*columns: float) -> Grid:
    values = np.array([columns, [c / 2 for c in columns]])
    roles = Axis("role", tuple(f"role {i}" for i in range(len(columns))))
    return Grid("patching.attn_out.role", values, (Axis.count("layer", 2), roles), "share")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from((0.0, 0.001, 0.02, 0.3, -0.8)), min_size=2, max_size=5))
def test_roles_that_hold_nothing_are_not_drawn(
    tmp_path_factory: pytest.TempPathFactory, columns: list[float]
) -> None:
    results = [*studies.ledger(4), *studies.tables(studies.TEXTS), _by_role(*columns)]
    page = page_of(studies.write(tmp_path_factory.mktemp("roles") / "s", results))
    drawn = [f for f in page.figures if [name for name, _ in f["axes"]] == ["layer", "role"]]
    if max(map(abs, columns)) < 0.05:
        assert drawn == []
        assert "Patching attn_out by role" in page.text
    else:
        (figure,) = drawn
        seen = [f"role {i}" for i, c in enumerate(columns) if abs(c) >= 0.005]
        assert figure["axes"][1][1] == seen


def test_a_word_that_is_always_a_capital_is_flagged_with_the_mean_without_it(
    tmp_path: Path,
) -> None:
    results = [*studies.ledger(4), *studies.tables(studies.TEXTS)]
    answers = next(r for r in results if r.name == "answers")
    assert isinstance(answers, Table)
    tokens, forms = answers.columns["token"], answers.columns["form"]
    tokens[forms.index("answer")] = " I"
    page = page_of(studies.write(tmp_path / "s", results))
    mean = float(results[0].values[0, 1:].mean())  # type: ignore[union-attr]
    assert "In 1 of 4 prompts the answer is a word that is always a capital" in page.text
    assert f"without them the mean is +{mean:.2f} logits" in page.text
    assert "always a capital" not in page_of(studies.write(tmp_path / "t")).text


def test_rows_and_classes_are_named_in_words(tmp_path: Path) -> None:
    found = _own_question([1.0, 2.0, 1.5], _answers([" were"] * 3, [" was"] * 3))
    masses = [r for r in studies.full() if r.name.startswith("class_mass")]
    page = page_of(studies.write(tmp_path / "s", [*found, *masses]))
    assert "·were against ·was" in page.text
    assert wording.class_words("space+lower") == (
        "tokens that begin with a space and a lower-case letter"
    )
    sentence = page.text.partition("by class of token, is on average:")[2][:300]
    assert sentence
    assert "space+" not in sentence.partition("(mean over")[0]
