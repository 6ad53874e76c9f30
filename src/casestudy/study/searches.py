"""What carries a behaviour: which direction of a site, which heads and neurons?

The searches of `measure/directions` and `circuits/neuron_card` on the pairs of
`study/behaviour_pairs`. Cost: theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from casestudy.behaviour.prompts import Behaviour
from casestudy.circuits.neuron_card import NeuronCard, neuron_circuit
from casestudy.circuits.neuron_circuit import NeuronChoices
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.errors import MeasureError
from casestudy.measure.directions import DirectionCard, DirectionChoices, find_direction
from casestudy.measure.metrics import Kind
from casestudy.model.model import Model
from casestudy.study.behaviour_pairs import behaviour_half

Card = TypeVar("Card", DirectionCard, NeuronCard)


def behaviour_direction(
    model: Model,
    behaviour: Behaviour,
    choices: DirectionChoices,
    *,
    metric: Kind = "contrast",
    family: str | None = None,
    other_text: Iterable[tuple[str, str]] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> DirectionCard:
    """The directions of a spot that carry a behaviour, with their evidence.

    Args:
        model: the decoder.
        behaviour: the prompts.
        choices: the spot and the settings.
        metric: its name; "kl" has no sign, and so no direction.
        family: the family of edits; see `circuit_pairs`.
        other_text: (document, text) of other text, for the cost of steering.
        budget: memory, checks.
        progress: called after every step of the training.

    Raises: as `behaviour_half` and `find_direction`; MeasureError for "kl".
    """
    if metric == "kl":
        raise MeasureError(
            "KL from the clean run has no sign to steer towards",
            allowed="contrast, class, probability",
        )
    more = {"other_text": other_text, "budget": budget, "progress": progress}
    return _on_pairs(find_direction, model, behaviour, choices, metric, family, **more)


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
    more = {"budget": budget, "progress": progress}
    return _on_pairs(neuron_circuit, model, behaviour, choices, metric, family, **more)


def _on_pairs(
    search: Callable[..., Card],
    model: Model,
    behaviour: Behaviour,
    choices: object,
    metric: Kind,
    family: str | None,
    **more: Any,
) -> Card:
    """A search's card, on the pairs of a behaviour, which it says."""
    choice, half = behaviour_half(model, behaviour, metric=metric, family=family)
    assert choice.score is not None
    card = search(
        behaviour.read_by(model),
        half.pairs,
        half.metric,
        choices,
        documents=half.documents,
        **more,
    )
    card.about.update(behaviour=behaviour.name, family=choice.score.family)
    return card
