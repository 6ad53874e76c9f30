"""Is the number of threads what the work can use, and what a user chose?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import casestudy as cs
from casestudy.engine import threads
from casestudy.engine.threads import suited, threads_set
from casestudy.engine.workers import cores_set
from casestudy.model.model import Model
from casestudy.study.settings import Execution


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch as it starts on a machine of eight cores where nobody chose a number."""
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    with threads_set(8), cores_set(8):
        yield


@pytest.fixture(scope="module")
def tiny() -> Model:
    return cs.load("tiny")


def sized(model: Model, d_model: int, d_mlp: int) -> Model:
    """A model that says it is so wide; its weights are not asked for."""
    return replace(model, config=replace(model.config, d_model=d_model, d_mlp=d_mlp))


@pytest.mark.usefixtures("free")
def test_a_small_model_takes_one_thread_and_a_large_one_all(tiny: Model) -> None:
    assert suited(tiny) == 1
    assert 1 < suited(sized(tiny, 576, 1536)) < 8
    assert suited(sized(tiny, 4096, 11008)) == 8


@pytest.mark.usefixtures("free")
def test_more_work_never_takes_fewer_threads(tiny: Model) -> None:
    model = sized(tiny, 768, 3072)
    counts = [suited(model, rows) for rows in (1, 16, 256, 4096)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.usefixtures("free")
def test_a_number_that_was_chosen_is_kept(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with threads_set(3):
        assert suited(tiny) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert suited(tiny) == 8


@pytest.mark.usefixtures("free")
def test_a_study_stores_its_threads_and_puts_torchs_back(tiny: Model) -> None:
    execution = Execution(chunk_tokens=64)
    texts = ["The sun rose."] * 10
    study = cs.study(tiny, texts, only=["predictions"], execution=execution)
    plan = study.manifest["plan"]
    assert plan["threads"] == 1
    assert plan["cores"] == 8
    assert len(plan["chunks"]) >= 5, "eight chunks at once have 64 tokens together"
    assert torch.get_num_threads() == 8


def test_the_command_line_waits_asleep_unless_somebody_chose() -> None:
    code = "import os; from casestudy import cli; cli.wait_asleep()"
    code += "; print(os.environ.get('OMP_WAIT_POLICY'))"
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}

    def policy(**chosen: str) -> str:
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, env=plain | chosen, capture_output=True, text=True)
        return result.stdout.strip()

    assert policy() == "passive"
    assert policy(OMP_WAIT_POLICY="active") == "active"
    assert policy(GOMP_SPINCOUNT="1000") == "None"
