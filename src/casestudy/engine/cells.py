"""Which activations does a sweep replace, in which prompts?

A cell names an activation; a cell applied to one prompt is a variant. Cells are checked against the
model and the prompts before anything runs. If the base and the source run agree at a cell's place,
or if the patch cannot reach the last position, the value is known and there is no variant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.checks import check_different
from casestudy.engine.readout import Tails
from casestudy.errors import MeasureError, SiteError
from casestudy.model.config import ModelConfig, mlp_after_attention
from casestudy.model.model import Model
from casestudy.model.sites import Site, check_layer
from casestudy.model.tokens import Tokens

Values = Callable[[Site, int | None, Tensor, Tensor], Tensor]
"""Maps a site, a layer, prompts (rows) and positions (rows) to activations that broadcast to
(rows, …), where … are the site's axes after batch and position."""

# What a site's replacement changes first: a layer's input, its keys and values, the stream after
# attention, the stream after the MLP.
PRE = frozenset({Site.RESID_PRE, Site.EMBED, Site.POS_EMBED})
KEYS = frozenset({Site.K, Site.V})
HEADS = frozenset({Site.Z, Site.Q, Site.PATTERN})
MID = frozenset({Site.RESID_MID, Site.ATTN_OUT}) | HEADS
POST = frozenset({Site.MLP_OUT, Site.MLP_POST, Site.RESID_POST})
SITES = PRE | KEYS | MID | POST
"""The sites a cell may replace."""
SHARED = SITES - {Site.PATTERN, Site.MLP_POST}
"""The sites of a source run that is computed only from the first difference on."""


@dataclass(frozen=True)
class Place:
    """The positions of a cell in each prompt, and the positions of their replacements.

    Attributes:
        label: a position's number, a role's name, "all", "last".
        base: per prompt, positions in the base run, ascending; empty if the prompt has no such
            place.
        source: per prompt, the same number of positions in the source run.
    """

    label: str
    base: tuple[tuple[int, ...], ...]
    source: tuple[tuple[int, ...], ...]

    @classmethod
    def at(cls, position: int, tokens: Tokens) -> Place:
        """One absolute position; prompts that are too short have no such place."""
        where = tuple((position,) if position < n else () for n in tokens.lengths.tolist())
        return cls(str(position), where, where)

    @classmethod
    def everywhere(cls, tokens: Tokens) -> Place:
        """Every position of every prompt."""
        where = tuple(tuple(range(n)) for n in tokens.lengths.tolist())
        return cls("all", where, where)

    @classmethod
    def last(cls, tokens: Tokens, source: Tokens | None = None) -> Place:
        """Each prompt's last token, from the last token of its partner."""
        source = tokens if source is None else source
        ends = tuple((n - 1,) for n in tokens.lengths.tolist())
        return cls("last", ends, tuple((n - 1,) for n in source.lengths.tolist()))


@dataclass(frozen=True, eq=False)
class Cell:
    """One patch, applied to each prompt separately.

    Attributes:
        site: what is replaced; one of `SITES`.
        layer: in which layer; None for the embeddings.
        place: at which positions.
        head: one head (a key/value head for k and v), or None for all.
        neuron: one neuron of `mlp_post`, or None for all.
        subspace: orthonormal columns; only the stream's component in their span is replaced.
        values: the replacement, (prompt, pos, …) by base position, instead of the sweep's source;
            for a head, only that head's values.
    """

    site: Site
    layer: int | None
    place: Place
    head: int | None = None
    neuron: int | None = None
    subspace: Float[Tensor, "d_model k"] | None = None
    values: Float[Tensor, "prompt pos ..."] | None = None


@dataclass(frozen=True)
class Variant:
    """One cell applied to one prompt: one patched run.

    Attributes:
        cell: which, by index.
        prompt: which, by index among all of the sweep's.
        positions: the positions that the patch changes, ascending.
        sources: the same number of positions of the source run.
        length: of the prompt.
        tail: at how many of its last positions the prompt is read.
    """

    cell: int
    prompt: int
    positions: tuple[int, ...]
    sources: tuple[int, ...]
    length: int
    tail: int = 1

    @property
    def first(self) -> int:
        """The first position that changes."""
        return self.positions[0]

    @property
    def rows(self) -> int:
        """Positions from the first that changes to the last."""
        return self.length - self.positions[0]

    @property
    def reads(self) -> int:
        """Positions that are read, from the first that changes on."""
        return min(self.tail, self.rows)

    def reached(self, last: bool) -> Variant:
        """The same at every position that attends to one of its own; of the last layer only those
        that are read."""
        where = tuple(range(self.length - self.reads if last else self.first, self.length))
        return replace(self, positions=where, sources=where)


