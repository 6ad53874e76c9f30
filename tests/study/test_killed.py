"""Law 5, the hard way: real processes, killed with signal 9 at any moment, lose nothing."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from casestudy.engine.packing import Progress
from casestudy.errors import StudyError
from casestudy.study.store import SHARD
from casestudy.study.study import Study, open_study
from tests.forks import forked
from tests.study.killed import (
    N,
    circuit_until,
    find_circuit,
    kill_often,
    limited_to,
    run,
)

pytestmark = pytest.mark.slow

KILLS = 20


@pytest.fixture(scope="module")
def model(toy_folder: Callable[..., Path]) -> str:
    return str(toy_folder(n_layer=1, n_head=2, n_embd=16))


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study that nobody killed."""
    return run(model, str(tmp_path_factory.mktemp("whole")))


def killed_after(chunks: int, model: str, out: Path) -> None:
    """A run of its own process, killed when it has said so often how far it is."""
    with forked(run, model, str(out)) as one:
        for _ in range(chunks):
            one.lines.readline()
        one.process.kill()


def same(a: Study, b: Study) -> None:
    """Every number of two studies is the same, bit for bit."""
    assert set(a.grids) == set(b.grids)
    assert set(a.tables) == set(b.tables)
    for name, grid in a.grids.items():
        other = b.grids[name]
        for part in ("values", "lower", "upper", "n"):
            x, y = getattr(grid, part), getattr(other, part)
            assert (x is None) == (y is None)
            if x is not None:
                np.testing.assert_array_equal(x, y, err_msg=f"{name} {part}")
        assert grid.axes == other.axes
        assert grid.error == other.error
    for name, table in a.tables.items():
        for column, values in table.columns.items():
            if column != "seconds":
                assert repr(values) == repr(b.tables[name].columns[column]), (name, column)


def test_killed_twenty_times_and_still_the_same_bits(
    model: str, whole: Study, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    reached, folders = kill_often(model, str(out), KILLS)
    assert {"chunks", "shards"} <= reached, "some were killed amid the work"
    for folder in folders:
        same(whole, open_study(folder))


def test_a_killed_process_of_its_own(model: str, whole: Study, tmp_path: Path) -> None:
    """The same of one process, killed after its fifth chunk; another goes on."""
    out = tmp_path / "study"
    killed_after(5, model, out)
    assert open_study(out).manifest["state"] == "running"
    with forked(run, model, str(out)) as another:
        done = [int(line) for line in another.ended().split()]
    assert done[0] > 0, "it goes on from what is there"
    assert done[-1] == N
    same(whole, open_study(out))


def test_killed_within_the_circuit_it_goes_on_from_the_kept_steps(
    model: str, tmp_path: Path
) -> None:
    whole = find_circuit(model, str(tmp_path / "whole"))
    out = tmp_path / "killed"
    with forked(circuit_until, "controls", model, str(out)) as one:
        one.ended()
    assert one.process.exitcode == -signal.SIGKILL
    kept = {path.stem for path in (out / "steps" / "circuit").iterdir()}
    assert kept == {"plan", "scores", "exact", "curves"}
    told: list[Progress] = []
    again = find_circuit(model, str(out), told.append)
    steps = [progress.note for progress in told if progress.stage == "circuit"]
    assert steps[0] == "controls", "what is kept is not computed again"
    same(whole, again)
    for name in ("circuit.json", "importances.json"):
        one, other = (json.loads((at / name).read_text()) for at in (out, tmp_path / "whole"))
        for found in (one, other):
            found.get("about", {}).pop(
                "plan", None
            )  # how long it was going to take: another time in every search
        assert one == other
    assert not (out / "steps").exists(), "the steps go once the card is written"


def test_a_full_disk_stops_it_and_costs_at_most_a_chunk(
    model: str, whole: Study, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk: merging the first shard fails."""
    out = tmp_path / "study"
    with forked(limited_to, 24_000, model, str(out)) as one:
        said = one.ended()
    assert one.process.exitcode == 1
    assert "make room and run the same command again" in said
    assert not [*out.rglob("*.part")], "nothing half written is left"
    assert len([*(out / "chunks").glob("*.safetensors")]) == SHARD, "every chunk is kept"
    same(whole, run(model, str(out)))


def test_a_truncated_shard_is_named_and_its_prompts_are_measured_again(
    model: str, whole: Study, tmp_path: Path
) -> None:
    run(model, str(tmp_path / "s"))
    shard = tmp_path / "s" / "shards" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(StudyError, match=r"shards/00000\.safetensors cannot be read.*delete"):
        run(model, str(tmp_path / "s"))
    shard.unlink()
    same(whole, run(model, str(tmp_path / "s")))


def test_another_bos_is_another_study(model: str, tmp_path: Path) -> None:
    run(model, str(tmp_path / "s"))
    with pytest.raises(StudyError, match=r"settings\.prepend_bos: stored true"):
        run(model, str(tmp_path / "s"), prepend_bos=False)


def test_a_manifest_changed_by_hand_is_refused(model: str, tmp_path: Path) -> None:
    run(model, str(tmp_path / "s"))
    path = tmp_path / "s" / "manifest.json"
    manifest = json.loads(path.read_text())
    for change, says in (
        (
            {"settings": {"prepend_bos": False, "top_k": 100}},
            r"settings\.prepend_bos: stored false",
        ),
        ({"model": manifest["model"] | {"weight_hash": "0"}}, r"model\.weight_hash: stored \"0\""),
        ({"plan": {"chunks": [[0]], "threads": 1}}, "does not hold each prompt once"),
        ({"plan": {"chunks": manifest["plan"]["chunks"], "threads": 0}}, "changed by hand"),
        ({"plan": None}, "changed by hand"),
        ({"format": 99}, "format: stored 99"),
    ):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(StudyError, match=says):
            run(model, str(tmp_path / "s"))
    chunks = manifest["plan"]["chunks"]
    chunks[0], chunks[1] = chunks[1], chunks[0]
    for chunk in (tmp_path / "s" / "shards").glob("*.safetensors"):
        chunk.unlink()
    path.write_text(json.dumps(manifest))
    run(model, str(tmp_path / "s"))  # another whole plan is a plan


def test_a_chunk_of_other_prompts_is_refused(model: str, tmp_path: Path) -> None:
    out = tmp_path / "s"
    killed_after(4, model, out)
    a, b = (out / "chunks" / f"{i:05d}.safetensors" for i in (0, 1))
    a.write_bytes(b.read_bytes())
    with pytest.raises(StudyError, match=r"00000\.safetensors holds other prompts"):
        run(model, str(out))


def test_two_runs_in_one_folder_are_one_too_many(model: str, tmp_path: Path) -> None:
    out = tmp_path / "s"
    with forked(run, model, str(out)) as first:
        first.lines.readline()
        assert first.process.pid is not None
        os.kill(first.process.pid, signal.SIGSTOP)
        with pytest.raises(StudyError, match="another process is running a study"):
            run(model, str(out))
        os.kill(first.process.pid, signal.SIGCONT)
        first.ended()
    assert first.process.exitcode == 0
    assert open_study(out).manifest["state"] == "complete"
