"""Run studies and store them. `casestudy.study(...)` always runs a study."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that can be called.

    Importing any module of this package sets `casestudy.study` to the package, although users
    expect the function `study` there. So calling the package calls the function.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        from casestudy.study.study import study

        return study(*args, **options)


sys.modules[__name__].__class__ = _Callable
