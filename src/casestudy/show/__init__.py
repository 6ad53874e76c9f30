"""Figures, reports and the explorer. Works from stored studies, without torch.

`figures` is imported when it is first used, because it needs numpy; the command line uses
`show.text`, which does not.
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
