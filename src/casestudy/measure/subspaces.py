"""What does a site hold along a few directions, and what follows if only that is exchanged?

A spot is a site of the residual stream in one layer, at one role's positions. A subspace is spanned
by orthonormal directions U at a spot. `interchange` replaces an activation h by h + U Uᵀ (h' - h),
where h' is the activation of the pair's other prompt, and runs the rest of the model: exactly, as
every patch (see `patching`).

A subspace is stored as one safetensors file: the tensor "direction" (d_model, k), and metadata.
Nothing in such a file is executed, and a file of other weights is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.engine.cells import Cell, Place
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell, pack
from casestudy.engine.readout import Metric
from casestudy.engine.sweep import sweep
from casestudy.errors import MeasureError, SiteError, unknown
from casestudy.measure.pairs import Direction, Pairs, Sides, equal_lengths
from casestudy.measure.patched import Patched, patched
from casestudy.measure.patching import role_place
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site, check_layer
from casestudy.model.tokens import Tokens
from casestudy.results import names
from casestudy.results.files import write_atomically
from casestudy.results.result import Axis

SITES = (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST, Site.ATTN_OUT, Site.MLP_OUT)
"""The sites that have directions of the residual stream."""
MOST = 8
"""The largest rank of a subspace that stands for a behaviour."""
FORMAT = "casestudy direction 1"
TENSOR = "direction"
LAST, ALL = "last", "all"


@dataclass(frozen=True, init=False)
class Spot:
    """A site in one layer, at one role.

    Attributes:
        site: resid_pre, resid_mid, resid_post, attn_out or mlp_out.
        layer: its index.
        role: a role's name; "last" is the last token, "all" every position.

    Raises: SiteError for another site.
    """

    site: Site
    layer: int
    role: str

    def __init__(self, site: Site | str, layer: int, role: str = LAST) -> None:
        if Site(site) not in SITES:
            allowed = ", ".join(one.value for one in SITES)
            raise SiteError(f"a direction at {Site(site).value}", allowed=allowed)
        for name, value in (("site", Site(site)), ("layer", layer), ("role", role)):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.site.value} of layer {self.layer} at {self.role}"

    def check(self, model: Model) -> None:
        """Raises: SiteError for a layer the model lacks."""
        check_layer(self.layer, model.config.n_layers)

    def place(self, sides: Sides) -> Place:
        """Its positions in every pair; none where a prompt lacks the role.

        Raises: MeasureError for a role that no prompt has, and for "all" of unequal lengths.
        """
        if self.role == LAST:
            return Place.last(sides.base, sides.source)
        if self.role == ALL:
            equal_lengths(sides.base, sides.source, "every position", sides.about)
            return Place.everywhere(sides.base)
        ours, theirs = sides.base_roles or (), sides.source_roles or ()
        known = sorted({name for row in ours for name, where in row.items() if where})
        if self.role not in known:
            described = [LAST, ALL, *known]
            raise unknown(MeasureError, f"no prompt has {self.role!r}", self.role, described)
        return role_place(self.role, ours, theirs)


@dataclass(frozen=True, eq=False)
class Subspace:
    """Orthonormal directions at a spot.

    Attributes:
        directions: (d_model, k), float64.
        spot: where they were found.
        method: how.
        model, weight_hash: whose activations they are directions of.
    """

    directions: Float[Tensor, "d_model k"]
    spot: Spot
    method: str
    model: str
    weight_hash: str

    @property
    def rank(self) -> int:
        """The number of directions."""
        return self.directions.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors, completely or not at all.

        Raises: StudyError when the disk is full or the folder cannot be written.
        """
        metadata = {
            "format": FORMAT,
            "site": self.spot.site.value,
            "layer": str(self.spot.layer),
            "role": self.spot.role,
            "method": self.method,
            "model": self.model,
            "weight_hash": self.weight_hash,
        }
        write_atomically(Path(path), save({TENSOR: self.directions.contiguous()}, metadata))


