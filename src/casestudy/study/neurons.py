"""Which heads and neurons carry the behaviour? How a study looks for them.

An optional stage, `casestudy run --neurons`: the circuit of heads and neurons on the same pairs as
the circuit of edges (see `circuits/neuron_circuit`), with its evidence. It is one step: a study
that is killed meanwhile begins it anew, and one that has it does not make it again. A finished
study can be continued with it.

Cost: one attribution, and about `PASSES` forward passes of half of the pairs.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from typing import Any

from casestudy.circuits.neuron_card import NeuronCard
from casestudy.errors import MeasureError
from casestudy.model.decoder import run as forward
from casestudy.study.causal import chosen_prompts
from casestudy.study.circuit import MOST_PAIRS
from casestudy.study.clock import LeftOut
from casestudy.study.searches import behaviour_neurons
from casestudy.study.stage import Stage, Subject
from casestudy.study.store import stored_as_described

NAME = "neurons"
"""Its name in `Progress`, and of its entry in the manifest."""
CARD_FILE = "neuron_circuit.json"
WHAT = "a circuit of heads and neurons"
PASSES = 200


def neurons(subject: Subject) -> Stage[str, NeuronCard]:
    """The stage that finds the heads and neurons.

    Raises: StudyError if the study holds some that were looked for with other settings.
    """
    store = subject.store
    search = subject.settings.neurons
    assert search is not None
    if search.family is None:
        search = replace(search, family=subject.settings.family)
    described = asdict(search)

    def has(_: str) -> bool:
        return stored_as_described(store, NAME, described)

    def run(missing: Sequence[str]) -> Generator[tuple[str, NeuronCard], None, None]:
        clock = subject.clock
        if missing and clock.limit is not None and not clock.fits(WHAT, _seconds(subject)):
            raise LeftOut
        for name in missing:
            yield (
                name,
                behaviour_neurons(
                    subject.model,
                    subject.behaviour,
                    search.choices,
                    metric=search.metric,
                    family=search.family,
                    budget=replace(subject.execution.budget, seconds=None),
                    progress=subject.progress,
                ),
            )

    def keep(_: str, card: NeuronCard) -> None:
        store.write_final(card.results)
        card.save(store.folder / CARD_FILE)
        # stored last: what is there with it is complete
        _say(described, card.about)

    def _say(search: dict[str, Any], about: dict[str, Any]) -> None:
        store.manifest[NAME] = search
        store.manifest["neurons_about"] = about
        store.save_manifest()

    def cannot(problem: MeasureError) -> None:
        store.say_not_measured(WHAT, str(problem))

    return Stage(NAME, [NAME], has, run, keep, cannot=cannot)


def _seconds(subject: Subject) -> float:
    """The time of the forward passes, from one of them."""
    batch = subject.batch(chosen_prompts(subject.behaviour, subject.runnable, MOST_PAIRS))
    some = batch.tokens[list(range(min(8, len(batch.tokens))))]
    begun = time.perf_counter()
    forward(batch.model, some, logits="last")
    each = (time.perf_counter() - begun) / len(some)
    return each * PASSES * len(batch.tokens) / 2
