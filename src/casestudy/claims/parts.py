"""Findings about single heads and neurons: what they are active on, read, and are needed for.

Each number is that of a part's card (see `measure/part_card`) on the behaviour's prompts, except
the faithfulness of the first so many heads and neurons, which is that of `circuit --grain neuron`.

Cost: a forward pass of at most `MOST_PAIRS` prompts per finding; for the first nodes one
attribution and one evaluation (see `circuits/neuron_circuit`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from casestudy.circuits.neuron_circuit import NeuronChoices, judged_first
from casestudy.claims.context import Bench, Inapplicable, Unmeasurable, Values, among, there
from casestudy.claims.finding import Finding, Single, flat
from casestudy.engine.batch import Batch
from casestudy.errors import FindingError, MeasureError, SiteError
from casestudy.measure.attention import roles_seen
from casestudy.measure.halves import Half
from casestudy.measure.part_ablation import ablate_on_prompts
from casestudy.measure.part_reads import Choice, InputPositions, split_input
from casestudy.measure.parts import CardPart, HeadPart, read_part
from casestudy.model.decoder import run
from casestudy.results import names
from casestudy.results.components import read_component
from casestudy.results.names import BIAS
from casestudy.results.result import Array
from casestudy.results.stats import FAITHFULNESS

PART_KINDS = ("head", "neuron")
PUT_IN = ("zero", "mean", "resample")


@dataclass(frozen=True, kw_only=True)
class _OfPart(Finding):
    """A number of one head or neuron."""

    part: str

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        self.subject(bench)

    def subject(self, bench: Bench) -> CardPart:
        """The part.

        Raises: FindingError for what is no head or neuron; Inapplicable for one the model lacks.
        """
        found = read_component(self.part)
        if found is None or found.kind not in PART_KINDS or found.side:
            allowed = 'a head ("head 0.2") or a neuron ("neuron 4.312")'
            raise FindingError(f"part {self.part!r}", allowed=allowed)
        try:
            return read_part(bench.model, found)
        except SiteError as error:
            raise Inapplicable(error.came, allowed=error.allowed, hint=error.hint) from error


@dataclass(frozen=True, kw_only=True)
class _OnPrompts(_OfPart):
    """A number of a part at positions of the prompts, whatever the answer."""

    @abstractmethod
    def cells(self, bench: Bench, batch: Batch) -> tuple[Array, int, str]:
        """(prompt, cell), the finding's cell, and the unit; NaN where a prompt has no number."""

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """See `Finding.values`; prompts without the positions are left out."""
        batch = bench.some(group)
        cells, which, unit = self.cells(bench, batch)
        known = ~np.isnan(cells[:, which])
        if not known.any():
            raise Unmeasurable("no prompt has these positions")
        prompts = tuple(i for i, has in zip(batch.index, known, strict=True) if has)
        return Values(cells[known], which, prompts, unit)


@dataclass(frozen=True, kw_only=True)
class Selectivity(Single, _OnPrompts):
    """How much more active a part is at one role than at others, within a prompt.

    The chance that a token of the role has a larger activity than one that it is compared with; a
    tie counts half. The first position is left out, as in a card.
    """

    measure: ClassVar[str] = "selectivity"
    role: str
    against: str | None = None

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        self.subject(bench)
        for role in (self.role, self.against):
            if role is not None:
                there("role", role, bench.pair_roles)

    def cells(self, bench: Bench, batch: Batch) -> tuple[Array, int, str]:
        """One cell."""
        part = self.subject(bench)
        trace = run(batch.model, batch.tokens, keep=part.keep(batch.model), logits="last")
        activity = part.activity(batch.model, trace).double().cpu().numpy()
        found = []
        for row, roles, length in zip(
            activity, roles_seen(batch), batch.tokens.lengths.tolist(), strict=True
        ):
            chosen = set(roles.get(self.role, ()))
            others = range(length) if self.against is None else roles.get(self.against, ())
            a, b = (
                row[sorted(p for p in some if p > 0)]
                for some in (chosen, (p for p in others if p not in chosen))
            )
            found.append(_larger(a, b))
        return np.array(found)[:, None], 0, "AUROC within a prompt"


def _larger(a: Array, b: Array) -> float:
    """The chance that a value of a is larger than one of b; NaN where one side is empty."""
    if not len(a) or not len(b):
        return float("nan")
    return float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean())


