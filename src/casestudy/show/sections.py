"""In what order does the argument run?

Does it? By how much? Who writes it? Where does it come from? Is it causal? What is the circuit? How
sure? A step whose measurements a study lacks is left out and listed under "What was not measured".
"""

from __future__ import annotations

from collections.abc import Sequence

from casestudy.show import causes, circuits, differences, looking, predicted, surety, writers
from casestudy.show.blocks import Topic

ARGUMENT: Sequence[Topic] = (
    Topic(
        "does-it",
        "Does it?",
        [
            ("predictions and answers", predicted.prompts_table),
            ("probability by class of token", predicted.class_mass),
        ],
    ),
    Topic(
        "how-much",
        "By how much?",
        [
            ("logit differences", differences.differences),
            ("logit differences by group of prompts", differences.by_group),
            ("case and space apart", differences.case_by_space),
            ("controls", differences.controls),
        ],
    ),
    Topic(
        "who",
        "Who writes it?",
        [
            ("the ledger", writers.ledger_mean),
            ("the difference by depth (logit lens)", writers.lens),
            ("the share of each head", writers.heads),
            ("the order of the heads under resampling", writers.ranking),
            ("the share of each neuron", writers.neurons),
        ],
    ),
    Topic(
        "where",
        "Where does it come from?",
        [
            ("where heads look", looking.attention),
            ("what kind of heads these are", looking.profiles),
        ],
    ),
    Topic(
        "causal",
        "Is it causal?",
        [
            ("counterfactual prompts", causes.counterfactuals),
            ("patching", causes.patching),
        ],
    ),
    Topic(
        "circuit",
        "What is the circuit?",
        [
            ("a circuit’s evidence", circuits.verdict),
            ("the faithfulness of circuits", circuits.faithfulness),
            ("the edges of a circuit", circuits.edges),
            ("the parts of a circuit", circuits.nodes),
        ],
    ),
    Topic(
        "how-sure",
        "How sure?",
        [("checks", surety.checks), ("exclusions", surety.exclusions)],
    ),
)
"""The questions in their order, and what answers each."""
