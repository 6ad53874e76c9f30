"""Findings that are measured by an intervention: edits, patches, ablations and circuits.

Cost: a sweep of one layer per patch or ablation (of all layers if the finding states a rank).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypedDict, cast, get_args

import numpy as np

from casestudy.circuits.ablated import EdgeAblation
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.graph import Circuit, Graph
from casestudy.claims.context import (
    Bench,
    Inapplicable,
    Unmeasurable,
    Values,
    among,
    check_count,
    there,
)
from casestudy.claims.finding import Finding, Single, flat
from casestudy.claims.stored_values import SHARE
from casestudy.engine.cells import SITES
from casestudy.engine.packing import Budget, Tell
from casestudy.errors import FindingError, SiteError
from casestudy.measure.patching import (
    Ablation,
    By,
    Direction,
    Patched,
    Roles,
    ablate,
    neurons,
    patch,
)
from casestudy.model.sites import Site
from casestudy.results.result import Array
from casestudy.results.stats import FAITHFULNESS

Swept = tuple[Patched, tuple[int, ...]]
"""A patch grid, and the prompts of its rows, by index in the behaviour."""


class _Sweeping(TypedDict):
    """The arguments that `patch` and `neurons` share."""

    by: By
    direction: Direction
    budget: Budget
    progress: Tell | None


@dataclass(frozen=True, kw_only=True)
class Flips(Single):
    """The share of prompts whose contrast changes sign under an edit."""

    measure: ClassVar[str] = "flips"
    edit: str
    contrast: str | None = None

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        bench.check_edit(self.edit)
        bench.contrast(self.contrast)

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell."""
        edited = bench.pairs(self.edit, bench.contrast(self.contrast), group)
        flips = (edited.score.clean * edited.score.corrupted < 0).astype(np.float64)
        return Values(flips[:, None], 0, edited.index, "share of pairs", yes_or_no=True)


