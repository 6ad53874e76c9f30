"""Is a behaviour a direction?

The search of `measure/directions` on the pairs of `study/behaviour_pairs`.
"""

from __future__ import annotations

from collections.abc import Iterable

from casestudy.behaviour.prompts import Behaviour
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.errors import MeasureError
from casestudy.measure.directions import DirectionCard, DirectionChoices, find_direction
from casestudy.measure.metrics import Kind
from casestudy.model.model import Model
from casestudy.study.behaviour_pairs import behaviour_half


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
    choice, half = behaviour_half(model, behaviour, metric=metric, family=family)
    assert choice.score is not None
    card = find_direction(
        behaviour.read_by(model),
        half.pairs,
        half.metric,
        choices,
        documents=half.documents,
        other_text=other_text,
        budget=budget,
        progress=progress,
    )
    card.about.update(behaviour=behaviour.name, family=choice.score.family)
    return card
