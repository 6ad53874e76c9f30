"""Nothing is lost: what a study folder holds is whole, its own, and reads back as it was."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from casestudy.errors import StudyError
from casestudy.results.files import read_results, read_table, write_atomically, write_results
from casestudy.results.result import Axis, Grid, Table
from casestudy.study.store import Store, Stored

MANIFEST = {"format": 1, "model": {"name": "a"}, "settings": {"top_k": 5}}


def made(folder: Path) -> Store:
    return Store.create_or_resume(folder, MANIFEST, ("model", "settings"))


@given(
    values=hnp.arrays(np.float64, (2, 3), elements=st.floats(width=64)),
    labels=st.lists(st.text(), min_size=3, max_size=3),
    gap=st.floats(0, 1),
)
def test_a_grid_reads_back_as_it_was(
    tmp_path_factory: Any, values: np.ndarray, labels: list[str], gap: float
) -> None:
    labels = [label.encode("utf-8", "replace").decode() for label in labels]
    grid = Grid(
        "a.b",
        values,
        (Axis.count("prompt", 2), Axis("token", tuple(labels))),
        "logits",
        n=np.full((2, 3), 4),
        error={"gap": gap},
        about="x",
    )
    path = tmp_path_factory.mktemp("grid") / "g.safetensors"
    write_results(path, [grid, Table("t", {"text": labels}, "rows")])
    back, table = read_results(path)
    assert isinstance(back, Grid)
    assert isinstance(table, Table)
    np.testing.assert_array_equal(back.values, values)
    assert back.lower is None
    assert (back.axes, back.unit, back.error, back.about) == (grid.axes, "logits", grid.error, "x")
    assert table.columns["text"] == labels


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudyError, match=r"No space left on device.*Nothing already written"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["f"], "no part is left behind"


def test_a_truncated_chunk_is_named(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.write_chunk(3, [Table("t", {"a": [1, 2, 3]})])
    path = tmp_path / "chunks" / "00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StudyError, match=r"00003\.safetensors cannot be read.*delete that file"):
        store.read_chunk(3)


def test_another_study_is_refused_saying_what_differs(tmp_path: Path) -> None:
    made(tmp_path)
    renamed = MANIFEST | {"model": {"name": "b"}}
    Store.create_or_resume(tmp_path, renamed, ("model", "settings"))  # a name is no identity
    other = MANIFEST | {"model": {"name": "a", "weight_hash": "b"}}
    with pytest.raises(StudyError, match=r'model\.weight_hash: stored .*, now "b"'):
        Store.create_or_resume(tmp_path, other, ("model", "settings"))
    other |= {"settings": {f"entry {i}": i for i in range(30)}}
    with pytest.raises(StudyError, match=r"now \d+; and \d\d other entries differ\.") as refused:
        Store.create_or_resume(tmp_path, other, ("settings", "model"))
    assert "model.weight_hash" in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StudyError, match=r"not a study's: thesis\.tex"):
        made(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"cannot be written.*--out"):
        made(tmp_path / "file" / "study")


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    store = made(tmp_path)
    with (
        store.locked(),
        pytest.raises(StudyError, match="another process is running a study"),
        Store.open(tmp_path).locked(),
    ):
        pass
    with store.locked():
        pass


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "damaged"), ("[]", "not a study's manifest"), ("{}", "not a study's manifest")],
)
def test_a_damaged_manifest_says_so(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StudyError, match=says):
        Store.open(tmp_path)


def test_no_study_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"holds no study.*casestudy run"):
        Store.open(tmp_path)


def test_a_long_table_can_be_read_in_part_and_says_so(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.write_final([Table("t", {"a": list(range(10))}, "rows")])
    path = tmp_path / "tables" / "t.parquet"
    part = read_table(path, most=3)
    assert part.columns == {"a": [0, 1, 2]}
    assert part.about == "rows The first 3 of 10 rows."
    assert read_table(path, most=10) == read_table(path) == store.tables()["t"]


def test_asking_whether_a_result_is_there_reads_nothing() -> None:
    def read(path: Path) -> Grid:
        raise AssertionError(f"{path} was read")

    grids = Stored({"ledger": Path("ledger.safetensors")}, read)
    assert "ledger" in grids
    assert "lens" not in grids
    with pytest.raises(AssertionError, match="was read"):
        grids["ledger"]