@dataclass(frozen=True, kw_only=True)
class _Swept(Finding):
    """A cell of a patch grid: a site, a layer, a head if the site has heads, and a place.

    The place in the prompt is one of `role`, `position` and `at` ("last" for the last token, "all"
    for all positions at once).
    """

    site: str
    layer: int | None = None
    head: int | None = None
    role: str | None = None
    position: int | None = None
    at: str | None = None
    contrast: str | None = None
    of: str = "logits"

    @abstractmethod
    def sweep(self, bench: Bench, group: str | None, *, ranked: bool) -> Swept:
        """The patch grid, and the prompts of its rows."""

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """The effect of patching each cell at this place, in logits or as a share (see `of`)."""
        found, index = self.sweep(bench, group, ranked=ranked)
        cells, which = self.cell(found)
        unpatched = found.baselines.values[0]
        change = Values(cells - unpatched[:, None], which, index, "logits")
        if self.of == "logits":
            return change
        if self.of == "difference":
            return change.as_share(found.baselines.values[1] - unpatched, SHARE)
        contrast = bench.contrast(self.contrast)
        return change.as_share(self.clean(found), f"share of the contrast ({contrast})")

    def clean(self, found: Patched) -> Array:
        """The contrast of the clean prompts, per prompt: that of the unpatched run."""
        unpatched: Array = found.baselines.values[0]
        return unpatched

    @property
    def by(self) -> By:
        """How positions are patched, as `patch` takes it."""
        if self.role is not None:
            return "role"
        return "position" if self.position is not None else cast(By, self.at)

    @property
    def meant(self) -> dict[str, str]:
        """The labels of the cell, without its place."""
        where = {"layer": self.layer, self._heads: self.head}
        return {axis: str(label) for axis, label in where.items() if label is not None}

    @property
    def _heads(self) -> str:
        return "kv_head" if "kv_head" in Site(self.site).axes else "head"

    @property
    def alone(self) -> bool:
        """True for an embedding, which is in no layer."""
        return self.layer is None

    def roles_in(self, bench: Bench) -> tuple[str, ...]:
        """The roles whose tokens can be swept."""
        return bench.roles

    def check_place(self, bench: Bench) -> None:
        """Raises: FindingError for a site or place that no model has; Inapplicable for a layer,
        head or role that this model or behaviour does not have."""
        try:
            site = Site(self.site)
        except SiteError as error:
            raise FindingError(error.came, allowed=error.allowed, hint=error.hint) from error
        among("site", site.value, sorted(s.value for s in SITES if s is not Site.MLP_POST))
        config = bench.model.config
        if site.layered != (self.layer is not None):
            raise FindingError(
                f"{site.value} {'without' if site.layered else 'with'} a layer",
                allowed="a layer for a site that is in every layer, and no layer otherwise",
            )
        if self.layer is not None:
            check_count("layer", self.layer, config.n_layers)
        has_heads = bool({"head", "kv_head"} & set(site.axes))
        if has_heads != (self.head is not None):
            raise FindingError(
                f"{site.value} {'without' if has_heads else 'with'} a head",
                allowed="a head for z, q, k, v and pattern, and no head otherwise",
            )
        if self.head is not None:
            n = config.n_kv_heads if self._heads == "kv_head" else config.n_heads
            check_count("head", self.head, n)
        if sum(x is not None for x in (self.role, self.position, self.at)) != 1:
            raise FindingError(
                "not exactly one place in the prompt",
                allowed='one of role, position and at, where at is "last" or "all"',
            )
        if self.role is not None:
            there("role", self.role, self.roles_in(bench))
        if self.at is not None:
            among("at", self.at, ("last", "all"))

    def cell(self, found: Patched) -> tuple[Array, int]:
        """The cells at this place as (prompt, cell), and the index of the finding's cell.

        Raises: Unmeasurable if no prompt has the position.
        """
        raw = found.raw if self.role is None else found.raw.select(role=self.role)
        if self.position is not None:
            if str(self.position) not in raw.axis("pos").labels:
                raise Unmeasurable(f"no prompt has the position {self.position}")
            raw = raw.select(pos=str(self.position))
        return flat(raw, self.meant)

    def only_role(self, roles: Roles | None) -> Roles | None:
        """The positions of the finding's role in each prompt, so that no other role is swept.

        Raises: Unmeasurable if no prompt has the role.
        """
        if self.role is None or roles is None:
            return roles
        found = [{self.role: row[self.role]} if self.role in row else {} for row in roles]
        if not any(found):
            raise Unmeasurable(f"no prompt has the role {self.role}")
        return found

    def layers(self, ranked: bool) -> Sequence[int] | None:
        """The layers to sweep: the finding's own, or all (None) if it states a rank."""
        return None if ranked or self.layer is None else [self.layer]


@dataclass(frozen=True, kw_only=True)
class Patching(_Swept):
    """The effect of patching an activation between a prompt and its edited partner."""

    measure: ClassVar[str] = "patching"
    edit: str
    site: str = "mlp_post"
    neuron: int | None = None
    direction: str = "denoising"
    of: str = "difference"

    @property
    def alone(self) -> bool:
        """True for a neuron: a layer has too many neurons to patch each of them for a rank."""
        return self.neuron is not None or super().alone

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        bench.check_edit(self.edit)
        bench.contrast(self.contrast)
        among("direction", self.direction, get_args(Direction))
        among("of", self.of, ("difference", "contrast", "logits"))
        if self.neuron is None:
            self.check_place(bench)
            return
        if self.site != "mlp_post" or self.layer is None or self.head is not None:
            raise FindingError("a neuron with a site or a head", allowed="a layer and a neuron")
        check_count("layer", self.layer, bench.model.config.n_layers)
        check_count("neuron", self.neuron, bench.model.config.d_mlp)
        if (self.role, self.position) != (None, None) or self.at not in ("last", "all"):
            raise FindingError("a neuron's place", allowed='at = "all" or at = "last"')

    def roles_in(self, bench: Bench) -> tuple[str, ...]:
        """See `_Swept.roles_in`; pairs also have a last token and changed tokens, as in a study."""
        return bench.pair_roles

    def sweep(self, bench: Bench, group: str | None, *, ranked: bool) -> Swept:
        """One cell per layer and head at this place; a single cell for a neuron."""
        contrast = bench.contrast(self.contrast)
        aligned = self.by in ("position", "all")
        edited = bench.pairs(self.edit, contrast, group, aligned=aligned)
        pairs = replace(
            edited.pairs,
            roles=self.only_role(edited.pairs.roles),
            corrupted_roles=self.only_role(edited.pairs.corrupted_roles),
        )
        settings: _Sweeping = {
            "by": self.by,
            "direction": cast(Direction, self.direction),
            "budget": bench.budget,
            "progress": bench.progress,
        }
        if self.neuron is None:
            layers = self.layers(ranked)
            found = patch(bench.model, pairs, edited.contrast, self.site, layers=layers, **settings)
        else:
            assert self.layer is not None
            one = [(self.layer, self.neuron)]
            found = neurons(bench.model, pairs, edited.contrast, one, **settings)
        return found, edited.index

    def cell(self, found: Patched) -> tuple[Array, int]:
        """See `_Swept.cell`; the grid of a neuron has no place."""
        if self.neuron is None:
            return super().cell(found)
        return flat(found.raw, {"neuron": f"{self.layer}.{self.neuron}"})

    def clean(self, found: Patched) -> Array:
        """See `_Swept.clean`; for denoising the unpatched run is the corrupted one."""
        clean: Array = found.baselines.values[1 if self.direction == "denoising" else 0]
        return clean


