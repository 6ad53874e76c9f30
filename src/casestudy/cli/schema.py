"""What does `--json` print, command by command?

One object on stdout, whose first two keys are `schema` and `version`. A version stands while keys
are only added; it counts up when one is renamed, removed or changes its meaning. The reference page
`json.md` is made from this table, and tests hold each command to it.
"""

from __future__ import annotations

VERSION = 1
"""Of every schema here."""

EXIT_CODES = {
    0: "done; for `check`: every finding holds",
    1: "done, but a finding does not hold (`check`), or no prompt could be measured (`run`)",
    2: "an error that stderr explains: bad input, a file that cannot be read, a model that is not "
    "there; stdout stays empty",
    130: "stopped by Ctrl-C; finished steps of `run`, `circuit` and `compare` are kept",
}
"""By code, what it means."""

ANSWER = "each has `token`, `id`, `rank` (1 is the first) and `prob`"

KEYS: dict[str, dict[str, str]] = {
    "explain": {
        "model": "its name",
        "prompt": "as given",
        "text": "what the model read as text: the prompt, or with --chat what the template wrote",
        "tokens": "what the model read, BOS included",
        "n": "prompts behind every figure: 1",
        "contrast": f"`answer` and `counterpart` ({ANSWER}; of several tokens `answer`, `tokens`, "
        "`ids`, `log_prob`, `prob`); `logit_difference` in `unit`; `scoring` where an answer has "
        "several tokens",
        "ledger": "a list of `term` and `value`; the values sum to the logit difference",
        "corrupted": "the partner used: `edit`, `text`, `logit_difference`, `share_left`, "
        "`before_last`; null where parts were set to zero instead",
        "method": "what was done to each part, in words",
        "parts": "the strongest heads and MLPs, exactly patched: `part`, `effect` in logits, "
        "`share` of the difference between the two prompts (null where there is none)",
        "checks": "a list of `what`, `gap`, `bound`, `holds`",
        "warnings": "sentences to read before believing the figures",
        "steps": "where an answer has several tokens, each place at which it is read: `step`, "
        "`place` (from 0), `answer` and `counterpart` with `…_id` and `…_log_prob` (null where "
        "one of them is not read), `weight`, `value`, and its `ledger`",
        "page": "with --out: the page with every token's account",
    },
    "predict": {
        "prompt": "as given",
        "text": "what the model read as text: the prompt, or with --chat what the template wrote",
        "tokens": "what the model read",
        "ids": "the same as ids",
        "top": "the most probable next tokens: `token`, `id`, `logit`, `prob`",
        "answers": "for each --answer: `answer`, `tokens`, `ids`, `rank` (1 is the first; null for "
        "several tokens), `logit`, `log_prob`, `prob`",
    },
    "generate": {
        "model": "its name",
        "prompt": "as given",
        "text": "what the model read as text: the prompt, or with --chat what the template wrote",
        "generated": "the text that it wrote after it",
        "tokens": "that text's, in order: `token`, `id`, `rank` (1 is the first), `prob`, "
        "`runner_up` (the most probable other token: `token`, `id`, `prob`), `logit_difference` "
        "(token against runner-up); with --explain `ledger`, a list of `term` and `value` that sum "
        "to the logit difference",
        "stopped": "length (as many as asked for), end of text, or context (it is full)",
        "temperature": "0: the most probable token each time",
        "seed": "of the draws, where the temperature is not 0",
        "largest_gap": "with --explain: of the ledgers, in logits",
        "bound": "with --explain: what the gap must not exceed",
        "page": "with --out: the page with every token's account",
        "behaviour": "with --out: the file that runs as a study, a prompt for each token",
    },
    "patch": {
        "about": "what was put where, in words",
        "answer": "`token` and `id`; of several tokens `tokens` and `ids`",
        "counterpart": "the same",
        "unit": "of the contrast: logits, or nats where an answer has several tokens",
        "scoring": "sum, mean or first, where an answer has several tokens; otherwise null",
        "direction": "denoising or noising",
        "unpatched_run": "clean or corrupted",
        "clean": "contrast of the clean prompt",
        "corrupted": "contrast of the corrupted prompt",
        "unpatched": "contrast of the run that is patched",
        "other": "contrast of the run that is patched from",
        "warning": "null, or why shares mean nothing here",
        "error": "`gap` of a sample of cells to full forward passes, and its `bound`",
        "cells": "every cell: its place (`layer`, `pos`, `role`, `head`), `value` (share of the "
        "difference between the runs) and `effect` (in `unit`)",
    },
    "new": {
        "file": "the behaviour file that was written",
        "model": "the model asked",
        "answer": "`token`, `id`, `rank` (1 is the first), `prob`; of several tokens `answer`, "
        "`tokens`, `ids`, `log_prob`, `prob`",
        "counterpart": "the same",
        "unit": "nats where an answer has several tokens, else logits",
        "logit_difference": "answer against counterpart, in `unit`",
        "partners": "corrupted prompts on offer, best first: `edit`, `text`, `logit_difference`, "
        "`share_left`, `before_last`",
        "command": "what runs the file, as a list of words",
    },
    "presets": {"presets": "a list of `name`, `question`, `about`, `prompts` (how many)"},
    "models": {"models": "a list of `name`, `family`, `where`"},
    "run": {
        "model": "its name",
        "behaviour": "its name",
        "contrast": "the counterpart's form; absent, as the keys below, where nothing was measured",
        "n": "prompts behind the mean",
        "unit": "nats where whole answers of several tokens are compared, else logits",
        "logit_difference": "mean over prompts, in `unit`",
        "interval": "95 %, over prompts",
        "groups": "the same by group of prompts: `group`, `n`, `logit_difference`, `interval`",
        "without_b_U": "the mean without the final norm's bias through the unembedding; absent "
        "where the norm has none",
        "largest_gap": "of the ledger, over prompts",
        "bound": "what the gap must not exceed",
        "summary": "the report's first paragraphs, a sentence or two each",
        "excluded": "prompts left out: `prompt` (its number, from 0), `why`",
        "families": "by measurement, the kind of edit measured on: `family`, `n`, `undoes`, "
        "`dropped`, `why`, `passed_over`",
        "not_measured": "`what` and `why`",
        "folder": "the study",
        "report": "its page",
    },
    "circuit": {
        "metric_name": "what the circuit is judged by",
        "unit": "of the metric",
        "mean_clean": "the metric's mean over the clean prompts",
        "mean_corrupted": "the same over the corrupted prompts",
        "figures": "the circuit's evidence: `figure`, `value`, `lower`, `upper`, `n`, `about`",
        "edges": "its edges: `source`, `target`, `score`, `exact` where it was patched; with "
        "--grain neuron those between its first nodes, absent where they cannot be scored",
        "card": "the circuit's file",
        "importances": "every edge's score, in MIB's layout; not with --grain neuron",
        "report": "the study's page; not with --grain neuron",
        "circuit": "with --grain neuron: the names of its heads and neurons",
        "curve": "with --grain neuron: a list of `nodes` and `faithfulness`",
        "nodes": "with --grain neuron: its first nodes, random ones and the rest of each MLP: "
        "`node`, `in_circuit`, `score`, `exact` and `faithfulness_lost` (with `_lower` and "
        "`_upper`), `drawn_at_random`, `n`",
        "layers": "with --grain neuron: `layer` and how many `heads` and `neurons`",
    },
    "part": {
        "part": "its spelling: head 0.2, neuron 4.312",
        "kind": "head, neuron or direction",
        "about": "the `model`; the `corpus` and the `behaviour` where they were given; where it "
        "`reads_at`; the `seed`",
        "active": "`contexts` (the `strongest` and a sample by quantile: `value`, `tokens`, `at`, "
        "`document`, `line`, and of a head `key_token` and `key_share`), `values` (quantiles), "
        "`signs` of a neuron's inputs or a direction's coordinate, `selectivity` (`kind`, "
        "`against`, `auroc`, `lower`, `upper`, `n`), and a head's `attention` by role",
        "writes": "`tokens` that it promotes and demotes, or a head's `sources`; its `share` "
        "of the logit difference by contrast: `mean`, `lower`, `upper`, `n`",
        "reads": "of the `prompts` and of the strongest `contexts`, `terms`: a neuron's input, "
        "a head's difference of attention scores, or a coordinate, by component, as means; the "
        "`error` of their sum",
        "needed": "exact ablation by `kind`: of the `behaviour`, the change of the logit "
        "difference; of the `corpus`, the `difference` of the next-token loss in nats",
        "absent": "`what` was not measured, and `why`",
        "notes": "what is approximate, and what was left out",
        "card": "with --out: the stored card",
        "page": "with --out: its page",
    },
    "direction": {
        "model": "its name",
        "weight_hash": "of its weights",
        "behaviour": "its name",
        "family": "the kind of edit that made the pairs",
        "site": "of the directions",
        "layer": "from 0",
        "role": "the tokens whose activations are exchanged",
        "rank": "of the trained directions",
        "metric_name": "what the directions are judged by",
        "unit": "of the metric",
        "n_found_on": "pairs that the directions are from",
        "n_judged_on": "pairs held out",
        "n_turned": "mirrored pairs whose clean and corrupted prompt were exchanged, so that all "
        "clean prompts are on one side",
        "length": "of the mean difference of the activations",
        "means_inside_trained": "of the direction of the difference of means, the length of its "
        "part in the trained directions: 1 if they contain it",
        "settings": "of the training and the random directions",
        "shares": "by `directions`, `rank`, `pairs` (held out, or found on) and `way` (denoising "
        "or noising): the share of the difference between the runs that follows an exact exchange, "
        "`value`, `lower`, `upper`, `n`",
        "steering": "by `method`, `run` and `coefficient`: the mean metric of held-out prompts, "
        "`value`, `lower`, `upper`, `n`",
        "cost": "with --text: by `method` and `coefficient`, what steering adds to the next-token "
        "loss of other text, in nats: `value`, `lower`, `upper`, `n`",
        "card": "the evidence's file",
        "directions": "the safetensors files of the directions",
    },
    "parts": {
        "folder": "the study",
        "cards": "a list of `part`, what it was chosen `by` (null where it was named) with its "
        "`value` there in logits, its `card` (a folder) and its `page`",
        "report": "the study's page, which links them",
    },
    "compare": {
        "a": "`folder` and `about` of the first study (two studies)",
        "b": "the same of the second",
        "differs": "settings that differ",
        "paired": "whether prompts are compared with themselves",
        "prompts": "how many in both, in `a` and in `b` alone",
        "rows": "every difference with its interval",
        "absent": "what could not be compared, and why",
        "notes": "what to know first",
        "since": "with --model: from which checkpoint on each contrast is clear of zero",
        "checkpoints": "with --model: the means of each",
        "same_weights": "with --model: checkpoints that are one model",
        "folder": "with --model: where the studies are",
    },
    "check": {
        "holds": "whether every finding does",
        "behaviour": "the prompts' name",
        "model": "its name",
        "outcomes": "for each finding: `claim`, `verdict` (holds, fails, undecided), `value`, "
        "`lower`, `upper`, `unit`, `n`, `must`, `why`",
    },
    "mine": {
        "file": "the behaviour file that was written",
        "documents": "texts read",
        "found": "full stops by kind",
        "taken": "those that became prompts, by kind",
        "skipped": "what was left out, by reason",
    },
    "report": {"report": "the page that was written"},
    "serve": {"address": "where the explorer listens; printed once it answers"},
}
"""Every command's keys besides `schema` and `version`."""


def stamped(command: str, value: dict[str, object]) -> dict[str, object]:
    """A command's object with its schema and version first."""
    return {"schema": f"casestudy.{command}", "version": VERSION, **value}
