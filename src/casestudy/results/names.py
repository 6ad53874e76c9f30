"""The names of results and of their terms that several rooms use; without torch.

A study stores each grid and table in a file of its name, and reports, comparisons and findings read
it by this name, so released names do not change. Each name is documented with the axes and the unit
of the grid, or with the rows of the table. `prompt` is an axis of every grid, unless it is a mean
over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

# Every study.

PROMPTS = "prompts"
"""A row per prompt: its text, tokens, roles, groups, and the reason if it was left out."""
PASSED_OVER = "passed_over"
"""A row per prompt that measurements left out, with the reason."""
CHUNKS = "chunks"
"""A row per chunk of prompts: how many, and the seconds each took."""
GROUP_TESTS = "group_tests"
"""A row per contrast and pair of groups: the difference of their means, with its test."""

# What the model predicts.

PREDICTIONS = "predictions"
"""A row per prompt and rank: a most probable next token, its probability and logit."""
ANSWERS = "answers"
"""A row per prompt and form (answer or counterpart): its token, probability, rank and logit."""
LOGIT_DIFFERENCE = "logit_difference"
"""(contrast, prompt), logits."""
CLASS_MASS = "class_mass"
"""(class, prompt), probability of the next token summed over a class of tokens."""
SIDES = ("answer", "counterpart")
"""The two tokens, or texts, that are compared: what counts for, and what counts against."""
WHOLE = "whole answer"
"""The contrast of two answers of several tokens, by the sums of their log-probabilities."""
WHOLES = {
    "sum": WHOLE,
    "mean": "whole answer, mean per token",
    "first": "first differing token",
}
"""The name of that contrast by how an answer's tokens count (see `behaviour/steps`)."""
ANSWER_TOKENS = "answer.tokens"
"""A row per token of the answers of several tokens, both sides: its id and log p, and the number of
the step that reads it; none where both answers begin with it."""
STEP_TERMS = "answer.steps.ledger"
"""A row per step of such a prompt and term: the step's ledger, before its weight."""


def main_contrast(contrasts: Sequence[str]) -> str:
    """Which of a study's contrasts is its main one: that of whole answers, else the first."""
    return next((name for name in contrasts if name in WHOLES.values()), contrasts[0])


STEPS = "answer.steps"
"""A row per place at which an answer of several tokens is read (see `measure/whole_answers`)."""
CASE_BY_SPACE = "case_by_space"
"""(effect, prompt), logits: of the case, of the leading space, and of both together."""
CONTROLS = "controls"
"""A row per prompt, for the main contrast: its value, b_U, unigram, copied, shuffled."""
CONTROL_LOGITS = "controls.logits"
"""(contrast, control, prompt), logits: the contrast's value in each control (see
`measure/controls`)."""


def answer(what: str) -> str:
    """(prompt): the "probability" or "rank" of each prompt's answer, or whether it is "top-1"."""
    return f"answer.{what}"


# Direct contributions.

LEDGER = "ledger"
"""(contrast, term, prompt), logits; the terms sum to the logit difference."""
LEDGER_CHECK = "ledger.check"
"""(contrast, quantity, prompt), logits: the sum of the terms, the logit difference, and the gap."""
LENS = "lens"
"""(contrast, depth, prompt), logits; the final norm's scale frozen at its traced value."""
LENS_OWN_NORM = "lens.own_norm"
"""(contrast, depth, prompt), logits; each depth with its own norm scale, and with b_U."""
LENS_TOP = "lens.top"
"""A row per example prompt, depth, position and rank: a token that the logit lens predicts."""
HEAD_SHARES = "attribution.head"
"""(contrast, layer, head, prompt), logits; the last head is the layer's biases."""
MLP_SHARES = "attribution.mlp"
"""(contrast, layer, part, prompt), logits: all neurons together, and the biases."""
NEURON_SHARES = "attribution.neuron"
"""A row per contrast and rank: a neuron with one of the largest means, in logits. In a finding or a
function of one layer, a grid (contrast, neuron, prompt)."""
NEURON_SUMS, NEURON_COUNTS = "attribution.neuron.sums", "attribution.neuron.n"
"""Sums over each chunk's prompts: there are too many neurons to store every prompt's values."""

# Attention.

