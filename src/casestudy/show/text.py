"""How are tokens, prompts and numbers written on a page?

All texts and numbers that are shown use these functions: white space made visible in tokens,
control and direction-changing characters made harmless, numbers given a true minus sign and a
sensible number of digits. Escaping for HTML is markupsafe's, applied where a text meets markup.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

MINUS = "\u2212"
BOS_ALONE = "(BOS alone)"
"""How an empty prompt is shown: the model reads only BOS."""
_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
# Joiners build emoji and Indic or Arabic letters; every other format character is spelled out.
_HYPHEN_MINUS = re.compile(r"(?<![\w.)\]-])-(?=\d)")  # before a number, and no range or name
_JOINERS = frozenset("\u200c\u200d\ufe0e\ufe0f")


def clean(text: object) -> str:
    """A text that is safe to show: nothing in it can hide, reorder or break the text after it.

    Control characters become their pictures (␀), direction overrides and other invisible format
    characters become ‹U+202E›, and lone surrogates the replacement character.
    """
    whole = str(text)
    if whole.replace("\n", "").isprintable():  # as almost every text: it has none of these
        return whole
    return "".join(map(_harmless, whole))


def visible(token: object) -> str:
    """A token with its white space shown: space ·, newline ↵, tab ⇥."""
    text = str(token)
    if text.isprintable():  # no white space but spaces
        return text.replace(" ", _VISIBLE[" "]) or "‹empty›"
    return "".join(_VISIBLE.get(c) or _harmless(c) for c in text)


def token_or_text(value: object) -> str:
    """A token with its white space visible, any other value as it is."""
    text = str(value)
    return visible(text) if text != text.strip() or "\n" in text else clean(text)


def _harmless(character: str) -> str:
    if character in "\n\t" or character in _JOINERS:
        return character
    category = unicodedata.category(character)
    code = ord(character)
    if category == "Cc":
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"‹U+{code:04X}›"
    if category == "Cf" or category in ("Zl", "Zp"):
        return f"‹U+{code:04X}›"
    return "\ufffd" if category == "Cs" else character


def columns(text: str) -> int:
    """How many monospaced columns a text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def shorten(text: str, width: int) -> str:
    """The text, its middle replaced by … where it is wider than `width` columns."""
    if columns(text) <= width:
        return text
    head, tail = list(text[: width * 2 // 3]), list(text[len(text) - width // 3 + 1 :])
    while head and columns("".join(head + tail)) >= width:
        head.pop()
    return "".join(head).rstrip() + "…" + "".join(tail).lstrip()


def told_apart(labels: Sequence[str], width: int) -> list[str]:
    """Each label shortened to `width` columns, so that labels that differ still differ.

    Where `shorten` makes several of them equal, each keeps what follows the start they share. What
    is equal even so gets a number.

    Args:
        labels: equal ones stay equal.
        width: in columns, at least 9.
    """
    cut = {label: shorten(label, width) for label in labels}
    for same in _equal(cut):
        differs = (len(set(characters)) > 1 for characters in zip(*same, strict=False))
        start = next((i for i, yes in enumerate(differs) if yes), min(map(len, same)))
        cut |= {label: _from(label, start, width) for label in same}
    taken = {label for label, text in cut.items() if label == text}
    for label, text in cut.items():
        number = 1
        while text != label and text in taken:
            number += 1
            end = f" ({number})"
            text = shorten(label, width - columns(end)) + end
        taken.add(text)
        cut[label] = text
    return [cut[label] for label in labels]


def _equal(cut: Mapping[str, str]) -> list[list[str]]:
    """The groups of labels that are shown by one text."""
    groups: dict[str, list[str]] = {}
    for label, text in cut.items():
        groups.setdefault(text, []).append(label)
    return [same for same in groups.values() if len(same) > 1]


def _from(label: str, start: int, width: int) -> str:
    """A label's first columns, …, and what follows its first `start` characters."""
    rest = shorten(label[start:], width - 1 - width // 3)
    head = label[:start]
    if columns(head) + columns(rest) <= width:
        return head + rest
    while head and columns(head) + 1 + columns(rest) > width:
        head = head[:-1]
    return f"{head.rstrip()}…{rest.lstrip()}"


def how_they_differ(one: object, other: object, width: int) -> tuple[str, str]:
    """Two values that differ, each in `width` columns; of two lists, what only the one has."""
    if isinstance(one, list) and isinstance(other, list):
        only = ([x for x in a if x not in b] for a, b in ((one, other), (other, one)))
        if any(sides := [", ".join(map(str, found)) for found in only]):
            first, second = (shorten(clean(side), width) or "—" for side in sides)
            return first, second
    texts = [
        clean(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False)) for x in (one, other)
    ]
    first, second = told_apart(texts, width)
    return first, second


def excerpt(text: object, width: int) -> str:
    """A text of any length, harmless and at most `width` columns wide, without reading it all."""
    whole = str(text)
    if len(whole) > 4 * width:
        whole = whole[: 2 * width] + whole[-2 * width :]
    return shorten(clean(whole), width)


def prompt_excerpt(text: object, width: int) -> str:
    """A prompt as `excerpt` has it, with the white space at its ends visible."""
    whole = str(text)
    inner = whole.strip()
    if not inner:
        return excerpt(visible(whole), width) if whole else BOS_ALONE
    start = whole.index(inner)
    ends = (whole[:start], whole[start + len(inner) :])
    before, after = (visible(end) if end else "" for end in ends)
    return excerpt(before + inner + after, width)


def prose(text: object) -> Markup:
    """A sentence from the study itself: what stands between backticks is code."""
    pieces = _HYPHEN_MINUS.sub(MINUS, clean(text)).split("`")
    if len(pieces) % 2 == 0:
        return escape("`".join(pieces))
    return joined(
        filled("<code>{}</code>", piece) if i % 2 else piece for i, piece in enumerate(pieces)
    )


def number(value: float | int | None, digits: int = 2) -> str:
    """A number as people write it: `digits` decimals, more where they would all be zero."""
    if value is None or math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:.{digits}f}"
    if float(text) == 0 and value != 0:
        text = f"{value:.2g}" if abs(value) >= 1e-4 else scientific(value)
    elif abs(value) >= 1e5:
        text = scientific(value)
    return text.replace("-", MINUS) if float(value) != 0 else f"{0:.{digits}f}"


def amount(value: float | int | None, digits: int = 2) -> str:
    """As `number`; a whole number, as counts are, without decimals: 3,628."""
    if value is None or not math.isfinite(value) or value != int(value) or abs(value) >= 1e9:
        return number(value, digits)
    return f"{int(value):,}".replace("-", MINUS)


def digits(values: Iterable[float | int | None], least: int = 2) -> int:
    """Decimals that give the largest of these numbers three digits: 2 for 5.85, 4 for 0.0213."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    return least if not known else max(least, 2 - math.floor(math.log10(max(known))))


def scientific(value: float | int) -> str:
    """A very small or very large number: 3.1e−6."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def signed(value: float | int | None, digits: int = 2) -> str:
    """As `number`, with a plus sign where it is positive."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 else text


def percent(share: float | int | None) -> str:
    """A share as a percentage: 61 %, 3.4 %, 0.02 %."""
    if share is None or math.isnan(share):
        return "not measured"
    value = 100 * share
    digits = 0 if value >= 10 or value == 0 else 1 if value >= 1 else 2
    return f"{number(value, digits)}\u00a0%"


def interval(lower: float | int | None, upper: float | int | None, digits: int = 2) -> str:
    """A 95 % interval: "3.21 to 4.90"."""
    if lower is None or upper is None or math.isnan(lower) or math.isnan(upper):
        return "no interval"
    return f"{_end(lower, digits)} to {_end(upper, digits)}"


def _end(value: float | int, digits: int) -> str:
    # one digit is enough to say on which side of zero an end lies
    text = number(value, digits)
    small = float(f"{value:.{digits}f}") == 0 and abs(value) >= 1e-4
    return f"{value:.1g}".replace("-", MINUS) if small else text


def ordinal(rank: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    suffix = "th" if 10 <= rank % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank:,}{suffix}"


def capital(text: str) -> str:
    """The text with its first letter as a capital; markup stays markup."""
    return text[:1].upper() + text[1:]


def count(n: int, noun: str, plural: str = "") -> str:
    """1 prompt, 17 prompts, 1,000 prompts."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def listing(items: Sequence[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + f" {last} {items[-1]}"


def filled(template: str, *values: object) -> Markup:
    """A template with a value in the place of each {}, escaped unless it is markup.

    The same as `Markup(template).format(*values)` in a fifth of the time, for what a page has by
    the thousand; a template holds no other fields.
    """
    return Markup(_printf(template) % tuple(map(_escaped, values)))


def joined(pieces: Iterable[str]) -> Markup:
    """Pieces one after the other, each escaped unless it is markup."""
    return Markup("".join(map(_escaped, pieces)))


@lru_cache(maxsize=512)
def _printf(template: str) -> str:
    return template.replace("%", "%%").replace("{}", "%s")


def _escaped(value: object) -> Any:
    kind = type(value)
    if kind is Markup or kind is int or kind is float:
        return value
    if type(value) is str and not _SPECIAL(value):
        return value  # as almost every text, and cheaper to find out than `escape` is
    return escape(value)


_SPECIAL = re.compile("[&<>\"']").search


def chip(token: object, kind: str = "") -> Markup:
    """One token as a chip."""
    return filled('<span class="tok {}"><bdi>{}</bdi></span>', kind, visible(token))


def chips(tokens: Sequence[object]) -> Markup:
    """Tokens in a row; a line breaks after a token that ends in a newline."""
    parts = []
    for token in tokens:
        parts.append(chip(token))
        if str(token).endswith("\n"):
            parts.append(Markup("<br>"))
    return filled('<span class="toks">{}</span>', joined(parts))
