"""Where does a page name a part of the model, and how does the name open the part's card?

`linked` finds the names "head 3.1", "neuron 4.312" and "mlp 4" in the text of a finished page
(sentences, tables, labels of figures) and makes links of those that have an address. What stands
inside links, buttons, scripts, preformatted text and quoted tokens stays as it is. A label of a
figure is no link, since a drawing is one element to a keyboard: the page's script opens it, by a
click on the label or by Enter on its mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

from markupsafe import Markup, escape

from casestudy.results.part_card import FOLDER, PAGE, PartCard

_TAG = re.compile(r"(<!--.*?-->|<[^>]*>)", re.DOTALL)
_NAMED = re.compile(r"\b(?:(?:head|neuron) \d{1,4}\.\d{1,6}|mlp \d{1,4})\b(?!\.\d)")
_QUOTING = frozenset(
    ("a", "bdi", "button", "code", "option", "pre", "script", "style", "textarea", "title")
)
"""Elements whose text is no name of a part, or opens something already."""


def linked(html: str, address: Callable[[str], str | None]) -> Markup:
    """HTML with a link at every part's name that has an address.

    Args:
        html: finished, with every text escaped.
        address: of the card of a part by its spelling; None where there is none.
    """
    pieces = _TAG.split(html)
    within = drawing = 0
    for i, piece in enumerate(pieces):
        if i % 2:  # a tag
            found = re.match(r"<(/?)([a-zA-Z][\w-]*)", piece)
            if found is None or piece.endswith("/>"):
                continue
            step = -1 if found[1] else 1
            within += step * (found[2].lower() in _QUOTING)
            drawing += step * (found[2].lower() == "svg")
        elif piece and not within:
            template = _LABEL if drawing else _LINK
            pieces[i] = _NAMED.sub(lambda name, t=template: _opens(name[0], address, t), piece)
    return Markup("".join(pieces))


_LINK = Markup('<a class="part" href="{address}" data-part="{name}">{name}</a>')
_LABEL = Markup('<tspan class="part" data-part="{name}">{name}</tspan>')


def _opens(name: str, address: Callable[[str], str | None], template: Markup) -> str:
    """What opens the card, or the name alone."""
    found = address(name)
    return name if found is None else str(template.format(name=name, address=found))


def card_addresses(cards: Mapping[str, PartCard], above: str = f"{FOLDER}/") -> dict[str, str]:
    """The relative address of the page of each part's card.

    Args:
        cards: by the name of their folder.
        above: the way from the page that links to the folder of cards.
    """
    return {card.part: f"{above}{quote(folder)}/{PAGE}" for folder, card in cards.items()}


def command(part: str) -> Markup:
    """How the card of a part of a stored study is made."""
    return escape(f'casestudy parts DIR --part "{part}" --corpus TEXT')
