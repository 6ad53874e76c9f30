"""How does a notebook register functions on activations?

The part of `HookedTransformer` that keeps hooks: registered for good, or for the length of a `with`
block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from casestudy.compat.transformer_lens.config import HookedTransformerConfig
from casestudy.compat.transformer_lens.hook_points import HookFunction, HookPoint
from casestudy.compat.transformer_lens.names import DOCS, Name, choose, look_up
from casestudy.errors import SiteError

H = TypeVar("H", bound="Hooked")
Hooks = Sequence[tuple[str | Callable[[str], bool], HookFunction]]


class Hooked:
    """Hook points and what is registered on them.

    Attributes:
        cfg: decides which activations are computed by default.
        hook_dict: every hook point, by name.
    """

    cfg: HookedTransformerConfig
    hook_dict: dict[str, HookPoint]
    _names: dict[str, Name]
    _level: int
    _grad_before: bool | None

    def _hook_up(self, names: dict[str, Name]) -> None:
        """Make a hook point for each name."""
        self._names = names
        self.hook_dict = {
            text: HookPoint(name, self._follow_backward_hooks) for text, name in names.items()
        }
        self._level = 0
        self._grad_before = None

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Register a hook on every activation whose name matches.

        Forward it is called as `hook(activation, hook=point)` and may return a replacement, or
        change the activation in place; backward (`dir="bwd"`) with the gradient. A backward hook
        enables gradients (torch.set_grad_enabled) until the last one is removed.

        Raises: SiteError if no activation of the model has such a name.
        """
        points = [
            self.hook_dict[matching.text] for matching in choose(name, self._names, self._unasked)
        ]
        if not points:
            raise SiteError(
                f"the filter accepts none of the model's {len(self._names)} hook names",
                allowed=", ".join(dict.fromkeys(n.row.pattern for n in self._names.values())),
                hint=DOCS,
            )
        for point in points:
            point.add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, dir: str = "fwd"
    ) -> None:
        """Register a hook that `reset_hooks()` does not remove."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: str = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hooks: all but the permanent ones, or those of one context level."""
        for point in self.hook_points():
            if clear_contexts:
                point.clear_context()
            point.remove_hooks(direction, including_permanent, level)

    def remove_all_hook_fns(
        self, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove hooks, and keep contexts."""
        self.reset_hooks(False, direction, including_permanent, level)

    def hook_points(self) -> list[HookPoint]:
        """Every hook point, in the order the forward pass meets them."""
        return list(self.hook_dict.values())

    def look_up(self, name: str) -> HookPoint:
        """The hook point of a name.

        Raises: SiteError for a name the model does not have, with the nearest.
        """
        return self.hook_dict[look_up(name, self._names).text]

    @contextmanager
    def hooks(
        self: H,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[H]:
        """Register hooks within a `with` block."""
        self._level += 1
        try:
            for direction, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, function in hooks:
                    self.add_hook(name, function, direction, level=self._level)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=self._level)
            self._level -= 1

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Set whether `hook_result` is computed by default."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Set whether `hook_q_input`, `hook_k_input` and `hook_v_input` are computed by default."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Set whether `hook_mlp_in` is computed by default."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Set whether `hook_attn_in` is computed by default."""
        self.cfg.use_attn_in = use_attn_in

    def _unasked(self, name: Name) -> bool:
        """Whether an activation is computed by default, without being named."""
        return (
            name.row.flag is None
            or bool(getattr(self.cfg, name.row.flag))
            or self.hook_dict[name.text].has_hooks()
        )

    def _follow_backward_hooks(self) -> None:
        """Enable gradients while any backward hook is registered, then restore the setting."""
        registered = any(point.bwd_hooks for point in self.hook_dict.values())
        if registered and self._grad_before is None:
            self._grad_before = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
        elif not registered and self._grad_before is not None:
            torch.set_grad_enabled(self._grad_before)
            self._grad_before = None
