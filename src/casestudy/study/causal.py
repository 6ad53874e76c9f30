"""Which parts have a causal effect? The set of patches that a study runs.

The ledger gives direct contributions; causal effects need an intervention. Every family of minimal
edits is scored on the prompts of the main groups. Then activations are patched between the clean
prompts and the corrupted prompts of the family that most surely undoes the behaviour:

- if the pairs differ before their last token: the residual stream, attention and MLP outputs by
  role (and by position if all pairs have the same length), heads at all positions together in both
  directions, and the neurons with the largest scores by gradient;
- if the pairs differ in the last token only: attention, MLPs and heads at the last token. The
  residual stream is left out there, because it carries the whole difference by construction.

Assumes prompts with an answer. Cost: see `engine/sweep`; at most `MOST_PAIRS` prompts, evenly
spaced, because a grid over thousands of prompts answers the same question as one over sixty-four.
Grids of the same pairs and places share a sweep, which is stored grid by grid before the next
begins; a continued study makes only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import (
    Proposals,
    Score,
    propose,
    scored,
    without_contrast,
)
from casestudy.behaviour.family_choice import FamilyChoice, choose_family
from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.steps import Scoring
from casestudy.circuits.cost import seconds_of
from casestudy.engine.batch import Batch
from casestudy.engine.packing import Budget, Progress, Tell
from casestudy.engine.reading import Readings
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError
from casestudy.measure.answer_texts import (
    answer_pair_values,
    answers_mirrored,
    by_prompt,
    metric_of,
    readings_of,
    with_answers,
)
from casestudy.measure.edit_scores import pair_values
from casestudy.measure.patching import (
    By,
    Direction,
    Pairs,
    Patched,
    counterfactual_table,
    neurons,
    neurons_by_gradient,
    pairs_of,
    patch_sites,
)
from casestudy.model.decoder import run as forward
from casestudy.results import names
from casestudy.results.names import WHOLES
from casestudy.study.chosen import PATCHING
from casestudy.study.stage import Stage, Subject
from casestudy.study.store import Store

NAME = PATCHING
"""As in `casestudy run --only patching`."""

SCORES = "counterfactuals"
"""The step that stores the values of the edits, until the study is complete."""

MOST_PAIRS = 64
MOST_NEURONS = 20


@dataclass(frozen=True)
class _Task:
    """A grid to make: its name in the study, the family of its pairs, about how many tokens run
    through all layers for it, and the sweep that makes it."""

    name: str
    family: str
    tokens: int
    sweep: _Sweep


@dataclass(frozen=True, eq=False)
class _Sweep:
    """One or several grids of the same pairs, made at once.

    Whole, even if some of them are stored already: which grids share a sweep decides the last bits
    of their values, and a continued study has the same.

    Attributes:
        said: what it makes, for progress.
        names: of its grids.
        make: the grids by name; the error if a grid's check failed.
    """

    said: str
    names: tuple[str, ...]
    make: Callable[[Budget, Tell], Mapping[str, Patched | MeasureError]]


def patching(subject: Subject) -> Stage[_Task, Patched]:
    """The stage that makes every patch grid. Its steps are the grids.

    The scores of the counterfactuals, which decide which grids are made, are stored first.
    """
    store = subject.store
    batch = subject.batch(chosen_prompts(subject.behaviour, subject.runnable))
    scores = kept_scores(subject, batch)
    store.write_final([counterfactual_table(scores)])
    family = subject.settings.family
    # without a sure family, raw values are worth showing where shares are not
    choose = partial(choose_family, named=family, least=1, surely=False)
    before = choose(scores, before_last=True)
    last = choose(_last_only(scores), before_last=False)
    choices = {f"{NAME}, before the last token": before, f"{NAME}, last token": last}
    store.manifest.setdefault("family_choice", {}).update(
        {name: choice.as_dict(batch.index) for name, choice in choices.items()}
    )
    scoring = subject.scoring
    tasks = [*_before_last(batch, before, scoring), *_at_last(batch, last, scoring)]
    if not tasks:
        edits = "no minimal edit" if family is None else f"no edit of the family “{family}”"
        store.say_not_measured("causal effects", f"{edits} fits these prompts")

    known = {task.name for task in tasks}
    for by in ("all", "role"):
        one, other = (names.patching("z", by, d) for d in ("denoising", "noising"))
        if one in known and other not in known:
            store.say_not_measured(other, _MIRRORED)

    def has(task: _Task) -> bool:
        return store.has_grid(names.known(task.name))  # the last file of a grid that is written

    def run(missing: Sequence[_Task]) -> Generator[tuple[_Task, Patched], None, None]:
        clock = subject.clock
        each = 0.0 if clock.limit is None else _seconds_per_token(batch)
        ordered = missing if clock.limit is None else sorted(missing, key=_telling)
        for sweep in dict.fromkeys(task.sweep for task in ordered):
            some = [task for task in ordered if task.sweep is sweep]
            tokens = sum(task.tokens for task in tasks if task.sweep is sweep)
            if not clock.fit([task.name for task in some], clock.seconds(tokens, each)):
                continue
            found: Mapping[str, Patched | MeasureError]
            try:
                with clock.timing(tokens):
                    found = sweep.make(
                        subject.execution.budget, partial(_tell_cells, subject, sweep.said)
                    )
            except MeasureError as problem:  # the other grids are still made
                found = dict.fromkeys(sweep.names, problem)
            for task in some:
                patched = found[task.name]
                if isinstance(patched, MeasureError):
                    store.say_not_measured(task.name, str(patched))
                else:
                    yield task, patched

    def keep(task: _Task, patched: Patched) -> None:
        store.say_measured(task.name)
        store.manifest.setdefault("patch_plans", {})[task.name] = patched.plan.as_dict()
        store.manifest.setdefault("patch_families", {})[task.name] = task.family
        store.save_manifest()
        store.write_final(patched.grids())

    return Stage(NAME, tasks, has, run, keep)


_TELLING = ("z.all", "z.role", "attn_out.role", "mlp_out.role", "z.last", "neurons.all")
"""The grids that are computed first if time is limited, the most telling first."""


def _telling(task: _Task) -> int:
    rest = task.name.removeprefix(names.PATCHING)
    return _TELLING.index(rest) if rest in _TELLING else len(_TELLING)


def _seconds_per_token(batch: Batch) -> float:
    """The time of a forward pass, on a few of the shorter prompts."""
    order = batch.tokens.lengths.argsort().tolist()
    some = batch.tokens[sorted(order[: min(8, len(order))])]
    forward(batch.model, some, logits="last")  # what is slow only once is not timed
    seconds = seconds_of(lambda: forward(batch.model, some, logits="last"))
    return seconds / int(some.lengths.sum())


def kept_scores(subject: Subject, batch: Batch, name: str = SCORES) -> tuple[Score, ...]:
    """The score of every family of edits, computed once in a study: on the main contrast, or on
    the whole answers if some have several tokens.

    Patching and the circuit both use the scores. They are stored as a step until the study is
    complete, so that a continued study does not compute them again. If the stored values are of
    other edits (another version may propose others), they are computed again. Another step takes
    the values of the edits that patching has scored, and computes the others.

    Args:
        batch: the chosen prompts.
        name: of the step; another one for other prompts.
    """
    store = subject.store
    proposals = propose(subject.model, batch.prompts, roles=subject.behaviour.roles)
    edits = [(pair.family, batch.index[pair.index]) for pair in proposals.pairs]
    values = _stored_values(store, name)
    if list(values) != edits:
        known = {} if name == SCORES else _stored_values(store, SCORES)
        rest = [i for i, edit in enumerate(edits) if edit not in known]
        pairs = tuple(proposals.pairs[i] for i in rest)
        computed = _values_of(subject, batch, replace(proposals, pairs=pairs))
        known |= {edits[i]: value for i, value in zip(rest, computed, strict=True)}
        values = {edit: known[edit] for edit in edits}
        _store_values(store, name, values)
    both = np.array([sides for sides, _ in values.values()]).reshape(len(edits), 2).T
    left_out = {i: why for i, (_, why) in enumerate(values.values()) if why is not None}
    return scored(proposals, both, left_out)


_Edit = tuple[str, int]
"""The family of an edit, and its prompt by index in the behaviour."""
_Value = tuple[tuple[float, float], str | None]
"""The values of a clean and of its corrupted prompt; why they have none, where they have none."""


def _values_of(subject: Subject, batch: Batch, proposals: Proposals) -> list[_Value]:
    """The value of every pair, in order."""
    if subject.scoring is not None:
        values, left_out = answer_pair_values(subject.model, proposals, subject.scoring)
    else:
        contrast = batch.contrasts[0]
        values = pair_values(subject.model, proposals, contrast)
        left_out = without_contrast(proposals, contrast)
    return [((a, b), left_out.get(i)) for i, (a, b) in enumerate(values.T.tolist())]


def _stored_values(store: Store, name: str) -> dict[_Edit, _Value]:
    """The values of a step, edit by edit in order; none where it is not stored."""
    if not store.has_step(SCORES, name):
        return {}
    arrays, of = store.read_step(SCORES, name)
    left_out = dict(of["left_out"])
    values = enumerate(zip(of["edits"], arrays["values"].T.tolist(), strict=True))
    return {(family, i): ((a, b), left_out.get(k)) for k, ((family, i), (a, b)) in values}


def _store_values(store: Store, name: str, values: Mapping[_Edit, _Value]) -> None:
    left_out = [(i, why) for i, (_, why) in enumerate(values.values()) if why is not None]
    both = np.array([sides for sides, _ in values.values()], dtype=np.float64)
    of = {"edits": list(values), "left_out": left_out}
    store.write_step(SCORES, name, {"values": both.reshape(len(values), 2).T}, of)


def _tell_cells(subject: Subject, grid: str, cells: Progress) -> None:
    subject.tell(Progress(NAME, cells.done, cells.total, grid))


def chosen_prompts(
    behaviour: Behaviour, runnable: Sequence[int], most: int | None = None
) -> list[int]:
    """The prompts of the main groups by index, at most `most` of them."""
    main = [i for i in runnable if behaviour.is_main(behaviour.prompts[i])] or list(runnable)
    return evenly(main, most)


def evenly(prompts: Sequence[int], most: int | None = None) -> list[int]:
    """At most `most` (by default `MOST_PAIRS`) of these prompts, evenly spaced."""
    most = MOST_PAIRS if most is None else most
    if len(prompts) <= most:
        return list(prompts)
    return [prompts[i * len(prompts) // most] for i in range(most)]


def _last_only(scores: Sequence[Score]) -> list[Score]:
    """The scores over the pairs that differ in the last token only."""
    return [
        score.only(
            lambda p: p.first_difference == p.last and p.aligned == "position",
            "does not differ in the last token alone",
        )
        for score in scores
    ]


def _before_last(batch: Batch, choice: FamilyChoice, scoring: Scoring | None) -> Iterator[_Task]:
    """The grids of the chosen family whose pairs differ before their last token."""
    best = choice.score
    if best is None:
        return
    said = _said(best, "before the last token", scoring)
    aligned = best.only(lambda pair: pair.aligned == "position")
    by_role = _Side(batch, best, said, scoring)
    yield from by_role.grids(_STREAM, "role")
    if not aligned.n:
        yield from by_role.grids(("z",), "role")
        if not by_role.mirrored:
            yield from by_role.grids(("z",), "role", "noising")
        return
    whole = _Side(batch, aligned, _said(aligned, "before the last token", scoring), scoring)
    if len(set(whole.prompts.clean.lengths.tolist())) == 1:
        yield from whole.grids(_STREAM, "position")
    yield from whole.grids(("z",), "all")
    if not whole.mirrored:
        yield from whole.grids(("z",), "all", "noising")
    yield whole.neurons()


_STREAM = ("resid_pre", "attn_out", "mlp_out")
"""The sites of one layer that share a sweep. Heads are as many cells as all of these together and
more, so that they gain little, and a study with little time begins with them."""


def mirrored(pairs: Pairs, contrast: Contrast) -> bool:
    """Whether for each pair there is another with clean and corrupted prompt exchanged and the
    opposite contrast, as in IOI's ABBA and BABA. Then noising one pair is denoising the other, and
    the means over pairs are the same by construction."""

    def key(clean: Sequence[int], corrupted: Sequence[int], row: int, sign: int) -> object:
        weights = zip(contrast.ids[row].tolist(), contrast.weights[row].tolist(), strict=True)
        constant = float(contrast.constant[row]) * sign
        both = (tuple(clean), tuple(corrupted))
        return both, frozenset((i, w * sign) for i, w in weights if w), constant + 0.0

    sides = list(zip(pairs.clean.rows(), pairs.corrupted.rows(), strict=True))
    there = {key(clean, corrupted, i, 1) for i, (clean, corrupted) in enumerate(sides)}
    return {key(corrupted, clean, i, -1) for i, (clean, corrupted) in enumerate(sides)} == there


_MIRRORED = (
    "each pair has a mirror among the pairs (clean and corrupted prompt exchanged, the contrast "
    "with the other sign), so patching from corrupted to clean runs gives the same means by "
    "construction"
)


def _at_last(batch: Batch, choice: FamilyChoice, scoring: Scoring | None) -> Iterator[_Task]:
    """The grids of the chosen family whose pairs differ in the last token only."""
    best = choice.score
    if best is None:
        return
    side = _Side(batch, best, _said(best, "in the last token only", scoring), scoring)
    yield from side.grids(("attn_out", "mlp_out", "z"), "last")


class _Side:
    """The pairs of one family, and the grids to make of them.

    Attributes:
        prompts: the pairs.
        pairs, metric: what is patched and read: the prompts, or the texts of their whole answers.
    """

    def __init__(self, batch: Batch, score: Score, said: str, scoring: Scoring | None) -> None:
        self.model, self.family, self.said = batch.model, score.family, said
        self.prompts = scored_pairs(batch, score)
        self.contrast = batch.contrasts[0][[pair.index for pair in score.pairs]]
        self.pairs: Pairs = self.prompts
        self.metric: Contrast | Metric = self.contrast
        self.readings: Readings | None = None
        if scoring is not None:
            self.readings = readings_of(batch.model, score.pairs, scoring)
            self.pairs = with_answers(self.prompts, self.readings)
            self.metric = metric_of(self.readings)

    @property
    def mirrored(self) -> bool:
        """Whether noising gives what denoising gives, by construction."""
        if self.readings is not None:
            return answers_mirrored(self.prompts, self.readings)
        return mirrored(self.prompts, self.contrast)

    def grids(
        self, sites: Sequence[str], by: By, direction: Direction = "denoising"
    ) -> Iterator[_Task]:
        """Grids of some sites, patched in every layer and at every place, made in one sweep."""
        by_site = {site: names.patching(site, by, direction) for site in sites}

        def make(budget: Budget, tell: Tell) -> dict[str, Patched | MeasureError]:
            found = patch_sites(
                self.model,
                self.pairs,
                self.metric,
                sites,
                by=by,
                direction=direction,
                budget=budget,
                progress=tell,
            )
            return {by_site[site]: self._told(patched) for site, patched in found.items()}

        said = names.patching(", ".join(sites), by, direction)
        sweep = _Sweep(said, tuple(by_site.values()), make)
        for site, name in by_site.items():
            yield _Task(name, self.family, self._tokens(site, by), sweep)

    def _tokens(self, site: str, by: By) -> int:
        """About how many tokens run through all layers for a grid."""
        config, lengths = self.model.config, self.pairs.clean.lengths
        roles = [len(found) for found in self.pairs.roles or ()]
        # a cell runs the tokens from its place on, and on average half of the layers
        by_place: dict[str, float] = {
            "all": int(lengths.sum()),
            "last": len(lengths),
            "role": sum(n * k for n, k in zip(lengths.tolist(), roles, strict=False)) / 2,
            "position": int((lengths * lengths).sum()) / 2,
        }
        cells = config.n_layers * (config.n_heads if site == "z" else 1)
        return round(by_place[by] * cells / 2)

    def neurons(self) -> _Task:
        """A grid of single neurons: those with the largest scores by gradient."""

        name = names.patching("neurons", "all")

        def make(budget: Budget, tell: Tell) -> dict[str, Patched | MeasureError]:
            on = (self.model, self.pairs, self.metric)
            chosen = neurons_by_gradient(*on, MOST_NEURONS)
            return {name: self._told(neurons(*on, chosen, budget=budget, progress=tell))}

        made = (MOST_NEURONS // 2 + 3) * int(self.pairs.clean.lengths.sum())
        return _Task(name, self.family, made, _Sweep(name, (name,), make))

    def _told(self, patched: Patched | MeasureError) -> Patched | MeasureError:
        if isinstance(patched, MeasureError):
            return patched
        if self.readings is not None:
            patched = by_prompt(self.readings, patched, self.prompts.labels)
        raw = replace(patched.raw, about=f"{patched.raw.about} {self.said}")
        return replace(patched, raw=raw)


def scored_pairs(batch: Batch, score: Score) -> Pairs:
    """A family's pairs on the model's device, labelled by their index in the behaviour."""
    assert batch.behaviour is not None
    labels = [str(batch.index[pair.index]) for pair in score.pairs]
    roles = batch.behaviour.roles
    pairs = pairs_of(batch.model, score.pairs, roles=roles, labels=labels)
    device = batch.model.device
    return replace(pairs, clean=pairs.clean.to(device), corrupted=pairs.corrupted.to(device))


def _said(score: Score, where: str, scoring: Scoring | None) -> str:
    compared = "" if scoring is None else f" Patches change the contrast “{WHOLES[scoring]}”."
    unit = "logits" if scoring is None else "nats"
    return (
        f"Pairs of the family “{score.family}” that differ {where} (n = {score.n}; the mean "
        f"difference falls from {score.clean.mean():.2f} to {score.corrupted.mean():.2f} {unit})."
        + compared
        + ("" if score.undoes else " These edits do not surely undo the behaviour.")
    )
