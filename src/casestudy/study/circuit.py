"""Which circuit carries the behaviour? How a study looks for it.

The pairs are of the family of edits that most surely undoes the behaviour, with equal numbers of
tokens. Every edge is scored on them; the smallest faithful circuit is chosen; then the evidence for
it is gathered (see `circuits/evidence`). Pairs that differ before their last token are preferred:
if only the last token differs, all effects are at that token by construction.

Assumes prompts with an answer. Cost: see `circuits/evidence`; at most `MOST_PAIRS` pairs. Each step
of the evidence is stored when it is done, and a continued study takes only the missing steps. The
stored steps are deleted after the card is written.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import Score, propose, scored
from casestudy.behaviour.family_choice import FamilyChoice, choose_family
from casestudy.behaviour.prompts import Prompt
from casestudy.behaviour.readouts import tokens_of
from casestudy.behaviour.steps import Scoring
from casestudy.circuits.card import write_card
from casestudy.circuits.evidence import (
    CARD_STEPS,
    STAGE,
    Evidence,
    Question,
    take_steps,
    writing_up,
)
from casestudy.circuits.packed import Packed, pack, unpack
from casestudy.engine.batch import Batch, run_batch
from casestudy.errors import CasestudyError, MeasureError
from casestudy.measure.answer_texts import answer_pair_values, readings_of, with_answers
from casestudy.measure.answer_texts import metric_of as answers_metric
from casestudy.measure.edit_scores import score
from casestudy.measure.halves import Half
from casestudy.measure.metrics import Kind, metric_of
from casestudy.measure.patching import Pairs
from casestudy.model.decoder import run as forward
from casestudy.results.files import write_atomically
from casestudy.results.stats import BOOTSTRAP_FROM
from casestudy.study.causal import chosen_prompts, kept_scores, scored_pairs
from casestudy.study.clock import LeftOut
from casestudy.study.settings import Search
from casestudy.study.stage import Stage, Subject
from casestudy.study.store import stored_as_described

NAME = STAGE
"""As in `casestudy run --only circuit`."""

CARD_FILE = "circuit.json"
IMPORTANCES_FILE = "importances.json"
MOST_PAIRS = 32
SECONDS = 300.0
"""The most computing time for the evidence of a study's own circuit."""

_SCORES, _PLAN = "scores", "plan"
_WHAT = "circuits"
_BEGUN = "circuit_begun"
"""The manifest's entry for a search that has begun, until its card is written."""


def circuit(subject: Subject) -> Stage[str, Any]:
    """The stage that finds the circuit. Its steps are those of the evidence (see `CARD_STEPS`).

    Raises: StudyError if the study holds a circuit, or a part of one, that was looked for with
        other settings.
    """
    store, search = subject.store, _search(subject)
    described = asdict(search)
    if stored_as_described(store, "circuit", described):
        return Stage(NAME, (), lambda _: True, lambda _: _none(), lambda *_: None)
    if not stored_as_described(store, _BEGUN, described):
        store.manifest[_BEGUN] = described
        store.save_manifest()
    finding = _Finding(subject, search)

    def finished() -> None:
        store.manifest["circuit"] = store.manifest.pop(_BEGUN)
        store.save_manifest()
        store.drop_steps(NAME)

    def combine() -> None:
        finding.write()
        finished()

    def cannot(problem: MeasureError) -> None:
        if subject.settings.search is not None:
            raise problem
        store.say_not_measured("circuits", str(problem))
        finished()

    names = [step.name for step in CARD_STEPS]
    has = partial(store.has_step, NAME)
    return Stage(NAME, names, has, finding.run, finding.keep, combine, cannot)


def _search(subject: Subject) -> Search:
    return subject.settings.search or Search(family=subject.settings.family)


def _none() -> Generator[tuple[str, Any], None, None]:
    yield from ()


