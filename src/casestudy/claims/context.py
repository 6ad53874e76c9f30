"""On which model and prompts are findings measured?

The prompts of a behaviour are run once, with all sites that the findings need. Pairs of edited
prompts and batches for ablation are made when a finding needs them, and reused.

Cost: one forward pass over the prompts. Sweeps use at most `MOST_PAIRS` prompts, evenly spaced, as
in a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import FAMILIES, GIVEN, Score, propose
from casestudy.behaviour.files import find_behaviour
from casestudy.behaviour.prompts import Behaviour, Prompts
from casestudy.behaviour.readouts import row_of
from casestudy.behaviour.roles import CHANGED, LAST, role_names
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.engine.packing import Budget, Tell
from casestudy.errors import BehaviourError, CasestudyError, FindingError, one_of
from casestudy.measure.edit_scores import score
from casestudy.measure.patching import (
    Pairs,
    pairs_of,
)
from casestudy.measure.predictions import PREDICTIONS
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Array, Grid, Result, Table
from casestudy.results.stats import ratio_in_parts
from casestudy.study.causal import evenly
from casestudy.study.measuring import plan_chunks
from casestudy.study.store import merge

_CHUNK_TOKENS = 2048


@dataclass(frozen=True)
class Values:
    """The numbers of a finding, per prompt.

    Attributes:
        cells: (prompt, cell): the finding's number and those it is ranked among; NaN if a prompt
            has none.
        which: the cell of the finding.
        prompts: the prompts, by index in the behaviour.
        unit: of the numbers, and of their mean.
        yes_or_no: whether each number is 0 or 1, so that the mean is a share of prompts.
    """

    cells: Array
    which: int
    prompts: tuple[int, ...]
    unit: str
    yes_or_no: bool = False

    def as_share(self, whole: Array, unit: str) -> Values:
        """The same as parts of a ratio of means: the cells' over the mean of `whole`, a number a
        prompt (see `ratio_in_parts`).

        Raises: Unmeasurable where that mean is zero.
        """
        zero, cells = np.zeros(len(whole)), self.cells.T.astype(np.float64)
        parts = ratio_in_parts(cells, zero, whole.astype(np.float64))
        if np.isnan(parts[self.which]).all() and not np.isnan(cells[self.which]).all():
            raise Unmeasurable("what it would be a share of is zero")
        return replace(self, cells=parts.T, unit=unit)


class Unmeasurable(Exception):
    """The reason why a finding cannot be measured on these prompts."""


class Inapplicable(FindingError):
    """A well-formed finding about something that this model or this behaviour lacks."""


class Bench:
    """A model and a behaviour, measured once for all findings.

    Attributes:
        model, behaviour: as given.
        prompts: those that can be run, by index.
        grids, tables: results by name, over all of these prompts.
    """

    def __init__(
        self,
        model: Model,
        behaviour: Behaviour,
        needs: Sequence[Measurement],
        *,
        budget: Budget,
        progress: Tell | None,
    ) -> None:
        self.model, self.behaviour = model, behaviour
        self.budget, self.progress = budget, progress
        lengths: list[int | None] = []
        for prompt in behaviour.prompts:
            try:
                lengths.append(len(row_of(model.tokenizer, prompt)))
            except CasestudyError:
                lengths.append(None)
        self._asked: dict[tuple[str, str | None], _Asked] = {}
        self._scores: dict[tuple[str, str, str | None], Score] = {}
        self._some: dict[str | None, Batch] = {}
        self.prompts = tuple(i for i, n in enumerate(lengths) if n is not None)
        if not self.prompts:
            raise BehaviourError(f"no prompt of {behaviour.name!r} can be run by {model.name}")
        chunks = []
        for chunk in plan_chunks(lengths, chunk_tokens=_CHUNK_TOKENS):
            batch = self.batch(chunk, (PREDICTIONS, *needs))
            chunks.append([r for need in (PREDICTIONS, *needs) for r in need.measure(batch)])
        results: list[Result] = merge(chunks, ())
        self.grids = {result.name: result for result in results if isinstance(result, Grid)}
        self.tables = {result.name: result for result in results if isinstance(result, Table)}

    def batch(self, index: Sequence[int], needs: Sequence[Measurement] = ()) -> Batch:
        """Some prompts, run."""
        return run_batch(self.model, self.behaviour, index, needs)

    @cached_property
    def contrasts(self) -> tuple[str, ...]:
        """By name, the main one first."""
        return self.grids[names.LOGIT_DIFFERENCE].axis("contrast").labels

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Every role the prompts may have."""
        return role_names(self.behaviour)

    @cached_property
    def pair_roles(self) -> tuple[str, ...]:
        """Every role a pair of clean and corrupted prompts may have."""
        return tuple(dict.fromkeys((*self.roles, CHANGED, LAST)))

    def contrast(self, name: str | None) -> str:
        """A contrast's name; the main one's by default.

        Raises: Inapplicable where the behaviour has none of this name.
        """
        if name is not None:
            there("contrast", name, self.contrasts)
        return self.contrasts[0] if name is None else name

    def check_head(self, layer: int, head: int) -> None:
        """Raises: Inapplicable where the model has no such head."""
        check_count("layer", layer, self.model.config.n_layers)
        check_count("head", head, self.model.config.n_heads)

    def check_edit(self, edit: str) -> None:
        """Raises: FindingError where there is no such edit."""
        among("edit", edit, (*(family.name for family in FAMILIES), GIVEN))

    def members(self, group: str | None) -> tuple[int, ...]:
        """The prompts of a group; the headline prompts by default."""
        prompts = self.behaviour.prompts
        if group is None:
            return tuple(i for i in self.prompts if self.behaviour.is_main(prompts[i]))
        return tuple(i for i in self.prompts if group in prompts[i].groups)

    def some(self, group: str | None) -> Batch:
        """Some of a group's prompts, run; at most `MOST_PAIRS`.

        Raises: Unmeasurable where there are none.
        """
        if group not in self._some:
            index = evenly(self.members(group))
            if not index:
                raise Unmeasurable("the group has no prompt")
            self._some[group] = self.batch(index)
        return self._some[group]

    def asked(self, contrast: str, group: str | None) -> _Asked:
        """Some of a group's prompts that have this contrast, for sweeps; at most `MOST_PAIRS`.

        Raises: Unmeasurable where there are none.
        """
        key = (contrast, group)
        if key not in self._asked:
            values = self.grids[names.LOGIT_DIFFERENCE].select(contrast=contrast)
            known = dict(zip(values.axis("prompt").labels, values.values, strict=True))
            index = [i for i in self.members(group) if not np.isnan(known[str(i)])]
            if not index:
                raise Unmeasurable("no prompt has this contrast")
            batch = self.batch(evenly(index))
            self._asked[key] = _Asked(batch, batch.contrasts[self.contrasts.index(contrast)])
        return self._asked[key]

    def pairs(
        self, edit: str, contrast: str, group: str | None, *, aligned: bool = False
    ) -> _Edited:
        """A group's pairs of one edit; `aligned` leaves out those of unequal length.

        Raises: Unmeasurable where there are none.
        """
        asked = self.asked(contrast, group)
        found = self._score(edit, contrast, group)
        why = found.why
        if aligned:
            found = found.only(lambda pair: pair.aligned == "position")
        if not found.n:
            raise Unmeasurable(f"no pair of the edit {edit!r} fits: {why or 'lengths differ'}")
        pairs = pairs_of(self.model, found.pairs, roles=self.behaviour.roles)
        rows = [pair.index for pair in found.pairs]
        device = self.model.device
        return _Edited(
            tuple(asked.batch.index[row] for row in rows),
            found,
            replace(pairs, clean=pairs.clean.to(device), corrupted=pairs.corrupted.to(device)),
            asked.contrast[rows],
        )

    def _score(self, edit: str, contrast: str, group: str | None) -> Score:
        """The score of one edit on a group's prompts, computed once."""
        key = (edit, contrast, group)
        if key not in self._scores:
            asked = self.asked(contrast, group)
            made = propose(
                self.model,
                asked.batch.prompts,
                [family for family in FAMILIES if family.name == edit],
                roles=self.behaviour.roles,
            )
            scores = score(self.model, made, asked.contrast)
            found = [one for one in scores if one.family == edit]
            if not found:
                raise Unmeasurable("no prompt brings a corrupted partner")
            self._scores[key] = found[0]
        return self._scores[key]


