"""How much probability does each class of next token get?

The probabilities after each prompt, summed over the classes of a `ClassSet`: capitals after a
space, digits, quotation marks, …. They sum to 1. Cost: one softmax per prompt.
"""

from __future__ import annotations

from dataclasses import replace

from casestudy.behaviour.classes import STANDARD, ClassSet
from casestudy.behaviour.prompts import Behaviour, Prompts, takes_prompts
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Axis, Grid, Result


def measure_class_mass(batch: Batch) -> list[Result]:
    """The mass of each class of the behaviour's set; NaN for a class this vocabulary lacks."""
    classes = STANDARD if batch.behaviour is None else batch.behaviour.classes
    logits = batch.logits.double()
    of = classes.of_vocabulary(batch.model.tokenizer, logits.shape[1]).to(logits.device)
    n = len(classes.names)
    # class batch
    mass = logits.new_zeros(n, len(logits)).index_add_(0, of, logits.softmax(1).T)
    empty = of.bincount(minlength=n) == 0
    mass[empty] = float("nan")
    gap = (mass.nansum(0) - 1).abs().max()
    return [
        Grid(
            names.CLASS_MASS,
            mass.cpu().numpy(),
            (Axis("class", classes.names), batch.prompt_axis),
            "probability",
            error={"gap": float(gap), "bound": 1e-9},
            about=f"Probability of the next token by class (set {classes.name!r}) at each prompt's "
            "last position; `gap` is how far the classes' sum is from 1.",
        )
    ]


CLASS_MASS = Measurement("class_mass", lambda model: (), measure_class_mass)


@takes_prompts
def class_mass(
    model: Model,
    behaviour: Prompts,
    classes: ClassSet | None = None,
) -> Grid:
    """The probability of each class of next token.

    Args:
        model: which predicts.
        behaviour: a behaviour, a text or texts (see `Prompts`).
        classes: replaces the behaviour's class set (for texts the standard set).

    Shape:  (class, prompt); NaN for a class without tokens in this vocabulary.
    Unit:   probability; a prompt's classes sum to 1 (`error["gap"]` is the largest difference).
    Raises: PromptError for a prompt that cannot be run; BehaviourError for a required class
        without tokens in this vocabulary.
    """
    behaviour = Behaviour.of(behaviour)
    if classes is not None:
        behaviour = replace(
            behaviour, classes=classes, class_contrast=None, answers="space-capital"
        )
    (grid,) = measure_class_mass(run_whole(model, behaviour, []))
    assert isinstance(grid, Grid)
    return grid