class _Finding:
    """A search for a circuit in a study: its question and its stored steps."""

    def __init__(self, subject: Subject, search: Search) -> None:
        self.subject, self.search = subject, search
        self.store = subject.store

    @cached_property
    def family(self) -> tuple[Score, Question]:
        """The score of the chosen family, and the question that its pairs ask.

        Raises: MeasureError if there are no such pairs.
        """
        subject, search = self.subject, self.search
        batch = self.batch
        scores = kept_scores(subject, batch, NAME)
        choice, everything = circuit_half(
            batch,
            metric=search.metric,
            family=search.family,
            scores=scores,
            scoring=subject.scoring,
        )
        best = choice.score
        assert best is not None
        self.store.manifest.setdefault("family_choice", {})[NAME] = choice.as_dict(batch.index)
        budget = subject.execution.budget
        # the study's own limit decides which steps are made now, not how large they are
        own = subject.settings.search is None
        budget = replace(budget, seconds=SECONDS if own else None)
        return best, Question.of(batch.model, everything, search.choices, budget=budget)

    @cached_property
    def batch(self) -> Batch:
        """The main prompts and, as far as there is room, the behaviour's circuit prompts."""
        subject = self.subject
        main = chosen_prompts(subject.behaviour, subject.runnable, MOST_PAIRS)
        if not self.further:
            return subject.batch(main)
        chosen = [*main, *self.further[: MOST_PAIRS - len(main)]]
        whole = subject.behaviour.with_circuit_prompts
        return run_batch(subject.model, whole, chosen, [], top_k=subject.settings.top_k)

    @cached_property
    def further(self) -> list[int]:
        """The circuit prompts that can be run, by index after the behaviour's prompts."""
        behaviour, found = self.subject.behaviour, []
        for i, prompt in enumerate(behaviour.circuit_prompts, len(behaviour)):
            with contextlib.suppress(CasestudyError):  # as for the others, but nobody asks for it
                tokens_of(self.subject.model, [prompt])
                found.append(i)
        return found

    def run(self, missing: Sequence[str]) -> Generator[tuple[str, Any], None, None]:
        """Take the missing steps, using the stored ones."""
        if not missing:
            return
        clock = self.subject.clock
        if clock.limit is not None and _SCORES in missing and not clock.fits(_WHAT, self.scoring()):
            raise LeftOut
        _, question = self.family
        values = self.kept()
        taken = take_steps(question, values, self.subject.tell)
        for name in missing:
            plan = values.get(_PLAN)
            if plan is not None and not clock.fits(_WHAT, plan.steps.get(name, 0.0)):
                raise LeftOut
            yield next(taken)

    def scoring(self) -> float:
        """The time to score the edges: two forward passes, and for each step of the integrals a
        forward and a backward pass, on half of the prompts."""
        batch = self.batch
        some = batch.tokens[list(range(min(8, len(batch.tokens))))]
        begun = time.perf_counter()
        forward(batch.model, some, logits="last")
        each = (time.perf_counter() - begun) / len(some)
        return each * len(batch.tokens) * (1 + 2 * self.search.choices.steps)

    def kept(self) -> dict[str, Any]:
        """The values of the stored steps."""
        _, question = self.family
        names = [step.name for step in CARD_STEPS if self.store.has_step(NAME, step.name)]
        return {
            name: unpack(Packed(*self.store.read_step(NAME, name)), question.graph)
            for name in names
        }

    def keep(self, name: str, value: Any) -> None:
        """Store a step's value."""
        packed = pack(value)
        self.store.write_step(NAME, name, packed.arrays, packed.plain)

    def write(self) -> None:
        """Write the tables and grids, then the card and MIB's importances as separate files."""
        best, question = self.family
        self.subject.tell(writing_up())
        card = write_card(question, Evidence(**self.kept()))
        known = len(self.subject.behaviour)
        further = sum(self.batch.index[pair.index] >= known for pair in best.pairs)
        card.about.update(family=best.family, further_pairs=further)
        self.store.write_final(card.results)
        card.save(self.store.folder / CARD_FILE)
        importances = card.circuit.importances(card.scores.values)
        write_atomically(self.store.folder / IMPORTANCES_FILE, json.dumps(importances).encode())
        self.store.manifest["circuit_about"] = card.about
        if card.scores.replicates is None:
            why = f"{card.scores.n} pairs were too few to resample: {BOOTSTRAP_FROM} are needed"
            self.store.say_not_measured("how much of the circuit stays under resampling", why)


