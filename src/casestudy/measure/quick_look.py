"""What are all quick measurements of one prompt, alone or with a corrupted prompt?

For exploration before a study: one run of both prompts gives the predictions, the class masses and,
for one answer and one counterpart, the ledger, the lens, the heads' direct contributions and their
attention from the last token. The measurements are the same as in a study.
Cost: one forward pass, a few projections; the embedding's width times its vocabulary once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from casestudy.behaviour.answers import Answers, is_one_token, is_space_capital, other_forms
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.notices import prompt_notices
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
from casestudy.model.token import Token
from casestudy.results import components, names
from casestudy.results.result import Axis, Grid, Table

CONTRAST = "answer against counterpart"


@dataclass(frozen=True)
class Probe:
    """The quick measurements of one prompt, or of two.

    Attributes:
        tokens: each prompt's tokens.
        predictions: as `predictions`, with `written`: how to ask for the token after the first
            prompt, its text or "id:1234" (see `Tokenizer.written`).
        classes: (class, prompt) probabilities.
        answer, counterpart: the two tokens of the contrast, given or chosen; None if there is none.
        notices: about the tokenisation of the texts, one line per kind.
        problem: the reason if there is no contrast, else None.
        grids: if there is a contrast, by name: `logit_difference`, `ledger`, `ledger.check`,
            `lens`, `lens.own_norm`, `attribution.head` as a study has them; and always
            `attention.0`, `attention.1` with the axes layer, head and key_pos, from each prompt's
            last token.
    """

    tokens: tuple[tuple[Token, ...], ...]
    predictions: Table
    classes: Grid
    answer: Token | None
    counterpart: Token | None
    problem: str | None
    grids: Mapping[str, Grid]
    notices: tuple[str, ...] = ()


def probe(
    model: Model,
    texts: Sequence[str],
    *,
    answer: str | int | Token | None = None,
    counterpart: str | int | Token | None = None,
    top_k: int = TOP_K,
) -> Probe:
    """Run a prompt, or a clean and a corrupted one, and make all quick measurements.

    Args:
        model: which predicts.
        texts: the prompts; answer and counterpart are chosen from the first one's predictions.
        answer: a token, as a text that continues the first prompt, "id:1234" or an id; by default
            the most probable one.
        counterpart: a token; by default the answer's lower case if the answer is a space and a
            capital, and otherwise the most probable other token.
        top_k: how many predictions to list.

    If an answer or counterpart is not one token, there is no contrast: see `Probe.problem`.

    Raises: PromptError for a prompt that cannot be run.
    """
    tokens = model.tokenize(list(texts))
    sites = (keep_for_ledger, keep_for_lens, keep_for_heads, keep_for_attention)
    keep = [k for of in sites for k in of(model)]
    trace = run(model, tokens, keep=keep, logits="last")
    assert trace.logits is not None
    index = range(len(texts))
    predicted = top_tokens(model, trace.logits, index, top_k)
    prompts = tuple(Prompt(text) for text in texts)
    given = [Prompt(texts[0], as_given(answer), as_given(counterpart)), *prompts[1:]]
    none = Answers((None,) * len(texts))
    batch = Batch(model, tuple(index), prompts, tokens, trace, none, ())
    (classes,) = measure_class_mass(batch)
    assert isinstance(classes, Grid)
    grids = {names.attention_from(i): _from_last(batch, i) for i in index}
    chosen: tuple[Token | None, Token | None] = (None, None)
    problem = None
    try:
        chosen = pair = choose_pair(model, texts[0], predicted, answer, counterpart)
        sides = [[token] * len(texts) for token in pair]
        contrast = Contrast.between(model, sides[0], sides[1], name=CONTRAST)
        grids |= _contrasted(Batch(model, tuple(index), prompts, tokens, trace, none, (contrast,)))
    except (BehaviourError, TokenError) as error:
        problem = str(error)
    return Probe(
        tuple(tuple(map(model.tokenizer.token, row)) for row in tokens.rows()),
        _with_written(model, predicted, texts[0]),
        classes,
        *chosen,
        problem,
        grids,
        prompt_notices(model.tokenizer, given),
    )


def choose_pair(
    model: Model,
    prompt: str,
    predicted: Table,
    answer: str | int | Token | None,
    counterpart: str | int | Token | None,
) -> tuple[Token, Token]:
    """The answer and counterpart of `probe`, if one or both are not given.

    Raises: TokenError where one that is given is not one token; BehaviourError where the
        predictions hold nothing to choose.
    """
    tokenizer = model.tokenizer
    first, second = (
        None if given is None else tokenizer.token(given, after=prompt)
        for given in (answer, counterpart)
    )
    ids = (row["id"] for row in predicted.rows() if row["prompt"] == 0)
    likely = [tokenizer.token(id) for id in ids if second is None or id != second.id]
    if first is None and likely:
        first = likely[0]
    if second is None and first is not None:
        second = _lower_case(model, first) or next((t for t in likely if t.id != first.id), None)
    if first is None or second is None:
        raise BehaviourError("there is no other prediction to choose", hint="Type a token")
    return first, second


def _lower_case(model: Model, token: Token) -> Token | None:
    """The same word in lower case, where the token is a space and a capital and that is a token."""
    text = model.tokenizer.string(token.id)
    lower = other_forms(text)["lowercase"] if is_space_capital(text) else text
    return model.tokenizer.token(lower) if lower != text and is_one_token(model, lower) else None


def weighed(
    model: Model,
    text: str,
    answer: str | int | Token | None = None,
    counterpart: str | int | Token | None = None,
) -> tuple[Token, Token]:
    """The pair that `probe` weighs after a text, and nothing else of it.

    Cost: none where both are given, otherwise a forward pass.
    Raises: BehaviourError, TokenError where two tokens cannot be weighed; PromptError as `probe`.
    """
    predicted = Table(names.PREDICTIONS, {"prompt": [], "id": []})
    if answer is None or counterpart is None:
        predicted = predictions(model, text)
    pair = choose_pair(model, text, predicted, answer, counterpart)
    Contrast.between(model, *([token] for token in pair))
    return pair


def as_given(given: str | int | Token | None) -> str | None:
    """As a prompt brings it."""
    if isinstance(given, Token):
        return given.by_id
    return f"id:{given}" if isinstance(given, int) else given


def _with_written(model: Model, table: Table, prompt: str) -> Table:
    """The table, saying of each token how to ask for it after the prompt."""
    written = [model.tokenizer.written(id, after=prompt) for id in table.columns["id"]]
    return Table(table.name, {**table.columns, "written": written}, table.about)


def _contrasted(batch: Batch) -> dict[str, Grid]:
    """What is measured of a contrast, by name."""
    logits = torch.stack([c.value(batch.logits) for c in batch.contrasts]).cpu().numpy()
    difference = Grid(
        names.LOGIT_DIFFERENCE,
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
        names.attention_from(prompt),
        last_rows(batch)[:, prompt, :, : len(labels)].float().cpu().numpy(),
        (
            Axis.count("layer", config.n_layers),
            Axis.count("head", config.n_heads),
            Axis("key_pos", labels),
        ),
        "share",
        about="Attention from the last token to every token.",
    )


def head_pattern(model: Model, prompt: str, layer: int, head: int) -> Grid:
    """One head's attention pattern in one prompt.

    Shape:  (query_pos, key_pos), positions labelled as `attention_pattern` does.
    Unit:   share of the query's attention; each row sums to 1.
    Raises: PromptError for a prompt that cannot be run; SiteError for a head the model lacks.
    """
    layer = check_layer(layer, model.config.n_layers)
    if not 0 <= head < model.config.n_heads:
        raise SiteError(f"head {head}", allowed=f"0 to {model.config.n_heads - 1}")
    tokens = model.tokenize([prompt])
    trace = run(model, tokens, keep=[Site.PATTERN.at(layers=layer)])
    labels = position_labels(model, tokens)
    return Grid(
        names.pattern_of(f"{layer}.{head}"),
        trace[Site.PATTERN, layer][0, head].float().cpu().numpy(),
        (Axis("query_pos", labels), Axis("key_pos", labels)),
        "share",
        about=f"Attention of {components.head(layer, head)}, from every position (query) to every "
        "position.",
    )
