"""The hook points on which a notebook registers functions.

A `HookPoint` has the functions registered for one activation, forward and backward, until they are
removed. Before each run the model turns these functions into edits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse, refuse_import
from casestudy.compat.transformer_lens.names import Name, Row
from casestudy.errors import EditError
from casestudy.model.sites import Site

HookFunction = Callable[..., Any]
_DIRECTIONS = ("fwd", "bwd")


@dataclass(frozen=True, eq=False)
class Hook:
    """One function at one point.

    Attributes:
        function: called as `function(activation, hook=point)`; backward, with the gradient.
        level: the context it was added in; None outside of any.
    """

    function: HookFunction
    is_permanent: bool = False
    level: int | None = None


class HookPoint:
    """An activation's name, and the hooks registered on it.

    Attributes:
        ctx: a dictionary that hooks may use; emptied by `model.reset_hooks()`.
        fwd_hooks, bwd_hooks: in the order they are called.
    """

    def __init__(self, name: Name, changed: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._changed = changed
        self.name = name.text
        self.ctx: dict[Any, Any] = {}
        self.fwd_hooks: list[Hook] = []
        self.bwd_hooks: list[Hook] = []

    @property
    def row(self) -> Row:
        """Its row of the translation table."""
        return self._name.row

    @property
    def site(self) -> Site:
        """Its site in casestudy."""
        return self._name.site

    def layer(self) -> int:
        """The layer in the name.

        Raises: NotSupported if the activation belongs to no layer.
        """
        if self._name.layer is None:
            raise refuse(f"layer() of {self.name}", "It exists once, outside of the layers")
        return self._name.layer

    def add_hook(
        self,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Register a function on the activation ("fwd") or on its gradient ("bwd")."""
        held = self._held(dir)
        held.insert(0 if prepend else len(held), Hook(hook, is_permanent, level))
        self._changed()

    def add_perma_hook(self, hook: HookFunction, dir: str = "fwd") -> None:
        """Register a function that `reset_hooks()` does not remove."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove functions: all of them, or those of one context level."""
        for direction in _DIRECTIONS if dir == "both" else (dir,):
            held = self._held(direction)
            held[:] = [
                hook
                for hook in held
                if not including_permanent
                and (hook.is_permanent or (level is not None and hook.level != level))
            ]
        self._changed()

    def has_hooks(self, dir: str = "both") -> bool:
        """Whether any function is registered."""
        if dir == "both":
            return bool(self.fwd_hooks or self.bwd_hooks)
        return bool(self._held(dir))

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx.clear()

    def __repr__(self) -> str:
        return f"HookPoint({self.name}, {len(self.fwd_hooks)} fwd, {len(self.bwd_hooks)} bwd)"

    def _held(self, dir: str) -> list[Hook]:
        if dir not in _DIRECTIONS:
            raise refuse(f"the hook direction {dir!r}", "It is 'fwd' or 'bwd'")
        return self.fwd_hooks if dir == "fwd" else self.bwd_hooks


def run_forward(point: HookPoint, x: Tensor) -> Tensor:
    """An activation after a point's forward hooks.

    Each hook gets a copy that it may change in place; if it returns nothing, the copy is used.

    Raises: EditError for a replacement of another shape, with the hook's name and both shapes.
    """
    for hook in point.fwd_hooks:
        given = x.clone()
        new = hook.function(given, hook=point)
        x = check_replacement(point, given if new is None else new, x)
    return x


def check_replacement(point: HookPoint, new: object, old: Tensor) -> Tensor:
    """The replacement itself.

    Raises: EditError if it is not a tensor, or has another shape or number format.
    """
    if isinstance(new, Tensor) and new.shape == old.shape and new.dtype == old.dtype:
        return new
    came = (
        f"a tensor of shape {tuple(new.shape)}, {new.dtype}"
        if isinstance(new, Tensor)
        else f"a {type(new).__name__}"
    )
    raise EditError(
        f"a hook on {point.name} (site {point.site.value}) returned {came}",
        allowed=f"a tensor of shape {tuple(old.shape)}, {old.dtype}, "
        f"axes {point.row.axes}; or nothing",
    )


def run_backward(point: HookPoint, gradient: Tensor) -> Tensor | None:
    """A gradient after a point's backward hooks; None if unchanged."""
    changed = False
    for hook in point.bwd_hooks:
        given = gradient.clone()
        new = hook.function(given, hook=point)
        if new is not None:
            # a backward hook of torch's returns a tuple of gradients, here of one
            new = new[0] if isinstance(new, tuple) and len(new) == 1 else new
            gradient, changed = check_replacement(point, new, gradient), True
    return gradient if changed else None


def __getattr__(name: str) -> Any:
    if name == "HookedRootModule":
        instead = "Models are casestudy's own: load one, and hook that"
        raise refuse_import("hook_points", name, instead)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
