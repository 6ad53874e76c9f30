"""Which tokens does each head attend to?

The query is each prompt's last token, where the prediction is made. The attention to the tokens of
each role ("final full stop", "last token", "BOS", the tokens that differ in the corrupted prompt)
is summed, so that prompts of unequal length can be averaged. The entropy is measured as well. For
up to `MOST_DESCRIBED` main prompts, every token with at least `LEAST_SHARE` of the attention is
listed. For a few prompts the whole pattern is stored, with every query and every key.

Roles may overlap (a final full stop can be the last token of a sentence start), so their shares
need not sum to 1; the rows of the whole patterns do. Attention does not show what a head writes
(see attribution), nor whether it is necessary (see patching). Cost: one row of scores per head and
prompt; the patterns of a few short prompts need another run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.prompts import Prompt, Prompts
from casestudy.behaviour.readouts import partner_of, row_of
from casestudy.behaviour.roles import BOS, CHANGED, LAST, STANDARD_ROLES, with_pair_roles
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.errors import BehaviourError, PromptError
from casestudy.measure.examples import KEPT_BYTES, example_rows, examples, position_labels
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.results import names
from casestudy.results.result import Axis, Grid, Result, Table


def keep_for_attention(model: Model) -> Sequence[Keep]:
    """Every pattern's last row."""
    return [Site.PATTERN.at(last=True)]


def also_keep(model: Model, index: Sequence[int], tokens: Tokens) -> Sequence[Keep]:
    """Whole patterns, if some of the prompts are examples."""
    (n, width), config = tokens.ids.shape, model.config
    size = config.n_layers * config.n_heads * n * width**2 * model.weights.W_E.element_size()
    return [Keep(Site.PATTERN)] if example_rows(index, tokens) and size <= KEPT_BYTES else []


def last_rows(batch: Batch) -> Float[Tensor, "layer batch head key_pos"]:
    """Attention from each prompt's last token; zero in the padding."""
    layers = range(batch.model.config.n_layers)
    return torch.stack([batch.trace.last((Site.PATTERN, i)) for i in layers])


def entropy(pattern: Float[Tensor, "*rows key_pos"]) -> Float[Tensor, "*rows"]:
    """-Σ p ln p over keys, in nats and float64: 0 for one key, ln n for n equal keys."""
    terms: Tensor = torch.special.entr(pattern.double())
    return terms.sum(-1)


def attention_to_roles(batch: Batch, source: str | None = None) -> Grid:
    """Attention from each prompt's last token, or from a role's tokens, to the tokens of each role.

    Args:
        batch: made with `keep_for_attention`, or with every pattern whole for a `source`.
        source: the role of the queries, averaged over its tokens; the last token by default.

    Shape:  (layer, head, role, prompt); NaN if a prompt does not have the role of the keys or of
            the queries.
    Unit:   share of a query's attention, summed over the role's positions.
    """
    config, seen = batch.model.config, role_axis(batch)
    layers, heads = Axis.count("layer", config.n_layers), Axis.count("head", config.n_heads)
    rows = last_rows(batch) if source is None else _role_rows(batch, source)
    by_role = rows.new_full((*rows.shape[:3], len(seen)), float("nan"))
    for i, roles in enumerate(roles_seen(batch)):
        for column, name in enumerate(seen):
            if name in roles:
                by_role[:, i, :, column] = rows[:, i][..., list(roles[name])].sum(-1)
    return Grid(
        names.ATTENTION_LAST if source is None else names.attention_from(source),
        by_role.permute(0, 2, 3, 1).float().cpu().numpy(),
        (layers, heads, Axis("role", seen), batch.prompt_axis),
        "share",
        about=f"Attention from the {source or LAST} of the prompt, summed over the "
        "positions of each role. Roles may overlap.",
    )


def role_axis(batch: Batch) -> tuple[str, ...]:
    """The labels of the role axis, the same in all batches of a behaviour."""
    behaviour = batch.behaviour
    partners = behaviour is not None and any(p.corrupted for p in behaviour.prompts)
    changed = (CHANGED,) if partners else ()
    return tuple(dict.fromkeys([*batch.role_names, *changed, LAST]))


def roles_seen(batch: Batch) -> list[Mapping[str, tuple[int, ...]]]:
    """Each prompt's roles, with its last token and the tokens that its corrupted prompt changes."""
    return [
        with_pair_roles(roles, row, _partner(batch, prompt))
        for roles, row, prompt in zip(batch.roles, batch.tokens.rows(), batch.prompts, strict=True)
    ]


def _partner(batch: Batch, prompt: Prompt) -> list[int] | None:
    """The tokens of a prompt's own corrupted prompt; None if there is none that can be run."""
    if not prompt.corrupted:
        return None
    try:
        return row_of(batch.model.tokenizer, partner_of(prompt, prompt.corrupted))
    except (PromptError, BehaviourError):
        return None


MOST_DESCRIBED = 64
"""Main prompts, from the first, whose tokens are listed head by head."""

LEAST_SHARE = 0.02
"""The least share of a head's attention for a token to be listed."""


