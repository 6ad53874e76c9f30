"""TransformerLens's `get_act_patch_*`: activation patching from the clean run.

Each function returns a grid of one metric over layers, positions and heads. If the metric reads
only the last position, the engine (`engine.sweep`) computes only what a patch changes. For another
metric, a patch of one entry of a pattern, or a model with hooks, each cell takes one forward pass,
as in TransformerLens.

Both ways are exact: two cells of an accelerated grid are also computed the plain way and compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse_import
from casestudy.compat.transformer_lens.hooked_transformer import HookedTransformer
from casestudy.compat.transformer_lens.layout import LeftPadded
from casestudy.compat.transformer_lens.names import get_act_name
from casestudy.engine.cells import SITES, Cell, Place
from casestudy.engine.packing import Budget
from casestudy.engine.sweep import sweep
from casestudy.errors import MeasureError, SiteError
from casestudy.model.sites import Site

Metric = Callable[[Tensor], Any]
Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor]

_AXES = ("layer", "pos", "head_index", "head", "src_pos", "dest_pos")
_LOGITS_HELD = 512 << 20


def generic_activation_patch(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    patching_metric: Metric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: Any = None,
    return_index_df: bool = False,
) -> Any:
    """A metric for each of many patches of one activation.

    Args:
        model: runs the corrupted prompts.
        corrupted_tokens: their ids, from `model.to_tokens`.
        clean_cache: activations of the clean run, by name.
        patching_metric: maps logits (batch, pos, d_vocab) to a number.
        patch_setter: from the corrupted activation, an index and the clean activation to the
            patched one; the ones below, or your own.
        activation_name: a short name, such as "resid_pre" or "z".
        index_axis_names: what the indices run over: layer, pos, head, dest_pos, src_pos.
        index_df: instead, a pandas frame with an index per row; its first column is the layer.
        return_index_df: return the frame of indices too (needs pandas).

    Shape:  one axis per name in index_axis_names; one value per row of index_df.
    """
    if (index_df is None) == (index_axis_names is None):
        raise SiteError("patches without indices", allowed="index_axis_names or index_df, not both")
    if index_axis_names is not None:
        ends = [
            _length(model, activation_name, axis, corrupted_tokens) for axis in index_axis_names
        ]
        indices = list(itertools.product(*map(range, ends)))
        shape = tuple(ends)
    else:
        indices = [tuple(int(i) for i in row) for row in index_df.to_numpy().tolist()]
        shape = (len(indices),)
    with torch.no_grad():
        job = _Job(model, corrupted_tokens, clean_cache, patching_metric, patch_setter)
        found = job.values(activation_name, indices)
    grid = torch.tensor(found, dtype=torch.float32, device=model.model.device).reshape(shape)
    if not return_index_df:
        return grid
    if index_df is None:
        import pandas as pd

        index_df = pd.DataFrame(indices, columns=list(index_axis_names or ()))
    return grid, index_df


def _length(model: HookedTransformer, name: str, axis: str, tokens: Tensor) -> int:
    if axis not in _AXES:
        raise SiteError(f"index axis {axis!r}", allowed=", ".join(_AXES))
    if axis == "layer":
        return model.model.config.n_layers
    if not axis.startswith("head"):
        return int(tokens.shape[-1])
    grouped = name in ("k", "v")
    return model.model.config.n_kv_heads if grouped else model.model.config.n_heads


# What is put where: (corrupted activation, index, clean activation) -> patched activation.


def layer_pos_patch_setter(corrupted: Tensor, index: Sequence[int], clean: Tensor) -> Tensor:
    """All of one position."""
    _, pos = index
    corrupted[:, pos] = clean[:, pos]
    return corrupted


def layer_pos_head_vector_patch_setter(
    corrupted: Tensor, index: Sequence[int], clean: Tensor
) -> Tensor:
    """One head at one position."""
    _, pos, head = index
    corrupted[:, pos, head] = clean[:, pos, head]
    return corrupted


def layer_head_vector_patch_setter(
    corrupted: Tensor, index: Sequence[int], clean: Tensor
) -> Tensor:
    """One head everywhere."""
    _, head = index
    corrupted[:, :, head] = clean[:, :, head]
    return corrupted


def layer_head_pattern_patch_setter(
    corrupted: Tensor, index: Sequence[int], clean: Tensor
) -> Tensor:
    """One head's whole pattern."""
    _, head = index
    corrupted[:, head] = clean[:, head]
    return corrupted


