"""Findings that one forward pass over all prompts measures: cells of grids and tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from casestudy.claims.context import Bench, Values, among, check_count, there
from casestudy.claims.finding import Finding, Single, flat
from casestudy.claims.stored_values import ANSWERS, answer_grid, is_yes_or_no
from casestudy.engine.batch import Batch, Measurement
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
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.results import names
from casestudy.results.names import BIAS
from casestudy.results.result import Axis, Grid, Result

_CURVES = Measurement("lens curves", LENS.keep, lambda batch: list(curves(batch)))


class _Cell(Finding):
    """A finding that is a cell of a grid over all prompts."""

    @abstractmethod
    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """The grid's name, the labels that are fixed, and the labels on the axes of the rank."""

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        name, fixed, meant = self.place(bench)
        for axis, label in (fixed | meant).items():
            there(axis, label, bench.grids[name].axis(axis).labels)

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """See `Finding.values`."""
        name, fixed, meant = self.place(bench)
        index = bench.members(group)
        grid = bench.grids[name].select(**fixed).take("prompt", [str(i) for i in index])
        cells, which = flat(self.ranked_among(grid), meant)
        return Values(cells, which, index, grid.unit)

    def ranked_among(self, grid: Grid) -> Grid:
        """The part of the grid that the cell is ranked among."""
        return grid


@dataclass(frozen=True, kw_only=True)
class _PartOfContrast(_Cell):
    """A finding about one part of a contrast, in logits or as a share of the contrast."""

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
        return names.LOGIT_DIFFERENCE, {}, {"contrast": bench.contrast(self.contrast)}


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
    """The contrast by the logit lens at a depth: 3_pre, 3_mid, final_post, logits."""

    measure: ClassVar[str] = "lens"
    depth: str
    norm: str = "final"

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The lens curves under the final norm and under each depth's own norm."""
        return (_CURVES,)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per depth."""
        among("norm", self.norm, ("final", "own"))
        name = names.LENS if self.norm == "final" else names.LENS_OWN_NORM
        return name, {"contrast": bench.contrast(self.contrast)}, {"depth": self.depth}


@dataclass(frozen=True, kw_only=True)
class HeadShare(_PartOfContrast):
    """The direct contribution of a head to the contrast."""

    measure: ClassVar[str] = "attribution"
    layer: int
    head: int

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The direct contributions of all heads."""
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
    """The direct contribution of a neuron to the contrast."""

    measure: ClassVar[str] = "attribution"
    layer: int
    neuron: int

    @property
    def _name(self) -> str:
        return f"{names.NEURON_SHARES}.{self.layer}"

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The direct contributions of the layer's neurons."""

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
class HeadAttention(_Cell):
    """The attention of a head to a role, from the last token or from another role."""

    measure: ClassVar[str] = "attention"
    layer: int
    head: int
    to: str
    from_: str | None = None

    @property
    def needs(self) -> tuple[Measurement, ...]:
        """The last rows of all patterns; for another role, all rows."""

        def keep(model: Model) -> Sequence[Keep]:
            return [Site.PATTERN.at(last=self.from_ is None)]

        def measured(batch: Batch) -> list[Result]:
            return [attention_to_roles(batch, self.from_)]

        return (Measurement(f"attention from {self.from_}", keep, measured),)

    def place(self, bench: Bench) -> tuple[str, dict[str, str], dict[str, str]]:
        """One cell per head of the model."""
        bench.check_head(self.layer, self.head)
        there("role", self.to, bench.roles)
        if self.from_ is not None:
            there("role", self.from_, bench.roles)
        name = names.ATTENTION_LAST if self.from_ is None else names.attention_from(self.from_)
        return name, {"role": self.to}, {"layer": str(self.layer), "head": str(self.head)}


@dataclass(frozen=True, kw_only=True)
class AnswerStands(Single):
    """The answer's rank or probability, or how often it is the first prediction."""

    measure: ClassVar[str] = "answer"
    what: str

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        among("what is", self.what, tuple(ANSWERS))

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell; prompts without an answer are left out."""
        grid = answer_grid(bench.tables[names.ANSWERS].to_polars(), self.what)
        answered = {int(label) for label in grid.axis("prompt").labels}
        index = tuple(i for i in bench.members(group) if i in answered)
        values = grid.take("prompt", [str(i) for i in index]).values
        return Values(values[:, None], 0, index, grid.unit, yes_or_no=is_yes_or_no(self.what))
