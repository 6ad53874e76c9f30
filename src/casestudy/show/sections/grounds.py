"""Which prompts is the report's answer based on? Sentences for the first paragraph.

Which prompts were left out, which corrupted prompts were used and why, why there is no circuit, and
whether every check holds. Read from the manifest and the stored tables alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.show.sections.checks import inherited
from casestudy.show.sections.patching import GIVEN, family_name
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import capital, clean, count, listing, number

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,]*")

MOST_REASONS = 3
"""Kinds of reasons that a sentence gives."""


def kinds_of(reasons: Sequence[str]) -> list[tuple[str, int]]:
    """Reasons by kind, the most frequent first: the first of each kind, and how many.

    Reasons of one kind differ in what they quote and count.
    """
    kinds = Counter(_QUOTED.sub("…", reason) for reason in reasons)
    first = {kind: next(r for r in reasons if _QUOTED.sub("…", r) == kind) for kind in kinds}
    return [(first[kind], n) for kind, n in kinds.most_common()]


def left_out(study: StoredStudy) -> Markup:
    """How many prompts the headline's mean is over, of how many, and why the others are not in it.

    Raises: Missing where all are.
    """
    rows = study.table(names.PROMPTS, "prompt").rows()
    reasons = [clean(row["error"]) for row in rows if row.get("error")]
    main = study.main_prompts([str(row["prompt"]) for row in rows])
    measured = sum(not rows[i].get("error") for i in main)
    compared = len(rows) - len(reasons) - measured
    said = []
    if compared:
        said.append(
            f"This is the mean over the prompts of the main groups, n\u00a0=\u00a0{measured:,} of "
            f"{len(rows):,}; {compared:,} are in other groups, for comparison."
        )
    if reasons:
        was = "was" if len(reasons) == 1 else "were"
        prompts = count(len(rows), "prompt")
        said.append(f"{len(reasons):,} of {prompts} {was} left out: {_reasons(reasons)}.")
    if not said:
        raise Missing("every prompt is in the mean")
    return Markup("{}").format(" ".join(said))


def _reasons(reasons: Sequence[str]) -> str:
    kinds = kinds_of(reasons)
    said = [
        reason.rstrip(".") + (f" ({n:,} prompts)" if n > 1 else "")
        for reason, n in kinds[:MOST_REASONS]
    ]
    rest = len(kinds) - MOST_REASONS
    return "; ".join([*said, *([count(rest, "other reason")] if rest > 0 else [])])


def corrupted(study: StoredStudy) -> Markup:
    """Which corrupted prompts patching and the circuit were measured on, and why on those.

    Raises: Missing where the study says nothing of it.
    """
    choices = study.manifest.get("family_choice")
    choices = choices if isinstance(choices, Mapping) else {}
    sentences: list[Markup] = []
    families = _by_family(choices)
    if GIVEN not in families:
        sentences += _unused(study, choices)
    for family, uses in families.items():
        whole = max((choices[use] for use in uses), key=lambda choice: int(choice.get("n") or 0))
        said = _used(study, family, uses, whole)
        sentences.append(said)
    if not sentences:
        raise Missing("no corrupted prompts were chosen")
    return Markup(" ").join(sentences)


def _by_family(choices: Mapping[str, Any]) -> dict[str, list[str]]:
    """Every family chosen, with what it was chosen for; the circuit's first."""
    found: dict[str, list[str]] = {}
    for use in sorted(choices):
        choice = choices[use]
        if isinstance(choice, Mapping) and choice.get("family") and choice.get("n"):
            found.setdefault(str(choice["family"]), []).append(use)
    return found


def _used(
    study: StoredStudy, family: str, uses: Sequence[str], choice: Mapping[str, Any]
) -> Markup:
    where = {"circuit": "the circuit", "patching, last token": "patching at the last token"}
    spoken = listing(list(dict.fromkeys(where.get(use, "patching") for use in uses)))
    n = int(choice["n"])
    pairs = count(n, "pair")
    if family == GIVEN:
        said = Markup("{} were used for {} ({}{}).").format(
            capital(family_name(study, family)), spoken, pairs, _dropped(choice)
        )
    else:
        said = Markup("The corrupted prompts for {} are edits of the kind “{}” ({}{}).").format(
            spoken, clean(family), pairs, _dropped(choice)
        )
    if choice.get("undoes") is False:
        said += Markup(" They do not surely take the preference away, so read shares with care.")
    return said


def _unused(study: StoredStudy, choices: Mapping[str, Any]) -> Iterator[Markup]:
    """That corrupted prompts were brought and none was used, with the reason; nothing otherwise."""
    for use in sorted(choices):
        passed = choices[use].get("passed_over") if isinstance(choices[use], Mapping) else None
        if isinstance(passed, Mapping) and passed.get(GIVEN):
            yield Markup("{} were not used: {}.").format(
                capital(family_name(study, GIVEN)), clean(passed[GIVEN])
            )
            return


def _dropped(choice: Mapping[str, Any]) -> str:
    dropped = choice.get("dropped")
    if not isinstance(dropped, list) or not dropped:
        return ""
    return f"; {len(dropped)} left out: {_reasons([clean(one.get('why')) for one in dropped])}"


def no_circuit(study: StoredStudy) -> Markup:
    """Why no circuit was found, where one was looked for.

    Raises: Missing where there is one, or none was looked for.
    """
    asked = study.manifest.get("measurements")
    absent = study.manifest.get("not_measured")
    if not isinstance(asked, list) or "circuit" not in asked or not isinstance(absent, list):
        raise Missing("no circuit was looked for")
    for entry in absent:
        if isinstance(entry, Mapping) and entry.get("what") == "circuits":
            return Markup("No circuit was found: {}.").format(clean(entry.get("why")).rstrip("."))
    raise Missing("there is a circuit")


NEURONS = "a circuit of heads and neurons"
"""As `study/neurons` says what it could not find."""


def no_neurons(study: StoredStudy) -> Markup:
    """Why no circuit of heads and neurons was found, where one was looked for.

    Raises: Missing where there is one, or none was looked for.
    """
    absent = study.manifest.get("not_measured")
    for entry in absent if isinstance(absent, list) else ():
        if isinstance(entry, Mapping) and entry.get("what") == NEURONS:
            why = clean(entry.get("why")).rstrip(".")
            return Markup("No circuit of heads and neurons was found: {}.").format(why)
    raise Missing("there is a circuit of heads and neurons, or none was looked for")


def checks(study: StoredStudy) -> Markup:
    """Whether every measurement's own check holds, and which do not.

    Raises: Missing where nothing was checked.
    """
    checked = dict(_checked(study))
    if not checked:
        raise Missing("no measurement stored the outcome of a check")
    exceeded = [name for name, (gap, bound) in checked.items() if not gap <= bound]
    if exceeded:
        return Markup("<strong>{} of {} exceed their bound: {}.</strong>").format(
            len(exceeded), count(len(checked), "check"), clean(", ".join(exceeded))
        )
    return Markup("{}; the largest gap is {}.").format(
        f"All {count(len(checked), 'check')} hold" if len(checked) > 1 else "The one check holds",
        number(max(gap for gap, _ in checked.values())),
    )


def _checked(study: StoredStudy) -> Iterator[tuple[str, tuple[float, float]]]:
    """Every check with a bound: its gap, and the bound."""
    for name, grid in sorted(study.grids.items()):
        gap, bound = grid.error.get("gap"), grid.error.get("bound")
        if gap is None or bound is None or not np.isfinite(bound) or inherited(name, study):
            continue
        yield name, (float(gap), float(bound))