@dataclass(frozen=True)
class _Asked:
    """Some prompts, run, and one of their contrasts."""

    batch: Batch
    contrast: Contrast


@dataclass(frozen=True)
class _Edited:
    """Pairs of one edit.

    Attributes:
        index: the prompts, by index in the behaviour.
        score: the effect of the edit on the contrast.
        pairs: to patch between.
        contrast: of the clean prompts.
    """

    index: tuple[int, ...]
    score: Score
    pairs: Pairs
    contrast: Contrast


# What is there?


def among(what: str, name: str, allowed: Sequence[str]) -> None:
    """Raises: FindingError for a name that is not allowed, with the nearest that is."""
    one_of(what, name, allowed, FindingError)


def there(what: str, name: str, allowed: Sequence[str]) -> None:
    """Raises: Inapplicable for a name that this model or behaviour does not have."""
    one_of(what, name, allowed, Inapplicable)


def check_count(what: str, number: int, n: int) -> None:
    """Raises: Inapplicable for a layer, head or neuron that the model does not have; FindingError
    for a number that none has."""
    if number < 0:
        raise FindingError(f"{what} {number}", allowed="0 and more")
    if number >= n:
        raise Inapplicable(f"{what} {number}, of a model with {n}", allowed=f"0 to {n - 1}")


def behaviour_of(given: Prompts) -> Behaviour:
    """A behaviour from what calls take for one: its preset's name or file, itself, or texts.

    Raises: BehaviourError as `find_behaviour`; PromptError for what is no text.
    """
    return find_behaviour(given) if isinstance(given, str) else Behaviour.of(given)
