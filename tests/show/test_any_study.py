"""Whatever a study's files hold, there is a page, and it says what it could not show."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from casestudy.results.result import Axis, Grid, Result, Table
from casestudy.show.report import report_html
from casestudy.show.stored import StoredStudy
from tests.show import studies
from tests.show.pages import Page

LABELS = ("0", "1", "0_pre", "lowercase", "attn 0", "bias", "a b", "<i>", "final_post", "pattern")
NUMBERS = (0.0, 1.0, -2.5, 1e-12, 1e9, 1e300, math.nan, math.inf, -math.inf)
CELLS = (None, -1, 0, 1, 3, True, "x", "", "0", "<b>", *NUMBERS)


def any_grid(rng: random.Random, known: Grid, axes: list[str]) -> Grid:
    """A grid of a known name with axes, sizes, labels and numbers of any kind."""
    names = [a.name for a in known.axes]
    if rng.random() < 0.4:
        names = rng.sample(axes, rng.randint(0, 4))
    made = tuple(
        Axis(name, tuple(rng.choice(LABELS) for _ in range(rng.randint(0, 3)))) for name in names
    )
    shape = tuple(map(len, made))

    def array() -> Any:
        return np.array([rng.choice(NUMBERS) for _ in range(math.prod(shape))]).reshape(shape)

    if rng.random() < 0.5:
        return Grid(known.name, array(), made, "logits")
    n = np.full(shape, 2)
    return Grid(known.name, array(), made, "logits", array(), array(), n, {"gap": 1.0})


def any_table(rng: random.Random, known: Table) -> Table:
    """A table of a known name, with some of its columns, holding anything."""
    n = rng.randint(0, 3)
    kept = [name for name in known.columns if rng.random() < 0.9]
    return Table(known.name, {name: [rng.choice(CELLS) for _ in range(n)] for name in kept})


@pytest.mark.parametrize("seed", range(40))
def test_any_results_give_a_page(seed: int) -> None:
    rng = random.Random(seed)
    known: list[Result] = studies.full()
    grids = [r for r in known if isinstance(r, Grid)]
    tables = [r for r in known if isinstance(r, Table)]
    axes = sorted({axis.name for grid in grids for axis in grid.axes})
    results = {r.name: r for r in (known if seed % 2 else [])}
    for _ in range(rng.randint(1, 8)):
        grid = any_grid(rng, rng.choice(grids), axes)
        results[grid.name] = grid
    for _ in range(rng.randint(0, 4)):
        table = any_table(rng, rng.choice(tables))
        results[table.name] = table
    study = StoredStudy(
        studies.manifest(3),
        {name: r for name, r in results.items() if isinstance(r, Grid)},
        {name: r for name, r in results.items() if isinstance(r, Table)},
    )
    page = Page(report_html(study))
    assert "What was not measured" in page.text
    assert page.loads == []
    assert len(page.alts) == len(page.figures)