def load_direction(model: Model, path: str | os.PathLike[str]) -> Subspace:
    """Read a subspace that `Subspace.save` wrote for this model.

    Raises: MeasureError for a file that is none, directions of another width, with NaN or not
        orthonormal, and for other weights than the model's; SiteError for a spot it lacks.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            found = file.get_tensor(TENSOR) if TENSOR in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MeasureError(f"{path} cannot be read: {error}", allowed=_FILE) from error
    wanted = ("site", "layer", "role", "method", "model", "weight_hash")
    if found is None or about.get("format") != FORMAT or not all(key in about for key in wanted):
        raise MeasureError(f"{path} holds no direction", allowed=_FILE)
    if about["weight_hash"] != model.weight_hash:
        theirs = f"{about['model']}, weights {about['weight_hash'][:12]}"
        raise MeasureError(
            f"{path} is a direction of {theirs}",
            allowed=f"{model.name}'s, weights {model.weight_hash[:12]}",
        )
    if not about["layer"].isdigit():
        raise MeasureError(f"{path} is a direction of layer {about['layer']!r}", allowed="a number")
    spot = Spot(about["site"], int(about["layer"]), about["role"])
    spot.check(model)
    check_directions(model, found)
    return Subspace(found.double(), spot, about["method"], about["model"], about["weight_hash"])


_FILE = "a .safetensors file that `casestudy direction` wrote"


def check_directions(model: Model, directions: Tensor) -> None:
    """Raises: MeasureError for another width or rank, NaN, and columns that are not orthonormal."""
    width, shape = model.config.d_model, tuple(directions.shape)
    if directions.ndim != 2 or shape[0] != width or not 1 <= shape[1] <= min(MOST, width):
        raise MeasureError(
            f"directions of shape {shape}", allowed=f"({width}, k), k from 1 to {min(MOST, width)}"
        )
    if not torch.isfinite(directions).all():
        raise MeasureError("a direction with NaN or infinity")
    u = directions.double()
    if not torch.allclose(u.T @ u, torch.eye(shape[1], dtype=u.dtype), atol=1e-4):
        raise MeasureError("directions that are not orthonormal", hint="Take the Q of their QR")


def check_rank(model: Model, rank: int) -> None:
    """Raises: MeasureError for a rank out of range."""
    most = min(MOST, model.config.d_model)
    if not 1 <= rank <= most:
        raise MeasureError(f"rank {rank}", allowed=f"1 to {most}")


def spot_values(
    model: Model,
    tokens: Tokens,
    spot: Spot,
    positions: Sequence[Sequence[int]],
    memory: int = DEFAULT_BUDGET.memory,
) -> list[Float[Tensor, "position d_model"]]:
    """Each prompt's activations at its positions."""
    config = model.config
    row = 4 * (config.d_model + config.d_mlp) * model.weights.W_E.element_size()
    batches = pack(tokens.lengths.tolist(), fits=lambda n, longest, _: n * longest * row <= memory)
    values: dict[int, Tensor] = {}
    for batch in batches:
        trace = run(model, tokens[batch], keep=spot.site.at([spot.layer]))
        for i, kept in zip(batch, trace[spot.site, spot.layer], strict=True):
            values[i] = kept[list(positions[i])]
    return [values[i] for i in range(len(tokens))]


def differences(
    model: Model, pairs: Pairs, spot: Spot, memory: int = DEFAULT_BUDGET.memory
) -> Float[Tensor, "pair d_model"]:
    """Clean minus corrupted activation of the pairs that have the role, a mean over its positions.

    Raises: MeasureError if they are the same in every pair, as before the first token that differs.
    """
    sides = pairs.sides("noising")
    place = spot.place(sides)
    clean, corrupted = (
        spot_values(model, tokens, spot, positions, memory)
        for tokens, positions in ((pairs.clean, place.base), (pairs.corrupted, place.source))
    )
    each = [(a - b).double().mean(0) for a, b in zip(clean, corrupted, strict=True) if len(a)]
    found = torch.stack(each).cpu()
    if not float(found.norm()) > 0:
        raise MeasureError(
            f"clean and corrupted prompts have the same {spot}",
            hint="Choose a role from the first token on that differs",
        )
    return found


def orthonormal(columns: Float[Tensor, "d_model k"]) -> Float[Tensor, "d_model k"]:
    """An orthonormal basis of their span, in float64, with the first along the first column."""
    q, r = torch.linalg.qr(columns.double())
    basis: Tensor = q * r.diagonal().sign()
    return basis


def random_directions(width: int, rank: int, generator: torch.Generator) -> Tensor:
    """(width, rank) orthonormal, uniformly distributed."""
    return orthonormal(torch.randn(width, rank, generator=generator, dtype=torch.float64))


def interchange(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    subspaces: Sequence[Float[Tensor, "d_model k"] | None],
    spot: Spot,
    *,
    direction: Direction = "denoising",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Patched:
    """Exchange what a spot holds in each of some subspaces between the runs of every pair.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts.
        contrast: a contrast, or a function of the last token's logits.
        subspaces: orthonormal columns each; None is the whole spot.
        spot: where.
        direction: as in `patch`.
        budget: memory, checks.
        progress: called after each batch of cells.

    Shape:  raw (subspace, prompt); NaN in pairs without the role.
    Unit:   the metric's.
    Error:  as `patch`.
    Raises: as `patch`; MeasureError, SiteError for directions or a spot that the model lacks.
    Source: Geiger et al. 2021, "Causal abstractions of neural networks" (interchange).
    """
    spot.check(model)
    for one in subspaces:
        if one is not None:
            check_directions(model, one)
    sides = pairs.sides(direction)
    place = spot.place(sides)
    bases = [None if one is None else one.to(model.device, model.dtype) for one in subspaces]
    cells = [Cell(spot.site, spot.layer, place, subspace=basis) for basis in bases]
    found = sweep(
        model, sides.base, sides.source, cells, contrast, budget=budget, progress=progress
    )
    about = f"{direction.capitalize()}: {spot} exchanged between the runs, along some directions."
    axes = (Axis.count("subspace", len(cells)),)
    return patched(found, names.DIRECTION_INTERCHANGE, about, axes, pairs.labels, contrast)
