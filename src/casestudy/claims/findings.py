"""Which findings about a model can be checked by measuring?

A finding names one number: the mean over a behaviour's prompts of a logit difference, of a ledger
term, of a head's direct contribution or attention, of the effect of a patch or an ablation, or of
what a single head or neuron is active on and reads. Each
kind of finding is a class: its fields are the keys of the finding's table, and its `values` give
the numbers per prompt. docs/checking-explanations.md describes the kinds for users.

An unknown key, site or edit is an error that lists what is allowed. A head, role or term that this
model or behaviour does not have makes the finding not measurable, so that it cannot pass.

Cost: one forward pass over the prompts for all findings together, and a sweep of one layer per
patch or ablation (of all layers if the finding states a rank).
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, cast

from casestudy.claims.context import among
from casestudy.claims.finding import Finding
from casestudy.claims.interventions import Ablating, CircuitFaithfulness, Flips, Patching
from casestudy.claims.observed import (
    AnswerStands,
    ClassMass,
    HeadAttention,
    HeadShare,
    LedgerTerm,
    LensDepth,
    LogitDifference,
    NeuronShare,
)
from casestudy.claims.parts import FirstNodes, PartAblation, Reads, Selectivity
from casestudy.errors import FindingError

KINDS: tuple[type[Finding], ...] = (
    *(LogitDifference, AnswerStands, ClassMass, Flips, LedgerTerm, LensDepth),
    *(HeadShare, NeuronShare, HeadAttention, Patching, Ablating, PartAblation),
    *(Selectivity, Reads, FirstNodes, CircuitFaithfulness),
)
"""Every kind of finding. Two kinds of one `measure` differ in the keys they require."""


def read_finding(table: Mapping[str, Any]) -> Finding:
    """Read one finding from its keys, one of which is `measure`.

    Raises: FindingError for an unknown key, a value of the wrong type, and a missing key.
    """
    if not isinstance(table.get("measure"), str):
        raise FindingError("a finding without its measure", allowed=", ".join(_measures()))
    among("measure", table["measure"], _measures())
    kinds = [kind for kind in KINDS if kind.measure == table["measure"]]
    given = {f"{key}_" if keyword.iskeyword(key) else key: value for key, value in table.items()}
    del given["measure"]
    # if two kinds have this measure: the kind whose required keys are given
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
    """A value, checked against the first word of the field's type annotation."""
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
