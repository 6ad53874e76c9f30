"""Does the model prefer the capital, the space, or their combination?

An answer and its three counterparts form a 2 × 2 table of case and space:

                  capital        lower case
    space         a " He"        b " he"
    no space      c "He"         d "he"

With their logits, per prompt:

    case        = ((a - b) + (c - d)) / 2    a capital over lower case, averaged over space
    space       = ((a - c) + (b - d)) / 2    a space over no space, averaged over case
    interaction = (a - b) - (c - d)          how much more a capital is preferred after a space

The three logit differences are sums of these: a - b = case + interaction / 2,
a - c = space + interaction / 2, a - d = case + space. If the model writes a capital at the start of
any word, case is large; if it chooses a capitalised word as a whole, the interaction is large.

All are linear in the logits, so the same sums of the three differences' ledgers and lenses give
their ledgers and lenses. Cost: four logits per prompt.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.answers import FORMS
from casestudy.behaviour.prompts import Behaviour, Prompts, takes_prompts
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.errors import MeasureError
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Axis, Grid, Result

EFFECTS = ("case", "space", "interaction")


def effects_of(differences: Float[Tensor, "three ..."]) -> Float[Tensor, "three ..."]:
    """Case, space and interaction of values that are linear in the three logit differences.

    Args:
        differences: a - b, a - c and a - d, in the order of `FORMS`: logit differences, or their
            terms in a ledger, a lens or an attribution.
    """
    ab, ac, ad = differences
    interaction = ab + ac - ad
    return torch.stack([ab - interaction / 2, ac - interaction / 2, interaction])


def measure_case_by_space(batch: Batch) -> list[Result]:
    """The main effects and the interaction; empty if answers are not capitals by rule."""
    named = {contrast.name: contrast for contrast in batch.contrasts}
    if not all(form in named for form in FORMS):
        return []
    differences = torch.stack([named[form].value(batch.logits) for form in FORMS])
    return [
        Grid(
            names.CASE_BY_SPACE,
            effects_of(differences).cpu().numpy(),
            (Axis("effect", EFFECTS), batch.prompt_axis),
            "logits",
            about="Main effects of case and space on the answer's four forms, and their "
            "interaction: case + interaction / 2 is the difference to the lower-case form.",
        )
    ]


CASE_BY_SPACE = Measurement("case_by_space", lambda model: (), measure_case_by_space)


@takes_prompts
def case_by_space(
    model: Model,
    behaviour: Prompts,
) -> Grid:
    """Main effects of case and space, and their interaction, per prompt.

    Args:
        model: which predicts.
        behaviour: one whose answers are capitals by rule, a text or texts.

    Shape:  (effect, prompt); NaN if an answer lacks one of its forms.
    Unit:   logits; see the module for the definitions.
    Raises: MeasureError for a behaviour whose answers have no such forms.
    """
    behaviour = Behaviour.of(behaviour)
    results = measure_case_by_space(run_whole(model, behaviour, []))
    if not results:
        raise MeasureError(
            f"the answers of {behaviour.name!r} have no case and space to tell apart",
            allowed='answers = "space-capital"',
        )
    (grid,) = results
    assert isinstance(grid, Grid)
    return grid
