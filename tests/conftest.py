"""What every test starts from: checked shapes, few threads, no network, and small models."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# No test reads or writes the user's cache.
CACHE = tempfile.mkdtemp(prefix="casestudy-tests-")
os.environ["CASESTUDY_CACHE"] = CACHE
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
# Before anything imports huggingface_hub, which reads them once: no test reaches a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.checked import install  # noqa: E402

# Before anything imports casestudy: every annotated shape and type in it is checked.
install("casestudy")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# torch and casestudy are imported by what needs them: the process that hands the tests to
# pytest-xdist's workers runs none, and would spend as long on the imports as a worker.
if TYPE_CHECKING:
    from casestudy.model.model import Model
    from casestudy.model.tokens import Tokenizer


LONGEST = (
    "study/test_killed.py",
    "test_docs.py",
    "show/test_explorer_browser.py",
    "circuits/test_card.py",
    "study/test_ray.py",
    "test_cli.py",
    "model/test_smollm2.py",
    "compat/test_notebook.py",
    "training/test_train.py",
    "show/test_browser.py",
    "study/test_circuit.py",
)
"""The files that take longest. They come first, so that workers that take whole files
(`--dist loadfile`) end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: the longest files first, the others as they were found."""
    places = {ROOT / "tests" / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collectstart() -> None:
    """In a process that runs tests: one thread.

    The models here are small: a second thread only waits for the first, ten times longer where the
    cores are busy.
    """
    import torch

    torch.set_num_threads(1)


# The suite says the same on every run and every machine; a slow one is no failure.
settings.register_profile("casestudy", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("casestudy")

ROOT = Path(__file__).resolve().parents[1]
GPT2_TOKENIZER = "CASESTUDY_GPT2_TOKENIZER"


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of small random GPT-2 checkpoints, one per set of options; see `write_gpt2`."""
    made: dict[str, Path] = {}

    from tests.helpers import write_gpt2

    def make(**options: int) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = write_gpt2(tmp_path_factory.mktemp("toy"), **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def toy(toy_folder: Callable[..., Path]) -> Callable[..., Model]:
    """Small random GPT-2 models: `toy()`, `toy(n_layer=3, seed=1, dtype="float64")`."""
    made: dict[str, Model] = {}

    from casestudy.model.loading import load

    def make(dtype: str = "float32", **options: int) -> Model:
        key = repr((dtype, sorted(options.items())))
        if key not in made:
            made[key] = load(toy_folder(**options), dtype=dtype, device="cpu")
        return made[key]

    return make


@pytest.fixture(scope="session")
def toy_model(toy: Callable[..., Model]) -> Model:
    """A random GPT-2 of two layers and four heads, float32, with the bundled tokenizer."""
    return toy()


@pytest.fixture(scope="session")
def toy_model64(toy: Callable[..., Model]) -> Model:
    """`toy_model` in float64."""
    return toy(dtype="float64")


@pytest.fixture(scope="session")
def gpt2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """GPT-2's own tokenizer, where its two files are."""
    from casestudy.model.tokens import Tokenizer
    from tests.helpers import gpt2_tokenizer_json

    folder = Path(os.environ.get(GPT2_TOKENIZER, ROOT.parent / "shared" / "gpt2-tokenizer"))
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        pytest.skip(
            f"GPT-2's vocab.json and merges.txt are not in {folder}; "
            f"set {GPT2_TOKENIZER} to a folder that holds them"
        )
    built = gpt2_tokenizer_json(folder, tmp_path_factory.mktemp("gpt2-tokenizer"))
    return Tokenizer.from_directory(built, prepend_bos=True, n_ctx=1024)


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """SmolLM2-135M-Instruct, where its package is installed."""
    from casestudy.errors import ModelError
    from casestudy.model.loading import load

    try:
        return load("smollm2", device="cpu")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def gradients_as_they_were() -> Iterator[None]:
    """A test that switches gradients off, as notebooks do, switches them off for itself alone."""
    import torch

    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)
