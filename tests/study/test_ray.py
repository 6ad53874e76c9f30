"""Several machines, played by several nodes on this one: the same numbers, whoever dies."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casestudy.engine.packing import Progress
from casestudy.errors import StudyError
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.study import on_ray
from casestudy.study.executors import Work
from casestudy.study.measuring import State
from casestudy.study.on_ray import PackedWork
from casestudy.study.settings import Execution
from casestudy.study.study import Study, study
from tests.study.killed import behaviour

pytestmark = pytest.mark.slow

ONLY = ["predictions", "ledger", "attribution"]
LOCAL = "127.0.0.1"


@pytest.fixture(scope="module")
def model(toy_folder: Callable[..., Path]) -> Model:
    return load(toy_folder(n_layer=1, n_head=2, n_embd=16), device="cpu")


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study as this process runs it."""
    return run(model, tmp_path_factory.mktemp("whole"))


def run(
    model: Model, out: Path, progress: Callable[[Progress], None] | None = None, **how: Any
) -> Study:
    execution = Execution(chunk_tokens=24, **how)
    return study(model, behaviour(), out=out, only=ONLY, execution=execution, progress=progress)


def alike(a: Study, b: Study) -> None:
    assert set(a.grids) == set(b.grids)
    for name, grid in a.grids.items():
        if name != "ledger.check":  # which holds rounding errors themselves
            scale = np.nanmax(np.abs(grid.values))
            np.testing.assert_allclose(
                b.grids[name].values, grid.values, rtol=1e-5, atol=1e-5 * scale, err_msg=name
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_travel_as_they_are(toy: Callable[..., Model], dtype: str) -> None:
    model = toy(dtype=dtype)
    work = Work(model, behaviour(3), (), 5)
    packed = PackedWork.of(work)
    back = packed.unpack().model
    assert back.weight_hash == model.weight_hash
    assert back.weights.tied == model.weights.tied
    if dtype == "float32":
        assert np.shares_memory(back.weights.W_E.numpy(), packed.arrays[0]), "no copy"


def test_without_ray_it_says_what_to_install(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"needs Ray.*casestudy\[ray\]"):
        run(model, tmp_path / "s", executor="ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU each on 127.0.0.1; this process is connected to the first."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'casestudy[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # keeps 127.0.0.1 what it is
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        options: dict[str, Any] = {"node_ip_address": LOCAL, "object_store_memory": 80 * 2**20}
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **options},
        )
        made.nodes = [made.add_node(num_cpus=1, **options) for _ in range(2)]
        ray.init(
            address=made.address, log_to_driver=False, configure_logging=False,
            _node_ip_address=LOCAL,
        )  # fmt: skip
        made.wait_for_nodes()
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_gives_the_same_numbers(
    model: Model, whole: Study, cluster: Any, tmp_path: Path
) -> None:
    told: list[Progress] = []
    done = run(model, tmp_path / "s", executor="ray", workers=2, threads=1, progress=told.append)
    alike(whole, done)
    states = [state for state in told if isinstance(state, State)]
    assert states[-1].done == 60
    assert done.manifest["plan"]["threads"] == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_killed_node_costs_nothing(
    model: Model, whole: Study, cluster: Any, tmp_path: Path
) -> None:
    killed: list[Any] = []

    def kill(state: Progress) -> None:
        if state.done > 10 and not killed:
            killed.append(cluster.nodes[-1])
            cluster.remove_node(cluster.nodes[-1], allow_graceful=False)

    done = run(model, tmp_path / "s", executor="ray", workers=2, threads=1, progress=kill)
    assert killed
    alike(whole, done)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_room_for_a_worker_says_so(
    model: Model, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "START_SECONDS", 1.0)
    with pytest.raises(StudyError, match=r"no worker with 64 CPUs.*ray status"):
        run(model, tmp_path / "s", executor="ray", workers=1, threads=64)
