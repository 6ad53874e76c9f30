"""What can go wrong, said to the person who can mend it.

Every error casestudy raises on purpose is one of these. The message says what came, what is
allowed, and what to try; the command line prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar


class CasestudyError(Exception):
    """The root of the tree: catch this to catch everything casestudy raises on purpose.

    Args:
        came: what was received or found.
        allowed: what would have been accepted.
        hint: what to try.
    """

    def __init__(self, came: str, *, allowed: str | None = None, hint: str | None = None) -> None:
        self.came = came
        self.allowed = allowed
        self.hint = hint
        parts = [came, f"Allowed: {allowed}" if allowed else "", hint or ""]
        super().__init__(" ".join(map(_sentence, filter(None, parts))))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


class PromptError(CasestudyError, ValueError):
    """A prompt that cannot be run: empty, too long, not text."""


class TokenError(CasestudyError, ValueError):
    """A text that is not the single token it has to be, or ids the vocabulary does not hold."""


class BehaviourError(CasestudyError, ValueError):
    """A behaviour, contrast, class or role that is not well formed, or a file that holds one."""


class SiteError(CasestudyError, ValueError):
    """A site, layer, head or position that this model does not have."""


class SiteNotKept(SiteError, KeyError):
    """A trace was asked for a site that the run was not told to keep."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class EditError(CasestudyError, ValueError):
    """An edit that returned a wrong shape, or never met its site."""


class ModelError(CasestudyError):
    """A checkpoint that cannot be loaded: missing, damaged, or of an unsupported kind."""


class RewriteError(ModelError, ValueError):
    """A weight rewrite that this architecture does not allow."""


class MeasureError(CasestudyError):
    """A measurement whose own check failed, or which is not defined for its input."""


class FindingError(CasestudyError, ValueError):
    """A finding that is not well formed, or about what the model or the prompts do not have."""


class StudyError(CasestudyError):
    """A study folder that cannot be written, resumed or read."""


class ServeError(CasestudyError):
    """An address at which nothing can be served."""


Error = TypeVar("Error", bound=CasestudyError)
Choice = TypeVar("Choice", bound=str)


def did_you_mean(name: object, allowed: Iterable[str]) -> str | None:
    """A hint with the names nearest to one that is not allowed, None where nothing is near."""
    names = {known.casefold(): known for known in allowed}
    close = difflib.get_close_matches(str(name).casefold(), names, n=3)
    return f"Did you mean {' or '.join(repr(names[c]) for c in close)}?" if close else None


def unknown(
    error: type[Error],
    came: str,
    name: object,
    allowed: Iterable[str],
    *,
    described: str | None = None,
) -> Error:
    """The error for a name that is not among those allowed.

    Args:
        error: its class.
        came: what is said of the name, as in "no site is called 'patern'".
        name: what came, to find the nearest by.
        allowed: the names there are.
        described: what is said of them, where they are too many to list.
    """
    names = list(allowed)
    said = ", ".join(names) if described is None else described
    return error(came, allowed=said or None, hint=did_you_mean(name, names))


def one_of(what: str, value: object, allowed: Iterable[Choice], error: type[Error]) -> Choice:
    """The value itself, as one of the names allowed.

    Raises: the error given, with what came, what is allowed and the nearest of it.
    """
    names = list(allowed)
    for name in names:
        if name == value:
            return name
    raise unknown(error, f"{what} {value!r}", value, names)
