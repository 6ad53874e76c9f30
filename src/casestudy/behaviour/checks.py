"""Can this be measured? Checks that several measurements share, written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from casestudy.errors import MeasureError
from casestudy.model.decoder import run

if TYPE_CHECKING:
    from casestudy.model.model import Model
    from casestudy.model.tokens import Tokens


def check_different(clean: Tokens, corrupted: Tokens) -> None:
    """Raises: MeasureError for pairs whose two prompts are identical, or that are no pairs."""
    if len(clean) != len(corrupted):
        raise MeasureError(f"{len(clean)} prompts and {len(corrupted)} partners", allowed="pairs")
    pairs = zip(clean.rows(), corrupted.rows(), strict=True)
    same = [str(i) for i, (ours, theirs) in enumerate(pairs) if ours == theirs]
    if same:
        raise MeasureError(
            f"clean and corrupted are identical in prompts {', '.join(same)}",
            hint="Leave them out: two equal runs differ in nothing that could be exchanged",
        )


def check_finite(
    values: ArrayLike,
    what: str = "a run",
    prompts: Sequence[int] | None = None,
    *,
    model: Model | None = None,
    of: Sequence[Tokens] = (),
) -> None:
    """Raises: MeasureError for NaN or infinity among values whose last axis is the prompts. If an
    unedited run of the model is not finite, the error names the layer where that begins.

    Args:
        values: (…, prompt).
        what: what gave them.
        prompts: the prompts' numbers, to name those that are not finite; by default none is named.
        model: of the values.
        of: the prompts that were run, once more if the values are not finite.
    """
    finite = np.isfinite(np.asarray(values))
    if finite.all():
        return
    if model is not None:
        for tokens in of:
            try:
                run(model, tokens.to(model.device), logits="last")
            except MeasureError as problem:
                raise MeasureError(f"{what}: {problem.came}", hint=problem.hint) from problem
    bad = ~finite.reshape(-1, finite.shape[-1]).all(0)
    named = [] if prompts is None else [str(prompts[i]) for i in np.flatnonzero(bad).tolist()]
    where = f" in prompts {', '.join(named)}" if named else ""
    raise MeasureError(f"{what} gave NaN or infinity{where}", hint="Try dtype='float32'")
