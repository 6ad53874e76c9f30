"""What can be claimed of a model, so that it can be measured?

A finding names one number: a mean over a behaviour's prompts of a logit difference, a ledger term,
a head's share, where it looks, what patching or ablating it does. Each kind below is a table of the
keys it takes, and knows which numbers of which prompts it is about (`Values`);
docs/checking-explanations.md is the page for people. Unknown keys, and heads, roles and terms that
are not there, are errors with what is allowed: a finding about nothing must not pass.

Cost: one forward pass over the prompts for all findings together, and a sweep of one layer per
patch or ablation (of all layers where it is asked which come first).
"""

from __future__ import annotations

import keyword
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar, cast, get_args

import numpy as np

from casestudy.circuits.evaluate import Ablation as CircuitAblation
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.graph import Circuit, Graph
from casestudy.claims.compare import ANSWERS, SHARE
from casestudy.claims.context import Bench, Unmeasurable, Values, among, check_count
from casestudy.engine.batch import Batch, Measurement
from casestudy.engine.cells import SITES
from casestudy.errors import FindingError, SiteError
from casestudy.measure.attention import attention_to_roles
from casestudy.measure.attribution import (
    HEADS,
    final_directions,
    keep_for_neurons,
    neuron_shares,
)
from casestudy.measure.class_mass import CLASS_MASS
from casestudy.measure.ledger import LEDGER
from casestudy.measure.lens import LENS, curves
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
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.results import names
from casestudy.results.names import BIAS
from casestudy.results.result import Array, Axis, Grid, Result

_CURVES = Measurement("lens curves", LENS.keep, lambda batch: list(curves(batch)))


def _flat(grid: Grid, meant: Mapping[str, str]) -> tuple[Array, int]:
    """A grid's cells as (prompt, cell), and which of them is at these labels."""
    rest = [axis for axis in grid.axes if axis.name != "prompt"]
    place = tuple(axis.labels.index(meant[axis.name]) for axis in rest)
    values = np.moveaxis(grid.values, grid.dim("prompt"), 0)
    which = int(np.ravel_multi_index(place, tuple(map(len, rest)))) if rest else 0
    return values.reshape(len(values), -1).astype(np.float64), which


# The kinds


class Finding(ABC):
    """One kind of number. Its fields are the keys of its table; "class" is `class_`."""

    measure: ClassVar[str]

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """What is measured over all prompts at once, besides the predictions."""
        return ()

    @property
    def alone(self) -> bool:
        """Whether there is nothing to rank it among."""
        return False

    @abstractmethod
    def check(self, bench: Bench) -> None:
        """See that what is meant exists.

        Raises: FindingError for what the model or the behaviour does not have.
        """

    @abstractmethod
    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """The numbers, prompt by prompt.

        Args:
            bench: on which `check` passed.
            group: of prompts; the headline prompts by default.
            ranked: beside all they are ranked among.

        Raises: Unmeasurable where these prompts say nothing about it.
        """


class _Cell(Finding):
    """A cell of a grid that is measured over all prompts."""

    @abstractmethod
    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """The grid, the axes that are fixed, and the axes along which the cell is ranked."""

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        name, fixed, meant = self.place(bench)
        for axis, label in (fixed | meant).items():
            among(axis, label, bench.grids[name].axis(axis).labels)

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """See `Finding.values`."""
        name, fixed, meant = self.place(bench)
        index = bench.members(group)
        grid = bench.grids[name].select(**fixed).take("prompt", [str(i) for i in index])
        cells, which = _flat(self.ranked_among(grid), meant)
        return Values(cells, which, index, grid.unit)

    def ranked_among(self, grid: Grid) -> Grid:
        """What of the grid is ranked."""
        return grid