def circuit_half(
    batch: Batch,
    *,
    metric: Kind = "contrast",
    family: str | None = None,
    scores: Sequence[Score] | None = None,
    scoring: Scoring | None = None,
) -> tuple[FamilyChoice, Half]:
    """The pairs to look for a circuit on (see `circuit_pairs`), with their metric and the units
    that are held out together.

    Args:
        scoring: how the tokens of answers of several tokens count; None if there are none.

    Raises: as `circuit_pairs` and `metric_of`; MeasureError for answers of several tokens by a
        metric of the next token alone.
    """
    if scoring is not None and metric != "contrast":
        raise MeasureError(
            f"the metric {metric!r} of answers of several tokens: it is of the next token alone",
            allowed="the metric 'contrast', the difference of the answers' log-probabilities",
        )
    choice, pairs, contrast = circuit_pairs(batch, family=family, scores=scores, scoring=scoring)
    best = choice.score
    assert best is not None
    units = _units([batch.prompts[pair.index] for pair in best.pairs], best)
    if scoring is not None:
        readings = readings_of(batch.model, best.pairs, scoring)
        return choice, Half(with_answers(pairs, readings), answers_metric(readings), units)
    if metric == "class":
        contrast = batch.contrasts[-1][[pair.index for pair in best.pairs]]
    return choice, Half(pairs, metric_of(batch.model, contrast, metric, pairs.clean), units)


def _units(prompts: Sequence[Prompt], of: Score) -> tuple[str, ...] | None:
    """Each pair's document; where none has one, mirrored pairs (a prompt whose partner is another
    prompt) are one unit, so that none is held out while its mirror is searched."""
    documents = tuple(prompt.document for prompt in prompts)
    if any(documents):
        return documents
    both = tuple("\n".join(sorted((pair.clean.text, pair.corrupted.text))) for pair in of.pairs)
    return both if len(set(both)) < len(both) else None


def circuit_pairs(
    batch: Batch,
    *,
    family: str | None = None,
    scores: Sequence[Score] | None = None,
    scoring: Scoring | None = None,
) -> tuple[FamilyChoice, Pairs, Contrast]:
    """The pairs to look for a circuit on, with the choice of their family and their contrast.

    Args:
        batch: the run of a behaviour's prompts.
        family: the family of edits; by default the given corrupted prompts, or otherwise the edits
            that most surely undo the behaviour, before the last token if possible (see
            `choose_family`).
        scores: the stored scores of every family on these prompts; computed by default.
        scoring: how the tokens of answers of several tokens count; None if there are none. The
            contrast is that of the first tokens all the same.

    Raises: MeasureError if the family (or every family) has fewer than two pairs of equal length,
        and if no family surely undoes the behaviour.
    """
    assert batch.behaviour is not None
    contrast = batch.contrasts[0]
    if scoring is None and bool(contrast.weights.isnan().any(1).all()):
        why = "; ".join(dict.fromkeys(batch.answers.errors.values()))
        raise MeasureError(f"no prompt has an answer and a counterpart: {why}".removesuffix(": "))
    if scores is None:
        proposals = propose(batch.model, batch.prompts, roles=batch.behaviour.roles)
        if scoring is None:
            scores = score(batch.model, proposals, contrast)
        else:
            scores = scored(proposals, *answer_pair_values(batch.model, proposals, scoring))
    scores = [found.of_equal_length for found in scores]
    usable = [s for s in scores if s.n >= 2]
    if family is not None:
        usable = [s for s in usable if s.family == family]
        if not usable:
            known = any(found.family == family for found in scores)
            raise MeasureError(
                f"the family {family!r} has no two pairs of equal length"
                if known
                else f"no kind of edit of these prompts is called {family!r}",
                allowed=", ".join(s.family for s in scores if s.n >= 2) or "no family here",
            )
    if not usable:
        raise _too_few(scores)
    choice = choose_family(scores, named=family)
    best = choice.score
    if best is None:
        raise MeasureError(
            choice.why,
            hint="Bring corrupted partners in the behaviour file, or ask for a family by name",
        )
    pairs = scored_pairs(batch, best)
    return choice, pairs, contrast[[pair.index for pair in best.pairs]]


def _too_few(scores: Sequence[Score]) -> MeasureError:
    """Why no family of edits has the two aligned pairs that a circuit needs."""
    if any(found.n for found in scores):
        return MeasureError(
            "there is one pair of clean and corrupted prompts with as many tokens, and a circuit "
            "needs two",
            hint="Add prompts of the same kind to the behaviour file",
        )
    return MeasureError(
        "no corrupted prompt has as many tokens as its prompt, and a circuit needs two such pairs",
        hint="Bring corrupted partners of as many tokens in the behaviour file",
    )
