"""Which k directions of a spot carry a behaviour from one run to the other?

Distributed alignment search (DAS): orthonormal directions U are trained so that exchanging U Uᵀ h
between the runs of a pair gives the other run's metric. The loss is the mean over pairs and over
both ways of exchange of

    ((m(base with U Uᵀ of the source) - m(source)) / σ)²,   σ² = mean (m(clean) - m(corrupted))²

which needs a metric with a gradient and no label; Geiger et al. take the cross-entropy of the
source's label. U is the Q of a QR decomposition; steps are Adam's, over pairs in random order, and
the step size falls linearly to zero.

Trained directions can carry a behaviour that the model does not keep there: where a component that
varies but has no effect is combined with one that has an effect but does not vary (Makelov et al.
2023, arXiv 2311.17030). The held-out pairs do not exclude that; compare with the difference of
means. The loss has local minima: another seed may give other directions.

Cost: each step two forward passes of `BATCH` pairs, and a backward pass down to the spot.
Source: Geiger et al. 2024, arXiv 2303.02536, "Finding Alignments Between Interpretable Causal
Variables and Distributed Neural Representations".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell
from casestudy.engine.readout import Metric, Readout
from casestudy.errors import MeasureError
from casestudy.measure.attribution_patching import read_last
from casestudy.measure.metrics import rows_of
from casestudy.measure.pairs import Direction, Pairs
from casestudy.measure.subspaces import Spot, check_rank, orthonormal, spot_values
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens

BATCH = 16
"""Pairs in one step."""
MOST_STEPS = 10_000
BOTH: tuple[Direction, Direction] = ("denoising", "noising")


@dataclass(frozen=True)
class Training:
    """The settings of the training.

    Attributes:
        steps: how many.
        rate: the size of the first step, about the angle in radians that it turns a direction by.
        seed: of the first directions and of the order of the pairs.
    """

    steps: int = 100
    rate: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise MeasureError(f"{self.steps:,} steps", allowed=f"1 to {MOST_STEPS:,}")
        if not 0 < self.rate <= 1:
            raise MeasureError(f"a rate of {self.rate:g}", allowed="above 0, at most 1")


@dataclass(frozen=True)
class _Side:
    """One way of exchange: what is run, what is put in, and the metric it should have."""

    base: Tokens
    positions: Sequence[Sequence[int]]
    values: Sequence[Tensor]
    target: Float[Tensor, " prompt"]

    def edit(self, spot: Spot, some: list[int], u: Tensor) -> Edit:
        """Exchange the component along u in some of the prompts."""
        rows = [i for i, n in enumerate(some) for _ in self.positions[n]]
        where = [position for n in some for position in self.positions[n]]
        new = torch.cat([self.values[n] for n in some])

        def put(x: Tensor) -> Tensor:
            x = x.detach()  # nothing before the spot depends on u
            old = x[rows, where]
            at = (torch.tensor(rows, device=x.device), torch.tensor(where, device=x.device))
            return x.index_put(at, old + (new - old) @ u @ u.T)

        return Edit(spot.site, spot.layer, put)


def train_directions(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    spot: Spot,
    *,
    rank: int = 1,
    training: Training | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Float[Tensor, "d_model k"]:
    """Train the directions of a spot that carry the metric; see the module.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts.
        contrast: a contrast, or a function of the last token's logits with a gradient.
        spot: where; every pair has its role.
        rank: the number of directions, 1 to 8.
        training: see `Training`.
        budget: memory, for the activations that are exchanged.
        progress: called after every step.

    Shape:  orthonormal columns, float64.
    Raises: MeasureError for a rank out of range, a metric without a gradient, or one that is the
        same in both runs of every pair.
    """
    training = Training() if training is None else training
    check_rank(model, rank)
    spot.check(model)
    sides = [_side(model, pairs, contrast, spot, way, budget) for way in BOTH]
    variance = float((sides[0].target - sides[1].target).square().mean())
    if not variance > 0:
        raise MeasureError("the metric is the same in both runs of every pair")
    generator = torch.Generator().manual_seed(training.seed)
    width = model.config.d_model
    start = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    free = orthonormal(start).to(model.device).requires_grad_()
    adam = torch.optim.Adam([free], lr=training.rate / width**0.5)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, training.steps)
    batches = _batches(len(pairs), generator)
    for step in range(training.steps):
        some = next(batches)
        u = orthonormal(free).to(model.dtype)
        losses = [_loss(model, contrast, spot, side, some, u) for side in sides]
        loss = torch.stack(losses).mean() / variance
        (free.grad,) = torch.autograd.grad(loss, [free])
        adam.step()
        falling.step()
        with torch.no_grad():  # columns stay of length 1, so that `rate` stays an angle
            free.copy_(orthonormal(free))
        if progress is not None:
            progress(Progress("training", step + 1, training.steps, note=f"loss {loss.item():.3g}"))
    return orthonormal(free.detach()).cpu()


def _side(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    spot: Spot,
    way: Direction,
    budget: Budget,
) -> _Side:
    sides = pairs.sides(way)
    place = spot.place(sides)
    values = spot_values(model, sides.source, spot, place.source, budget.memory)
    everything = list(range(len(pairs)))
    batches = [everything[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
    metric = [_metric(model, contrast, sides.source, some) for some in batches]
    return _Side(sides.base, place.base, values, torch.cat(metric))


def _metric(
    model: Model,
    contrast: Contrast | Metric,
    tokens: Tokens,
    some: list[int],
    edits: Sequence[Edit] = (),
) -> Float[Tensor, " prompt"]:
    """Of some prompts; with a gradient if they are edited."""
    keep = Site.FINAL_RESID.at(last=True)
    trace = run(model, tokens[some], keep=keep, edit=edits, grad=bool(edits))
    return read_last(Readout(model, rows_of(contrast, some), len(some)), model, trace)


def _loss(
    model: Model,
    contrast: Contrast | Metric,
    spot: Spot,
    side: _Side,
    some: list[int],
    u: Float[Tensor, "d_model k"],
) -> Float[Tensor, ""]:
    """Mean squared distance from the source's metric."""
    values = _metric(model, contrast, side.base, some, [side.edit(spot, some, u)])
    return (values - side.target[some]).square().mean()


def _batches(n: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Pairs in random order, without end; all of them if they fit."""
    while True:
        order = torch.randperm(n, generator=generator).tolist()
        for first in range(0, n, BATCH):
            yield sorted(order[first : first + BATCH])