@dataclass(frozen=True, kw_only=True)
class _PartOfContrast(_Cell):
    """A cell that is a part of a contrast, in logits or as a share of it."""

    contrast: str | None = None
    of: str = "logits"

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        among("of", self.of, ("logits", "contrast"))
        super().check(bench)

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """See `Finding.values`."""
        found = super().values(bench, group, ranked=ranked)
        if self.of == "logits":
            return found
        contrast = bench.contrast(self.contrast)
        whole = bench.grids[names.LOGIT_DIFFERENCE].select(contrast=contrast)
        whole = whole.take("prompt", [str(i) for i in found.prompts])
        return found.as_share(whole.values, f"share of the contrast ({contrast})")


@dataclass(frozen=True, kw_only=True)
class LogitDifference(_Cell):
    """The mean contrast itself."""

    measure: ClassVar[str] = "logit_difference"
    contrast: str | None = None

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per contrast."""
        return "logit_difference", {}, {"contrast": bench.contrast(self.contrast)}


@dataclass(frozen=True, kw_only=True)
class ClassMass(_Cell):
    """The probability of a class of next tokens."""

    measure: ClassVar[str] = "class_mass"
    class_: str

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The class masses."""
        return (CLASS_MASS,)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per class."""
        return names.CLASS_MASS, {}, {"class": self.class_}


@dataclass(frozen=True, kw_only=True)
class LedgerTerm(_PartOfContrast):
    """A term of the ledger: embed, attn 3, mlp 5, final norm bias (b_U), …"""

    measure: ClassVar[str] = "ledger"
    term: str

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The ledger."""
        return (LEDGER,)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per term."""
        return names.LEDGER, {"contrast": bench.contrast(self.contrast)}, {"term": self.term}


@dataclass(frozen=True, kw_only=True)
class LensDepth(_PartOfContrast):
    """The contrast read off the stream at a depth: 3_pre, 3_mid, final_post, logits."""

    measure: ClassVar[str] = "lens"
    depth: str
    norm: str = "final"

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """Both readings."""
        return (_CURVES,)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per depth."""
        among("norm", self.norm, ("final", "own"))
        name = names.LENS if self.norm == "final" else names.LENS_OWN_NORM
        return name, {"contrast": bench.contrast(self.contrast)}, {"depth": self.depth}


@dataclass(frozen=True, kw_only=True)
class HeadShare(_PartOfContrast):
    """What a head writes along the contrast, directly."""

    measure: ClassVar[str] = "attribution"
    layer: int
    head: int

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """Every head's share."""
        return (HEADS,)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per head of the model."""
        bench.check_head(self.layer, self.head)
        where = {"layer": str(self.layer), "head": str(self.head)}
        return names.HEAD_SHARES, {"contrast": bench.contrast(self.contrast)}, where

    def ranked_among(self, grid: Grid) -> Grid:
        """Heads, without the layers' biases."""
        return grid.take("head", [label for label in grid.axis("head").labels if label != BIAS])