def layer_head_pos_pattern_patch_setter(
    corrupted: Tensor, index: Sequence[int], clean: Tensor
) -> Tensor:
    """One row of one head's pattern."""
    _, head, dest = index
    corrupted[:, head, dest] = clean[:, head, dest]
    return corrupted


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted: Tensor, index: Sequence[int], clean: Tensor
) -> Tensor:
    """One entry of one head's pattern."""
    _, head, dest, src = index
    corrupted[:, head, dest, src] = clean[:, head, dest, src]
    return corrupted


@dataclass(frozen=True)
class _Where:
    """Which index of a setter is the position, and which the head, for the engine."""

    pos: int | None
    head: int | None


_KNOWN: dict[Setter, _Where] = {
    layer_pos_patch_setter: _Where(1, None),
    layer_pos_head_vector_patch_setter: _Where(1, 2),
    layer_head_vector_patch_setter: _Where(None, 1),
    layer_head_pattern_patch_setter: _Where(None, 1),
    layer_head_pos_pattern_patch_setter: _Where(2, 1),
}


class _Job:
    """One set of corrupted prompts, the clean cache, and how their outcome is read."""

    def __init__(
        self,
        model: HookedTransformer,
        tokens: Int[Tensor, "batch pos"],
        clean: Any,
        metric: Metric,
        setter: Setter,
    ) -> None:
        self.model, self.clean, self.metric, self.setter = model, clean, metric, setter
        self.tokens = tokens if tokens.ndim == 2 else tokens[None]
        self.layout: LeftPadded = model._layout(self.tokens, None, None)

    def values(self, name: str, indices: list[tuple[int, ...]]) -> list[float]:
        """The metric under each patch."""
        if not indices:
            return []
        wanted = {get_act_name(name, index[0]) for index in indices}
        points = [self.model.look_up(full) for full in sorted(wanted)]
        names = [*(point.name for point in points), "hook_embed"]
        logits, corrupted = self.model.run_with_cache(
            self.tokens, names_filter=names, return_cache_object=False
        )
        base = self.read(logits)
        site = points[0].site
        hooked = any(point.has_hooks("fwd") for point in self.model.hook_points())
        if not hooked and self.setter in _KNOWN and site in SITES and self.reads_the_last(logits):
            return self.swept(name, site, indices, corrupted, base, logits)
        return [self.plainly(name, index, corrupted, base) for index in indices]

    def read(self, logits: Float[Tensor, "batch pos d_vocab"]) -> float:
        """The metric as a number."""
        value = self.metric(logits)
        return float(value.item() if isinstance(value, Tensor) else value)

    def reads_the_last(self, logits: Float[Tensor, "batch pos d_vocab"]) -> bool:
        """Whether the metric is bit-identical for any logits at other positions."""
        value = self.read(logits)
        for factor in (0.0, -1.0):
            other = logits * factor
            other[:, -1] = logits[:, -1]
            if self.read(other) != value:
                return False
        return True

    # One forward pass per cell.

    def plainly(
        self, name: str, index: tuple[int, ...], corrupted: dict[str, Tensor], base: float
    ) -> float:
        """The metric of a full run with one patch; of the unpatched run if it changes nothing."""
        full = get_act_name(name, index[0])
        before, clean = corrupted[full], self.clean[full]
        if self.setter(before.clone(), index, clean).equal(before):
            return base
        return self.read(self.patched_logits(full, index))

    def patched_logits(
        self, full: str, index: tuple[int, ...]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of that run."""
        clean = self.clean[full]
        hook = (full, lambda x, hook: self.setter(x, index, clean))
        return self.model.run_with_hooks(self.tokens, fwd_hooks=[hook])  # type: ignore[no-any-return]

    # All cells together.

    def swept(
        self,
        name: str,
        site: Site,
        indices: list[tuple[int, ...]],
        corrupted: dict[str, Tensor],
        base: float,
        logits: Float[Tensor, "batch pos d_vocab"],
    ) -> list[float]:
        """The metric under each patch, from the engine's logits at the last position.

        Raises: MeasureError if a sampled cell differs from its full forward pass.
        """
        cells = [self.cell(name, site, index, corrupted) for index in indices]
        live = [i for i, cell in enumerate(cells) if any(cell.place.base)]
        found = [base] * len(cells)
        batch, _, d_vocab = logits.shape
        size = max(1, _LOGITS_HELD // (batch * d_vocab * logits.element_size()))
        checked = {live[0], live[-1]} if live else set()
        shown = logits.clone()
        for start in range(0, len(live), size):
            part = live[start : start + size]
            receipts = _Receipts()
            result = sweep(
                self.model.model,
                self.layout.tokens,
                partial(self.replacement, name),
                [cells[i] for i in part],
                receipts,
                budget=Budget(check=0),
            )
            rows = torch.cat(receipts.rows)
            held = torch.from_numpy(result.values)  # cell prompt; NaN where nothing is patched
            unpatched = torch.from_numpy(result.base).expand_as(held)
            numbers = torch.where(held.isnan(), unpatched, held).long()
            for i, of_prompts in zip(part, numbers, strict=True):
                shown[:, -1] = rows[of_prompts.to(rows.device)]
                found[i] = self.read(shown)
                if i in checked:
                    full = get_act_name(name, indices[i][0])
                    self.compare(shown[:, -1], self.patched_logits(full, indices[i])[:, -1])
        return found

    def compare(
        self, ours: Float[Tensor, "batch d_vocab"], plain: Float[Tensor, "batch d_vocab"]
    ) -> None:
        """Raises: MeasureError where two ways of computing one cell differ."""
        bound = {torch.float64: 1e-9, torch.float32: 1e-4}.get(ours.dtype, float("inf"))
        # logits of hundreds are rounded more coarsely than logits of ten
        bound *= max(1.0, float(plain.abs().max()) / 10)
        gap = float((ours - plain).abs().max())
        if not gap <= bound:
            raise MeasureError(
                f"the sweep differs from a full forward pass by {gap:.2e} logits",
                allowed=f"at most {bound:.0e}",
            )

    def cell(
        self, name: str, site: Site, index: tuple[int, ...], corrupted: dict[str, Tensor]
    ) -> Cell:
        """An index as a cell, in the prompts in which the two runs differ there."""
        where = _KNOWN[self.setter]
        full = get_act_name(name, index[0])
        before, clean = corrupted[full], self.clean[full]
        head = None if where.head is None else index[where.head]
        if head is not None:
            axis = 1 if site is Site.PATTERN else 2
            before, clean = before.select(axis, head), clean.select(axis, head)
        differs = (before != clean).flatten(2).any(-1)  # batch pos
        # Where the prompts are the same so far, and the activations too but for the rounding of
        # another place in the batch, there is nothing to patch.
        same = torch.isclose(before, clean, rtol=1e-5, atol=1e-5).flatten(2).all(-1)
        differs = differs & ~(same & self.same_so_far(corrupted))
        if where.pos is not None:
            only = torch.zeros_like(differs)
            only[:, index[where.pos]] = True
            differs = differs & only
        differs = differs & self.layout.mask
        shifts = [0] * len(differs) if self.layout.shifts is None else self.layout.shifts.tolist()
        places = tuple(
            tuple(pos - shift for pos in row.nonzero().flatten().tolist())
            for row, shift in zip(differs, shifts, strict=True)
        )
        return Cell(site, index[0], Place(str(index), places, places), head=head)

    def same_so_far(self, corrupted: dict[str, Tensor]) -> Bool[Tensor, "batch pos"]:
        """Where neither a token nor any before it differs; nowhere if the cache does not tell."""
        here = corrupted["hook_embed"]
        if "hook_embed" not in self.clean or self.clean["hook_embed"].shape != here.shape:
            return torch.zeros(here.shape[:2], dtype=torch.bool, device=here.device)
        there: Tensor = self.clean["hook_embed"]
        differs = (here != there).any(-1) & self.layout.mask
        return differs.cumsum(1) == 0

    def replacement(
        self,
        name: str,
        site: Site,
        layer: int | None,
        prompts: Int[Tensor, " row"],
        positions: Int[Tensor, " row"],
    ) -> Tensor:
        """The clean cache's rows, in the notebook's layout."""
        clean: Tensor = self.clean[get_act_name(name, layer)]
        clean = clean.expand(len(self.tokens), *clean.shape[1:])
        by_position = clean.transpose(1, 2) if site is Site.PATTERN else clean
        if self.layout.shifts is None:
            return by_position[prompts, positions]
        shifts = self.layout.shifts[prompts]
        rows = by_position[prompts, positions + shifts]
        if site is not Site.PATTERN:
            return rows
        width = rows.shape[-1]  # row head key_pos
        keys = (torch.arange(width, device=rows.device) + shifts[:, None]) % width
        return rows.take_along_dim(keys[:, None], -1)


class _Receipts:
    """A metric for the sweep that keeps the logits and hands out their numbers as values."""

    def __init__(self) -> None:
        self.rows: list[Float[Tensor, "row d_vocab"]] = []
        self.count = 0

    def __call__(
        self, logits: Float[Tensor, "row d_vocab"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        numbers = torch.arange(self.count, self.count + len(logits), device=logits.device)
        self.rows.append(logits)
        self.count += len(logits)
        return numbers.double()


def _patch(setter: Setter, name: str, *axes: str) -> Callable[..., Any]:
    """A `get_act_patch_*`: (model, corrupted_tokens, clean_cache, patching_metric) to a grid."""
    return partial(
        generic_activation_patch,
        patch_setter=setter,
        activation_name=name,
        index_axis_names=axes,
    )


_at = partial(_patch, layer_pos_patch_setter)
get_act_patch_resid_pre = _at("resid_pre", "layer", "pos")
get_act_patch_resid_mid = _at("resid_mid", "layer", "pos")
get_act_patch_attn_out = _at("attn_out", "layer", "pos")
get_act_patch_mlp_out = _at("mlp_out", "layer", "pos")

_head_at = partial(_patch, layer_pos_head_vector_patch_setter)
get_act_patch_attn_head_out_by_pos = _head_at("z", "layer", "pos", "head")
get_act_patch_attn_head_q_by_pos = _head_at("q", "layer", "pos", "head")
get_act_patch_attn_head_k_by_pos = _head_at("k", "layer", "pos", "head")
get_act_patch_attn_head_v_by_pos = _head_at("v", "layer", "pos", "head")

_head = partial(_patch, layer_head_vector_patch_setter)
get_act_patch_attn_head_out_all_pos = _head("z", "layer", "head")
get_act_patch_attn_head_q_all_pos = _head("q", "layer", "head")
get_act_patch_attn_head_k_all_pos = _head("k", "layer", "head")
get_act_patch_attn_head_v_all_pos = _head("v", "layer", "head")

get_act_patch_attn_head_pattern_all_pos = _patch(
    layer_head_pattern_patch_setter, "pattern", "layer", "head_index"
)
get_act_patch_attn_head_pattern_by_pos = _patch(
    layer_head_pos_pattern_patch_setter, "pattern", "layer", "head_index", "dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _patch(
    layer_head_dest_src_pos_pattern_patch_setter,
    "pattern",
    *("layer", "head_index", "dest_pos", "src_pos"),
)


def get_act_patch_attn_head_all_pos_every(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    metric: Metric,
) -> Float[Tensor, "patch_type layer head"]:
    """Heads' outputs, queries, keys, values and patterns, each at all positions.

    If heads share keys and values, the entries that belong to no head are NaN.
    """
    grids = [
        patch(model, corrupted_tokens, clean_cache, metric)
        for patch in (
            get_act_patch_attn_head_out_all_pos,
            get_act_patch_attn_head_q_all_pos,
            get_act_patch_attn_head_k_all_pos,
            get_act_patch_attn_head_v_all_pos,
            get_act_patch_attn_head_pattern_all_pos,
        )
    ]
    return _stacked(grids)


def get_act_patch_attn_head_by_pos_every(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    metric: Metric,
) -> Float[Tensor, "patch_type layer pos head"]:
    """The same at each position: of a pattern, the row of that query."""
    grids = [
        patch(model, corrupted_tokens, clean_cache, metric)
        for patch in (
            get_act_patch_attn_head_out_by_pos,
            get_act_patch_attn_head_q_by_pos,
            get_act_patch_attn_head_k_by_pos,
            get_act_patch_attn_head_v_by_pos,
            get_act_patch_attn_head_pattern_by_pos,
        )
    ]
    grids[-1] = grids[-1].transpose(1, 2)  # layer head pos -> layer pos head
    return _stacked(grids)


def get_act_patch_block_every(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    metric: Metric,
) -> Float[Tensor, "patch_type layer pos"]:
    """The residual stream before each layer, attention outputs and MLP outputs."""
    grids = [
        patch(model, corrupted_tokens, clean_cache, metric)
        for patch in (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    ]
    return _stacked(grids)


def _stacked(grids: list[Tensor]) -> Tensor:
    width = grids[0].shape[-1]
    filled = [
        torch.cat([grid, grid.new_full((*grid.shape[:-1], width - grid.shape[-1]), torch.nan)], -1)
        for grid in grids
    ]
    return torch.stack(filled)


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A pandas frame with every combination of indices below these ends, a row each."""
    import pandas as pd

    rows = list(itertools.product(*map(range, column_max_ranges)))
    return pd.DataFrame(rows, columns=list(column_names))


def __getattr__(name: str) -> Any:
    if name.startswith("get_act_patch_"):
        known = [n for n in globals() if n.startswith("get_act_patch_")]
        raise refuse_import("patching", name, f"There are {', '.join(sorted(known))}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
