"""The seed's study runs from top to bottom, on the bundled model."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "full_stop_capitals.ipynb"


def _run(source: str) -> list[str]:
    """What each code cell prints."""
    import nbformat
    from nbclient import NotebookClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's own sockets and event loops
        notebook = nbformat.reads(source, as_version=4)
        where = {"metadata": {"path": str(ROOT)}}
        NotebookClient(notebook, timeout=600, resources=where).execute()
    printed = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [out.text for out in cell.outputs if out.output_type == "stream"]
            printed.append("".join(texts))
    return printed


def test_the_notebook_is_stored_without_outputs_and_has_one_variable() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert code[0].source.startswith('MODEL = "tiny"')
    assert sum("MODEL =" in cell.source for cell in code) == 1


def test_the_study_runs_and_ends_where_the_first_one_could_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A kernel's processes would fight over the two cores that the other tests use.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    printed = _run(NOTEBOOK.read_text(encoding="utf-8"))
    everything = "\n".join(printed)
    assert "calculated + b_U" in everything  # the puzzle, solved: the cell asserts that it closes
    reversal = next(text for text in printed if "before the last:" in text)
    assert "  reversed " in reversal
    assert "the final full stop carries more than half of it" in everything
    assert "prefers the capital by" in printed[-1]
