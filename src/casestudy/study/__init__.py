"""Running and keeping. `casestudy.study(...)` runs one, whatever was imported before."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """Importing any module of this room puts the room itself at `casestudy.study`, where the
    function is promised; so the room can be called as the function.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        from casestudy.study.study import study

        return study(*args, **options)


sys.modules[__name__].__class__ = _Callable
