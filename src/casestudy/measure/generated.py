"""Why did the model write each of these tokens?

The ledger of every token of a generated text against its runner-up, as `ledger` has it of
`Generated.behaviour()`. A causal decoder predicts each token from what stands before it, so one run
over the whole text has them all: that is one forward pass instead of one for each token.
"""

from __future__ import annotations

from casestudy.behaviour.answers import Answers
from casestudy.behaviour.contrast import Contrast
from casestudy.engine.batch import Batch
from casestudy.engine.generation import Generated
from casestudy.engine.reading import read_at
from casestudy.errors import MeasureError
from casestudy.measure.ledger import keep_for_ledger, measure_ledger
from casestudy.model.model import Model
from casestudy.results.result import Grid


def ledger_of_steps(model: Model, generated: Generated) -> tuple[Grid, Grid]:
    """The ledger of each token written against its runner-up, and its check.

    Args:
        model: which wrote them.
        generated: what `generate` returned.

    Shape:  (contrast, term, prompt) and (contrast, quantity, prompt); prompts are the tokens
            written, in order, and the one contrast is token against runner-up.
    Unit:   logits.
    Error:  as `ledger`.
    Raises: MeasureError for another model than the one that wrote.
    """
    if generated.model != model.name:
        raise MeasureError(f"{model.name} did not write this", allowed=generated.model)
    n, first = len(generated), len(generated.ids) - 1
    whole = list(generated.ids_before(n))[:-1]  # the last token is predicted, and never read
    where = [(0, first + i) for i in range(n)]
    trace = read_at(model, [whole], where, keep_for_ledger(model))
    pairs = [[one.token for one in generated.steps], [one.runner_up for one in generated.steps]]
    contrast = Contrast.between(model, pairs[0], pairs[1], name="counterpart")
    prompts = generated.behaviour().prompts
    none = Answers((None,) * n)
    batch = Batch(model, tuple(range(n)), prompts, trace.tokens, trace, none, (contrast,))
    ledger, check = measure_ledger(batch)
    assert isinstance(ledger, Grid)
    assert isinstance(check, Grid)
    return ledger, check
