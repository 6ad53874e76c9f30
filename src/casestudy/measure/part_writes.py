"""Which tokens does a part promote, and what is its share of a behaviour's logit difference?

A direction d of the residual stream adds (w · C d / s) W_U to the logits, where the final norm has
weight w, mean subtraction C and scale s. Taken at s = 1 and with the mean over the vocabulary
subtracted (the softmax does not see it), this orders the tokens that d promotes and demotes,
whatever the prompt. A neuron has one direction. A head has one for each token that it attends to:
here the mean of what it takes from that token over the corpus, through W_O (Elhage et al. 2021
take the embedding alone: W_E W_V W_O W_U). What later layers make of it is not in these figures.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Geva et al. 2022
for neurons. Cost: one unembedding for each direction.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from casestudy.engine.batch import Batch
from casestudy.measure.attribution import final_directions, head_shares, neuron_shares
from casestudy.measure.ledger import keep_for_ledger
from casestudy.measure.part_activity import Sources
from casestudy.measure.parts import CardPart, DirectionPart, HeadPart, NeuronPart
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Keep
from casestudy.results import names
from casestudy.results.result import Grid, Table

TOKENS = 20
"""Tokens listed on each side of a direction."""
SOURCES, OF_A_SOURCE = 24, 5
"""Source tokens listed of a head, and the tokens that each promotes and demotes."""
UNIT = "logits × final norm scale"


def token_effects(
    model: Model, directions: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "direction d_vocab"]:
    """What directions add to the logits at a final norm scale of 1, the mean over tokens
    subtracted."""
    read = norm_at_scale(model.config, model.weights.final_norm, directions, None)
    logits = read.to(model.dtype) @ model.weights.W_U
    centred: Tensor = logits - logits.mean(-1, keepdim=True)
    return centred


def promoted_tokens(model: Model, part: NeuronPart | DirectionPart) -> Table:
    """The tokens that a neuron or a direction promotes and demotes per unit of its activity.

    Rows:   one per direction, side and rank (1 is the strongest).
    """
    names_of = ("direction", "side", "rank", "token", "id", "effect")
    columns: dict[str, list[Any]] = {name: [] for name in names_of}
    for number, effects in enumerate(token_effects(model, part.written(model)), 1):
        for side, largest in (("promoted", True), ("demoted", False)):
            found = effects.topk(min(TOKENS, len(effects)), largest=largest)
            for rank, (value, id) in enumerate(zip(*map(Tensor.tolist, found), strict=True), 1):
                cells = (number, side, rank, model.tokenizer.label(id), id, value)
                for column, cell in zip(columns.values(), cells, strict=True):
                    column.append(cell)
    return Table(
        names.PART_TOKENS,
        columns,
        f"Tokens that one unit of it promotes and demotes directly, in {UNIT}, the mean over the "
        "vocabulary subtracted; a negative value does the opposite.",
    )


def source_tokens(model: Model, part: HeadPart, sources: Sources) -> Table:
    """What a head writes for the tokens that get most of its attention.

    Rows:   one per source token, by the attention that it got in the corpus.
    """
    best = sources.attention.argsort(descending=True, stable=True)[:SOURCES]
    best = best[sources.counts[best] > 0]
    means = sources.values[best] / sources.counts[best, None]
    effects = token_effects(model, means.to(model.device) @ part.W_O(model))
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            *("source", "id", "occurrences", "attention", "own_rank", "own_effect"),
            *("promoted", "promoted_effect", "demoted", "demoted_effect"),
        )
    }
    for id, row in zip(best.tolist(), effects, strict=True):
        sides = [row.topk(min(OF_A_SOURCE, len(row)), largest=largest) for largest in (True, False)]
        cells = (
            *(model.tokenizer.label(id), id, int(sources.counts[id])),
            *(float(sources.attention[id]) / sources.queries, int((row > row[id]).sum()) + 1),
            float(row[id]),
            *(
                part
                for side in sides
                for part in (model.tokenizer.labels(side.indices), side.values.tolist())
            ),
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return Table(
        names.PART_SOURCES,
        columns,
        "Source tokens by the share of the head's attention that they got in the corpus, without "
        "the first position of a window. For each: the mean of what the head takes from it, "
        f"through W_O and the unembedding ({UNIT}, the mean over the vocabulary subtracted); "
        "own_rank is the source token's own among the promoted ones, 1 the first.",
    )


def keep_for_share(model: Model, part: CardPart) -> list[Keep]:
    """The sites that `ledger_share` reads."""
    return [*keep_for_ledger(model), part.site.at(part.layer, last=True)]


def ledger_share(batch: Batch, part: CardPart) -> Grid:
    """The part's row of the ledger: its direct contribution to every contrast.

    Shape:  (contrast, prompt), at each prompt's last position.
    Unit:   logits; the final norm's scale is frozen at its traced value.
    """
    u = final_directions(batch.model, batch.trace, batch.directions)
    about = "its row where the ledger's terms are split by head or neuron."
    if isinstance(part, HeadPart):
        shares = head_shares(batch.model, batch.trace, part.layer, u)[:, part.index]
    elif isinstance(part, NeuronPart):
        shares = neuron_shares(batch.model, batch.trace, part.layer, u)[0][..., part.index]
    else:
        assert isinstance(part, DirectionPart)
        about = "what lies along it at the last token."
        basis = part.basis.to(u)
        held = batch.trace.last((part.site, part.layer)).to(u) @ basis
        shares = ((u @ basis) * held).sum(-1)
    return Grid(
        names.PART_SHARE,
        shares.double().cpu().numpy(),
        (batch.contrast_axis, batch.prompt_axis),
        "logits",
        about=f"The direct contribution of {part.name} to the logit difference: {about}",
    )
