"""Which heads and neurons carry a behaviour?

The search of `circuits/neuron_circuit` on the pairs of `study/behaviour_pairs`.
"""

from __future__ import annotations

from casestudy.behaviour.prompts import Behaviour
from casestudy.circuits.neuron_card import NeuronCard, neuron_circuit
from casestudy.circuits.neuron_circuit import NeuronChoices
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.measure.metrics import Kind
from casestudy.model.model import Model
from casestudy.study.behaviour_pairs import behaviour_half


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
