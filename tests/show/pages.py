"""Reading a page back: what it loads, what it says, what its figures hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href"}
"""Attributes whose value a browser may fetch; `href` besides, except on anchors."""


@dataclass
class Page(HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    html: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._within: list[str] = []
        self._data = False
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag in ("script", "style"):
            self._within.append(tag)
            self._data = found.get("class") == "data"

    def handle_endtag(self, tag: str) -> None:
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        if not self._within:
            self.text += data.replace("\u00a0", " ")
        elif self._data:
            self.figures.append(json.loads(data))

    @property
    def loads(self) -> list[str]:
        """Addresses the page would fetch, fragments of the page itself left out."""
        found = []
        for tag, attributes in self.tags:
            for name, value in attributes.items():
                if name in LOADING or (name == "href" and tag != "a"):
                    found.append(f"{tag} {name}={value}")
                if name == "href" and tag == "a" and not value.startswith("#"):
                    found.append(f"{tag} {name}={value}")
                if name == "style" and "url(" in value:
                    found.append(f"{tag} {name}={value}")
        return found

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def alts(self) -> list[str]:
        """What stands for each drawing where it is not seen."""
        return [
            a["aria-label"].replace("\u00a0", " ")
            for a in self.all("svg")
            if a.get("role") == "img"
        ]
