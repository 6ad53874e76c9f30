"""What does a full stop end: a sentence, an abbreviation, a decimal number?

A stop is classified by the characters around it. The kinds are tried in this order, because a stop
can be of several kinds:

    decimal point             a digit on its right
    ellipsis                  another stop next to it, or after one space
    end of paragraph          only white space up to the end of the paragraph
    before a closing mark     a closing quote or bracket on its right
    URL or file name          inside www.example.org, main.py
    initial                   J. K.
    abbreviation              Mr., e.g., U.S.; from the list of English ones below
    sentence end              white space on its right, then no lower-case letter
    other                     all others, such as unknown abbreviations

Assumes English abbreviations. Cost: a few regular expressions on the nearby characters.
"""

from __future__ import annotations

import regex

CATEGORIES = (
    "sentence end",
    "abbreviation",
    "initial",
    "decimal point",
    "ellipsis",
    "URL or file name",
    "before a closing mark",
    "end of paragraph",
    "other",
)
INSIDE = "inside a longer token"
"""A stop that is part of a longer token (`."`, `...`)."""

_CLOSING = "\"'”’»)]}›"
_SHORT = """
Mr Mrs Ms Messrs Mme Mlle Dr Drs Prof Rev Hon St Mt Ft Jr Sr Esq Gen Col Capt Lt Lieut Maj Sgt Corp
Cpl Adm Gov Sen Rep Pres Supt vs etc cf al viz ibid op cit ca approx vol Vol pp ch chap Chap eq Eq
sec Sec dept est Inc Ltd Co Bros Jan Feb Mar Apr Jun Jul Aug Sept Sep Oct Nov Dec Tues Wed Thurs Fri
ed eds trans lb lbs oz ft hrs Nos nos Ave Blvd Rd Ph.D M.D B.A M.A D.C B.C A.D A.M P.M U.S U.K U.S.A
U.N U.S.S.R
"""
_ABBREVIATIONS = frozenset(_SHORT.split())
_BEFORE_A_NUMBER = frozenset(("No", "no", "p", "Art", "art", "fig", "figs", "Fig", "Figs"))
"""These are also words, so they are abbreviations only before a digit."""

_WORD = regex.compile(r"[\p{L}\p{N}]+(?:\.[\p{L}\p{N}]+)*\Z")
_MORE = regex.compile(r"(?:\.\p{L}+(?=\.))*")
_URL = regex.compile(
    r"(?:https?://|www\.)\S+"
    r"|[\w+-]+(?:\.[\w+-]+)*\.(?:com|org|net|edu|gov|io|co|uk|de|fr|info|txt|md|py|js|c|h|cpp|rs"
    r"|java|json|jsonl|csv|html?|xml|ya?ml|toml|pdf|png|jpe?g|gif|zip|gz|tar|exe|docx?|xlsx?)\b"
)
_ELLIPSIS = regex.compile(r"\.(?:[ \u00a0]?\.)+")


def classify(text: str, at: int) -> str:
    """The kind of the full stop at a character of a paragraph; see the module's list."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if after.isdigit():
        return "decimal point"
    if "." in (before, after) or _spaced_ellipsis(text, at):
        return "ellipsis"
    rest = text[at + 1 : at + 64].lstrip()
    if not rest and not text[at + 1 :].strip():
        return "end of paragraph"
    if after and after in _CLOSING:
        return "before a closing mark"
    if _in_url(text, at):
        return "URL or file name"
    found = _WORD.search(text[max(0, at - 40) : at])
    stem = found.group() if found else ""
    more = _MORE.match(text[at : at + 12])
    # the first stop of "e.g." is of the same kind as its second
    whole = stem + (more.group() if more else "")
    if whole in _ABBREVIATIONS or (whole in _BEFORE_A_NUMBER and rest[:1].isdigit()):
        return "abbreviation"
    if whole and all(len(letter) == 1 and letter.isalpha() for letter in whole.split(".")):
        if _is_initial(whole, rest):
            return "initial"
        if "." in whole or (whole.islower() and (rest[:1].islower() or rest[:1].isdigit())):
            return "abbreviation"
    if after.isspace() and not rest[:1].islower() and not _is_list_number(text, at, stem):
        return "sentence end"
    return "other"


def _spaced_ellipsis(text: str, at: int) -> bool:
    start = max(0, at - 12)
    return any(
        match.start() <= at - start < match.end()
        for match in _ELLIPSIS.finditer(text[start : at + 13])
    )


def _is_initial(letters: str, rest: str) -> bool:
    """One capital letter, or several with stops between, before a name: "J. K.", "J.R.R."."""
    if not letters.replace(".", "").isupper() or not rest[:1].isupper():
        return False
    # "and so did I. Then" ends a sentence; "I. K. Brunel" does not
    return letters != "I" or rest[1:2] == "."


def _in_url(text: str, at: int) -> bool:
    if text[at + 1 : at + 2].isspace():
        return False
    start = max(text.rfind(" ", max(0, at - 200), at), text.rfind("\n", max(0, at - 200), at)) + 1
    return any(
        start + match.start() <= at < start + match.end()
        for match in _URL.finditer(text[start : at + 200])
    )


def _is_list_number(text: str, at: int, stem: str) -> bool:
    return stem.isdigit() and not text[: at - len(stem)].strip()