def attention_to_tokens(batch: Batch) -> Table:
    """Every token that gets at least `LEAST_SHARE` of a head's attention from the last token.

    Rows:   one per prompt, layer, head and position; `role` is the first role of the token in
            this order: changed tokens, the behaviour's own roles, the standard ones from the stop
            backwards, BOS, last token; "" if it has none.
    Unit:   share of the head's attention.
    """
    columns: dict[str, list[Any]] = {name: [] for name in TOKEN_COLUMNS}
    rows, roles = last_rows(batch), roles_seen(batch)
    described = _described(batch)
    for i, ids in enumerate(batch.tokens.rows()):
        if batch.index[i] not in described:
            continue
        shares = rows[:, i, :, : len(ids)].float().cpu()
        texts = batch.model.tokenizer.labels(ids)
        first = _first_roles(roles[i], role_axis(batch), len(ids))
        for layer, head, pos in (shares >= LEAST_SHARE).nonzero().tolist():
            cells = (batch.index[i], layer, head, pos, texts[pos], first[pos])
            row = (*cells, float(shares[layer, head, pos]))
            for name, cell in zip(TOKEN_COLUMNS, row, strict=True):
                columns[name].append(cell)
    return Table(
        names.ATTENTION_TOKENS,
        columns,
        f"Attention from the last token to every token that gets at least {LEAST_SHARE:.0%} of a "
        f"head's, in the first {MOST_DESCRIBED} main prompts.",
    )


TOKEN_COLUMNS = ("prompt", "layer", "head", "pos", "token", "role", "share")


def _described(batch: Batch) -> set[int]:
    if batch.behaviour is None:
        return set(batch.index[:MOST_DESCRIBED])
    return set(batch.behaviour.main_prompts[:MOST_DESCRIBED])


def _first_roles(roles: Mapping[str, tuple[int, ...]], names: Sequence[str], n: int) -> list[str]:
    """One role per position: the most specific of its roles."""
    standard = [role.name for role in STANDARD_ROLES]
    own = [name for name in names if name not in (*standard, BOS, LAST, CHANGED)]
    found = [""] * n
    for name in reversed((CHANGED, *own, *reversed(standard), BOS, LAST)):
        for place in roles.get(name, ()):
            found[place] = name
    return found


def _role_rows(batch: Batch, source: str) -> Float[Tensor, "layer batch head key_pos"]:
    """Attention from a role's tokens, averaged; NaN for a prompt without the role."""
    layers = range(batch.model.config.n_layers)
    whole = torch.stack([batch.trace[Site.PATTERN, i] for i in layers])
    rows = whole.new_full((*whole.shape[:3], whole.shape[4]), float("nan"))
    for i, roles in enumerate(batch.roles):
        if source in roles:
            rows[:, i] = whole[:, i, :, list(roles[source])].mean(2)
    return rows


def measure_attention(batch: Batch) -> list[Result]:
    """Attention from the last token by role and token, its entropy, and examples' patterns."""
    config, rows = batch.model.config, last_rows(batch)
    layers, heads = Axis.count("layer", config.n_layers), Axis.count("head", config.n_heads)
    results: list[Result] = [
        attention_to_roles(batch),
        attention_to_tokens(batch),
        Grid(
            names.ATTENTION_ENTROPY,
            entropy(rows).transpose(1, 2).cpu().numpy(),
            (layers, heads, batch.prompt_axis),
            "nats",
            about="How spread each head's attention from the last token is: 0 for one key alone.",
        ),
    ]
    kept = (Site.PATTERN, 0) in batch.trace.values
    for row, index, tokens in examples(batch):
        where = (batch.trace, row) if kept else (_patterns(batch.model, tokens), 0)
        results.append(_pattern(batch.model, *where, tokens, names.pattern_of(index)))
    return results


def _patterns(model: Model, tokens: Tokens) -> Trace:
    return run(model, tokens, keep=[Site.PATTERN], logits="last")  # names overflow


def _pattern(model: Model, trace: Trace, row: int, tokens: Tokens, name: str) -> Grid:
    """The pattern of one prompt (`tokens`), which is a row of a run."""
    config = model.config
    layers = torch.stack([trace.of((Site.PATTERN, i), row) for i in range(config.n_layers)])
    labels = position_labels(model, tokens)
    return Grid(
        name,
        layers.float().cpu().numpy(),
        (
            Axis.count("layer", config.n_layers),
            Axis.count("head", config.n_heads),
            Axis("query_pos", labels),
            Axis("key_pos", labels),
        ),
        "share",
        about="Attention of one prompt, from every position (query) to every position (key); a "
        "position cannot look ahead, so those are zero.",
    )


ATTENTION = Measurement("attention", keep_for_attention, measure_attention, also=also_keep)


def attention_by_role(model: Model, behaviour: Prompts) -> Grid:
    """How much each head attends, from the last token, to each role of a behaviour's prompts.

    Shape:  (layer, head, role, prompt); NaN if a prompt does not have the role.
    Unit:   share of the head's attention, summed over the role's positions.
    """
    batch = run_whole(model, behaviour, [ATTENTION])
    grid = measure_attention(batch)[0]
    assert isinstance(grid, Grid)
    return grid


def attention_pattern(model: Model, prompt: str) -> Grid:
    """One prompt's attention patterns.

    Shape:  (layer, head, query_pos, key_pos), positions labelled "0:<|endoftext|>", "1:This", …
    Unit:   share of the query's attention; each row sums to 1.
    Raises: PromptError for a prompt that cannot be run.
    """
    tokens = model.tokenize([prompt])
    return _pattern(model, _patterns(model, tokens), 0, tokens, names.PATTERN)
