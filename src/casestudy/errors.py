"""The errors that casestudy raises on purpose.

The message says what was given, what is allowed, and what to try. The command line prints it
without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar


class CasestudyError(Exception):
    """The base class: catch this to catch every error that casestudy raises on purpose.

    Args:
        came: what was given or found.
        allowed: what is accepted.
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
    """A text that is not a single token, or ids that are not in the vocabulary."""


class BehaviourError(CasestudyError, ValueError):
    """A behaviour, contrast, class or role that is not well formed, or such a file."""


class SiteError(CasestudyError, ValueError):
    """A site, layer, head or position that this model does not have."""


class SiteNotKept(SiteError, KeyError):
    """A trace does not have a site, because the run did not keep it."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class EditError(CasestudyError, ValueError):
    """An edit that returned a wrong shape, or whose site did not occur in the run."""


class ModelError(CasestudyError):
    """A checkpoint that cannot be loaded: missing, damaged, or of an unsupported kind."""


class RewriteError(ModelError, ValueError):
    """A weight rewrite that this architecture does not allow."""


class MeasureError(CasestudyError):
    """A measurement whose own check failed, or that is not defined for its input."""


class FindingError(CasestudyError, ValueError):
    """A finding that is not well formed, or about something that the model or behaviour lacks."""


class StudyError(CasestudyError):
    """A study folder that cannot be written, resumed or read."""


class ServeError(CasestudyError):
    """An address that cannot be used by the server."""


Error = TypeVar("Error", bound=CasestudyError)
Choice = TypeVar("Choice", bound=str)


def did_you_mean(name: object, allowed: Iterable[str]) -> str | None:
    """A hint with the names most similar to an unknown one; None if none is similar."""
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
        came: a sentence about the name, such as "no site is called 'patern'".
        name: the unknown name, to find the most similar ones.
        allowed: the existing names.
        described: a description of the names, if there are too many to list.
    """
    names = list(allowed)
    said = ", ".join(names) if described is None else described
    return error(came, allowed=said or None, hint=did_you_mean(name, names))


def one_of(what: str, value: object, allowed: Iterable[Choice], error: type[Error]) -> Choice:
    """The value itself, as one of the names allowed.

    Raises: the given error, with the value, the allowed names and the most similar ones.
    """
    names = list(allowed)
    for name in names:
        if name == value:
            return name
    raise unknown(error, f"{what} {value!r}", value, names)