@dataclass(frozen=True, kw_only=True)
class NeuronShare(_PartOfContrast):
    """What a neuron writes along the contrast, directly."""

    measure: ClassVar[str] = "attribution"
    layer: int
    neuron: int

    @property
    def _name(self) -> str:
        return f"{names.NEURON_SHARES}.{self.layer}"

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The shares of the layer's neurons."""

        def measured(batch: Batch) -> list[Result]:
            config = batch.model.config
            if not 0 <= self.layer < config.n_layers:
                return []
            u = final_directions(batch.model, batch.trace, batch.directions)
            shares, _ = neuron_shares(batch.model, batch.trace, self.layer, u)
            axes = (batch.contrast_axis, Axis.count("neuron", config.d_mlp), batch.prompt_axis)
            values = shares.transpose(1, 2).cpu().numpy()
            return [Grid(self._name, values, axes, "logits")]

        return (Measurement(self._name, keep_for_neurons, measured),)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per neuron of the layer."""
        check_count("layer", self.layer, bench.model.config.n_layers)
        check_count("neuron", self.neuron, bench.model.config.d_mlp)
        return (
            self._name,
            {"contrast": bench.contrast(self.contrast)},
            {"neuron": str(self.neuron)},
        )


@dataclass(frozen=True, kw_only=True)
class Attention(_Cell):
    """How much a head attends to a role, from the last token or from another role."""

    measure: ClassVar[str] = "attention"
    layer: int
    head: int
    to: str
    from_: str | None = None

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The last rows of all patterns, or all of them."""

        def keep(model: Model) -> Sequence[Keep]:
            return [Site.PATTERN.at(last=self.from_ is None)]

        def measured(batch: Batch) -> list[Result]:
            return [attention_to_roles(batch, self.from_)]

        return (Measurement(f"attention from {self.from_}", keep, measured),)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per head of the model."""
        bench.check_head(self.layer, self.head)
        among("role", self.to, bench.roles)
        if self.from_ is not None:
            among("role", self.from_, bench.roles)
        name = names.ATTENTION_LAST if self.from_ is None else names.attention_from(self.from_)
        return name, {"role": self.to}, {"layer": str(self.layer), "head": str(self.head)}


@dataclass(frozen=True, kw_only=True)
class AnswerStands(Finding):
    """Where the answer stands: how often it is the first prediction, its rank, its probability."""

    measure: ClassVar[str] = "answer"
    what: str

    @property
    def alone(self) -> bool:
        """It is."""
        return True

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        among("what is", self.what, tuple(ANSWERS))

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell; prompts without an answer are left out."""
        column, unit = ANSWERS[self.what]
        rows = bench.tables[names.ANSWERS].rows()
        found = {row["prompt"]: float(row[column]) for row in rows if row["form"] == "answer"}
        index = tuple(i for i in bench.members(group) if i in found)
        values = np.array([found[i] for i in index])
        first = self.what == "top-1"
        values = (values == 0).astype(np.float64) if first else values
        return Values(values[:, None], 0, index, unit, yes_or_no=first)


@dataclass(frozen=True, kw_only=True)
class Flips(Finding):
    """How many prompts an edit flips: their contrast changes sign."""

    measure: ClassVar[str] = "flips"
    edit: str
    contrast: str | None = None

    @property
    def alone(self) -> bool:
        """It is."""
        return True

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
    """A cell of a patch grid: a site, a layer, perhaps a head, and where in the prompt.

    The place is one of `role`, `position` and `at` ("last", or "all": every position at once).
    """

    site: str
    layer: int | None = None
    head: int | None = None
    role: str | None = None
    position: int | None = None
    at: str | None = None
    contrast: str | None = None

    @property
    def by(self) -> By:
        """How the prompt is cut up."""
        if self.role is not None:
            return "role"
        return "position" if self.position is not None else cast(By, self.at)

    @property
    def meant(self) -> dict[str, str]:
        """The labels of the cell, but for the place."""
        where = {"layer": self.layer, self._heads: self.head}
        return {axis: str(label) for axis, label in where.items() if label is not None}

    @property
    def _heads(self) -> str:
        return "kv_head" if "kv_head" in Site(self.site).axes else "head"

    @property
    def alone(self) -> bool:
        """An embedding is."""
        return self.layer is None

    def check_place(self, bench: Bench) -> None:
        """Raises: FindingError for a site, layer, head or place that is not there."""
        try:
            site = Site(self.site)
        except SiteError as error:
            raise FindingError(error.came, allowed=error.allowed, hint=error.hint) from error
        among("site", site.value, sorted(s.value for s in SITES if s is not Site.MLP_POST))
        config = bench.model.config
        if site.layered != (self.layer is not None):
            raise FindingError(
                f"{site.value} {'without' if site.layered else 'with'} a layer",
                allowed="a layer where there is one of it in every layer, and none elsewhere",
            )
        if self.layer is not None:
            check_count("layer", self.layer, config.n_layers)
        has_heads = bool({"head", "kv_head"} & set(site.axes))
        if has_heads != (self.head is not None):
            raise FindingError(
                f"{site.value} {'without' if has_heads else 'with'} a head",
                allowed="a head of z, q, k, v and pattern, and of nothing else",
            )
        if self.head is not None:
            n = config.n_kv_heads if self._heads == "kv_head" else config.n_heads
            check_count("head", self.head, n)
        if sum(x is not None for x in (self.role, self.position, self.at)) != 1:
            raise FindingError(
                "not one place in the prompt",
                allowed='one of role, position and at, where at is "last" or "all"',
            )
        if self.role is not None:
            among("role", self.role, bench.roles)
        if self.at is not None:
            among("at", self.at, ("last", "all"))

    def cell(self, found: Patched) -> tuple[Array, int]:
        """The cells at the finding's place as (prompt, cell), and which is meant.

        Raises: Unmeasurable where no prompt has the position.
        """
        raw = found.raw if self.role is None else found.raw.select(role=self.role)
        if self.position is not None:
            if str(self.position) not in raw.axis("pos").labels:
                raise Unmeasurable(f"no prompt has the position {self.position}")
            raw = raw.select(pos=str(self.position))
        return _flat(raw, self.meant)

    def only_role(self, roles: Roles | None) -> Roles | None:
        """Each prompt's positions of the role that is meant, so that no other place is swept.

        Raises: Unmeasurable where no prompt has the role.
        """
        if self.role is None or roles is None:
            return roles
        found = [{self.role: row[self.role]} if self.role in row else {} for row in roles]
        if not any(found):
            raise Unmeasurable(f"no prompt has the role {self.role}")
        return found

    def layers(self, ranked: bool) -> Sequence[int] | None:
        """Which layers to sweep: the one meant, or all where the order is asked for."""
        return None if ranked or self.layer is None else [self.layer]


