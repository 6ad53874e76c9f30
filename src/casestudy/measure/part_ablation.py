"""What is a part needed for: this behaviour, or every text?

The part's output is replaced at every position: by zero, by its mean, or by what it is elsewhere
(resampled), and everything after it is computed again. On a behaviour's prompts the contrast is
measured (an engine's sweep, checked against full forward passes); on a sample of the corpus's
windows the next-token loss at every position.

    zero      zero
    mean      on prompts the mean over the prompts at the same role or position (see `means`), and
              where there is a corpus its mean over that as well; on the corpus its mean over all
              positions after the first of a window, and over the first
    resample  on prompts the output in another prompt, at the same distance from the end (the first
              position from the first); on the corpus the output in another window, at the same
              position

A donor that is shorter gives its second position again: on the corpus, all from the second on.
Exact: nothing is linearised. Cost: on prompts three patched runs each; on the corpus the layers
from the part's on, four times for each sampled window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.windows import Window
from casestudy.engine.cells import Place
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell
from casestudy.engine.sweep import sweep
from casestudy.measure.means import mean_values
from casestudy.measure.pairs import Roles
from casestudy.measure.part_activity import AT_ONCE, Activity
from casestudy.measure.parts import CardPart
from casestudy.measure.patching import donors
from casestudy.model.decoder import run, unembed
from casestudy.model.edits import Edit
from casestudy.model.layers import from_stream, layers_of
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid, Table
from casestudy.results.stats import Sums

KINDS = ("zero", "mean", "resample")
"""The replacements of a part's output."""


def ablate_on_prompts(
    model: Model,
    part: CardPart,
    tokens: Tokens,
    contrast: Contrast,
    *,
    roles: Roles | None = None,
    labels: Sequence[str],
    found: Activity | None = None,
    budget: Budget = DEFAULT_BUDGET,
) -> Grid:
    """The change of a contrast from ablating the part at every position.

    Args:
        model: the decoder.
        part: of it.
        tokens: the prompts.
        contrast: one row per prompt.
        roles: each prompt's positions by role, for the mean.
        labels: of the prompts.
        found: of a corpus, for the mean over it.
        budget: memory, checks, the seed of the donors.

    Shape:  (kind, prompt): "zero", "mean", "resample" from two prompts on, and with a corpus
            "corpus mean".
    Unit:   logits.
    Error:  `gap` is the largest difference to full forward passes in a sample.
    """
    layer, site = part.layer, part.site
    output = part.output(run(model, tokens, keep=[site.at(layer)], logits="last"))
    values = {"zero": torch.zeros_like(output), "mean": _means(model, part, tokens, roles, output)}
    lengths = tokens.lengths.tolist()
    if len(lengths) > 1:
        values["resample"] = torch.zeros_like(output)
        for row, donor in enumerate(donors(len(lengths), budget.seed)):
            own = lengths[row]
            places = [_same_from_the_end(p, own, lengths[donor]) for p in range(own)]
            values["resample"][row, :own] = output[donor, places]
    if found is not None:
        values["corpus mean"] = torch.stack([_corpus_mean(found, row) for row in output])
    place = Place.everywhere(tokens)
    cells = [part.cell(place, one) for one in values.values()]
    swept = sweep(model, tokens, None, cells, contrast, budget=budget)
    return Grid(
        names.PART_ABLATION,
        swept.values - swept.base[None],
        (Axis("kind", tuple(values)), Axis("prompt", tuple(labels))),
        "logits",
        error={key: swept.error[key] for key in ("gap", "bound") if key in swept.error},
        about=f"The change of the logit difference where the output of {part.name} is replaced at "
        "every position: by zero, by its mean over the prompts at the same role or position, by "
        "its output in another prompt, or by its mean over the corpus.",
    )


def _means(
    model: Model, part: CardPart, tokens: Tokens, roles: Roles | None, output: Tensor
) -> Tensor:
    """(batch, pos, …) the mean output over the prompts at each token's role or position."""
    values = mean_values(model, part.site, [part.layer], tokens, roles, tokens, roles)
    rows, positions = tokens.mask.nonzero(as_tuple=True)
    found = torch.zeros_like(output)
    found[rows, positions] = part.taken(values(part.site, part.layer, rows, positions))
    return found


def _same_from_the_end(position: int, length: int, other: int) -> int:
    """The position of another prompt that is as far from the end; of the first, the first."""
    if position == 0:
        return 0
    return max(other - length + position, min(1, other - 1))


# Next-token loss


