"""What is changed while a model runs?

An `Edit` is a value handed to one run: a site, a layer and a function from the activation to its
replacement. Nothing is registered on the model and nothing is left behind. Edits of one site apply
in the order given; what is kept is what the rest of the model saw, after the edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from casestudy.errors import EditError
from casestudy.model.sites import Site, address_name

Index = int | slice | Tensor | Sequence[int]
EVERYTHING = slice(None)


@dataclass(frozen=True, init=False)
class Edit:
    """Replace the activation at one site of one layer by a function of it.

    Attributes:
        site: where.
        layer: in which layer; None for the sites that exist once.
        function: receives the activation (axes as `site.axes`) and returns its replacement, of the
            same shape. The activation itself must not be changed in place: return a new tensor.
    """

    site: Site
    layer: int | None
    function: Callable[[Tensor], Tensor]

    def __init__(
        self, site: Site | str, layer: int | None, function: Callable[[Tensor], Tensor]
    ) -> None:
        for name, value in (("site", Site(site)), ("layer", layer), ("function", function)):
            object.__setattr__(self, name, value)

    @classmethod
    def replace(
        cls,
        site: Site | str,
        layer: int | None,
        value: Tensor | float,
        *,
        batch: Index = EVERYTHING,
        pos: Index = EVERYTHING,
        head: Index = EVERYTHING,
    ) -> Edit:
        """Put `value` at the chosen prompts, positions and heads, and leave the rest.

        `value` broadcasts against the whole activation, so that another run's can be handed over as
        it is. `pos` counts from the prompts' start (their ends differ) and is the query position
        where the site has two. Index sequences along two axes choose their outer product.

        Raises: EditError for an axis that the site does not have; while running, for an index or a
        value that does not fit the activation.
        """
        site = Site(site)
        chosen = {"batch": batch, "pos": pos, "head": head}
        where = {
            _axis(site, axis): index
            for axis, index in chosen.items()
            if not (isinstance(index, slice) and index == EVERYTHING)
        }
        if _counts_from_the_end(pos):
            raise EditError(
                f"pos {pos!r} counts from the end, where prompts of unequal length are padded",
                allowed="positions from 0",
            )

        def put(x: Tensor) -> Tensor:
            mask = torch.ones((), dtype=torch.bool, device=x.device)
            for dim, index in where.items():
                along = torch.zeros(x.shape[dim], dtype=torch.bool, device=x.device)
                try:
                    # a tuple would index several axes, where positions along one are meant
                    along[list(index) if isinstance(index, tuple) else index] = True
                except IndexError as error:
                    raise EditError(
                        f"index {index} along {site.axes[dim]} of {site.value}",
                        allowed=f"0 to {x.shape[dim] - 1}",
                    ) from error
                mask = mask & along.view([-1 if i == dim else 1 for i in range(x.ndim)])
            new = torch.as_tensor(value, dtype=x.dtype, device=x.device)
            try:
                return torch.where(mask, new.expand_as(x), x)
            except RuntimeError as error:
                raise EditError(
                    f"a value of shape {tuple(new.shape)} for {site.value}",
                    allowed=f"what broadcasts to {tuple(x.shape)}, axes {' '.join(site.axes)}",
                ) from error

        return cls(site, layer, put)

    @classmethod
    def zero(cls, site: Site | str, layer: int | None, **where: Index) -> Edit:
        """Set the chosen part to zero."""
        return cls.replace(site, layer, 0.0, **where)

    @classmethod
    def add(cls, site: Site | str, layer: int | None, vector: Tensor) -> Edit:
        """Add `vector`, which broadcasts against the activation."""
        return cls(Site(site), layer, lambda x: x + vector.to(x))


def _axis(site: Site, axis: str) -> int:
    names = {"pos": ("pos", "query_pos"), "head": ("head", "kv_head")}.get(axis, (axis,))
    for name in names:
        if name in site.axes:
            return site.axes.index(name)
    raise EditError(f"{site.value} has no axis {axis}", allowed=", ".join(site.axes))


def _counts_from_the_end(index: Index) -> bool:
    if isinstance(index, slice):
        return any(end is not None and end < 0 for end in (index.start, index.stop))
    numbers = torch.as_tensor(index)
    return numbers.dtype != torch.bool and bool((numbers < 0).any())


def apply_edits(edits: Sequence[Edit], x: Tensor) -> Tensor:
    """Run the edits of one site in order.

    Raises: EditError when one returns another shape or number format, naming the site and both.
    """
    for edit in edits:
        new = edit.function(x)
        if not isinstance(new, Tensor) or new.shape != x.shape or new.dtype != x.dtype:
            raise EditError(
                f"the edit at {address_name(edit.site, edit.layer)} returned {_described(new)}",
                allowed=f"{_described(x)}, axes {' '.join(edit.site.axes)}",
            )
        x = new
    return x


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__
