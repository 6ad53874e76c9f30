"""How can results by position be averaged over prompts of unequal length?

Positions are averaged within each prompt over the tokens of a role ("final full stop", "first
word"), and then roles can be averaged over prompts. Cost: negligible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from casestudy.errors import MeasureError
from casestudy.results.names import BY_ROLE
from casestudy.results.result import Array, Axis, Grid


def by_role(
    grid: Grid,
    roles: Sequence[Mapping[str, tuple[int, ...]]],
    names: Sequence[str],
    *,
    axis: str = "pos",
) -> Grid:
    """A grid's positions averaged by role within each prompt.

    Args:
        grid: has the axes `prompt` and `axis`; NaN cells were not measured and are left out.
        roles: each prompt's positions by role, in the order of the prompt axis (`Batch.roles`).
        names: the roles to return, in order (`Batch.role_names`).
        axis: the axis of positions ("pos", "key_pos", …), which counts tokens from the first.

    Shape:  the grid's, with `role` in place of `axis`; NaN if a prompt does not have the role, or
            has no measured cell there. The result has no intervals.
    Raises: MeasureError if `roles` is not one per prompt, or has positions outside the grid.
    """
    if len(roles) != len(grid.axis("prompt")):
        raise MeasureError(
            f"{len(roles)} prompts' roles for the {len(grid.axis('prompt'))} of {grid.name}"
        )
    dim = grid.dim(axis)
    # prompt first, position last
    values = np.moveaxis(grid.values, (grid.dim("prompt"), dim), (0, -1))
    out = np.full((*values.shape[:-1], len(names)), np.nan, dtype=grid.values.dtype)
    for row, found in enumerate(roles):
        for column, name in enumerate(names):
            places = list(found.get(name, ()))
            if places and max(places) >= values.shape[-1]:
                raise MeasureError(
                    f"role {name!r} is at position {max(places)} of prompt "
                    f"{grid.axis('prompt').labels[row]}",
                    allowed=f"positions up to {values.shape[-1] - 1} in {grid.name}",
                )
            if places:
                out[row, ..., column] = _mean(values[row][..., places])
    out = np.moveaxis(out, (0, -1), (grid.dim("prompt"), dim))
    axes = (*grid.axes[:dim], Axis("role", tuple(names)), *grid.axes[dim + 1 :])
    return replace(
        grid,
        name=grid.name + BY_ROLE,
        values=out,
        axes=axes,
        lower=None,
        upper=None,
        n=None,
        about=f"{grid.about} Averaged within each prompt over a role's positions.".strip(),
    )


def _mean(cells: Array) -> Array:
    """The mean of the measured cells over the last axis; NaN if there are none."""
    present = ~np.isnan(cells)
    n = present.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(present, cells, 0).sum(-1) / n)
