"""Where does each head look?

From each prompt's last token, where the prediction is made: the attention given to the tokens of
each role ("final full stop", "first word", "BOS"), summed, so that prompts of unequal length can be
averaged, and how spread it is. For a few prompts the whole pattern, every query and every key.

Roles may overlap (a final full stop can be the last token of a sentence start), so their shares
need not add up to 1; every position's attention is in the whole patterns, whose rows do. Looking is
not using: what a head moves is in the attribution, what is needed in the patching. Cost: one row of
scores per head and prompt; the patterns of a few short prompts are run again by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.prompts import Behaviour
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.measure.examples import examples, position_labels
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.results.result import Axis, Grid, Result


def keep_for_attention(model: Model) -> Sequence[Keep]:
    """Every pattern's last row."""
    return [Site.PATTERN.at(last=True)]


def last_rows(batch: Batch) -> Float[Tensor, "layer batch head key_pos"]:
    """Attention from each prompt's last token; zero in the padding, as to anything unseen."""
    layers = range(batch.model.config.n_layers)
    return torch.stack([batch.trace.last((Site.PATTERN, i)) for i in layers])


def entropy(pattern: Float[Tensor, "*rows key_pos"]) -> Float[Tensor, "*rows"]:
    """-Σ p ln p over keys, in nats and float64: 0 for one key, ln n for n keys alike."""
    terms: Tensor = torch.special.entr(pattern.double())
    return terms.sum(-1)


def attention_to_roles(batch: Batch, source: str | None = None) -> Grid:
    """Attention from each prompt's last token, or from a role's tokens, to the tokens of each role.

    Args:
        batch: made with `keep_for_attention`, or with every pattern whole for a `source`.
        source: the role that looks, its tokens averaged; the last token by default.

    Shape:  (layer, head, role, prompt); NaN where a prompt lacks the role that is looked at, or the
            one that looks.
    Unit:   share of a query's attention, summed over the positions looked at.
    """
    config, names = batch.model.config, batch.role_names
    layers, heads = Axis.count("layer", config.n_layers), Axis.count("head", config.n_heads)
    rows = last_rows(batch) if source is None else _role_rows(batch, source)
    by_role = rows.new_full((*rows.shape[:3], len(names)), float("nan"))
    for i, roles in enumerate(batch.roles):
        for column, name in enumerate(names):
            if name in roles:
                by_role[:, i, :, column] = rows[:, i][..., list(roles[name])].sum(-1)
    return Grid(
        "attention.last" if source is None else f"attention.{source}",
        by_role.permute(0, 2, 3, 1).float().cpu().numpy(),
        (layers, heads, Axis("role", names), batch.prompt_axis),
        "share",
        about=f"Attention from the {source or 'last token'} of the prompt, summed over the "
        "positions of each role. Roles may overlap.",
    )


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
    """Attention from the last token by role, its entropy, and whole patterns of the examples."""
    config, rows = batch.model.config, last_rows(batch)
    layers, heads = Axis.count("layer", config.n_layers), Axis.count("head", config.n_heads)
    results: list[Result] = [
        attention_to_roles(batch),
        Grid(
            "attention.entropy",
            entropy(rows).transpose(1, 2).cpu().numpy(),
            (layers, heads, batch.prompt_axis),
            "nats",
            about="How spread each head's attention from the last token is: 0 for one key alone.",
        ),
    ]
    for index, tokens in examples(batch):
        results.append(_pattern(batch.model, tokens, f"pattern.{index}"))
    return results


def _pattern(model: Model, tokens: Tokens, name: str) -> Grid:
    config = model.config
    trace = run(model, tokens, keep=[Site.PATTERN])
    layers = torch.cat([trace[Site.PATTERN, i] for i in range(config.n_layers)])
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


ATTENTION = Measurement("attention", keep_for_attention, measure_attention)


def attention_by_role(
    model: Model, behaviour: Behaviour, *, prepend_bos: bool | None = None
) -> Grid:
    """How much each head attends, from the last token, to each role of a behaviour's prompts.

    Shape:  (layer, head, role, prompt); NaN where a prompt does not have the role.
    Unit:   share of the head's attention, summed over the role's positions.
    """
    index = range(len(behaviour))
    batch = run_batch(model, behaviour, index, [ATTENTION], prepend_bos=prepend_bos)
    grid = measure_attention(batch)[0]
    assert isinstance(grid, Grid)
    return grid


def attention_pattern(model: Model, prompt: str, *, prepend_bos: bool | None = None) -> Grid:
    """One prompt's attention patterns.

    Shape:  (layer, head, query_pos, key_pos), positions labelled "0:<|endoftext|>", "1:This", …
    Unit:   share of the query's attention; each row sums to 1.
    Raises: PromptError for a prompt that cannot be run.
    """
    return _pattern(model, model.tokenize([prompt], prepend_bos=prepend_bos), "pattern")
