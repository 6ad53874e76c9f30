"""Which patch grids does a stored study hold, and which of their cells say nothing new?

An effect is so by construction where a patch puts back what the edit itself changed: at a token
that the pairs change, before any layer has moved the difference to another place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casestudy.results import names
from casestudy.results.result import Axis, Grid
from casestudy.show.stored import Missing, StoredStudy

MOST_HEADS = 24
"""Rows of a figure by head and place."""
EARLY = 4
"""At most so many MLP layers are first layers, and at most a third of all."""
CARRIED = 0.9
"""While the residual stream at a changed token has this share of the effect that it had at the
input, no layer has moved the difference elsewhere."""
EMPTY = 0.005
"""Least share of the difference: a role with smaller effects in every row is not drawn."""


def patch_grids(study: StoredStudy) -> list[str]:
    """The patch grids that get a figure: shares of the difference; effects only for ablations."""
    grids = [name for name in sorted(study.grids) if name.startswith(names.PATCHING)]
    shares = [n for n in grids if not n.endswith((names.RAW, names.EFFECT))]
    effects = [
        n for n in grids if n.endswith(names.EFFECT) and n.removesuffix(names.EFFECT) not in shares
    ]
    # Where per-prompt results have a mean, the mean is drawn.
    found = [n for n in [*shares, *effects] if names.mean(n) not in study.grids]
    return sorted(found, key=_rank)


def cut_grid(study: StoredStudy, name: str) -> tuple[Grid, tuple[Any, ...]]:
    """A patch grid at the main contrast, with at most two axes, and its largest cell."""
    grid = study.grid(name)
    for axis in grid.axes:
        if axis.name == "contrast":
            grid = grid.select(contrast=study.contrast)
        elif len(axis) == 1:
            grid = grid.select(**{axis.name: axis.labels[0]})
    axes = [axis.name for axis in grid.axes]
    if axes[:2] == ["layer", "head"] and len(axes) == 3:
        grid = by_head(grid, MOST_HEADS)
    if axes == ["neuron"]:
        order = np.argsort(-np.nan_to_num(np.abs(grid.values)), kind="stable")
        grid = grid.take("neuron", [grid.axes[0].labels[i] for i in order])
    if not 1 <= len(grid.axes) <= 2 or grid.axes[-1].name == "prompt":
        raise Missing(f"“{name}” has axes that no figure was made for")
    if not np.isfinite(grid.values).any():
        raise Missing(f"nothing of “{name}” could be measured")
    where = np.unravel_index(int(np.nanargmax(np.abs(grid.values))), grid.values.shape)
    return grid, tuple(where)


def by_head(grid: Grid, most: int | None = None) -> Grid:
    """(layer, head, place) as (head, place), in layer order; only the largest if there are more."""
    layers, heads, place = grid.axes
    flat = grid.values.reshape(-1, len(place))
    size = np.nan_to_num(np.abs(flat)).max(1)
    rows = np.sort(np.argsort(-size, kind="stable")[:most])
    labels = [f"{a}.{b}" for a in layers.labels for b in heads.labels]

    def cut(array: Any) -> Any:
        return None if array is None else array.reshape(-1, len(place))[rows]

    return replace(
        grid,
        values=cut(grid.values),
        lower=cut(grid.lower),
        upper=cut(grid.upper),
        n=cut(grid.n),
        axes=(Axis("head", tuple(labels[i] for i in rows)), place),
        about=f"{grid.about} The {len(rows)} heads with the largest effects of {len(labels)}."
        if len(rows) < len(labels)
        else grid.about,
    )


def parts_of(name: str) -> list[str]:
    """A patch grid's name in parts: its site first, how it was patched last."""
    name = name.removeprefix(names.PATCHING).removeprefix(names.NOISING)
    return name.removesuffix(names.MEAN).removesuffix(names.EFFECT).split(".")


ORDER = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "pattern",
)


def _rank(name: str) -> tuple[bool, int, str]:
    site = parts_of(name)[0]
    return f".{names.NOISING}" in name, ORDER.index(site) if site in ORDER else len(ORDER), name


def largest(study: StoredStudy, grid: Grid, name: str) -> tuple[Any, ...]:
    """The cell with the largest effect that is neither trivial nor by construction.

    Raises: Missing where there is none.
    """
    site = parts_of(name)[0]
    values = np.array(grid.values, dtype=float)
    # a share below zero restores nothing; an ablation's effect counts either way
    size = np.abs(values) if name.endswith(names.EFFECT) else values
    if site.startswith("resid"):
        raise Missing("the residual stream carries everything somewhere")
    size[by_construction(study, grid, name)] = np.nan
    if not np.isfinite(size).any():
        raise Missing("every effect is by construction")
    return tuple(np.unravel_index(int(np.nanargmax(size)), size.shape))


def by_construction(study: StoredStudy, grid: Grid, name: str) -> NDArray[np.bool_]:
    """The cells of the first MLP layers at tokens that the pairs change, as far up as the
    difference still is at these tokens.

    At a token that no pair changes, an MLP reads what attention moved there: such a cell counts.
    """
    site, axes = parts_of(name)[0], [axis.name for axis in grid.axes]
    if site != "mlp_out" or axes not in (["layer"], ["layer", "role"], ["layer", "pos"]):
        return np.zeros(grid.values.shape, dtype=bool)
    labels = grid.axes[0].labels
    first = np.isin(labels, [str(i) for i in range(min(EARLY, -(-len(labels) // 3)))])
    if len(axes) == 1:  # pairs that differ in the last token alone, if they are patched there
        return first & (parts_of(name)[-1] == "last")
    carried = _carried(study, grid, name)
    if carried is None:
        carried = np.isin(grid.axes[1].labels, [names.CHANGED_TOKENS])[None, :]
    return np.asarray(first[:, None] & carried)


def _carried(study: StoredStudy, grid: Grid, name: str) -> NDArray[np.bool_] | None:
    """Where the residual stream before each layer still has, at a place that the pairs change, the
    effect that it had at the input; None where the study did not patch it."""
    other = name.replace("mlp_out", "resid_pre", 1)
    families = study.manifest.get("patch_families")
    families = families if isinstance(families, Mapping) else {}
    try:
        stream, _ = cut_grid(study, other)
    except Missing:
        return None
    if families.get(other) != families.get(name) or stream.axes != grid.axes:
        return None
    effect = np.nan_to_num(np.asarray(stream.values, dtype=float))
    changed = np.abs(effect[0]) >= EMPTY
    still = effect * np.sign(effect[0]) >= CARRIED * np.abs(effect[0])
    return np.asarray(changed & np.logical_and.accumulate(still, axis=0))