@dataclass(frozen=True, kw_only=True)
class Patching(_Swept):
    """What exchanging an activation between a prompt and its edited partner does."""

    measure: ClassVar[str] = "patching"
    edit: str
    site: str = "mlp_post"
    neuron: int | None = None
    direction: str = "denoising"
    of: str = "difference"

    @property
    def alone(self) -> bool:
        """Neurons are too many to be patched one by one for their order."""
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

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell per layer and head at this place; a neuron stands alone."""
        contrast = bench.contrast(self.contrast)
        aligned = self.by in ("position", "all")
        edited = bench.pairs(self.edit, contrast, group, aligned=aligned)
        model, direction = bench.model, cast(Direction, self.direction)
        sides = self.only_role(edited.pairs.roles), self.only_role(edited.pairs.corrupted_roles)
        pairs = replace(edited.pairs, roles=sides[0], corrupted_roles=sides[1])
        if self.neuron is None:
            found = patch(
                model,
                pairs,
                edited.contrast,
                self.site,
                by=self.by,
                direction=direction,
                layers=self.layers(ranked),
                budget=bench.budget,
                progress=bench.progress,
            )
            cells, which = self.cell(found)
        else:
            assert self.layer is not None
            found = neurons(
                model,
                pairs,
                edited.contrast,
                [(self.layer, self.neuron)],
                by=self.by,
                direction=direction,
                budget=bench.budget,
                progress=bench.progress,
            )
            cells, which = _flat(found.raw, {"neuron": f"{self.layer}.{self.neuron}"})
        unpatched, other = found.baselines.values
        change = Values(cells - unpatched[:, None], which, edited.index, "logits")
        if self.of == "logits":
            return change
        if self.of == "difference":
            return change.as_share(other - unpatched, SHARE)
        clean = other if direction == "denoising" else unpatched
        return change.as_share(clean, f"share of the contrast ({contrast})")


@dataclass(frozen=True, kw_only=True)
class Ablating(_Swept):
    """What taking an activation away does to the contrast."""

    measure: ClassVar[str] = "ablation"
    put_in: str = "mean"
    of: str = "logits"

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        bench.contrast(self.contrast)
        among("put_in", self.put_in, get_args(Ablation))
        among("of", self.of, ("contrast", "logits"))
        self.check_place(bench)

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell per layer and head at this place."""
        contrast = bench.contrast(self.contrast)
        asked = bench.asked(contrast, group)
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
        cells, which = self.cell(found)
        (unpatched,) = found.baselines.values
        change = Values(cells - unpatched[:, None], which, asked.batch.index, "logits")
        if self.of == "logits":
            return change
        return change.as_share(unpatched, f"share of the contrast ({contrast})")