@dataclass(frozen=True, kw_only=True)
class Reads(_OnPrompts):
    """What a part reads: a term of a neuron's input at the last token, or of why a head attends to
    the tokens of a role from there."""

    measure: ClassVar[str] = "reads"
    term: str
    side: str | None = None
    role: str | None = None

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        part = self.subject(bench)
        head = isinstance(part, HeadPart)
        among("side", self.side or "input", ("query", "key") if head else ("input", "gate"))
        if head != (self.role is not None):
            raise FindingError(
                f"what a {part.kind} reads {'without' if head else 'with'} a role",
                allowed="the role whose keys a head chooses, and no role for a neuron",
            )
        if self.role is not None:
            there("role", self.role, bench.pair_roles)
        if read_component(self.term) is None and self.term != BIAS:
            raise FindingError(f"term {self.term!r}", allowed="embed, mlp 0, head 1.0, bias, …")

    def cells(self, bench: Bench, batch: Batch) -> tuple[Array, int, str]:
        """One cell per term of this side."""
        part = self.subject(bench)
        rows, choices = self._choices(batch, part)
        tokens = batch.tokens[rows]
        reading = InputPositions(tokens, tokens.last.tolist(), tuple(map(str, rows)))
        grid = split_input(batch.model, part, reading, choices)
        side = self.side or "input"
        axis = grid.axes[0].name
        there("side", side, grid.axis(axis).labels)
        grid = grid.select(**{axis: side})
        if self.term not in grid.axis("component").labels:
            raise Unmeasurable(f"{part.name} reads no {self.term}: it is not before the part")
        values, which = flat(grid, {"component": self.term})
        cells = np.full((len(batch.index), values.shape[1]), np.nan)
        cells[rows] = values
        return cells, which, grid.unit

    def _choices(self, batch: Batch, part: CardPart) -> tuple[list[int], list[Choice]]:
        """The rows that can be read, for a head with the keys that it chooses and the others."""
        if not isinstance(part, HeadPart):
            return list(range(len(batch.index))), []
        rows, found = [], []
        for i, (roles, n) in enumerate(
            zip(roles_seen(batch), batch.tokens.lengths.tolist(), strict=True)
        ):
            chosen = tuple(roles.get(str(self.role), ()))
            others = tuple(p for p in range(n) if p not in chosen)
            if chosen and others:
                rows.append(i)
                found.append(Choice(chosen, others))
        if not rows:
            raise Unmeasurable(f"no prompt has the role {self.role} and other tokens")
        return rows, found


@dataclass(frozen=True, kw_only=True)
class PartAblation(Single, _OfPart):
    """The change of the contrast when a head or neuron is ablated at every position."""

    measure: ClassVar[str] = "ablation"
    put_in: str = "mean"
    contrast: str | None = None
    of: str = "logits"

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        self.subject(bench)
        bench.contrast(self.contrast)
        among("put_in", self.put_in, PUT_IN)
        among("of", self.of, ("contrast", "logits"))

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell."""
        contrast = bench.contrast(self.contrast)
        asked = bench.asked(contrast, group)
        index = tuple(asked.batch.index)
        grid = ablate_on_prompts(
            asked.batch.model,
            self.subject(bench),
            asked.batch.tokens,
            asked.contrast,
            roles=[dict(row) for row in roles_seen(asked.batch)],
            labels=tuple(map(str, index)),
            budget=bench.budget,
        )
        if self.put_in not in grid.axis("kind").labels:
            raise Unmeasurable("one prompt has no other to resample from")
        change = Values(grid.select(kind=self.put_in).values[:, None], 0, index, "logits")
        if self.of == "logits":
            return change
        whole = bench.grids[names.LOGIT_DIFFERENCE].select(contrast=contrast)
        known: Mapping[str, float] = dict(
            zip(whole.axis("prompt").labels, whole.values, strict=True)
        )
        clean = np.array([known[str(i)] for i in index])
        return change.as_share(clean, f"share of the contrast ({contrast})")


@dataclass(frozen=True, kw_only=True)
class FirstNodes(Single):
    """The faithfulness of the first heads and neurons by RelP, on the pairs that they were not
    ranked on."""

    measure: ClassVar[str] = "circuit"
    edit: str
    first: int
    contrast: str | None = None

    def check(self, bench: Bench) -> None:
        """See `Finding.check`."""
        bench.check_edit(self.edit)
        bench.contrast(self.contrast)
        if self.first < 1:
            raise FindingError(f"first is {self.first}", allowed="1 and more")
        config = bench.model.config
        nodes = config.n_layers * (config.n_heads + config.d_mlp)
        if self.first >= nodes:
            raise Inapplicable(
                f"the first {self.first:,} nodes of a model with {nodes:,}",
                allowed=f"1 to {nodes - 1:,}",
            )

    def values(self, bench: Bench, group: str | None, *, ranked: bool) -> Values:
        """One cell, of the pairs held out."""
        edited = bench.pairs(self.edit, bench.contrast(self.contrast), group, aligned=True)
        documents = tuple(bench.behaviour.prompts[i].document for i in edited.index)
        half = Half(edited.pairs, edited.contrast, documents if any(documents) else None)
        choices = NeuronChoices(top=self.first)
        try:
            rows, found = judged_first(bench.model, half, choices, budget=bench.budget)
        except MeasureError as error:
            raise Unmeasurable(str(error)) from error
        index = tuple(edited.index[row] for row in rows)
        change = Values(found.values.T - found.empty[:, None], 0, index, "logits")
        return change.as_share(found.full - found.empty, FAITHFULNESS)
