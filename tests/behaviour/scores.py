"""Families' scores made by hand."""

from __future__ import annotations

import numpy as np

from casestudy.behaviour.counterfactual import Counterfactual, Score
from casestudy.behaviour.prompts import Prompt


def scored(family: str, values: list[tuple[float, float]], first: int = 1) -> Score:
    """A family's score with these (clean, corrupted) values, of pairs that first differ there."""
    pair = Counterfactual(family, 0, Prompt("A b."), Prompt("a b."), first, 3, "position")
    clean, corrupted = np.array(values).reshape(-1, 2).T
    return Score(family, (pair,) * len(values), clean, corrupted, ())
