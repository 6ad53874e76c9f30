"""One running explorer for all tests that need a socket or a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.show import studies
from tests.show.serving import Served, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model beside a study that lacks a table and holds a hostile prompt."""
    folder = tmp_path_factory.mktemp("study") / "s"
    texts = (*studies.TEXTS, "<script>window.ran = 1</script>.")
    studies.write(folder, studies.full(texts), texts=texts)
    (folder / "tables" / "answers.parquet").unlink()
    with serving(str(folder), "--model", "tiny") as found:
        yield found
