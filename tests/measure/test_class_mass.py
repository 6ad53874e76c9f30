"""Class masses are the model's own probabilities, each counted once."""

import numpy as np
import pytest
import torch

from casestudy.behaviour.classes import ASCII_2024, CAPITAL_MASS, STANDARD, ClassSet, TokenClass
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError
from casestudy.measure.class_mass import class_mass
from casestudy.measure.predictions import logit_difference
from casestudy.model.decoder import run
from casestudy.model.model import Model

TEXTS = ["This is a sentence.", "Go.", "It was late. She did not know"]


@pytest.mark.parametrize("classes", [STANDARD, ASCII_2024])
def test_masses_are_sums_of_probabilities_and_sum_to_one(
    toy_model64: Model, classes: ClassSet
) -> None:
    grid = class_mass(toy_model64, TEXTS, classes)
    logits = run(toy_model64, TEXTS, logits="last").logits
    assert logits is not None
    probs = logits.double().softmax(1)
    for name in classes.names:
        try:
            ids = list(classes.ids(name, toy_model64.tokenizer))
        except BehaviourError:
            assert np.isnan(grid.select(**{"class": name}).values).all()
            continue
        expected = probs[:, ids].sum(1).numpy()
        np.testing.assert_allclose(grid.select(**{"class": name}).values, expected, rtol=1e-12)
    np.testing.assert_allclose(np.nansum(grid.values, 0), 1, atol=1e-12)
    assert grid.error["gap"] < grid.error["bound"]


def test_the_class_contrast_is_their_log_ratio(toy_model64: Model) -> None:
    behaviour = Behaviour("b", "?", tuple(map(Prompt, TEXTS)), class_contrast=CAPITAL_MASS)
    mass = class_mass(toy_model64, behaviour)
    a, b = (mass.select(**{"class": n}).values for n in ("space+Capital", "space+lower"))
    difference = logit_difference(toy_model64, behaviour).select(contrast="capital mass")
    np.testing.assert_allclose(difference.values, np.log(a / b), atol=1e-10)


def test_a_class_without_tokens_is_absent(toy_model: Model) -> None:
    classes = STANDARD.extend(TokenClass("runes", r"\p{Runic}", required=False))
    assert np.isnan(class_mass(toy_model, "Go.", classes).select(**{"class": "runes"}).values).all()
    required = STANDARD.extend(TokenClass("runes", r"\p{Runic}"))
    with pytest.raises(BehaviourError, match="of class 'runes' takes no token"):
        class_mass(toy_model, "Go.", required)


def test_a_prompt_alone_has_the_same_masses(toy_model: Model) -> None:
    together = class_mass(toy_model, TEXTS).values
    for i, text in enumerate(TEXTS):
        alone = class_mass(toy_model, text).values[:, 0]
        torch.testing.assert_close(
            torch.from_numpy(alone), torch.from_numpy(together[:, i]), rtol=1e-5, atol=1e-12,
            equal_nan=True,
        )  # fmt: skip
