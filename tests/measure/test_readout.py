"""A contrast read at an earlier position is that of the prompts cut there."""

from dataclasses import replace

import numpy as np
import pytest

from casestudy.behaviour.prompts import Prompt
from casestudy.behaviour.roles import LAST
from casestudy.errors import BehaviourError
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.model.model import Model

WHOLE = Prompt("It was late. She", " He", " he", corrupted="it was late. She")
CUT = Prompt("It was late.", " He", " he", corrupted="it was late.")


def test_reading_earlier_is_reading_the_prompts_cut_there(toy_model: Model) -> None:
    position = len(toy_model.tokenize(CUT.text).rows()[0]) - 1
    for by in ("position", "role", "all"):
        here = patch_prompts(toy_model, [WHOLE], "resid_pre", by=by, readout=position)  # type: ignore[arg-type]
        there = patch_prompts(toy_model, [CUT], "resid_pre", by=by)  # type: ignore[arg-type]
        np.testing.assert_allclose(here.baselines.values, there.baselines.values, atol=1e-5)
        if by != "role":  # roles of the whole text may be others
            np.testing.assert_allclose(here.raw.values, there.raw.values, atol=1e-5)
            continue
        for role in (LAST, "changed tokens"):
            one, other = (p.raw.select(role=role).values for p in (here, there))
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_last_position_is_the_default_and_what_cannot_be_read_is_refused(
    toy_model: Model,
) -> None:
    n = len(toy_model.tokenize(WHOLE.text).rows()[0])
    last, default = (
        patch_prompts(toy_model, [WHOLE], "resid_pre", readout=at).raw.values for at in (n - 1, -1)
    )
    np.testing.assert_allclose(last, default, atol=1e-6)
    with pytest.raises(BehaviourError, match="no readout 99 in"):
        patch_prompts(toy_model, [WHOLE], "resid_pre", readout=99)
    alike = replace(WHOLE, corrupted="It was late. they")
    with pytest.raises(BehaviourError, match="changes no token up to where the prompt is read"):
        patch_prompts(toy_model, [alike], "resid_pre", readout="earlier full stops")