@dataclass(frozen=True, kw_only=True)
class Faithfulness(Finding):
    """How much of the behaviour a circuit carries on its own, or all but it."""

    measure: ClassVar[str] = "circuit"
    edit: str
    edges: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    tested: str = "circuit"
    ablation: str = "corrupted"
    contrast: str | None = None

    @property
    def alone(self) -> bool:
        """It is."""
        return True

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        bench.check_edit(self.edit)
        bench.contrast(self.contrast)
        among("ablation", self.ablation, get_args(CircuitAblation))
        among("tested", self.tested, ("circuit", "rest"))
        if bool(self.edges) == bool(self.nodes):
            raise FindingError(
                "a circuit of both edges and nodes" if self.edges else "a circuit of nothing",
                allowed="edges, or nodes with every edge between them, embed and logits",
            )
        try:
            self.circuit(bench)
        except SiteError as error:
            raise FindingError(error.came, allowed=error.allowed, hint=error.hint) from error

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
        """One cell: between all ablated, 0, and the whole model, 1."""
        edited = bench.pairs(self.edit, bench.contrast(self.contrast), group, aligned=True)
        found = evaluate_circuit(
            bench.model,
            edited.pairs,
            edited.contrast,
            [self.circuit(bench)],
            ablation=cast(CircuitAblation, self.ablation),
            budget=bench.budget,
            progress=bench.progress,
        )
        change = Values(found.values.T - found.empty[:, None], 0, edited.index, "logits")
        return change.as_share(found.full - found.empty, "faithfulness")


KINDS: tuple[type[Finding], ...] = (
    *(LogitDifference, AnswerStands, ClassMass, Flips, LedgerTerm, LensDepth),
    *(HeadShare, NeuronShare, Attention, Patching, Ablating, Faithfulness),
)
"""Every kind of finding; two may share a `measure`, told apart by what they require."""


def read_finding(table: Mapping[str, Any]) -> Finding:
    """One finding from its keys, `measure` among them.

    Raises: FindingError for a key or a value that means nothing here, or one that is missing.
    """
    if not isinstance(table.get("measure"), str):
        raise FindingError("a finding without its measure", allowed=", ".join(_measures()))
    among("measure", table["measure"], _measures())
    kinds = [kind for kind in KINDS if kind.measure == table["measure"]]
    given = {f"{key}_" if keyword.iskeyword(key) else key: value for key, value in table.items()}
    del given["measure"]
    # of two kinds, the one whose own key is there
    kind = next((k for k in kinds if _required(k) <= given.keys()), kinds[0])
    known = {f.name: f for f in fields(cast(Any, kind))}
    for key, value in given.items():
        among(f"{kind.measure} has the key", key.rstrip("_"), [k.rstrip("_") for k in known])
        given[key] = _read(key.rstrip("_"), value, str(known[key].type).split(" ")[0])
    missing = sorted(_required(kind) - given.keys())
    if missing:
        either = " or ".join(", ".join(sorted(k.rstrip("_") for k in _required(k))) for k in kinds)
        raise FindingError(f"{kind.measure} without {missing[0].rstrip('_')}", allowed=either)
    return kind(**given)


def _read(key: str, value: object, kind: str) -> Any:
    """A value of a field's type, by the annotation's first word."""
    came = value
    match kind:
        case "int":
            fits, allowed = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        case "str":
            fits, allowed = isinstance(value, str), "text"
        case _:
            names = value if isinstance(value, list) else []
            fits, allowed = (
                bool(names) and all(isinstance(n, str) for n in names),
                "a list of texts",
            )
            value = tuple(names)
    if not fits:
        raise FindingError(f"{key} is {came!r}", allowed=allowed)
    return value


def _measures() -> list[str]:
    return list(dict.fromkeys(kind.measure for kind in KINDS))


def _required(kind: type[Finding]) -> set[str]:
    return {f.name for f in fields(cast(Any, kind)) if f.default is MISSING}
