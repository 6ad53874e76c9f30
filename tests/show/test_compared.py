"""Two studies on one page: what it says is what was compared, and it loads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import casestudy as cs
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.claims.compare import Comparison, compare
from casestudy.errors import StudyError
from casestudy.model.model import Model
from casestudy.show.compared import comparison_html, write_comparison
from tests.helpers import call
from tests.show.pages import Page

NAME = "</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \u202e"
TEXTS = ("It was late.", "No one knew.", "So it was.")


@pytest.fixture(scope="module")
def folders(toy: Callable[..., Model], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints asked one thing, the second with one measurement less."""
    prompts = tuple(Prompt(text, answer=" He", counterpart=" he") for text in TEXTS)
    asked = Behaviour(NAME, "Why?", prompts, answers="given")
    made = []
    for seed, only in enumerate((("predictions", "ledger"), ("predictions",))):
        made.append(tmp_path_factory.mktemp("study"))
        cs.study(asked, toy(seed=seed), out=made[-1], only=only)
    return made


@pytest.fixture(scope="module")
def found(folders: list[Path]) -> Comparison:
    return compare(*folders)


@pytest.fixture(scope="module")
def page(found: Comparison) -> Page:
    return Page(comparison_html(found))


def test_the_difference_comes_first_with_its_interval(found: Comparison, page: Page) -> None:
    (row,) = found.of("logit_difference")
    assert f"{row['a']:.2f}".replace("-", "\u2212") in page.text
    assert "95 % interval" in page.text
    assert page.figures[0]["columns"]["value"] == pytest.approx([row["difference"]])
    assert "compared as two samples" not in page.text
    assert "3 in both" in page.text


def test_what_one_study_lacks_is_listed(page: Page) -> None:
    missing = page.text.split("What was not compared")[-1]
    assert "ledger" in missing
    assert "only in A" in missing


def test_nothing_is_loaded_and_nothing_run(page: Page) -> None:
    assert page.loads == []
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert NAME.replace("\u202e", "‹U+202E›") in page.text
    (policy,) = [a for a in page.all("meta") if "http-equiv" in a]
    assert policy["content"].startswith("default-src 'none'; script-src 'sha256-")


def test_the_same_study_twice_says_that_nothing_differs(folders: list[Path]) -> None:
    page = Page(comparison_html(compare(folders[0], folders[0])))
    assert "every other mean is the same in both" in page.text
    assert "Each study has everything that the other has." in page.text


def test_the_page_says_first_where_both_are_one_model(
    folders: list[Path], found: Comparison
) -> None:
    one = compare(folders[0], folders[0])
    text = Page(comparison_html(one)).text
    assert one.one_model == one.notes[0]
    assert one.one_model in text
    assert text.index(one.one_model) < text.index("The answer leads")
    assert found.one_model is None
    assert "bit for bit" not in Page(comparison_html(found)).text


def test_a_comparison_without_contrasts_has_a_page(found: Comparison) -> None:
    columns = found.rows.columns
    rest = [i for i, name in enumerate(columns["measurement"]) if name != "logit_difference"]
    rows = replace(found.rows, columns={k: [v[i] for i in rest] for k, v in columns.items()})
    assert "The contrasts" not in Page(comparison_html(replace(found, rows=rows))).text


def test_it_is_written_by_the_command(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "both.html"
    arguments = ("compare", *map(str, folders), "--json", "--out")
    status, out, err = call(capsys, *arguments, str(path))
    assert status == 0, err
    assert json.loads(out)["paired"]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    status, _, err = call(capsys, *arguments, str(tmp_path / "both"))
    assert status == 2
    assert "a name that ends in .html" in " ".join(err.split())


def test_a_place_that_cannot_be_written_says_so(found: Comparison, tmp_path: Path) -> None:
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(StudyError, match="could not be written"):
        write_comparison(found, tmp_path / "taken.html")
