"""What is changed while a model runs?

An `Edit` is a value passed to one run: a site, a layer and a function from the activation to its
replacement. Nothing is registered on the model, and nothing remains after the run. Edits of one
site apply in the order given; a run keeps activations as they are after the edits.
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
            _axis(site, axis): _along(axis, index)
            for axis, index in chosen.items()
            if not (isinstance(index, slice) and index == EVERYTHING)
        }
        if _counts_from_the_end(pos):
            raise EditError(
                f"pos {pos!r} counts from the end, where prompts of unequal length are padded",
                allowed="positions from 0",
            )
        _check_value(site, value)

        def put(x: Tensor) -> Tensor:
            mask = torch.ones((), dtype=torch.bool, device=x.device)
            for dim, index in where.items():
                along = torch.zeros(x.shape[dim], dtype=torch.bool, device=x.device)
                try:
                    along[index] = True
                except IndexError as error:
                    raise EditError(
                        f"index {_listed(index)} along {site.axes[dim]} of {site.value}",
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


def _along(axis: str, index: object) -> slice | Tensor:
    """An index along one axis, however it was given: a tuple alone would index several axes.

    Raises: EditError for what is no index.
    """
    if isinstance(index, slice):
        return index
    try:
        numbers = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:  # as torch has it, by what came
        raise EditError(f"{axis} {index!r}", allowed=_INDEX) from error
    numbers = numbers if numbers.numel() else numbers.long()
    if numbers.ndim > 1 or numbers.is_floating_point():
        raise EditError(f"{axis} {index!r}", allowed=_INDEX)
    return numbers


_INDEX = "a whole number, several (list, tuple, array, tensor), a slice, or True and False for each"


def _listed(index: slice | Tensor) -> object:
    return index.tolist() if isinstance(index, Tensor) else index


def _check_value(site: Site, value: object) -> None:
    """Raises: EditError for what is neither a number nor an array of numbers."""
    try:
        torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EditError(
            f"a {type(value).__name__} as the value of {site.value}", allowed="a number or a tensor"
        ) from error


def _counts_from_the_end(index: object) -> bool:
    if isinstance(index, slice):
        return any(end is not None and end < 0 for end in (index.start, index.stop))
    numbers = _along("pos", index)
    return isinstance(numbers, Tensor) and numbers.dtype != torch.bool and bool((numbers < 0).any())


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
