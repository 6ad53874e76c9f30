"""How does a result get drawn by a room above it?

A result names the drawing it wants ("grid.plot") and hands itself over; a room that draws has
registered a function under that name. Results thus import no figures. The front door (`casestudy`)
names the module that registers the drawers of `show`; it is imported when something is drawn for
the first time, so that neither `import casestudy` nor reading results loads plotly, jinja2 or
torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from casestudy.errors import CasestudyError

Drawer = Callable[..., Any]

_drawers: dict[str, Drawer] = {}
_modules: list[str] = []


def register(name: str, drawer: Drawer) -> None:
    """Draw what asks for this name with this function; a later one replaces an earlier one."""
    _drawers[name] = drawer


def register_from(module: str) -> None:
    """Import this module, which registers drawers, once a drawing is asked for."""
    _modules.append(module)


def draw(name: str, *parts: Any, **options: Any) -> Any:
    """What the drawer of this name makes of these parts.

    Args:
        name: "grid.plot", "grid.html", "study.report", …
        parts: what is drawn, as the drawer takes it.
        options: for the drawer.

    Raises: CasestudyError naming the drawers there are; whatever the drawer raises.
    """
    if name not in _drawers:
        for module in _modules:
            importlib.import_module(module)
    if name not in _drawers:
        raise CasestudyError(f"nothing draws {name!r}", allowed=", ".join(sorted(_drawers)))
    return _drawers[name](*parts, **options)
