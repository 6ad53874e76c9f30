"""How does a result get drawn by a room above it?

A result names the drawing it wants ("grid.plot") and hands itself over; a room that draws has
registered a function under that name. Results thus import no figures. The front door (`casestudy`)
names the module that registers the drawers of `show`; it is imported when something is drawn for
the first time, so that neither `import casestudy` nor reading results loads plotly, jinja2 or
torch. `described` is what `print` shows of models, behaviours, results and studies alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
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


WIDTH, LINES = 80, 25
"""What `print` shows of an object fits into a screen."""


def described(title: str, facts: Mapping[str, object], rows: Iterable[str] = ()) -> str:
    """A screen about one object: its title, a line for each fact, and the head of what it holds.

    Args:
        title: as in "Model tiny".
        facts: by name; those that are None or "" are left out, and long ones are cut.
        rows: lines below them; those that do not fit into `LINES` are counted.
    """
    known = {name: str(value) for name, value in facts.items() if value not in (None, "")}
    width = max(map(len, known), default=0)
    lines = [f"<{title}>"]
    for name, value in known.items():
        first, *second = _folded(value, WIDTH - width - 4)
        lines += [f"  {name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in second)]
    listed = list(rows)
    room = LINES - len(lines)
    if len(listed) > room:
        listed = [*listed[: room - 1], f"  … {len(listed) - room + 1:,} more"]
    return "\n".join(cut(line) for line in [*lines, *listed][:LINES])


def _folded(text: str, width: int) -> list[str]:
    """A value on one line or two; what is longer is cut."""
    whole = cut(text, 2 * width)
    if len(whole) <= width or width < 20:
        return [whole]
    at = whole.rfind(" ", width // 2, width + 1)
    at = width if at < 0 else at
    return [whole[:at], cut(whole[at:].lstrip(), width)]


def cut(text: str, width: int = WIDTH) -> str:
    """One line of at most `width` characters, in which nothing is hidden or moves the cursor."""
    whole = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: 4 * width])
    return whole if len(whole) <= width else whole[: width - 1] + "…"


def some(names: Sequence[object], most: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown}, … ({len(names):,})"