ATTENTION_LAST = "attention.last"
"""(layer, head, role, prompt), share of the attention from the last token."""
ATTENTION_TOKENS = "attention.tokens"
"""A row per prompt, head and position with at least 2 % of the head's attention."""
ATTENTION_ENTROPY = "attention.entropy"
"""(layer, head, prompt), nats: the entropy of the attention from the last token."""
ATTENTION_SCORE = "attention_score"
"""(query_component, key_component), attention score before the softmax; of one head and prompt."""
PATTERN = "pattern"
"""(layer, head, query_pos, key_pos), share of the query's attention; of one prompt."""
HEAD_PROFILE = "head_profile"
"""(score, layer, head): scores for kinds of heads, independent of the behaviour's prompts."""


def attention_from(source: object) -> str:
    """(layer, head, role or key_pos, prompt), share of attention from a role or of one prompt."""
    return f"attention.{source}"


def pattern_of(prompt: object) -> str:
    """`PATTERN` of one prompt, by its number."""
    return f"{PATTERNS}{prompt}"


PATTERNS = f"{PATTERN}."
"""The start of the names from `pattern_of`."""

# Causal effects.

COUNTERFACTUALS = "counterfactuals"
"""A row per family of minimal edits: its number of pairs, and its effect on the contrast."""
PATCHING = "patching."
"""The start of the names of patch grids: "patching.resid_pre.role", "patching.noising.z.all"."""
NOISING = "noising."
"""The next part of the name if corrupted activations were patched into the clean run."""


def patching(what: str, by: str, direction: str = "denoising") -> str:
    """(layer, head or place), share of the difference between the runs (1 is the other run).

    Args:
        what: the site, or "neurons".
        by: "role", "position", "all" or "last".
        direction: "denoising" or "noising".
    """
    return f"{PATCHING}{NOISING if direction == 'noising' else ''}{what}.{by}"


def attribution_patching(what: str, by: str, method: str, direction: str) -> str:
    """(layer, head or neuron or pos, prompt), the metric's unit: an estimated effect of patching.

    Args:
        what: the site.
        by: "position", "all" or "last".
        method: "atp", "ig-inputs", "ig-activations", "relp" or "relp-ah".
        direction: "denoising" or "noising".
    """
    return f"estimate.{method}.{direction}.{what}.{by}"


def ablation(kind: str, site: str, by: str) -> str:
    """(layer, head or place), logits: the change of the contrast from an ablation."""
    return f"{ABLATION}{kind}.{site}.{by}"


ABLATION = "ablation."
"""The start of the names of ablation grids."""


def paths(mode: str, receiver: str, direction: str = "denoising") -> str:
    """(sender), share of the difference between the runs, by path patching from each sender."""
    kind = "paths" if direction == "denoising" else "paths.noising"
    place = receiver.removeprefix("head ").replace("<", ".").replace(">", "").replace(" ", "_")
    return f"{kind}.{mode}.{place}"


# The circuit's card.

CIRCUIT = "circuit."
"""The start of the names of a circuit's results."""
CIRCUIT_SUMMARY = "circuit.summary"
"""A row per figure of the evidence: its value, interval, pairs and note."""
CIRCUIT_FAITHFULNESS = "circuit.faithfulness"
"""(method, proportion of edges), faithfulness of circuits of that size."""
CIRCUIT_SIZES = "circuit.sizes"
"""(method, proportion of edges), edges left after pruning."""
CIRCUIT_CURVE = "circuit.curve"
"""(proportion of edges), faithfulness; of one method."""
CIRCUIT_EDGES = "circuit.edges"
"""A row per edge of the circuit, strongest first: its score and exact effect, in the metric's
unit."""
CIRCUIT_NODES = "circuit.nodes"
"""A row per node of the circuit: its score, and the circuit's faithfulness without it."""

# The card of a circuit of heads and neurons.

NEURON_CIRCUIT_SUMMARY = "neuron_circuit.summary"
"""A row per figure of the evidence: its value, interval and pairs."""
NEURON_CIRCUIT_CURVE = "neuron_circuit.faithfulness"
"""(nodes), faithfulness of so many first nodes."""
NEURON_CIRCUIT_NODES = "neuron_circuit.nodes"
"""A row per node that was ablated by itself: its score, exact effect and the faithfulness lost."""
NEURON_CIRCUIT_LAYERS = "neuron_circuit.layers"
"""A row per layer: the circuit's heads and neurons."""
NEURON_CIRCUIT_EDGES = "neuron_circuit.edges"
"""A row per edge between the first nodes, strongest first: its score by RelP."""

