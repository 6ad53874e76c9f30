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
from casestudy.model.sites import Site

Index = int | slice | Tensor | Sequence[int]
EVERYTHING = slice(None)


@dataclass(frozen=True)
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

        `value` broadcasts against the chosen part. `pos` is the query position where the site has
        two. Index sequences along two axes choose their outer product.
        """
        site = Site(site)

        def put(x: Tensor) -> Tensor:
            chosen = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
            view = chosen
            mask = torch.ones((), dtype=torch.bool, device=x.device)
            for axis, index in (("batch", batch), ("pos", pos), ("head", head)):
                if isinstance(index, slice) and index == EVERYTHING:
                    continue
                dim = _axis(site, axis)
                along = torch.zeros(x.shape[dim], dtype=torch.bool, device=x.device)
                along[index] = True
                shape = [1] * x.ndim
                shape[dim] = -1
                mask = mask & along.view(shape)
            view |= mask
            full = torch.as_tensor(value, dtype=x.dtype, device=x.device)
            return torch.where(chosen, full.expand_as(x), x)

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


def apply_edits(edits: Sequence[Edit], x: Tensor) -> Tensor:
    """Run the edits of one site in order.

    Raises: EditError when one returns another shape, naming the site and both shapes.
    """
    for edit in edits:
        new = edit.function(x)
        if not isinstance(new, Tensor) or new.shape != x.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            where = edit.site.value if edit.layer is None else f"{edit.site.value}, layer {edit.layer}"
            raise EditError(
                f"the edit at {where} returned {got}",
                allowed=f"a tensor of shape {tuple(x.shape)}, axes {' '.join(edit.site.axes)}",
            )
        x = new
    return x
