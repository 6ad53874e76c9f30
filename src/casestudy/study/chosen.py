"""Which measurements does a study have, and which of them are chosen?

The only list of their names, in the order in which a study makes them, and the only check of names
that users give. Imports no torch, so that the command line can list the names quickly.
"""

from __future__ import annotations

from collections.abc import Sequence

from casestudy.errors import StudyError, unknown

OF_CHUNKS = (
    *("predictions", "class_mass", "ledger", "case_by_space", "controls"),
    *("lens", "attribution", "attention", "profile"),
)
"""The measurements that are made on every chunk of prompts."""
PATCHING, CIRCUIT = "patching", "circuit"
"""The stages after them, each chosen by its name."""
NAMES = (*OF_CHUNKS, PATCHING, CIRCUIT)


def choose(only: Sequence[str] | None, skip: Sequence[str] = ()) -> list[str]:
    """The names of the chosen measurements and stages, in order.

    Args:
        only: the names to choose from; all by default.
        skip: the names to leave out.

    Raises: StudyError for an unknown name, and if no name is left.
    """
    for name in (*(only or ()), *skip):
        if name not in NAMES:
            raise unknown(StudyError, f"no measurement is called {name}", name, NAMES)
    names = [n for n in NAMES if (only is None or n in only) and n not in skip]
    if not names:
        raise StudyError("nothing is left to measure", allowed=", ".join(NAMES))
    return names
