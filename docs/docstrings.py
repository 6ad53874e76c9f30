"""How do the package's docstrings become pages?

Beside Google's sections, which mkdocstrings knows, they open lines with a label (`Shape:`, `Unit:`,
`Raises:` …) as papers' methods sections do, and say once what several parameters have in common
(`lower, upper: ends of a 95 % interval`). Here each label becomes a paragraph of its own, with the
lines that continue it, and each parameter an entry of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import griffe

LABELS = ("Shape", "Unit", "Error", "Raises", "Source", "Cost", "Returns", "Rows", "Sources")
_LABELLED = re.compile(rf"^(?:{'|'.join(LABELS)}):[ ]+\S")
_SHARED = re.compile(r"^    (?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<text>.*)$")


def readable(text: str) -> str:
    """The same docstring as mkdocstrings reads it."""
    lines = text.split("\n")
    out: list[str] = []
    at = 0
    while at < len(lines):
        end = at + 1
        if _LABELLED.match(lines[at]):
            end = _continued(lines, at, 2)
            label, rest = lines[at].split(":", 1)
            out += ["", f"**{label}:** {rest.strip()}", *(x.strip() for x in lines[at + 1 : end])]
        elif shared := _SHARED.match(lines[at]):
            end = _continued(lines, at, 8)
            for name in shared["names"].split(", "):
                out += [f"    {name}: {shared['text']}", *lines[at + 1 : end]]
        else:
            out.append(lines[at])
        at = end
    return "\n".join(out)


def _continued(lines: Sequence[str], at: int, indent: int) -> int:
    """Where the lines end that continue this one."""
    end = at + 1
    while end < len(lines) and lines[end].strip() and lines[end].startswith(" " * indent):
        end += 1
    return end


class Labels(griffe.Extension):
    """Applied to every docstring that griffe finds."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
