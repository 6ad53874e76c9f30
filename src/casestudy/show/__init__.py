"""Looking: figures, reports, the live page. Works from stored studies, without torch.

`figures` is fetched when it is first used: it needs numpy, and the command line reads `show.text`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casestudy.show import plotly_figures as figures

__all__ = ["figures"]


def __getattr__(name: str) -> Any:
    if name != "figures":
        raise AttributeError(f"module 'casestudy.show' has no attribute {name!r}")
    return importlib.import_module("casestudy.show.plotly_figures")
