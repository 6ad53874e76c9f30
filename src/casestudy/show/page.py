"""How do blocks become a page?

The templates' environment: every value is escaped unless it is markup made in this room.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from casestudy.show.blocks import Figure, Listing
from casestudy.show.text import prose

TEMPLATES = Path(__file__).with_name("templates")
FONT = "source-serif-4.woff2"


def figure_html(block: Figure | Listing) -> Markup:
    """One figure or table without a number, for places that fold away."""
    macros = environment().get_template("blocks.html").module
    macro = macros.listing if isinstance(block, Listing) else macros.figure  # type: ignore[attr-defined]
    return Markup(macro(block, ""))


def as_json(value: Any) -> Markup:
    """JSON that can stand inside a script element whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, code)
    return Markup(text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@cache
def environment() -> jinja2.Environment:
    """The templates; every value is escaped unless it is markup made here."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,  # the templates do not change while the page is made
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["zip"] = zip
    found.filters["as_json"] = as_json
    found.filters["prose"] = lambda text: text if isinstance(text, Markup) else prose(text)
    found.tests["figure"] = lambda block: isinstance(block, Figure)
    found.tests["listing"] = lambda block: isinstance(block, Listing)
    return found


@cache
def template_text(name: str) -> str:
    """A template's text as it stands."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def font() -> str:
    """The text's typeface as a style rule with the font inside it (SIL Open Font License 1.1).

    51 kB, so that a report reads the same on every machine; letters beyond Latin come from the
    reader's own fonts.
    """
    data = base64.b64encode((TEMPLATES / FONT).read_bytes()).decode("ascii")
    return font_face(f"data:font/woff2;base64,{data}")


def font_face(address: str) -> str:
    """The style rule for the text's typeface, wherever its file is."""
    return (
        '@font-face { font-family: "Source Serif 4"; font-weight: 200 900; '
        f'src: url({address}) format("woff2"); }}\n'
    )