@dataclass(frozen=True)
class Task:
    """The input of a sweep: cells, the base run, the source of the replacements, and where prompts
    are read."""

    model: Model
    base: Tokens
    source: Tokens | Values | None
    cells: tuple[Cell, ...]
    tails: Tails

    @classmethod
    def checked(
        cls,
        model: Model,
        base: Tokens,
        source: Tokens | Values | None,
        cells: Sequence[Cell],
        tails: Tails | None = None,
    ) -> Task:
        """A task on the model's device.

        Raises: MeasureError for pairs that are identical or do not match, SiteError for a cell the
            model does not have.
        """
        for cell in cells:
            _check_site(model, cell)
            _check_place(cell, base, source)
        if isinstance(source, Tokens):
            check_different(base, source)
            source = source.to(model.device)
        n_layers = model.config.n_layers
        counted = (
            cell if cell.layer is None else replace(cell, layer=cell.layer % n_layers)
            for cell in cells
        )
        tails = Tails.ends(len(base)) if tails is None else tails
        _check_tails(tails, base, source)
        return cls(model, base.to(model.device), source, tuple(counted), tails)

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    @property
    def top(self) -> int:
        """The last layer."""
        return self.config.n_layers - 1

    @cached_property
    def lengths(self) -> list[int]:
        """Each base prompt's number of tokens."""
        return [int(n) for n in self.base.lengths]

    @cached_property
    def differ(self) -> list[int]:
        """Per prompt, the first position at which base and source differ; 0 without pairs."""
        if isinstance(self.source, Tokens):
            return first_differences(self.base, self.source)
        return [0] * len(self.base)

    @cached_property
    def shares_prefix(self) -> bool:
        """Whether the source run is computed only from the first differences on.

        True if the pairs share more than half of their tokens. Otherwise the gain is too small: an
        unpatched run is a few percent of a sweep.
        """
        return (
            isinstance(self.source, Tokens)
            and self.lengths == self.source.lengths.tolist()
            and all(cell.site in SHARED or cell.values is not None for cell in self.cells)
            and sum(self.differ) > sum(self.lengths) / 2
        )

    def variants(self) -> tuple[list[Variant], NDArray[np.bool_], NDArray[np.bool_]]:
        """The (cell, prompt) pairs to compute; masks of known pairs and of absent pairs."""
        shape = (len(self.cells), len(self.base))
        known, absent = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        live: dict[tuple[int, bool, bool], list[tuple[tuple[int, int], ...]]] = {}
        variants = []
        for c, cell in enumerate(self.cells):
            ends = cell.layer == self.top and cell.site in MID | POST
            key = (id(cell.place), ends, cell.values is not None)
            if key not in live:
                live[key] = self._live(cell, ends)
            for b, pairs in enumerate(live[key]):
                if not cell.place.base[b]:
                    absent[c, b] = True
                elif not pairs:
                    known[c, b] = True
                else:
                    here, there = tuple(p for p, _ in pairs), tuple(s for _, s in pairs)
                    tail = self.tails.counts[b]
                    variants.append(Variant(c, b, here, there, self.lengths[b], tail))
        return variants, known, absent

    def _live(self, cell: Cell, ends: bool) -> list[tuple[tuple[int, int], ...]]:
        """Per prompt, the (base, source) positions where a cell can change the last position.

        Args:
            ends: whether no attention layer reads the patched activation, so that only a patch
                of a position that is read has an effect.
        """
        own = cell.values is not None
        return [
            tuple(
                (p, s)
                for p, s in zip(cell.place.base[b], cell.place.source[b], strict=True)
                if (own or p != s or p >= self.differ[b])
                and (not ends or p >= self.lengths[b] - self.tails.counts[b])
            )
            for b in range(len(self.base))
        ]


