"""What can be claimed of a model, so that it can be measured?

A finding names one number: a mean over a behaviour's prompts of a logit difference, a ledger term,
a head's share, where it looks, what patching or ablating it does. Each kind is a table of the keys
it takes, and knows which numbers of which prompts it is about (`Values`);
docs/checking-explanations.md is the page for people. Unknown keys, sites and edits are errors with
what is allowed; heads, roles and terms that this model or behaviour does not have are not
measurable: a finding about nothing must not pass.

Cost: one forward pass over the prompts for all findings together, and a sweep of one layer per
patch or ablation (of all layers where it is asked which come first).
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, cast

from casestudy.claims.context import among
from casestudy.claims.finding import Finding
from casestudy.claims.interventions import Ablating, Faithfulness, Flips, Patching
from casestudy.claims.observed import (
    AnswerStands,
    Attention,
    ClassMass,
    HeadShare,
    LedgerTerm,
    LensDepth,
    LogitDifference,
    NeuronShare,
)
from casestudy.errors import FindingError

KINDS: tuple[type[Finding], ...] = (
    *(LogitDifference, AnswerStands, ClassMass, Flips, LedgerTerm, LensDepth),
    *(HeadShare, NeuronShare, Attention, Patching, Ablating, Faithfulness),
)
"""Every kind of finding; two may share a `measure`, told apart by what they require."""


def read_finding(table: Mapping[str, Any]) -> Finding:
    """One finding from its keys, `measure` among them.

    Raises: FindingError for a key or a value that means nothing here, or one that is missing.
    """
    if not isinstance(table.get("measure"), str):
        raise FindingError("a finding without its measure", allowed=", ".join(_measures()))
    among("measure", table["measure"], _measures())
    kinds = [kind for kind in KINDS if kind.measure == table["measure"]]
    given = {f"{key}_" if keyword.iskeyword(key) else key: value for key, value in table.items()}
    del given["measure"]
    # of two kinds, the one whose own key is there
    kind = next((k for k in kinds if _required(k) <= given.keys()), kinds[0])
    known = {f.name: f for f in fields(cast(Any, kind))}
    for key, value in given.items():
        among(f"{kind.measure} has the key", key.rstrip("_"), [k.rstrip("_") for k in known])
        given[key] = _read(key.rstrip("_"), value, str(known[key].type).split(" ")[0])
    missing = sorted(_required(kind) - given.keys())
    if missing:
        either = " or ".join(", ".join(sorted(k.rstrip("_") for k in _required(k))) for k in kinds)
        raise FindingError(f"{kind.measure} without {missing[0].rstrip('_')}", allowed=either)
    return kind(**given)


def _read(key: str, value: object, kind: str) -> Any:
    """A value of a field's type, by the annotation's first word."""
    came = value
    match kind:
        case "int":
            fits, allowed = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        case "str":
            fits, allowed = isinstance(value, str), "text"
        case _:
            names = value if isinstance(value, list) else []
            fits, allowed = (
                bool(names) and all(isinstance(n, str) for n in names),
                "a list of texts",
            )
            value = tuple(names)
    if not fits:
        raise FindingError(f"{key} is {came!r}", allowed=allowed)
    return value


def _measures() -> list[str]:
    return list(dict.fromkeys(kind.measure for kind in KINDS))


def _required(kind: type[Finding]) -> set[str]:
    return {f.name for f in fields(cast(Any, kind)) if f.default is MISSING}
