"""What does one prompt, alone or beside a corrupted one, say to every quick question at once?

For looking around before there is a study: one run of both prompts, and from it the predictions,
the class masses and, for one answer against one counterpart, the ledger, the lens, the heads'
shares and where each head looks from the last token. The measurements are the same as a study's.
Cost: one forward pass, a few projections; the embedding's width times its vocabulary once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from casestudy.behaviour.answers import Answers, is_one_token, is_space_capital, other_forms
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Prompt
from casestudy.engine.batch import Batch
from casestudy.errors import BehaviourError, SiteError, TokenError
from casestudy.measure.attention import keep_for_attention, last_rows
from casestudy.measure.attribution import keep_for_heads, measure_heads
from casestudy.measure.class_mass import measure_class_mass
from casestudy.measure.examples import position_labels
from casestudy.measure.ledger import keep_for_ledger, measure_ledger
from casestudy.measure.lens import curves, keep_for_lens
from casestudy.measure.predictions import TOP_K, predictions, top_tokens
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site, check_layer
from casestudy.results.result import Axis, Grid, Table

CONTRAST = "answer against counterpart"


@dataclass(frozen=True)
class Probe:
    """One prompt's account, or two prompts'.

    Attributes:
        tokens: each prompt's tokens, as texts.
        predictions: as `predictions`, with `namable`: whether the token's text is that token again
            (a part of a character is not), so that it can be asked for.
        classes: (class, prompt) probabilities.
        answer, counterpart: the two tokens weighed, given or chosen; None where there are none.
        problem: why there is no contrast; None where there is one.
        grids: where there is a contrast, by name: `logit_difference`, `ledger`, `ledger.check`,
            `lens`, `lens.own_norm`, `attribution.head` as a study has them; and always
            `attention.0`, `attention.1` with the axes layer, head and key_pos, from each prompt's
            last token.
    """

    tokens: tuple[tuple[str, ...], ...]
    predictions: Table
    classes: Grid
    answer: str | None
    counterpart: str | None
    problem: str | None
    grids: Mapping[str, Grid]


def probe(
    model: Model,
    texts: Sequence[str],
    *,
    answer: str | None = None,
    counterpart: str | None = None,
    top_k: int = TOP_K,
    prepend_bos: bool | None = None,
) -> Probe:
    """Run a prompt, or a clean and a corrupted one, and ask everything quick.

    Args:
        model: which predicts.
        texts: the prompts; answer and counterpart are chosen from the first one's predictions.
        answer: a token; by default the most probable one.
        counterpart: a token; by default the answer's lower case where it is a space and a capital,
            and otherwise the most probable of the others.
        top_k: how many predictions to list.
        prepend_bos: the model's convention by default.

    An answer or counterpart that is not one token costs the contrast alone: see `Probe.problem`.

    Raises: PromptError for a prompt that cannot be run.
    """
    tokens = model.tokenize(list(texts), prepend_bos=prepend_bos)
    sites = (keep_for_ledger, keep_for_lens, keep_for_heads, keep_for_attention)
    keep = [k for of in sites for k in of(model)]
    trace = run(model, tokens, keep=keep, logits="last")
    assert trace.logits is not None
    index = range(len(texts))
    predicted = _namable(model, top_tokens(model, trace.logits, index, top_k))
    prompts = tuple(Prompt(text) for text in texts)
    none = Answers((None,) * len(texts))
    batch = Batch(model, tuple(index), prompts, tokens, trace, none, ())
    (classes,) = measure_class_mass(batch)
    assert isinstance(classes, Grid)
    grids = {f"attention.{i}": _from_last(batch, i) for i in index}
    chosen, problem = (answer, counterpart), None
    try:
        pair = choose_pair(model, predicted, answer, counterpart)
        chosen = pair
        sides = [[text] * len(texts) for text in pair]
        contrast = Contrast.between(model, sides[0], sides[1], name=CONTRAST)
        grids |= _contrasted(Batch(model, tuple(index), prompts, tokens, trace, none, (contrast,)))
    except (BehaviourError, TokenError) as error:
        problem = str(error)
    return Probe(
        tuple(tuple(model.tokenizer.strings(row)) for row in tokens.rows()),
        predicted,
        classes,
        *chosen,
        problem,
        grids,
    )


def choose_pair(
    model: Model, predicted: Table, answer: str | None, counterpart: str | None
) -> tuple[str, str]:
    """The answer and counterpart that `probe` weighs, where one or both are not given.

    Raises: BehaviourError where the predictions hold nothing to choose.
    """
    first = (row["token"] for row in predicted.rows() if row["prompt"] == 0 and row["namable"])
    likely = [text for text in first if text != counterpart]
    if answer is None:
        answer = next(iter(likely), None)
    if counterpart is None and answer is not None:
        lower = other_forms(answer)["lowercase"] if is_space_capital(answer) else answer
        if lower != answer and is_one_token(model, lower):
            counterpart = lower
        else:
            counterpart = next((text for text in likely if text != answer), None)
    if answer is None or counterpart is None:
        raise BehaviourError("no prediction has a text of its own", hint="Type a token")
    return answer, counterpart


def weighed(
    model: Model,
    text: str,
    answer: str | None = None,
    counterpart: str | None = None,
    *,
    prepend_bos: bool | None = None,
) -> tuple[str, str]:
    """The pair that `probe` weighs after a text, and nothing else of it.

    Cost: none where both are given, otherwise a forward pass.
    Raises: BehaviourError, TokenError where two tokens cannot be weighed; PromptError as `probe`.
    """
    if answer is None or counterpart is None:
        predicted = _namable(model, predictions(model, text, prepend_bos=prepend_bos))
        answer, counterpart = choose_pair(model, predicted, answer, counterpart)
    Contrast.between(model, [answer], [counterpart])
    return answer, counterpart


def _namable(model: Model, table: Table) -> Table:
    """The table, saying of each token whether its text names it."""

    def named(text: str, id: int) -> bool:
        return is_one_token(model, text) and model.tokenizer.single(text) == id

    pairs = zip(table.columns["token"], table.columns["id"], strict=True)
    columns = {**table.columns, "namable": [named(text, id) for text, id in pairs]}
    return Table(table.name, columns, table.about)


def _contrasted(batch: Batch) -> dict[str, Grid]:
    """What is measured of a contrast, by name."""
    logits = torch.stack([c.value(batch.logits) for c in batch.contrasts]).cpu().numpy()
    difference = Grid(
        "logit_difference",
        logits,
        (batch.contrast_axis, batch.prompt_axis),
        "logits",
        about="logit(answer) - logit(counterpart) at each prompt's last position",
    )
    found = [difference, *measure_ledger(batch), *curves(batch), *measure_heads(batch)]
    return {result.name: result for result in found if isinstance(result, Grid)}


def _from_last(batch: Batch, prompt: int) -> Grid:
    """Where every head looks from one prompt's last token."""
    config = batch.model.config
    labels = position_labels(batch.model, batch.tokens[[prompt]])
    return Grid(
        f"attention.{prompt}",
        last_rows(batch)[:, prompt, :, : len(labels)].float().cpu().numpy(),
        (
            Axis.count("layer", config.n_layers),
            Axis.count("head", config.n_heads),
            Axis("key_pos", labels),
        ),
        "share",
        about="Attention from the last token to every token.",
    )


def head_pattern(
    model: Model, prompt: str, layer: int, head: int, *, prepend_bos: bool | None = None
) -> Grid:
    """One head's attention pattern in one prompt.

    Shape:  (query_pos, key_pos), positions labelled as `attention_pattern` does.
    Unit:   share of the query's attention; each row sums to 1.
    Raises: PromptError for a prompt that cannot be run; SiteError for a head the model lacks.
    """
    layer = check_layer(layer, model.config.n_layers)
    if not 0 <= head < model.config.n_heads:
        raise SiteError(f"head {head}", allowed=f"0 to {model.config.n_heads - 1}")
    tokens = model.tokenize([prompt], prepend_bos=prepend_bos)
    trace = run(model, tokens, keep=[Site.PATTERN.at(layers=layer)])
    labels = position_labels(model, tokens)
    return Grid(
        f"pattern.{layer}.{head}",
        trace[Site.PATTERN, layer][0, head].float().cpu().numpy(),
        (Axis("query_pos", labels), Axis("key_pos", labels)),
        "share",
        about=f"Attention of head {layer}.{head}, from every position (query) to every position.",
    )
