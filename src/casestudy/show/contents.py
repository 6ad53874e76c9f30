"""In what order does the argument run?

Does it? By how much? Who writes it? Where does it come from? Is it causal? What is the circuit? How
sure? A step whose measurements a study lacks is left out and listed under "What was not measured".
"""

from __future__ import annotations

from collections.abc import Sequence

from casestudy.show.blocks import Topic
from casestudy.show.sections import (
    attention,
    checks,
    circuit,
    contrast,
    ledger,
    patching,
    predictions,
)

ARGUMENT: Sequence[Topic] = (
    Topic(
        "does-it",
        "Does it?",
        [
            ("predictions and answers", predictions.prompts_table),
            ("probability by class of token", predictions.class_mass),
        ],
    ),
    Topic(
        "how-much",
        "By how much?",
        [
            ("logit differences", contrast.differences),
            ("logit differences by group of prompts", contrast.by_group),
            ("case and space apart", contrast.case_by_space),
            ("controls", contrast.controls),
        ],
    ),
    Topic(
        "who",
        "Who writes it?",
        [
            ("the ledger", ledger.ledger_mean),
            ("the difference by depth (logit lens)", ledger.lens),
            ("the share of each head", ledger.heads),
            ("the order of the heads under resampling", ledger.ranking),
            ("the share of each neuron", ledger.neurons),
        ],
    ),
    Topic(
        "where",
        "Where does it come from?",
        [
            ("where heads look", attention.attention),
            ("what kind of heads these are", attention.profiles),
        ],
    ),
    Topic(
        "causal",
        "Is it causal?",
        [
            ("counterfactual prompts", patching.counterfactuals),
            ("patching", patching.patching),
        ],
    ),
    Topic(
        "circuit",
        "What is the circuit?",
        [
            ("a circuit’s evidence", circuit.verdict),
            ("the faithfulness of circuits", circuit.faithfulness),
            ("the edges of a circuit", circuit.edges),
            ("the parts of a circuit", circuit.nodes),
        ],
    ),
    Topic(
        "how-sure",
        "How sure?",
        [("checks", checks.checks), ("exclusions", checks.exclusions)],
    ),
)
"""The questions in their order, and what answers each."""
