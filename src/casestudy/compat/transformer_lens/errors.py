"""Errors for names of TransformerLens that are not supported."""

from __future__ import annotations

from collections.abc import Iterable

from casestudy.compat.transformer_lens.names import DOCS
from casestudy.errors import CasestudyError, did_you_mean


class NotSupported(CasestudyError, AttributeError, NotImplementedError):
    """An attribute or an argument of TransformerLens that is refused, by name."""


class NotSupportedImport(CasestudyError, ImportError):
    """The same for an import: Python would replace the message of an AttributeError."""


def refuse(what: str, instead: str = "", *, allowed: str | None = None) -> NotSupported:
    """The error to raise for it.

    Args:
        what: the name, as a notebook writes it.
        instead: what to do.
        allowed: what is supported instead.
    """
    hint = f"{instead}. {DOCS}" if instead else DOCS
    came = f"{what} is not among casestudy's TransformerLens names"
    return NotSupported(came, allowed=allowed, hint=hint)


def refuse_name(
    owner: str, name: str, known: Iterable[str], reasons: dict[str, str]
) -> AttributeError:
    """The error for an attribute that does not exist.

    Args:
        owner: the object.
        name: the attribute.
        known: the existing names.
        reasons: TransformerLens's names that are refused, with what to do instead.
    """
    public = sorted(n for n in known if not n.startswith("_"))
    if name in reasons:
        return refuse(f"{owner}.{name}", reasons[name])
    instead = (did_you_mean(name, public) or "").removesuffix("?")
    return refuse(f"{owner}.{name}", instead, allowed=", ".join(public))


def refuse_import(module: str, name: str, instead: str) -> NotSupportedImport:
    """The error for a name that cannot be imported."""
    came = f"{module}.{name} is not among casestudy's TransformerLens names"
    return NotSupportedImport(came, hint=f"{instead}. {DOCS}" if instead else DOCS)
