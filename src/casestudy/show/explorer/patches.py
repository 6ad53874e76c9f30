"""How does the page show a patch grid while it is computed?

The sweep reports its results after every climb (see `engine`). The grid is drawn with unknown cells
in grey, at most a few times a second, and at the end once more with its check. The climbs are
small, so that the first cells appear at once and a grid that is no longer wanted stops soon.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from casestudy.errors import MeasureError
from casestudy.results.result import Grid
from casestudy.show import marks
from casestudy.show.blocks import Figure
from casestudy.show.explorer.page_state import DIRECTIONS, PageState
from casestudy.show.page import figure_html
from casestudy.show.sections.patch_grids import by_head
from casestudy.show.sections.patching import patch_mark
from casestudy.show.text import clean, number, signed, visible

if TYPE_CHECKING:
    from casestudy.behaviour.prompts import Prompt
    from casestudy.behaviour.steps import Steps
    from casestudy.measure.patching import Patched
    from casestudy.model.model import Model
    from casestudy.show.explorer.worker import Pause

ROWS = 1024
"""Most rows of a climb: a few hundredths of a second of the bundled model on one core."""
OPERATIONS = 4e10
"""Most operations of a climb on a CPU: about a third of a second on two cores. A grid that is no
longer wanted stops after a climb, and the next question waits for it."""
FEWEST_ROWS = 64
"""Rows of a climb whatever it costs: with fewer, a CPU mostly waits for the weights."""
EVERY = 0.15
"""Seconds between drawings of an unfinished grid; drawing takes at most a quarter of the time."""
MOST_PLACES = 256
"""Most columns of a grid by position: a larger one takes too long and cannot be read."""
MOST_CELLS = 6000
"""Cells of a grid by head and position."""

Line = dict[str, Any]
"""A message to the page: `html` of the grid so far, `done` of `total` cells; or a `problem`."""


def patch_grid(
    model: Model,
    prompt: Prompt,
    page_state: PageState,
    pause: Pause,
    tell: Callable[[Line], None],
) -> Line:
    """Compute a patch grid and report its progress; returns the last line.

    Args:
        model: the model.
        prompt: with its corrupted partner, answer and counterpart.
        page_state: the site, the places and the direction.
        pause: called between climbs; an exception that it raises ends the sweep.
        tell: called with a line for the page now and then.

    Raises: CasestudyError for what cannot be patched, with the reason.
    """
    from casestudy.behaviour.readouts import partner_of, row_of
    from casestudy.behaviour.steps import steps_of
    from casestudy.engine.packing import Budget
    from casestudy.measure.patching import read_by, read_direction
    from casestudy.measure.patching_prompts import patch_prompts

    pair = (prompt, partner_of(prompt, prompt.corrupted or ""))
    tokens = [row_of(model.tokenizer, one) for one in pair]
    by = page_state.by or ("" if len(tokens[0]) == len(tokens[1]) else "role")
    per_head = page_state.site in ("z", "pattern", "q", "k", "v")
    if by == "position" or (not by and not per_head):
        heads = model.config.n_heads if per_head else 1
        _check_size(steps_of(model.tokenizer, prompt), model.config.n_layers * heads, page_state)
    # the axis is of the run that is changed
    shown = model.tokenizer.labels(tokens[0 if page_state.direction == "noising" else 1])
    after = 0.0

    def watch(found: Patched) -> None:
        nonlocal after
        pause()
        begun = time.perf_counter()
        if begun >= after:
            tell(_line(found, page_state, shown, finished=False))
            took = time.perf_counter() - begun
            after = begun + max(EVERY, 4 * took)

    found = patch_prompts(
        model,
        [prompt],
        page_state.site,
        by=read_by(by or None),
        direction=read_direction(page_state.direction),
        budget=Budget(rows=_rows(model)),
        watch=watch,
    )
    return _line(found, page_state, shown, finished=True)


def _rows(model: Model) -> int:
    """Rows of a climb, so that the page soon hears of it whatever the size of the model."""
    from casestudy.engine.plan import attention_size, mlp_size

    if model.device.type != "cpu":
        return ROWS
    row = 2 * model.config.n_layers * (attention_size(model.config) + mlp_size(model))
    return min(ROWS, max(FEWEST_ROWS, int(OPERATIONS / row)))


def _check_size(steps: Steps, rows: int, page_state: PageState) -> None:
    """Check that a grid by position can be read and awaited.

    Args:
        steps: the answers, each of whose places is a run of its own.
        rows: cells of a position.

    Raises: MeasureError for too many positions.
    """
    places = len(steps.row) + max(len(step.before) for step in steps.steps)
    most = min(MOST_PLACES, MOST_CELLS // (rows * len(steps)))
    if places > most:
        read = "" if len(steps) == 1 else f", answers read at {len(steps)} places"
        raise MeasureError(
            f"a grid by position over {places} tokens{read}",
            allowed=f"at most {most} for {page_state.site}",
            hint="Patch by role, all positions together, or the last token",
        )


def _line(found: Patched, page_state: PageState, tokens: list[str], *, finished: bool) -> Line:
    grid = found.normalised if found.shares_mean_something else found.effect
    for axis in grid.axes:
        if axis.name == "pos":  # behind the prompt's tokens are the answers'
            behind = axis.labels[len(tokens) :]
            tokens = tokens + [label.partition(":")[2] for label in behind]
    known = np.isfinite(found.raw.values)
    line: Line = {
        "html": figure_html(_figure(grid, page_state, tokens, found, finished)),
        "done": int(known.sum()),
        "total": int(known.size),
        "finished": finished,
    }
    return line


def _figure(
    grid: Grid, page_state: PageState, tokens: list[str], found: Patched, finished: bool
) -> Figure:
    names = [axis.name for axis in grid.axes]
    labels = [
        [visible(t) for t in tokens] if axis.name == "pos" else [clean(x) for x in axis.labels]
        for axis in grid.axes
    ]
    values = np.asarray(grid.values, dtype=float)
    shares = found.shares_mean_something
    data = marks.Data(
        [
            (name, [f"{i}:{x}" for i, x in enumerate(own)] if name == "pos" else own)
            for name, own in zip(names, labels, strict=True)
        ],
        {"value": marks.numbers(values)},
        "of the difference" if shares else found.raw.unit,
    )
    grid = replace(grid, lower=None, upper=None, n=None)  # of one prompt
    if values.ndim == 3:  # layer, head and place: a row per head
        labels = [[f"{a}.{b}" for a in labels[0] for b in labels[1]], labels[2]]
        values, grid = values.reshape(len(labels[0]), -1), by_head(grid)
    title = f"Patching {page_state.site}, {DIRECTIONS[page_state.direction]}"
    mark = patch_mark(grid, opens=True, tokens=tokens)
    if isinstance(mark, marks.Heatmap) and not finished and shares:
        # while it fills, colours keep their meaning: a share of 1 is the whole difference
        mark = replace(mark, limit=1.0)
    unpatched, other = (float(row[0]) for row in found.baselines.values)
    gap = grid.error.get("gap")
    unit = found.raw.unit
    caption = _ends(page_state.direction, unpatched, other, unit, shares=shares)
    if gap is not None:
        caption += f" Cells recomputed with full forward passes differ by at most {number(gap)}."
    if finished and np.isnan(values).any():
        caption += " Grey is what the other prompt has no counterpart for."
    what = "share" if shares else f"change in {unit}"
    return Figure(title, mark, _alt(values, labels, title, what, finished), data, caption)


def _ends(direction: str, unpatched: float, other: float, unit: str, *, shares: bool) -> str:
    """What the two runs give, and what the figure is in units of."""
    run = "corrupted" if direction == "denoising" else "clean"
    if shares:
        return (
            f"0 is the {run} run as it is ({number(unpatched)} {unit}), 1 the other run "
            f"({number(other)} {unit})."
        )
    return (
        f"Changes in {unit}: the {run} run gives {number(unpatched)} {unit} and the other run "
        f"{number(other)}, too nearly the same for shares of their difference to say anything."
    )


def _alt(values: Any, labels: list[list[str]], title: str, what: str, finished: bool) -> str:
    if not np.isfinite(values).any():
        return f"{title}: nothing is known yet."
    where = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
    at = ", ".join(names[i] for names, i in zip(labels, where, strict=True))
    so_far = "" if finished else " so far"
    return f"{title}: the largest {what}{so_far} is {signed(float(values[where]))} at {at}."
