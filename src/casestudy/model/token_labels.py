"""How is a token shown, so that no two tokens of a vocabulary look the same?

A label is for display: it is never looked up. A token that is part of a character shows its bytes
(`‹F0›‹9F›`); of several tokens with one text, all but the usual one show their id. Cost: one pass
over the texts of a vocabulary.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
_PARTS = "casestudy.parts"


def is_byte_piece(piece: str) -> bool:
    """Whether a piece is sentencepiece's name of a single byte, as in `<0xE2>`."""
    return _BYTE_PIECE.fullmatch(piece) is not None


def labels(texts: Sequence[str], piece: Callable[[int], str | None]) -> tuple[str, ...]:
    """A label for each id of a vocabulary, all different.

    Args:
        texts: each id's text, with U+FFFD for parts of a character.
        piece: from an id to its entry in the vocabulary, None where it has none.
    """
    shown = [
        _with_bytes(piece(id), text) if "\ufffd" in text else text for id, text in enumerate(texts)
    ]
    usual: dict[str, int] = {}
    for id, label in enumerate(shown):
        if label not in usual or not is_byte_piece(piece(id) or ""):
            usual[label] = id
    return tuple(
        label if label and usual[label] == id else _told_apart(label, id, piece(id))
        for id, label in enumerate(shown)
    )


def _told_apart(label: str, id: int, piece: str | None) -> str:
    byte = _BYTE_PIECE.fullmatch(piece or "")
    return f"‹{byte[1]}›" if byte else f"{label}‹id:{id}›"


def _with_bytes(piece: str | None, text: str) -> str:
    """The text, with bytes that are no whole character spelled out."""
    byte = _BYTE_PIECE.fullmatch(piece or "")
    if byte:
        return f"‹{byte[1]}›"
    if piece is None or not all(character in _BYTE_OF for character in piece):
        return text
    return bytes(_BYTE_OF[character] for character in piece).decode("utf-8", _PARTS)


def _alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write the 256 bytes (GPT-2, 2019).

    Printable bytes stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    left_over = error.object[error.start : error.end]
    return "".join(f"‹{byte:02X}›" for byte in left_over), error.end


_BYTE_OF = _alphabet()
codecs.register_error(_PARTS, _spell_out)
