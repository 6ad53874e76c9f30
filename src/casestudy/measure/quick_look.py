"""What are all quick measurements of one prompt, alone or with a corrupted prompt?

For exploration before a study: one run of both prompts gives the predictions, the class masses and,
for one answer and one counterpart, the ledger, the lens, the heads' direct contributions and their
attention from the last token. The measurements are the same as in a study. Answers of several
tokens are compared whole (`whole_answers`), and a prompt may name its readout (`readouts`).
Cost: one forward pass, a few projections; the embedding's width times its vocabulary once. Answers
of several tokens cost the passes of `whole_answers` besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from casestudy.behaviour.answers import Answers, is_one_token, is_space_capital, other_forms
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.notices import prompt_notices
from casestudy.behaviour.prompts import Prompt, prompts_given
from casestudy.behaviour.readouts import text_of, tokens_of, whole_row
from casestudy.behaviour.steps import has_several, steps_of
from casestudy.engine.batch import Batch
from casestudy.errors import BehaviourError, SiteError, TokenError
from casestudy.measure.attention import keep_for_attention, last_rows
from casestudy.measure.attribution import keep_for_heads, measure_heads
from casestudy.measure.class_mass import measure_class_mass
from casestudy.measure.examples import position_labels
from casestudy.measure.ledger import keep_for_ledger, measure_ledger
from casestudy.measure.lens import curves, keep_for_lens
from casestudy.measure.predictions import TOP_K, predictions, top_tokens
from casestudy.measure.whole_answers import WholeAnswers, whole_answers
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site, check_layer
from casestudy.model.token import Token, by_ids
from casestudy.results import components, names
from casestudy.results.result import Axis, Grid, Table

CONTRAST = "answer against counterpart"

Side = tuple[Token, ...]
"""An answer or a counterpart: one token, or several."""
Given = str | int | Token | None
"""An answer as it is asked for; None to choose it."""


@dataclass(frozen=True)
class Probe:
    """The quick measurements of one prompt, or of two.

    Attributes:
        tokens: each prompt's tokens, up to where it is read.
        behind: each prompt's tokens behind that, which are not run.
        predictions: as `predictions`, with `written`: how to ask for the token after the first
            prompt, its text or "id:1234" (see `Tokenizer.written`).
        classes: (class, prompt) probabilities.
        answer, counterpart: the tokens of the contrast, given or chosen; () if there is none.
        notices: about the tokenisation of the texts, one line per kind.
        problem: the reason if there is no contrast, else None.
        grids: if there is a contrast, by name: `logit_difference`, `ledger`, `ledger.check`,
            `lens`, `lens.own_norm`, `attribution.head` as a study has them; and always
            `attention.0`, `attention.1` with the axes layer, head and key_pos, from each prompt's
            last token.
        whole: of answers of several tokens, the account of each token; else None. The grids are
            then of the sums, in nats.
    """

    tokens: tuple[tuple[Token, ...], ...]
    behind: tuple[tuple[Token, ...], ...]
    predictions: Table
    classes: Grid
    answer: Side
    counterpart: Side
    problem: str | None
    grids: Mapping[str, Grid]
    notices: tuple[str, ...] = ()
    whole: WholeAnswers | None = None


def probe(
    model: Model,
    prompts: Sequence[str | Prompt],
    *,
    answer: Given = None,
    counterpart: Given = None,
    top_k: int = TOP_K,
) -> Probe:
    """Run a prompt, or a clean and a corrupted one, and make all quick measurements.

    Args:
        model: which predicts.
        prompts: texts or Prompts, each read at its readout; answer and counterpart are chosen from
            the first one's predictions.
        answer: a text that continues the first prompt, "id:1234" or an id; by default the prompt's
            own, or else the most probable token.
        counterpart: likewise; by default the prompt's own, or else the answer's lower case if the
            answer is a space and a capital, and otherwise the most probable other token.
        top_k: how many predictions to list.

    Answer and counterpart may have several tokens, if both are given. If they cannot be compared,
    there is no contrast: see `Probe.problem`.

    Raises: PromptError for a prompt that cannot be run; BehaviourError for a readout that a prompt
        does not have.
    """
    asked = prompts_given(prompts)
    first = with_answers(asked[0], answer, counterpart)
    tokens = tokens_of(model, asked)
    sites = (keep_for_ledger, keep_for_lens, keep_for_heads, keep_for_attention)
    keep = [k for of in sites for k in of(model)]
    trace = run(model, tokens, keep=keep, logits="last")
    assert trace.logits is not None
    index = range(len(asked))
    predicted = top_tokens(model, trace.logits, index, top_k)
    none = Answers((None,) * len(asked))
    batch = Batch(model, tuple(index), asked, tokens, trace, none, ())
    (classes,) = measure_class_mass(batch)
    assert isinstance(classes, Grid)
    grids = {names.attention_from(i): _from_last(batch, i) for i in index}
    sides: tuple[Side, Side] = ((), ())
    problem = whole = None
    try:
        sides = chosen = choose_sides(model, first, predicted)
        if any(len(side) > 1 for side in chosen):
            whole = _whole(model, asked, chosen)
            grids |= _with_contrast(whole)
        else:
            pair = ([side[0]] * len(asked) for side in chosen)
            contrast = Contrast.between(model, *pair, name=CONTRAST)
            grids |= _contrasted(replace(batch, contrasts=(contrast,)))
    except (BehaviourError, TokenError) as error:
        problem = str(error)
    token = model.tokenizer.token
    rows = tokens.rows()
    ends = [whole_row(model.tokenizer, p)[len(row) :] for p, row in zip(asked, rows, strict=True)]
    return Probe(
        tuple(tuple(map(token, row)) for row in rows),
        tuple(tuple(map(token, row)) for row in ends),
        _with_written(model, predicted, text_of(model.tokenizer, first)),
        classes,
        *sides,
        problem,
        grids,
        prompt_notices(model.tokenizer, [first, *asked[1:]]),
        whole,
    )


def with_answers(prompt: Prompt, answer: Given, counterpart: Given) -> Prompt:
    """The prompt with the answers that are given, or else its own."""
    return replace(
        prompt,
        answer=prompt.answer if answer is None else as_given(answer),
        counterpart=prompt.counterpart if counterpart is None else as_given(counterpart),
    )


def choose_sides(model: Model, prompt: Prompt, predicted: Table) -> tuple[Side, Side]:
    """The answer and counterpart of `probe`: the prompt's own of any length, or tokens chosen from
    the predictions.

    Raises: TokenError where one cannot be read, or has several tokens and the other is not given;
        BehaviourError where both are the same, and where the predictions hold nothing to choose.
    """
    tokenizer = model.tokenizer
    if has_several(tokenizer, prompt):
        steps = steps_of(tokenizer, prompt)
        return tuple(map(tokenizer.token, steps.answer)), tuple(
            map(tokenizer.token, steps.counterpart)
        )
    first, second = choose_pair(model, prompt, predicted)
    return (first,), (second,)


def choose_pair(model: Model, prompt: Prompt, predicted: Table) -> tuple[Token, Token]:
    """As `choose_sides`, of one token each.

    Raises: TokenError where one that is given is not one token.
    """
    tokenizer, text = model.tokenizer, text_of(model.tokenizer, prompt)
    given = (prompt.answer, prompt.counterpart)
    try:
        first, second = (
            None if side is None else tokenizer.token(side, after=text) for side in given
        )
    except TokenError as error:
        if None in given and error.hint:  # it has several tokens
            hint = f"{error.hint}; two answers of several tokens are compared whole: give both"
            raise TokenError(error.came, allowed=error.allowed, hint=hint) from error
        raise
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
    prompt: str | Prompt,
    answer: Given = None,
    counterpart: Given = None,
) -> tuple[Token, Token]:
    """The two tokens that `probe` compares after a prompt, without measuring anything of them.

    Cost: none where both are given, otherwise a forward pass.
    Raises: BehaviourError, TokenError where two tokens cannot be compared; PromptError as `probe`.
    """
    asked, predicted = _asked(model, prompt, answer, counterpart)
    pair = choose_pair(model, asked, predicted)
    Contrast.between(model, *([token] for token in pair))
    return pair


def weighed_sides(
    model: Model,
    prompt: str | Prompt,
    answer: Given = None,
    counterpart: Given = None,
) -> tuple[Side, Side]:
    """As `weighed`, for answers of any length."""
    asked, predicted = _asked(model, prompt, answer, counterpart)
    if has_several(model.tokenizer, asked):
        return choose_sides(model, asked, predicted)
    first, second = weighed(model, asked)
    return (first,), (second,)


def with_weighed(model: Model, prompt: Prompt) -> Prompt:
    """The prompt with both sides of `weighed_sides` as its answers, by their ids."""
    answer, counterpart = map(by_ids, weighed_sides(model, prompt))
    return replace(prompt, answer=answer, counterpart=counterpart)


def _asked(
    model: Model, prompt: str | Prompt, answer: Given, counterpart: Given
) -> tuple[Prompt, Table]:
    """The prompt with its answers, and the predictions if one of them has to be chosen."""
    (asked,) = prompts_given(prompt)
    asked = with_answers(asked, answer, counterpart)
    if asked.answer is None or asked.counterpart is None:
        return asked, predictions(model, [asked])
    return asked, Table(names.PREDICTIONS, {"prompt": [], "id": []})


def as_given(given: Given) -> str | None:
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


def _whole(model: Model, prompts: Sequence[Prompt], sides: tuple[Side, Side]) -> WholeAnswers:
    """The account of two answers of several tokens after each prompt."""
    first, second = map(by_ids, sides)
    return whole_answers(
        model, [replace(prompt, answer=first, counterpart=second) for prompt in prompts]
    )


def _with_contrast(whole: WholeAnswers) -> dict[str, Grid]:
    """The grids of whole answers, by name, with the contrast axis that others have."""
    axis = Axis("contrast", (CONTRAST,))
    found = {**whole.grids, names.LOGIT_DIFFERENCE: whole.value}
    return {
        name: replace(grid, values=grid.values[None], axes=(axis, *grid.axes))
        for name, grid in found.items()
    }


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


def head_pattern(model: Model, prompt: str | Prompt, layer: int, head: int) -> Grid:
    """One head's attention pattern in one prompt, up to where it is read.

    Shape:  (query_pos, key_pos), positions labelled as `attention_pattern` does.
    Unit:   share of the query's attention; each row sums to 1.
    Raises: PromptError for a prompt that cannot be run; SiteError for a head the model lacks.
    """
    layer = check_layer(layer, model.config.n_layers)
    if not 0 <= head < model.config.n_heads:
        raise SiteError(f"head {head}", allowed=f"0 to {model.config.n_heads - 1}")
    tokens = tokens_of(model, prompts_given(prompt))
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
