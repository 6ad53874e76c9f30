"""What can go wrong, said to the person who can mend it.

Every error casestudy raises on purpose is one of these. The message says what came, what is
allowed, and what to try; the command line prints it without a traceback.
"""

from __future__ import annotations


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