# The card of one part: a head, a neuron or a direction.

PART_CONTEXTS = "part.contexts"
"""A row per context of the corpus, the strongest of each group first, then a sample by quantile."""
PART_VALUES = "part.values"
"""A row per quantile of the part's activity over the corpus."""
PART_SIGNS = "part.signs"
"""A row per group by the signs of a neuron's inputs: how often it occurs."""
PART_SELECTIVITY = "part.selectivity"
"""A row per pair of kinds of position: the AUROC of the part's activity."""
PART_TOKENS = "part.tokens"
"""A row per side and rank: a token that the part promotes or demotes directly."""
PART_SOURCES = "part.sources"
"""A row per source token of a head: what the head writes for it."""
PART_SHARE = "part.share"
"""(contrast, prompt), logits: the part's direct contribution."""
PART_READS = "part.reads"
"""(input or side, component, prompt): a neuron's input, or a head's difference of scores, split."""
PART_READS_CONTEXTS = "part.reads.contexts"
"""The same in the strongest contexts of the corpus, which are its prompts."""
PART_ATTENTION = "part.attention"
"""(role, prompt), share of a head's attention from the last token."""
PART_ABLATION = "part.ablation"
"""(kind, prompt), logits: the change of the contrast from an exact ablation of the part."""
PART_LOSS = "part.loss"
"""A row per kind of ablation: the change of the next-token loss over the corpus, in nats."""

# A behaviour as a direction of a site.

DIRECTION_INTERCHANGE = "direction.interchange"
"""(subspace, prompt), the contrast with what a site holds in a subspace exchanged."""
DIRECTION_SUMMARY = "direction.summary"
"""A row per subspace and way of exchange: the share of the difference that it carries."""
DIRECTION_STEERING = "direction.steering"
"""(method, run, coefficient), the mean contrast with a multiple of a direction added."""
DIRECTION_COST = "direction.cost"
"""(method, coefficient), what adding it costs on other text: next-token loss, in nats."""

# Grids and tables that are computed from a grid.

MEAN = ".mean"
BY_GROUP = ".by_group"
BY_ROLE = ".by_role"
RANKING = ".ranking"
EFFECT = ".effect"
RAW = ".raw"
BASELINES = ".baselines.raw"
KNOWN = ".known.raw"


def mean(name: str) -> str:
    """The grid without the axis prompt: means with n and intervals."""
    return name + MEAN


def by_group(name: str) -> str:
    """Means over the prompts of each group, along a first axis `group`."""
    return name + BY_GROUP


def by_role(name: str) -> str:
    """The grid with its positions averaged, or summed, by role: an axis `role` instead of `pos`."""
    return name + BY_ROLE


def ranking(name: str) -> str:
    """A row per head: its rank by mean, and how stable that is under resampling of the prompts."""
    return name + RANKING


def effect(name: str) -> str:
    """Of a patch grid: the mean change of the contrast, in logits, instead of the share."""
    return name + EFFECT


def raw(name: str) -> str:
    """Of a patch grid: every prompt's contrast in the patched run."""
    return name + RAW


def baselines(name: str) -> str:
    """Of a patch grid: (run, prompt), every prompt's contrast in the runs themselves."""
    return name + BASELINES


def known(name: str) -> str:
    """Of a patch grid: 1 if a patch changes nothing by construction and was not computed."""
    return name + KNOWN


# Terms of the ledger; attention and MLP layers are spelled as in `casestudy.results.components`.

EMBED, POS_EMBED = "embed", "pos_embed"
"""The token embedding, and the position embedding if the model adds one."""
B_U = "final norm bias (b_U)"
"""The ledger's term of the final norm's bias through the unembedding, which a projection of the
residual stream leaves out."""
UNEMBEDDING_BIAS = "unembedding bias"
"""A bias of the unembedding itself, which few models have."""
SOFT_CAP = "soft cap"
"""The change of the contrast from the soft-cap of the logits."""
ENTROPY = "entropy term"
"""H(p(·|A)) - H(p(·|B)) of a class contrast; no other contrast has this term."""

# Other labels of axes.

BIAS = "bias"
"""The last label of an axis of heads, neurons or components: the biases."""
CHANGED_TOKENS, LAST_TOKEN = "changed tokens", "last token"
"""The roles that every pair has."""
LOGITS = "logits"
"""The lens's last depth: the logit difference itself, with b_U."""