@dataclass(frozen=True, kw_only=True)
class Ablating(_Swept):
    """The effect of ablating an activation on the contrast."""

    measure: ClassVar[str] = "ablation"
    put_in: str = "mean"

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        bench.contrast(self.contrast)
        among("put_in", self.put_in, get_args(Ablation))
        among("of", self.of, ("contrast", "logits"))
        self.check_place(bench)

    def sweep(self, bench: Bench, group: str | None, *, ranked: bool) -> Swept:
        """One cell per layer and head at this place."""
        asked = bench.asked(bench.contrast(self.contrast), group)
        found = ablate(
            bench.model,
            asked.batch.tokens,
            asked.contrast,
            self.site,
            kind=cast(Ablation, self.put_in),
            by=self.by,
            layers=self.layers(ranked),
            roles=self.only_role(asked.batch.roles),
            budget=bench.budget,
            progress=bench.progress,
        )
        return found, asked.batch.index


@dataclass(frozen=True, kw_only=True)
class CircuitFaithfulness(Single):
    """The faithfulness of a circuit, or of the model without it."""

    measure: ClassVar[str] = "circuit"
    edit: str
    edges: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    tested: str = "circuit"
    ablation: str = "corrupted"
    contrast: str | None = None

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        bench.check_edit(self.edit)
        bench.contrast(self.contrast)
        among("ablation", self.ablation, get_args(EdgeAblation))
        among("tested", self.tested, ("circuit", "rest"))
        if bool(self.edges) == bool(self.nodes):
            raise FindingError(
                "a circuit of both edges and nodes"
                if self.edges
                else "a circuit without edges or nodes",
                allowed="edges; or nodes, which take every edge among them, embed and logits",
            )
        try:
            self.circuit(bench)
        except SiteError as error:
            raise Inapplicable(error.came, allowed=error.allowed, hint=error.hint) from error

    def circuit(self, bench: Bench) -> Circuit:
        """The circuit that is evaluated."""
        graph = Graph(bench.model.config)
        if self.edges:
            circuit = graph.circuit(self.edges)
        else:
            kept = {0, *map(graph.node, self.nodes)}
            circuit = graph.full.without([i for i in range(len(graph.senders)) if i not in kept])
        return circuit if self.tested == "circuit" else Circuit(graph, graph.real & ~circuit.mask)

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell: 0 is the model with every edge ablated, 1 the whole model."""
        edited = bench.pairs(self.edit, bench.contrast(self.contrast), group, aligned=True)
        found = evaluate_circuit(
            bench.model,
            edited.pairs,
            edited.contrast,
            [self.circuit(bench)],
            ablation=cast(EdgeAblation, self.ablation),
            budget=bench.budget,
            progress=bench.progress,
        )
        change = Values(found.values.T - found.empty[:, None], 0, edited.index, "logits")
        return change.as_share(found.full - found.empty, FAITHFULNESS)