def first_differences(base: Tokens, source: Tokens) -> list[int]:
    """Per pair, the first position that differs (if one is a prefix of the other: its length)."""
    found = []
    for a, b in zip(base.rows(), source.rows(), strict=True):
        same = [x == y for x, y in zip(a, b, strict=False)]
        found.append(same.index(False) if False in same else len(same))
    return found


def _check_tails(tails: Tails, base: Tokens, source: Tokens | Values | None) -> None:
    """Raise MeasureError if prompts are read at positions that they do not have."""
    sides = [base, source] if isinstance(source, Tokens) else [base]
    shortest = [min(lengths) for lengths in zip(*(s.lengths.tolist() for s in sides), strict=True)]
    counts = tails.counts
    if len(counts) != len(base) or any(k > n for k, n in zip(counts, shortest, strict=True)):
        raise MeasureError(
            f"readings {list(counts)[:10]} of {len(base)} prompts of {shortest[:10]} tokens",
            allowed="for each prompt at most as many as it has tokens",
        )


def _check_site(model: Model, cell: Cell) -> None:
    """Raise SiteError if the model has no such activation."""
    site, config = cell.site, model.config
    if site not in SITES:
        names = ", ".join(sorted(s.value for s in SITES))
        raise SiteError(f"a sweep cannot replace {site.value}", allowed=names)
    if site is Site.RESID_MID and not mlp_after_attention(config):
        raise SiteError("this model's blocks are parallel: they have no resid_mid")
    if site is Site.POS_EMBED and model.weights.W_pos is None:
        raise SiteError("this model has no position embedding")
    if site.layered:
        if cell.layer is None:
            raise SiteError(f"a cell at {site.value} names no layer")
        check_layer(cell.layer, config.n_layers)
    _check_part(config, cell)


def _check_part(config: ModelConfig, cell: Cell) -> None:
    """Raise SiteError if the site has no such head, neuron or subspace."""
    site = cell.site
    for what, index, axis, count in (
        ("head", cell.head, "head", config.n_heads),
        ("head", cell.head, "kv_head", config.n_kv_heads),
        ("neuron", cell.neuron, "d_mlp", config.d_mlp),
    ):
        if axis in site.axes and index is not None and not 0 <= index < count:
            raise SiteError(f"{what} {index} of {site.value}", allowed=f"0 to {count - 1}")
    if cell.head is not None and not {"head", "kv_head"} & set(site.axes):
        raise SiteError(f"{site.value} has no heads")
    if cell.neuron is not None and site is not Site.MLP_POST:
        raise SiteError(f"{site.value} has no neurons", allowed="mlp_post")
    if cell.subspace is not None and "d_model" not in site.axes:
        raise SiteError(
            f"{site.value} does not lie in the residual stream", hint="No subspace there"
        )


def _check_place(cell: Cell, base: Tokens, source: Tokens | Values | None) -> None:
    """Raise SiteError or MeasureError if a place is not in the prompts."""
    site, place, lengths = cell.site, cell.place, base.lengths.tolist()
    others = source.lengths.tolist() if isinstance(source, Tokens) else lengths
    if len(place.base) != len(lengths) or len(place.source) != len(lengths):
        raise MeasureError(f"place {place.label} knows {len(place.base)} prompts of {len(lengths)}")
    for b, (here, there) in enumerate(zip(place.base, place.source, strict=True)):
        if len(here) != len(there):
            raise MeasureError(
                f"prompt {b}: {place.label} is {len(here)} positions here and {len(there)} there",
                allowed="as many in both runs",
            )
        if any(not 0 <= p < lengths[b] for p in here) or any(
            not 0 <= p < others[b] for p in there if cell.values is None
        ):
            raise SiteError(
                f"prompt {b}: {place.label} is at {list(here)}",
                allowed=f"positions 0 to {min(lengths[b], others[b]) - 1}",
            )
        if list(here) != sorted(set(here)):
            raise SiteError(f"prompt {b}: {place.label} is at {list(here)}", allowed="ascending")
    if source is None and cell.values is None:
        raise MeasureError(f"a cell at {site.value} has no values and the sweep has no source")
    if site is Site.PATTERN and others != lengths:
        raise MeasureError("patterns of unequal lengths cannot be exchanged")