def ablate_on_corpus(
    model: Model,
    found: Activity,
    *,
    seed: int = 0,
    progress: Tell | None = None,
) -> Table:
    """The change of the next-token loss in the sampled windows from ablating the part.

    Rows:   one per kind ("resample" from two windows on): the loss of the model as it is, the
            change and its 95 % interval, with the number of predicted tokens and of units
            (documents or windows) resampled.
    Unit:   nats per token.
    """
    part = found.part
    chosen = [(number, window) for _, number, window in sorted(found.chosen, key=lambda c: c[1])]
    units, of, _ = found.units()
    sample = _Sample(model, found, [window for _, window in chosen], seed)
    kinds = KINDS if len(chosen) > 1 else KINDS[:2]
    losses: list[Array] = []
    values: list[Array] = []
    where: list[Array] = []
    with torch.no_grad():
        for batch in sample.batches():
            clean = sample.losses(batch, None)
            changed = [sample.losses(batch, kind) - clean for kind in kinds]
            losses.append(clean)
            values.append(np.column_stack(changed))
            counts = [len(chosen[i][1].ids) - 1 for i in batch]
            where.append(np.repeat(units[[chosen[i][0] for i in batch]], counts))
            if progress:
                progress(Progress("next-token loss", batch[-1] + 1, len(chosen)))
    unit = np.concatenate(where)
    sums = Sums(int(unit.max()) + 1, len(kinds))
    sums.add(np.concatenate(values), unit)
    mean, lower, upper, n = sums.interval(seed=seed)
    return Table(
        names.PART_LOSS,
        {
            "kind": list(kinds),
            "loss": [float(np.concatenate(losses).mean())] * len(kinds),
            "difference": mean.tolist(),
            "lower": [_absent(x) for x in lower.tolist()],
            "upper": [_absent(x) for x in upper.tolist()],
            "n": n.tolist(),
            "units": [len(np.unique(unit))] * len(kinds),
        },
        f"The change of the next-token loss, in nats per token, where the output of {part.name} is "
        f"replaced at every position of {len(chosen):,} windows drawn from the corpus; the "
        f"interval resamples {of}.",
    )


def _corpus_mean(found: Activity, output: Float[Tensor, "pos ..."]) -> Tensor:
    """(pos, …) the part's mean output over the corpus, at the first position its mean there."""
    assert found.mean_output is not None
    assert found.first_output is not None
    values = found.mean_output.to(output).expand_as(output).clone()
    values[0] = found.first_output.to(output)
    return values


def _absent(value: float) -> float | None:
    return None if math.isnan(value) else value


class _Sample:
    """Windows whose run up to the part's layer is kept, so that only what follows is repeated."""

    def __init__(self, model: Model, found: Activity, windows: list[Window], seed: int) -> None:
        self.model, self.found, self.part, self.windows = model, found, found.part, windows
        n_layers = model.config.n_layers
        self.above = layers_of(model, self.part.layer, n_layers)
        self.donors = donors(len(windows), seed) if len(windows) > 1 else []
        below = layers_of(model, 0, self.part.layer + 1)
        keep = [site.at(self.part.layer) for site in (Site.RESID_PRE, self.part.site)]
        self.streams: list[Tensor] = []
        self.outputs: list[Tensor] = []
        with torch.no_grad():
            for batch in self.batches():
                trace = run(below, self.tokens(batch), keep=keep)
                output = self.part.output(trace)
                for row, i in enumerate(batch):
                    own = slice(0, len(windows[i].ids))
                    stream = trace[Site.RESID_PRE, self.part.layer]
                    self.streams.append(stream[row, own].clone())
                    self.outputs.append(output[row, own].clone())

    def batches(self) -> Iterator[list[int]]:
        """Windows that are run together."""
        size = max(1, AT_ONCE // max(len(window.ids) for window in self.windows))
        for start in range(0, len(self.windows), size):
            yield list(range(start, min(start + size, len(self.windows))))

    def tokens(self, batch: list[int]) -> Tokens:
        """Of some windows."""
        return Tokens.of([self.windows[i].ids for i in batch]).to(self.model.device)

    def losses(self, batch: list[int], kind: str | None) -> Array:
        """Each next token's loss, window after window; of the model as it is without a kind."""
        tokens = self.tokens(batch)
        width = tokens.ids.shape[1]
        edits = [from_stream(_padded([self.streams[i] for i in batch], width))]
        if kind is not None:
            values = _padded([self.replacement(i, kind) for i in batch], width)
            edits.append(replaced(self.part, values))
        trace = run(self.above, tokens, keep=[Site.FINAL_NORMED], edit=edits)
        mask = tokens.mask.clone()
        mask[:, 0] = False
        targets = tokens.ids[mask]
        normed = trace[Site.FINAL_NORMED][:, :-1][mask[:, 1:]]
        size = max(1, (32 << 20) // (self.model.config.d_vocab * normed.element_size()))
        found = [
            F.cross_entropy(
                unembed(self.model.config, self.model.weights, rows).float(), ids, reduction="none"
            )
            for rows, ids in zip(normed.split(size), targets.split(size), strict=True)
        ]
        return torch.cat(found).double().cpu().numpy()

    def replacement(self, i: int, kind: str) -> Tensor:
        """(pos, …) what a window's output is replaced by."""
        own = self.outputs[i]
        if kind == "zero":
            return torch.zeros_like(own)
        if kind == "mean":
            return _corpus_mean(self.found, own)
        donor = self.outputs[self.donors[i]]
        # a shorter donor is read again from its second position on
        again = max(1, len(donor) - 1)
        places = [p if p < len(donor) else 1 + (p - 1) % again for p in range(len(own))]
        return donor[places]


def _padded(rows: Sequence[Float[Tensor, "pos ..."]], width: int) -> Tensor:
    """Rows of unequal length as one tensor, zero where there is padding."""
    found = rows[0].new_zeros(len(rows), width, *rows[0].shape[1:])
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def replaced(part: CardPart, values: Tensor) -> Edit:
    """The edit that replaces the part's output, in a run that begins with the part's layer."""

    return Edit(part.site, 0, lambda x: part.put(x, values))
