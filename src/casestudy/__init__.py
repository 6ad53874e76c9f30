"""casestudy explains why a decoder language model prefers one next token over another.

    import casestudy as cs

    model = cs.load("tiny")
    cs.study("full-stop-capitals", model)

Importing the package loads no torch: each name is fetched from its room when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from casestudy.model.decoder import Trace, run
    from casestudy.model.edits import Edit
    from casestudy.model.loading import load
    from casestudy.model.model import Model
    from casestudy.model.sites import Keep, Site

_PLACES = {
    "load": "casestudy.model.loading",
    "Model": "casestudy.model.model",
    "run": "casestudy.model.decoder",
    "Trace": "casestudy.model.decoder",
    "Edit": "casestudy.model.edits",
    "Site": "casestudy.model.sites",
    "Keep": "casestudy.model.sites",
}

__all__ = ["Edit", "Keep", "Model", "Site", "Trace", "load", "run"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'casestudy' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
