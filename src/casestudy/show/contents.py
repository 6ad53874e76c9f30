"""In what order does the argument run?

Does it? By how much? Who writes it? Where does it come from? Is it causal? What is the circuit? How
sure? A step whose measurements a study lacks is left out and listed under "What was not measured".
"""

from __future__ import annotations

from collections.abc import Sequence

from casestudy.show.blocks import Part, Topic
from casestudy.show.sections import (
    attention,
    checks,
    circuit,
    contrast,
    ledger,
    patching,
    predictions,
    prompts,
)

ARGUMENT: Sequence[Topic] = (
    Topic(
        "does-it",
        "Does it? Predictions",
        [
            Part(
                "predictions and answers",
                predictions.prompts_table,
                ("prompts", "predictions", "answers"),
            ),
            Part(
                "probability by class of token",
                predictions.class_mass,
                ("class_mass.mean", "class_mass.by_group"),
            ),
        ],
    ),
    Topic(
        "how-much",
        "By how much? Logit differences",
        [
            Part(
                "logit differences",
                contrast.differences,
                ("logit_difference", "logit_difference.mean"),
            ),
            Part(
                "logit differences by group of prompts",
                contrast.by_group,
                ("logit_difference.by_group", "group_tests"),
            ),
            Part("case and space apart", contrast.case_by_space, ("case_by_space.mean",)),
            Part(
                "controls",
                contrast.controls,
                ("controls", "controls.logits", "controls.logits.mean"),
            ),
        ],
    ),
    Topic(
        "who",
        "Who writes it? Direct contributions",
        [
            Part("the ledger", ledger.ledger_mean, ("ledger", "ledger.mean", "ledger.check")),
            Part(
                "the difference by depth (logit lens)",
                ledger.lens,
                ("lens", "lens.mean", "lens.own_norm", "lens.own_norm.mean"),
            ),
            Part(
                "the share of each head",
                ledger.heads,
                (
                    *("attribution.head", "attribution.head.mean"),
                    *("attribution.mlp", "attribution.mlp.mean"),
                ),
            ),
            Part(
                "the order of the heads under resampling",
                ledger.ranking,
                ("attribution.head.ranking",),
            ),
            Part("the share of each neuron", ledger.neurons, ("attribution.neuron",)),
        ],
    ),
    Topic(
        "where",
        "Where does it come from? Attention",
        [
            Part(
                "where heads look",
                attention.attention,
                (
                    *("attention.last", "attention.last.mean", "attention.tokens", "pattern.*"),
                    *("attention.entropy", "attention.entropy.mean"),
                ),
            ),
            Part("what kind of heads these are", attention.profiles, ("head_profile",)),
        ],
    ),
    Topic(
        "causal",
        "Is it causal? Counterfactuals and patching",
        [
            Part("counterfactual prompts", patching.counterfactuals, ("counterfactuals",)),
            Part("patching", patching.patching, ("patching.*",)),
        ],
    ),
    Topic(
        "circuit",
        "What is the circuit? Faithfulness and edges",
        [
            Part("a circuit’s evidence", circuit.verdict, ("circuit.summary",)),
            Part("the faithfulness of circuits", circuit.faithfulness, ("circuit.faithfulness",)),
            Part("the edges of a circuit", circuit.edges, ("circuit.edges",)),
            Part("the parts of a circuit", circuit.nodes, ("circuit.nodes",)),
        ],
    ),
    Topic(
        "how-sure",
        "How sure? Checks and exclusions",
        [
            Part("checks", checks.checks),
            Part("notices", checks.notices),
            Part("exclusions", checks.exclusions, ("prompts", "passed_over")),
        ],
    ),
)
"""The questions in their order, the measurements that answer each, and what these show."""

PROMPTS = Topic(
    "prompts",
    "Prompt by prompt",
    [
        Part(
            "prompts one by one",
            prompts.one_by_one,
            ("prompts", "predictions", "answers", "lens.top"),
        )
    ],
)
"""Every example prompt by itself, after the argument."""
