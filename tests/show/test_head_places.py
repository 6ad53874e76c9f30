"""What a head attends to is told in tokens, with what is left over, and sinks are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.results.result import Result, Table
from casestudy.show.head_places import SINK, head_places
from casestudy.show.report import write_report
from casestudy.show.stored import Missing, StoredStudy
from tests.show import studies
from tests.show.pages import Page

NOUNS = (" dogs", " horses", " ships", " sons")


def _table(share: float, sink: float) -> Table:
    """Four prompts in which head 0.0 attends to the noun, the first token and the last."""
    rest = 1 - share - sink
    rows = [
        (i, 0, 0, pos, token, role, value)
        for i, noun in enumerate(NOUNS)
        for pos, token, role, value in (
            (0, "<|endoftext|>", "BOS", sink),
            (2, noun, "changed tokens", share),
            (5, " king", "last token", rest),
        )
        if value >= 0.02
    ]
    names = ("prompt", "layer", "head", "pos", "token", "role", "share")
    return Table(
        "attention.tokens", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    )


def _study(folder: Path, *results: Result, **changes: object) -> StoredStudy:
    base = [*studies.ledger(4), *studies.tables(studies.TEXTS)]
    return StoredStudy.read(studies.write(folder / "s", [*base, *results], **changes))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.9), st.floats(0.02, 0.9))
def test_shares_are_the_stored_ones_and_what_is_not_listed_is_left_over(
    tmp_path_factory: pytest.TempPathFactory, share: float, sink: float
) -> None:
    total = share + sink
    share, sink = (share / total, sink / total) if total > 1 else (share, sink)
    found = head_places(_study(tmp_path_factory.mktemp("s"), _table(share, sink)))["0", "0"]
    by_role = {place.role: place.share for place in found.places}
    assert by_role.get("changed tokens", 0.0) == pytest.approx(share if share >= 0.02 else 0.0)
    assert found.sink is None or found.sink.share == pytest.approx(sink)
    assert found.is_sink == (found.sink is not None and found.sink.share >= SINK)
    listed = sum(by_role.values()) + (found.sink.share if found.sink else 0.0)
    assert listed + found.left_over == pytest.approx(1.0)
    assert list(by_role.values()) == sorted(by_role.values(), reverse=True)
    if found.sink is not None and found.sink.share < 0.98:
        beside = sum(found.beside(place) for place in found.places)
        assert beside * (1 - found.sink.share) == pytest.approx(sum(by_role.values()))


def test_a_head_is_described_by_the_tokens_it_attends_to(tmp_path: Path) -> None:
    _study(tmp_path, _table(0.91, 0.02))
    page = Page(write_report(tmp_path / "s").read_text(encoding="utf-8"))
    assert "0.0 gives 91 % to the changed tokens (·dogs, ·horses, ·ships, …)" in page.text
    assert "attention sink" not in page.text


@pytest.mark.parametrize(("bos", "name"), [(True, "BOS"), (False, "the text’s first token")])
def test_a_sink_is_named_once_and_described_by_what_it_does_beside_it(
    tmp_path: Path, bos: bool, name: str
) -> None:
    _study(tmp_path, _table(0.1, 0.8), settings={"prepend_bos": bos})
    page = Page(write_report(tmp_path / "s").read_text(encoding="utf-8"))
    assert f"0.0 gives 80 % to {name} and, of the rest, 50 % to the changed tokens" in page.text
    said = f"1 of 1 heads put at least half of their attention on {name}, an attention sink"
    assert page.text.count(said) == 1


def test_places_nobody_attends_to_are_not_drawn_and_rows_sum_to_one(tmp_path: Path) -> None:
    _study(tmp_path, _table(0.5, 0.5))
    page = Page(write_report(tmp_path / "s").read_text(encoding="utf-8"))
    (figure,) = (f for f in page.figures if [name for name, _ in f["axes"]] == ["head", "place"])
    assert figure["axes"][1][1] == ["BOS", "changed tokens", "elsewhere"]
    assert sum(figure["columns"]["value"]) == pytest.approx(1.0)


def test_a_study_without_shares_of_tokens_is_told_from_its_whole_patterns(tmp_path: Path) -> None:
    results = studies.full()
    study = StoredStudy.read(studies.write(tmp_path / "s", results))
    found = head_places(study)
    pattern = study.grids["pattern.0"].values[:, :, -1]
    assert set(found) == {(str(i), str(j)) for i, j in np.ndindex(pattern.shape[:2])}
    assert all(places.n == 2 for places in found.values())
    bare = [r for r in results if not r.name.startswith("pattern.")]
    with pytest.raises(Missing):
        head_places(StoredStudy.read(studies.write(tmp_path / "bare", bare)))
