"""What can a study measure, by name, and what of it is chosen?

The one list of names, in the order of a study, and the one check of those that somebody gives. No
torch here, so that the command line can list them.
"""

from __future__ import annotations

from collections.abc import Sequence

from casestudy.errors import StudyError, unknown

OF_CHUNKS = (
    *("predictions", "class_mass", "ledger", "case_by_space", "controls"),
    *("lens", "attribution", "attention", "profile"),
)
"""The measurements of every chunk of prompts."""
PATCHING, CIRCUIT = "patching", "circuit"
"""The stages that follow them, each chosen by its own name."""
NAMES = (*OF_CHUNKS, PATCHING, CIRCUIT)


def choose(only: Sequence[str] | None, skip: Sequence[str] = ()) -> list[str]:
    """The names of all that is measured, in order.

    Args:
        only: these; all by default.
        skip: not these.

    Raises: StudyError for a name that nothing has, or where nothing is left.
    """
    for name in (*(only or ()), *skip):
        if name not in NAMES:
            raise unknown(StudyError, f"no measurement is called {name}", name, NAMES)
    names = [n for n in NAMES if (only is None or n in only) and n not in skip]
    if not names:
        raise StudyError("nothing is left to measure", allowed=", ".join(NAMES))
    return names
