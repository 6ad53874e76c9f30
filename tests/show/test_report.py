"""A report is one file, says only what was measured, and opens whatever the study lacks."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import sys
from copy import copy
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from casestudy.errors import StudyError
from casestudy.results.result import Axis, Grid, Table
from casestudy.results.stats import mean_over_prompts
from casestudy.show.contents import ARGUMENT
from casestudy.show.report import argument, write_report
from casestudy.show.sections.prompts import patterns
from casestudy.show.stored import StoredStudy
from casestudy.study.store import Store
from tests.show import studies
from tests.show.pages import Page

HOSTILE = (
    "<script>alert(1)</script>.",
    "</script><img src=x onerror=alert(1)> \"quoted\" 'and' &amp;.",
    "{{ 7 * 7 }} {% raw %} ${x} %(y)s {0}.",
    "A NUL \x00 and a bell \x07, \x1b[31m, a lone \ud800 surrogate.",
    "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd.",
    "Family \U0001f468\u200d\u0001f469 \U0001f600 and \u2028 a line separator.",
    "]]> <!-- --> <![CDATA[ \\u003c",
)


def page_of(store: Store) -> Page:
    return Page(write_report(store).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(studies.write(tmp_path_factory.mktemp("study") / "s"))


def test_every_part_found_its_form(page: Page) -> None:
    assert "this version cannot show" not in page.text


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(studies.write(tmp_path_factory.mktemp("full") / "s", studies.full()))


def test_a_full_study_fills_every_step_of_the_argument(full: Page) -> None:
    assert "this version cannot show" not in full.text
    headings = [topic.title for topic in ARGUMENT]
    places = [full.text.rindex(heading) for heading in headings]
    assert places == sorted(places)
    absent = full.text[full.text.rindex("What was not measured") : full.text.rindex("Provenance")]
    listed = absent.removeprefix("What was not measured").strip()
    assert listed == "causal effectsno activation was patched"
    assert full.loads == []


def test_every_alt_text_of_a_full_study_has_a_measured_value(full: Page) -> None:
    assert len(full.alts) == len(full.figures) > 12
    assert all(re.search(r"\d", alt) and len(alt) > 30 for alt in full.alts)


def test_groups_that_differ_are_named_after_correction(full: Page) -> None:
    assert "Of 2 pairs of groups, 1 differ" in full.text
    assert "“group 0” against “group 1” +2.00 (p = 0.002)" in full.text


def test_a_share_is_drawn_and_its_effect_only_for_ablations(full: Page) -> None:
    titles = [alt for alt in full.alts if alt.startswith("Effect of patching")]
    assert [t.split(":")[0].removeprefix("Effect of patching ") for t in titles] == [
        "resid_pre",
        "z",
        "ablation.zero",
    ]


def test_a_circuit_is_a_graph_of_its_nodes_layer_by_layer(full: Page) -> None:
    (alt,) = (alt for alt in full.alts if alt.startswith("Layered graph"))
    assert "Layered graph of 10 parts and 23 edges" in alt


def test_a_circuits_verdict_is_a_sentence_of_its_figures(full: Page) -> None:
    said = "A circuit of 64 of the model’s edges (1.8 % of all) and 14 of its 16 parts, "
    said += "the embeddings counted, carries 69 %"
    assert said in full.text.replace("\u00a0", " ")
    assert "0.47 to 0.90, n = 6" in full.text.replace("\u00a0", " ")
    titles = ("Faithfulness of circuits by size, and controls", "with other ablations of the rest")
    assert all(title in full.text for title in titles)
    assert "head 0.1" in full.text


def test_edges_whose_names_cannot_be_read_are_listed_all_the_same(tmp_path: Path) -> None:
    odd = Table("circuit.edges", {"source": ["left"], "target": ["right"], "score": [0.5]})
    results = [*studies.ledger(4), *studies.tables(studies.TEXTS), odd]
    page = page_of(studies.write(tmp_path / "s", results))
    assert "The strongest edges" in page.text
    assert not [alt for alt in page.alts if alt.startswith("Layered graph")]


def test_terms_a_contrast_does_not_have_are_no_terms_of_its_ledger(tmp_path: Path) -> None:
    grids = studies.ledger(4)
    ledger, means = grids[1], grids[3]
    extra = np.full((3, 1, 4), np.nan)
    extra[2] = 0.5  # as an entropy term, which only a class contrast has
    names = Axis("term", (*ledger.axis("term").labels, "entropy term"))
    longer = Grid(
        "ledger",
        np.concatenate([ledger.values, extra], 1),
        (ledger.axes[0], names, ledger.axes[2]),
        "logits",
    )
    results = [grids[0], longer, grids[2], mean_over_prompts(longer), grids[4]]
    assert means.name == "ledger.mean"
    page = page_of(studies.write(tmp_path / "s", [*results, *studies.tables(studies.TEXTS)]))
    falls = [f["axes"][0][1] for f in page.figures if f["axes"][0][0] == "term"]
    assert [("entropy term" in terms) for terms in falls] == [False, False, True] + [False] * 4
    assert "The same account of the other contrasts" in page.text


def test_edits_that_flip_equally_often_are_named_together(tmp_path: Path) -> None:
    columns = {"family": ["a", "b", "c"], "n": [4, 3, 5], "flip_share": [1.0, 1.0, 0.2]}
    results = [
        *studies.ledger(4),
        *studies.tables(studies.TEXTS),
        Table("counterfactuals", columns),
    ]
    page = page_of(studies.write(tmp_path / "s", results))
    assert "“a” (n = 4) and “b” (n = 3) reverse the preference most often: in 100 %" in page.text


def test_heads_lead_to_their_patterns_only_where_there_are_any(full: Page, page: Page) -> None:
    assert len([a for _, a in full.tags if "data-head" in a]) > 12
    assert not [a for _, a in page.tags if "data-head" in a]


def test_causes_are_worded_from_patches(full: Page) -> None:
    assert "The study made no intervention" not in full.text
    assert re.search(
        r"(restores|takes away) \S+ of the difference.*, more than any other", full.text
    )


def test_the_strongest_patch_is_a_part_that_carries_something_to_the_last_token(
    tmp_path: Path,
) -> None:
    layer, head = Axis.count("layer", 2), Axis.count("head", 3)

    def peak(name: str, value: float, *axes: Axis) -> Grid:
        values = np.zeros([len(axis) for axis in axes])
        values[(1,) * len(axes)] = value
        return Grid(f"patching.{name}", values, axes, "share")

    by_construction = [
        peak("resid_pre.role", 1.0, layer),
        peak("mlp_out.last", 0.96, Axis.count("layer", 6)),
    ]
    carried = [peak("z.all", 0.9, layer, head), peak("attn_out.role", 0.6, layer)]
    found = [*studies.ledger(4), *studies.tables(studies.TEXTS)]
    families = {"patching.z.all": "all lowered"}
    results = [*found, *by_construction, *carried]
    page = page_of(studies.write(tmp_path / "a", results, patch_families=families))
    assert "(edit: “all lowered”)" in page.text
    assert "head 1.1 (z at all positions together) restores 0.90 of the difference" in page.text
    page = page_of(studies.write(tmp_path / "b", [*found, *by_construction]))
    assert "more than any other part" not in page.text
    late = [peak("mlp_out.last", 0.96, Axis("layer", ("3", "4")))]
    page = page_of(studies.write(tmp_path / "c", [*found, *late]))
    assert "mlp 4 at the last token restores 0.96 of the difference" in page.text


def test_a_pattern_comes_out_of_its_bytes_as_it_was_stored(tmp_path: Path) -> None:
    store = studies.write(tmp_path / "s", studies.full())
    stored = store.grids()["pattern.0"].values
    packed = patterns(StoredStudy.read(store))["0"]
    size = stored.shape[-1]
    cells = np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8).reshape(3, 4, -1) / 255
    rows, cols = np.tril_indices(size)
    assert np.abs(cells - stored[..., rows, cols]).max() <= 0.5 / 255 + 1e-9
    assert packed["tokens"][0] == "<|endoftext|>"


def test_patterns_beyond_the_cap_are_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = studies.write(tmp_path / "s", studies.full())
    found = {name: grid for name, grid in store.grids().items() if name.startswith("pattern.")}
    first = found["pattern.0"].values
    entries = first[..., 0, 0].size * first.shape[-1] * (first.shape[-1] + 1) // 2
    whole = page_of(store)
    assert "are not on this page" not in whole.text
    monkeypatch.setattr("casestudy.show.sections.ledger.MOST_PATTERN_BYTES", entries)
    stored = StoredStudy.read(store)
    assert list(patterns(stored)) == ["0"]
    cut = page_of(store)
    assert "patterns of 1 prompt (1) are not on this page" in cut.text
    assert "arrays/pattern.1.safetensors" in cut.text
    monkeypatch.setattr("casestudy.show.sections.ledger.MOST_PATTERN_BYTES", 0)
    none = page_of(store)
    assert "patterns of 2 prompts (0 and 1) are not on this page" in none.text
    assert not any("data-head" in a for _, a in none.tags), "nothing opens what is not there"


def test_means_count_the_main_groups_only_where_they_are_named(tmp_path: Path) -> None:
    grids = studies.ledger(4)
    for grid in grids[:2]:
        grid.values[..., 3] = -50.0  # outside the main group, and it would show
    main = [0, 1, 2]
    means = [mean_over_prompts(_prompts(grid, main)) for grid in grids[:2]]
    tables = studies.tables(studies.TEXTS)
    columns = dict(tables[0].columns)
    columns["groups"] = [["ordinary"], ["ordinary"], ["ordinary"], ["odd"]]
    tables[0] = Table("prompts", columns)
    groups = studies.by_group(grids[0], columns["groups"])
    store = studies.write(tmp_path / "s", [*grids[:2], *means, groups, grids[4], *tables])
    store.manifest["behaviour"]["main"] = ["ordinary"]
    page = page_of(store)
    assert "Over 3 prompts" in page.text
    assert "in 3 of 3 prompts" in page.text
    assert "Means are over the 3 prompts of the behaviour’s main groups; all 4" in page.text
    assert "The same difference by group of prompts" in page.text


def _prompts(grid: Grid, index: list[int]) -> Grid:
    axes = (*grid.axes[:-1], Axis("prompt", tuple(grid.axes[-1].labels[i] for i in index)))
    return Grid(grid.name, grid.values[..., index], axes, grid.unit)


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert page.loads == []
    style = re.findall(r"<style>(.*?)</style>", page.html, re.S)
    assert style
    assert not any("@import" in s or "url(" in s.replace("url(data:", "") for s in style)


def test_the_browser_is_told_to_load_nothing_and_run_one_script(page: Page) -> None:
    (policy,) = (
        m["content"]
        for m in page.all("meta")
        if m.get("http-equiv", "").lower() == "content-security-policy"
    )
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}';", policy)
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_no_script_runs_from_an_attribute(page: Page) -> None:
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]


def test_text_of_every_kind_comes_out_as_text(tmp_path: Path) -> None:
    simple = ("Plain.",) * len(HOSTILE)
    notes = Table("notes", {"note": list(simple)})
    results = [*studies.ledger(len(simple)), *studies.tables(simple), notes]
    plain = page_of(studies.write(tmp_path / "plain", results, texts=simple))
    kept = tuple(t.replace("\ud800", "") for t in HOSTILE)  # Parquet refuses a lone surrogate
    tables = studies.tables(kept)
    nasty = Table("notes", {"note": list(kept)}, about=kept[0])
    results = [*studies.ledger(len(kept)), *tables, nasty]
    store = studies.write(tmp_path / "hostile", results, texts=kept)
    store.manifest["behaviour"]["question"] = HOSTILE[0] + HOSTILE[2]
    store.manifest["model"]["name"] = HOSTILE[1]
    store.manifest["not_measured"] = [{"what": HOSTILE[1], "why": HOSTILE[3]}]
    page = page_of(store)
    assert page.loads == []
    assert len(page.all("script")) == len(plain.all("script"))
    assert not page.all("img")
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert "<script>alert(1)</script>." in page.text
    assert "{{ 7 * 7 }} {% raw %} ${x} %(y)s {0}." in page.text
    assert "A NUL ␀ and a bell ␇" in page.text
    assert "\x00" not in page.html
    assert "\u202e" not in page.html
    assert "مرحبا" in page.text
    assert "😀" in page.text


def test_the_waterfall_ends_at_the_logit_difference(tmp_path: Path) -> None:
    store = studies.write(tmp_path / "s")
    page = page_of(store)
    falls = [f for f in page.figures if f["axes"][0][0] == "term"]
    assert len(falls) == len(studies.CONTRASTS) + len(studies.TEXTS)
    for figure in falls:
        values, ends = figure["columns"]["value"], figure["columns"]["ends at"]
        assert figure["axes"][0][1][-1] == "logit difference"
        assert ends[-2] == pytest.approx(values[-1], abs=1e-5)  # the last term ends there
        assert sum(values[:-1]) == pytest.approx(values[-1], abs=1e-5)
    difference = store.grids()["logit_difference.mean"].values[0]
    assert falls[0]["columns"]["value"][-1] == pytest.approx(difference, abs=1e-6)


def test_a_gap_beyond_its_bound_is_said(tmp_path: Path) -> None:
    grids = studies.ledger(4)
    broken = grids[1].__class__(
        **{**vars(grids[1]), "error": {"gap": 0.5, "bound": 1e-4}}  # same grid, failed check
    )
    results = [grids[0], broken, *grids[2:], *studies.tables(studies.TEXTS)]
    page = page_of(studies.write(tmp_path / "s", results))
    assert "The account does not close" in page.text
    assert "exceeded" in page.text
    assert "The account closes" not in page.text


def test_with_and_without_b_U_is_a_line_of_its_own(page: Page) -> None:
    assert "With and without b_U" in page.text


def test_every_figure_states_its_main_value_and_has_its_data(page: Page) -> None:
    assert len(page.alts) == len(page.figures) > 3
    assert all(re.search(r"\d", alt) and len(alt) > 30 for alt in page.alts)
    for figure in page.figures:
        cells = int(np.prod([len(labels) for _, labels in figure["axes"]]))
        assert all(len(column) == cells for column in figure["columns"].values())


def test_the_answer_gives_its_mean_with_n_and_interval(tmp_path: Path) -> None:
    store = studies.write(tmp_path / "s")
    mean = store.grids()["logit_difference.mean"]
    page = page_of(store)
    assert f"{mean.values[0]:.2f} logits" in page.text
    assert f"{mean.lower[0]:.2f} to {mean.upper[0]:.2f}" in page.text
    assert "Over 4 prompts" in page.text


def test_an_interval_that_includes_zero_is_undecided(tmp_path: Path) -> None:
    grids = studies.ledger(4, centre=0.0)
    mean = grids[2]
    assert mean.lower is not None
    assert mean.upper is not None
    assert mean.lower[0] < 0 < mean.upper[0]
    page = page_of(studies.write(tmp_path / "s", [*grids, *studies.tables(studies.TEXTS)]))
    assert "is undecided" in page.text
    assert "includes zero" in page.text
    assert "times the probability" not in page.text


def test_a_negative_mean_is_not_called_a_preference_for_the_answer(tmp_path: Path) -> None:
    grids = studies.ledger(12, centre=-0.5)
    texts = studies.TEXTS * 3
    results = [*grids, *studies.tables(texts)]
    page = page_of(studies.write(tmp_path / "s", results, texts=texts))
    assert "toy prefers ·it to ·It by" in page.text
    assert "prefers ·It to" not in page.text
    assert "Of the parts that wrote it (positive: for ·It)" in page.text
    assert "·it is" in page.text
    assert "times more probable than ·It" in page.text


def test_one_prompt_gives_no_interval(tmp_path: Path) -> None:
    texts = studies.TEXTS[:1]
    results = [*studies.ledger(1), *studies.tables(texts)]
    page = page_of(studies.write(tmp_path / "s", results, texts=texts))
    assert "one prompt gives no interval" in page.text
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


def test_no_cause_is_claimed_without_an_intervention(page: Page) -> None:
    assert "The study made no intervention" in page.text
    assert "causal effects" in page.text[page.text.index("What was not measured") :]


@pytest.mark.parametrize("gone", ["prompts", "predictions", "answers", "passed_over"])
def test_a_missing_table_costs_its_own_section_only(tmp_path: Path, gone: str) -> None:
    store = studies.write(tmp_path / "s")
    (store.folder / "tables" / f"{gone}.parquet").unlink()
    page = page_of(Store.open(store.folder))
    assert "Traceback" not in page.html
    assert "The ledger: every term" in page.text
    if gone in ("prompts", "predictions"):
        assert f"no table “{gone}”" in page.text


@pytest.mark.parametrize("gone", ["ledger", "ledger.mean", "ledger.check", "logit_difference"])
def test_a_missing_grid_is_listed_as_not_measured(tmp_path: Path, gone: str) -> None:
    store = studies.write(tmp_path / "s")
    (store.folder / "arrays" / f"{gone}.safetensors").unlink()
    page = page_of(Store.open(store.folder))
    assert "Traceback" not in page.html
    assert "What was not measured" in page.text
    if gone != "ledger.check":
        assert f"no grid “{gone}”" in page.text


def test_a_damaged_file_is_noticed_and_left_out(tmp_path: Path) -> None:
    store = studies.write(tmp_path / "s")
    (store.folder / "arrays" / "ledger.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    (store.folder / "tables" / "answers.parquet").write_bytes(b"PAR1 not really")
    page = page_of(Store.open(store.folder))
    assert "ledger.safetensors could not be read" in page.text
    assert "answers.parquet could not be read" in page.text
    assert "The logit difference of every prompt" in page.text


def test_another_versions_study_opens_with_a_notice(tmp_path: Path) -> None:
    store = studies.write(tmp_path / "s", format=99)
    axes = (Axis.count("place", 3),)
    odd = Grid("ledger.mean", np.ones(3), axes, "furlongs")
    store.write_final([odd])
    page = page_of(Store.open(store.folder))
    assert "stored in format 99" in page.text
    assert "“ledger.mean” has the axes place" in page.text
    assert "Traceback" not in page.html


@pytest.mark.parametrize(
    "manifest",
    [
        {"format": 1},
        {"format": None, "model": 3, "behaviour": ["x"], "not_measured": "nothing", "versions": 0},
    ],
)
def test_a_manifest_of_any_shape_gives_a_page(tmp_path: Path, manifest: dict[str, object]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    page = page_of(Store.open(tmp_path))
    assert "no measured logit difference" in page.text


def test_a_folder_without_a_study_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="casestudy run"):
        write_report(tmp_path)


def test_an_unfinished_study_says_so(tmp_path: Path) -> None:
    assert "not complete" in page_of(studies.write(tmp_path / "s", state="running")).text


def test_an_unknown_grid_gets_a_figure_all_the_same(tmp_path: Path) -> None:
    axes = (Axis.count("layer", 3), Axis.count("place", 4))
    unknown = Grid("novel.measure", np.arange(12.0).reshape(3, 4), axes, "furlongs", about="New.")
    deep = Grid("deep.measure", np.ones((2, 2, 2)), (*axes[:0], *map(_two, "abc")), "logits")
    table = Table("novel table", {"a": [1.5, None], "b": ["x", "y"]})
    results = [*studies.ledger(4), *studies.tables(studies.TEXTS), unknown, deep, table]
    page = page_of(studies.write(tmp_path / "s", results))
    assert "Everything else that was stored" in page.text
    assert any("novel.measure: largest magnitude +11.00 furlongs" in alt for alt in page.alts)
    assert "deep.measure" in page.text
    assert "novel table" in page.text


def _two(name: str) -> Axis:
    return Axis.count(name, 2)


def test_unmeasured_cells_are_said_to_be_so_and_never_zero(tmp_path: Path) -> None:
    grids = studies.ledger(4)
    for grid in (*grids[:2], grids[4]):
        grid.values[..., 2] = np.nan
    means = [mean_over_prompts(grid) for grid in grids[:2]]
    tables = studies.tables(studies.TEXTS)
    tables[0].columns["error"][2] = "no candidate within the first 100"
    page = page_of(studies.write(tmp_path / "s", [*grids[:2], *means, grids[4], *tables]))
    (strip,) = (f for f in page.figures if f["axes"][-1][0] == "prompt")
    assert [v for i, v in enumerate(strip["columns"]["value"]) if i % 4 == 2] == [None] * 3
    assert "no candidate within the first 100" in page.text
    assert "3 of 4 prompts entered the contrasts" in page.text


@pytest.mark.slow
def test_a_thousand_prompts_stay_under_eight_megabytes(tmp_path: Path) -> None:
    texts = tuple(f"{t} Number {i}." for i in range(250) for t in studies.TEXTS)
    results = [*studies.ledger(len(texts), layers=12), *studies.tables(texts)]
    page = page_of(studies.write(tmp_path / "s", results, texts=texts))
    assert len(page.html.encode()) < 8_000_000
    assert "48 of 1,000 prompts" in page.text
    assert 0 < len([a for a in page.all("details") if a.get("class") == "one"]) <= 48


def test_a_prompt_of_a_megabyte_is_shown_in_part(tmp_path: Path) -> None:
    texts = ("\U0001f600 <b>" * 170_000, "Short.")
    tables = studies.tables(texts, tokens=False)
    tables[0].columns["error"][0] = "is 300,000 tokens long"
    page = page_of(studies.write(tmp_path / "s", [*studies.ledger(2), *tables], texts=texts))
    assert len(page.html) < 500_000
    assert "is 300,000 tokens long" in page.text
    assert page.text.count("<b>") > 0


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= set(ids)


def test_headings_do_not_skip_a_level(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_the_same_study_gives_the_same_page(tmp_path: Path) -> None:
    store = studies.write(tmp_path / "s")
    assert write_report(store).read_bytes() == write_report(store.folder).read_bytes()


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    studies.write(tmp_path / "s")
    code = (
        "import sys; from casestudy.show.report import argument, write_report; "
        f"write_report({str(tmp_path / 's')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Recording(StoredStudy):
    """A study that remembers what was asked of it."""

    names: ClassVar[set[str]] = set()

    def grid(self, name: str, *axes: str) -> Grid:
        self.names.add(name)
        return super().grid(name, *axes)

    def table(self, name: str, *needed: str) -> Table:
        self.names.add(name)
        return super().table(name, *needed)


def test_every_result_that_a_section_reads_is_accounted_for_by_one(tmp_path: Path) -> None:
    """Else it would stand in the appendix again; and reading changes nothing in the study."""
    study = Recording.read(Store.open(studies.write(tmp_path / "s", studies.full()).folder))
    before = {name: copy(value) for name, value in vars(study).items()}
    _, _, shown = argument(study)
    stored = {*study.grids, *study.tables}
    assert len(study.names & stored) > 20
    assert study.names & stored <= shown
    assert vars(study) == before


def test_a_result_that_its_section_cannot_show_is_listed_in_the_appendix(tmp_path: Path) -> None:
    results = [r for r in studies.full() if r.name != "attribution.neuron"]
    odd = Table("attribution.neuron", {"layer": [1], "what": ["unheard of"]})
    page = page_of(studies.write(tmp_path / "s", [*results, odd]))
    assert "no column contrast, neuron, mean" in page.text
    assert "unheard of" in page.text
