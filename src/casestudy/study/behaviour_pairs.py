"""On which pairs of a behaviour is something looked for?

On those of its circuit of edges (see `study/circuit`): the family of edits that most surely undoes
the behaviour, on the main prompts and, as far as there is room, on its circuit prompts.

Assumes prompts with an answer. Cost: a run of the prompts and of their edits.
"""

from __future__ import annotations

import contextlib

from casestudy.behaviour.family_choice import FamilyChoice
from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.readouts import tokens_of
from casestudy.behaviour.steps import any_several
from casestudy.engine.batch import run_batch
from casestudy.errors import CasestudyError, MeasureError
from casestudy.measure.halves import Half
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
    """The pairs of a behaviour to look for a circuit or a direction on, with their metric.

    Args:
        model: the decoder.
        behaviour: the prompts.
        metric: its name.
        family: the family of edits; see `circuit_pairs`.
        most: prompts.

    Raises: MeasureError where no prompt can be run, for answers of several tokens, and as
        `circuit_half`.
    """
    whole = behaviour.with_circuit_prompts
    model = whole.read_by(model)
    if any_several(model.tokenizer, whole.prompts):
        raise MeasureError(
            f"answers of several tokens in {behaviour.name}",
            allowed="answers of one token for directions and for circuits of heads and neurons",
            hint="Give the answers' first tokens; casestudy circuit finds edges for whole answers",
        )
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
