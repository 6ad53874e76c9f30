"""In which order are the sections of a report?

Does it? By how much? Who writes it? Where does it come from? Is it causal? What is the circuit? How
sure? A section whose measurements a study lacks is left out and listed under "What was not
measured".
"""

from __future__ import annotations

from collections.abc import Sequence

from casestudy.results import names
from casestudy.show.blocks import SectionPart, Topic
from casestudy.show.sections import (
    attention,
    checks,
    circuit,
    contrast,
    ledger,
    neurons,
    parts,
    patching,
    predictions,
    prompts,
)

ARGUMENT: Sequence[Topic] = (
    Topic(
        "does-it",
        "Does it? Predictions",
        [
            SectionPart(
                "predictions and answers",
                predictions.prompts_table,
                (names.PROMPTS, names.PREDICTIONS, names.ANSWERS),
            ),
            SectionPart(
                "probability by class of token",
                predictions.class_mass,
                (names.mean(names.CLASS_MASS), names.by_group(names.CLASS_MASS)),
            ),
        ],
    ),
    Topic(
        "how-much",
        "By how much? Logit differences",
        [
            SectionPart(
                "logit differences",
                contrast.differences,
                (names.LOGIT_DIFFERENCE, names.mean(names.LOGIT_DIFFERENCE)),
            ),
            SectionPart(
                "logit differences by group of prompts",
                contrast.by_group,
                (names.by_group(names.LOGIT_DIFFERENCE), names.GROUP_TESTS),
            ),
            SectionPart(
                "case and space apart", contrast.case_by_space, (names.mean(names.CASE_BY_SPACE),)
            ),
            SectionPart(
                "controls",
                contrast.controls,
                (names.CONTROLS, names.CONTROL_LOGITS, names.mean(names.CONTROL_LOGITS)),
            ),
        ],
    ),
    Topic(
        "who",
        "Who writes it? Direct contributions",
        [
            SectionPart(
                "the ledger",
                ledger.ledger_mean,
                (names.LEDGER, names.mean(names.LEDGER), names.LEDGER_CHECK),
            ),
            SectionPart(
                "the difference by depth (logit lens)",
                ledger.lens,
                (
                    names.LENS,
                    names.mean(names.LENS),
                    names.LENS_OWN_NORM,
                    names.mean(names.LENS_OWN_NORM),
                ),
            ),
            SectionPart(
                "the share of each head",
                ledger.heads,
                (
                    *(names.HEAD_SHARES, names.mean(names.HEAD_SHARES)),
                    *(names.MLP_SHARES, names.mean(names.MLP_SHARES)),
                ),
            ),
            SectionPart(
                "the order of the heads under resampling",
                ledger.ranking,
                (names.ranking(names.HEAD_SHARES),),
            ),
            SectionPart("the share of each neuron", ledger.neurons, (names.NEURON_SHARES,)),
        ],
    ),
    Topic(
        "where",
        "Where does it come from? Attention",
        [
            SectionPart(
                "where heads look",
                attention.attention,
                (
                    *(
                        names.ATTENTION_LAST,
                        names.mean(names.ATTENTION_LAST),
                        names.ATTENTION_TOKENS,
                        f"{names.PATTERNS}*",
                    ),
                    *(names.ATTENTION_ENTROPY, names.mean(names.ATTENTION_ENTROPY)),
                ),
            ),
            SectionPart("what kind of heads these are", attention.profiles, (names.HEAD_PROFILE,)),
        ],
    ),
    Topic(
        "causal",
        "Is it causal? Counterfactuals and patching",
        [
            SectionPart(
                "counterfactual prompts", patching.counterfactuals, (names.COUNTERFACTUALS,)
            ),
            SectionPart("patching", patching.patching, (f"{names.PATCHING}*",)),
        ],
    ),
    Topic(
        "circuit",
        "What is the circuit? Faithfulness and edges",
        [
            SectionPart("a circuit’s evidence", circuit.verdict, (names.CIRCUIT_SUMMARY,)),
            SectionPart(
                "the faithfulness of circuits",
                circuit.faithfulness,
                (names.CIRCUIT_FAITHFULNESS, names.CIRCUIT_SIZES),
            ),
            SectionPart("the edges of a circuit", circuit.edges, (names.CIRCUIT_EDGES,)),
            SectionPart("the parts of a circuit", circuit.nodes, (names.CIRCUIT_NODES,)),
            SectionPart(
                "a circuit of heads and neurons",
                neurons.circuit,
                (
                    *(names.NEURON_CIRCUIT_SUMMARY, names.NEURON_CIRCUIT_CURVE),
                    *(names.NEURON_CIRCUIT_NODES, names.NEURON_CIRCUIT_LAYERS),
                    names.NEURON_CIRCUIT_EDGES,
                ),
            ),
        ],
    ),
    Topic(
        "parts",
        "What do single parts do? Cards",
        [SectionPart("cards of single parts", parts.cards)],
    ),
    Topic(
        "how-sure",
        "How sure? Checks and exclusions",
        [
            SectionPart("checks", checks.checks),
            SectionPart("notices", checks.notices),
            SectionPart("exclusions", checks.exclusions, (names.PROMPTS, names.PASSED_OVER)),
        ],
    ),
)
"""The questions in their order, and the parts that answer each."""

PROMPTS = Topic(
    names.PROMPTS,
    "Prompt by prompt",
    [
        SectionPart(
            "prompts one by one",
            prompts.one_by_one,
            (
                *(names.PROMPTS, names.PREDICTIONS, names.ANSWERS, names.LENS_TOP),
                *(names.ANSWER_TOKENS, names.STEP_TERMS),
            ),
        )
    ],
)
"""Every example prompt on its own, after the other sections."""
