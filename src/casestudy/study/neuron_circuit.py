"""Which pairs of a behaviour ask for its circuit of heads and neurons?

Those of its circuit of edges (see `study/circuit`): the family of edits that most surely undoes the
behaviour, on the main prompts and, as far as there is room, on the behaviour's circuit prompts.

Assumes prompts with an answer. Cost: see `circuits/neuron_circuit`, on at most `MOST_PAIRS` pairs.
"""

from __future__ import annotations

import contextlib

from casestudy.behaviour.family_choice import FamilyChoice
from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.readouts import tokens_of
from casestudy.circuits.evidence import Half
from casestudy.circuits.neuron_card import NeuronCard, neuron_circuit
from casestudy.circuits.neuron_circuit import NeuronChoices
from casestudy.engine.batch import run_batch
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.errors import CasestudyError, MeasureError
from casestudy.measure.metrics import Kind
from casestudy.model.model import Model
from casestudy.study.causal import chosen_prompts
from casestudy.study.circuit import MOST_PAIRS, circuit_half


def behaviour_half(
    model: Model,
    behaviour: Behaviour,
    *,
    metric: Kind = "contrast",
    family: str | None = None,
    most: int = MOST_PAIRS,
) -> tuple[FamilyChoice, Half]:
    """The pairs to look for a circuit of a behaviour on, with their metric.

    Args:
        model: the decoder.
        behaviour: the prompts.
        metric: its name.
        family: the family of edits; see `circuit_pairs`.
        most: prompts.

    Raises: MeasureError where no prompt can be run, and as `circuit_half`.
    """
    whole = behaviour.with_circuit_prompts
    model = whole.read_by(model)
    runnable = []
    for i, prompt in enumerate(whole.prompts):
        with contextlib.suppress(CasestudyError):  # too long, or unknown characters
            tokens_of(model, [prompt])
            runnable.append(i)
    if not runnable:
        raise MeasureError(f"no prompt of {behaviour.name} can be run by {model.name}")
    main = chosen_prompts(behaviour, [i for i in runnable if i < len(behaviour)], most)
    further = [i for i in runnable if i >= len(behaviour)]
    batch = run_batch(model, whole, [*main, *further[: most - len(main)]], [])
    return circuit_half(batch, metric=metric, family=family)


def behaviour_neurons(
    model: Model,
    behaviour: Behaviour,
    choices: NeuronChoices | None = None,
    *,
    metric: Kind = "contrast",
    family: str | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> NeuronCard:
    """The heads and neurons that carry a behaviour, with their evidence.

    Args:
        model: the decoder.
        behaviour: the prompts.
        choices: the settings of the search.
        metric: its name.
        family: the family of edits; see `circuit_pairs`.
        budget: memory.
        progress: called when a step begins.

    Raises: as `behaviour_half` and `neuron_circuit`.
    """
    choice, half = behaviour_half(model, behaviour, metric=metric, family=family)
    assert choice.score is not None
    card = neuron_circuit(
        behaviour.read_by(model),
        half.pairs,
        half.metric,
        choices,
        documents=half.documents,
        budget=budget,
        progress=progress,
    )
    card.about.update(behaviour=behaviour.name, family=choice.score.family)
    return card
