"""Do the findings still hold?

A file of findings (docs/checking-explanations.md) is an explanation that can be false: each finding
names a number (see `findings`) and makes a claim about it. This module measures the findings on a
model. Each finding holds, fails, or is not measurable; the result has the measured value with n and
a 95 % interval, and the claim.

By default the mean decides. With `confidently` a finding holds only if the claim is true for the
whole interval; otherwise it fails. Cost: see `findings`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from casestudy.behaviour.chat import written
from casestudy.behaviour.files import SUFFIXES
from casestudy.behaviour.prompts import Prompts
from casestudy.claims.context import (
    Bench,
    Inapplicable,
    Unmeasurable,
    Values,
    among,
    behaviour_of,
    there,
)
from casestudy.claims.finding import Finding
from casestudy.claims.findings import read_finding
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.errors import FindingError
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.results.result import Shown, Table
from casestudy.results.stats import BOOTSTRAP_FROM, Sums, place_interval, share_ends, units_of

Verdict = Literal["holds", "fails", "not measurable"]


@dataclass(frozen=True)
class Claim:
    """The claim about a number.

    Attributes:
        at_least, at_most: bounds, ends included.
        sign: "positive" or "negative"; zero is neither.
        among_first: k: ranked by absolute value, it is among the first k of its kind.
        confidently: whether the claim has to be true for the whole interval, not only the mean.
    """

    at_least: float | None = None
    at_most: float | None = None
    sign: str | None = None
    among_first: int | None = None
    confidently: bool = False

    def __str__(self) -> str:
        said = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        said += [] if self.at_most is None else [f"at most {self.at_most:g}"]
        said += [] if self.sign is None else [self.sign]
        said += [] if self.among_first is None else [f"among the first {self.among_first}"]
        return " and ".join(said) + (", confidently" if self.confidently else "")

    def met_by(self, value: float) -> bool:
        """Whether a number satisfies the claim, without its rank."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.sign is None or (value > 0 if self.sign == "positive" else value < 0))
        )


@dataclass(frozen=True)
class Asked:
    """One finding of a file.

    Attributes:
        claim: in words.
        finding: the number to measure.
        must: the claim about the number.
        group: of the prompts; the headline prompts by default.
    """

    claim: str
    finding: Finding
    must: Claim
    group: str | None = None


@dataclass(frozen=True)
class Findings:
    """A file of findings.

    Attributes:
        asked: the findings.
        behaviour: a preset's name or a behaviour file's path.
        model: what `load` takes; None if the file has none.
        prepend_bos: whether texts start with BOS; None leaves it to the model.
    """

    asked: tuple[Asked, ...]
    behaviour: str
    model: str | None = None
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of one finding.

    Attributes:
        claim: in words.
        must: the claim about the number.
        verdict: "holds", "fails" or "not measurable".
        value, lower, upper, n, unit: the measured value, if any; an interval needs two prompts or
            documents.
        place: its rank by absolute value (the first is 1), with the ends of its 95 % interval if
            it has one; None if no rank is claimed.
        why: the reason if it is not measurable or not certain.
    """

    claim: str
    must: str
    verdict: Verdict
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    n: int = 0
    unit: str = ""
    place: tuple[int, ...] | None = None
    why: str = ""


@dataclass(frozen=True)
class Checked(Shown):
    """The results of all findings on a model.

    Attributes:
        model, behaviour: their names.
        outcomes: one per finding, in order.
    """

    model: str
    behaviour: str
    outcomes: tuple[Outcome, ...]

    @property
    def shown(self) -> Table:
        """A row per finding."""
        names = [field.name for field in fields(Outcome)]
        columns = {name: [getattr(o, name) for o in self.outcomes] for name in names}
        return Table(
            f"findings about {self.model}", columns, "What was claimed, and what was measured."
        )

    @property
    def holds(self) -> bool:
        """Whether all findings hold."""
        return all(outcome.verdict == "holds" for outcome in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"holds": self.holds, **asdict(self)}


def check(
    findings: Findings | Mapping[str, Any] | str | os.PathLike[str],
    model: Model | str | None = None,
    *,
    behaviour: Prompts | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Checked:
    """Measure each finding on a model.

    Args:
        findings: a file, its contents as a mapping, or what `read_findings` gave.
        model: a `Model` or what `load` takes, instead of the file's.
        behaviour: a `Behaviour`, texts, a preset's name or the path of a behaviour file, instead
            of the file's.
        budget: of each sweep.
        progress: called with the progress of each sweep.

    A finding about something that this model or behaviour lacks (a layer, a role, a contrast) is
    not measurable, with the reason, and the others are measured. If all are like this, it is an
    error.

    Raises: FindingError, before any sweep, for a file or a finding that is not well formed, and
        if no finding is about something that the model and the behaviour have; ModelError and
        BehaviourError for these.
    """
    if not isinstance(findings, Findings):
        findings = read_findings(findings)
    asked = findings.asked
    if model is None and findings.model is None:
        raise FindingError("no model", allowed="a model in the file, or --model")
    behaviour = behaviour_of(findings.behaviour if behaviour is None else behaviour)
    chosen = findings.model if model is None else model
    ready = chosen if isinstance(chosen, Model) else load(str(chosen))
    if findings.prepend_bos is not None:
        ready = ready.with_bos(findings.prepend_bos)
    behaviour = written(ready, behaviour)
    ready = behaviour.read_by(ready)
    needs = {need.name: need for one in asked for need in one.finding.needs}
    bench = Bench(
        ready,
        behaviour,
        tuple(needs.values()),
        budget=budget,
        progress=progress,
    )
    absent = {i: why for i, one in enumerate(asked) if (why := _absent(bench, one)) is not None}
    if len(absent) == len(asked):
        why = absent[0]
        raise FindingError(f"“{asked[0].claim}”: {why.came}", allowed=why.allowed, hint=why.hint)
    outcomes = (
        _unmeasured(one, str(absent[i])) if i in absent else _outcome(bench, one)
        for i, one in enumerate(asked)
    )
    return Checked(ready.name, behaviour.name, tuple(outcomes))


def _absent(bench: Bench, one: Asked) -> Inapplicable | None:
    """The reason if a finding does not apply to this model and behaviour; else None.

    Raises: FindingError for a finding that applies to no model and behaviour.
    """
    with _said_of(one.claim):
        if one.must.among_first is not None and one.finding.alone:
            raise FindingError("among_first of a number that stands alone", allowed="bounds")
        try:
            if one.group is not None:
                there("group", one.group, bench.behaviour.groups)
            one.finding.check(bench)
        except Inapplicable as why:
            return why
    return None


def _unmeasured(one: Asked, why: str) -> Outcome:
    return Outcome(one.claim, str(one.must), "not measurable", why=why)


@contextmanager
def _said_of(claim: str) -> Iterator[None]:
    """Adds the finding to errors."""
    try:
        yield
    except FindingError as error:
        came = f"“{claim}”: {error.came}"
        raise FindingError(came, allowed=error.allowed, hint=error.hint) from error


# What was measured?


def _outcome(bench: Bench, one: Asked) -> Outcome:
    """Measure a finding, and decide."""
    ranked = one.must.among_first is not None
    try:
        values = one.finding.values(bench, one.group, ranked=ranked)
    except Unmeasurable as reason:
        return _unmeasured(one, str(reason))
    documents = [bench.behaviour.prompts[i].document for i in values.prompts]
    unit = units_of(len(values.prompts), documents)
    sums = Sums(int(unit.max(initial=-1)) + 1, values.cells.shape[1])
    sums.add(values.cells, unit)
    mean, low, high, n = (part[values.which] for part in sums.interval(unit=values.unit))
    if not n:
        why = "no prompt has it" if len(values.prompts) else "no prompt can be asked"
        return _unmeasured(one, why)
    if values.yes_or_no:
        low, high = share_ends(mean, low, high, int(sums.counts.any(1).sum()))
    ends = None if np.isnan(low) else (float(low), float(high))
    place = _place(sums, mean, values) if ranked else None
    found, why = verdict(one.must, float(mean), ends, place)
    return Outcome(
        one.claim,
        str(one.must),
        found,
        value=float(mean),
        lower=ends and ends[0],
        upper=ends and ends[1],
        n=int(n),
        unit=values.unit,
        place=place,
        why=why,
    )


def _place(sums: Sums, mean: float, values: Values) -> tuple[int, ...]:
    """A cell's rank by absolute value (the first is 1), and the interval of the rank."""
    found = place_interval(sums, values.which)
    if found is not None:
        return tuple(place + 1 for place in found)
    means = sums.interval()[0]
    return (1 + int((np.nan_to_num(np.abs(means)) > abs(mean)).sum()),)


def verdict(
    must: Claim, mean: float, ends: tuple[float, float] | None, place: tuple[int, ...] | None
) -> tuple[Verdict, str]:
    """Whether the claim holds, and the reason if it is not certain."""

    def first_enough(where: int) -> bool:
        return must.among_first is None or where <= must.among_first

    plain = must.met_by(mean) and (place is None or first_enough(place[0]))
    if not must.confidently:
        return ("holds" if plain else "fails"), ""
    if ends is None:
        return "not measurable", "one prompt or document has no interval"
    if place is not None and len(place) == 1:
        return "not measurable", f"fewer than {BOOTSTRAP_FROM} prompts give no interval of a place"
    sure = all(map(must.met_by, ends)) and (place is None or first_enough(place[2]))
    if sure and plain:
        return "holds", ""
    return "fails", "the mean is as claimed, but not the whole interval" if plain else ""


# The file

_FILE = ("behaviour", "model", "bos", "confidently", "about", "finding")
_CLAIMS = ("at_least", "at_most", "between", "sign", "among_first")
_COMMON = ("claim", "group", "confidently", *_CLAIMS)


def read_findings(file: Mapping[str, Any] | str | os.PathLike[str]) -> Findings:
    """Read a file of findings, or its contents as a mapping.

    The path of a behaviour file is relative to it.

    Raises: FindingError naming the finding, the key and what is allowed there.
    """
    if isinstance(file, Mapping):
        return _findings(file, Path())
    path = Path(file)
    try:
        return _findings(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    except OSError as error:
        raise FindingError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FindingError(f"{path} is not TOML in UTF-8: {error}") from error
    except FindingError as error:
        came = f"{path.name}: {error.came}"
        raise FindingError(came, allowed=error.allowed, hint=error.hint) from error


def _findings(table: Mapping[str, Any], folder: Path) -> Findings:
    for key in table:
        among("the key", key, _FILE)
    rows = table.get("finding", [])
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise FindingError("no finding", allowed="[[finding]] tables, at least one")
    behaviour = _typed(table, "behaviour", str, "full-stop-capitals")
    if Path(behaviour).suffix in SUFFIXES:
        behaviour = str(folder / behaviour)
    sure = _typed(table, "confidently", bool, False)
    _typed(table, "about", str, "")
    return Findings(
        tuple(_asked(i, row, sure) for i, row in enumerate(rows)),
        behaviour,
        _typed(table, "model", str, None),
        _typed(table, "bos", bool, None),
    )


def _asked(number: int, row: Mapping[str, Any], sure: bool) -> Asked:
    claim = row.get("claim")
    if not isinstance(claim, str) or not claim.strip():
        raise FindingError(f"finding {number + 1} without its claim", allowed="a sentence")
    with _said_of(claim):
        finding = read_finding({key: row[key] for key in row if key not in _COMMON})
        return Asked(claim, finding, _claim(row, sure), _typed(row, "group", str, None))


def _claim(row: Mapping[str, Any], sure: bool) -> Claim:
    if not any(key in row for key in _CLAIMS):
        raise FindingError("nothing is claimed of the number", allowed=", ".join(_CLAIMS))
    low, high = (_typed(row, key, float, None) for key in ("at_least", "at_most"))
    if "between" in row:
        ends = row["between"]
        if (low, high) != (None, None) or not isinstance(ends, list) or len(ends) != 2:
            raise FindingError(f"between is {ends!r}", allowed="[low, high], and no other bound")
        low, high = (_typed({"between": end}, "between", float, None) for end in ends)
    if low is not None and high is not None and low > high:
        raise FindingError(f"at least {low:g} and at most {high:g}", allowed="low before high")
    sign = _typed(row, "sign", str, None)
    if sign is not None:
        among("sign", sign, ("positive", "negative"))
    first = _typed(row, "among_first", int, None)
    if first is not None and first < 1:
        raise FindingError(f"among_first is {first}", allowed="1 and more")
    return Claim(low, high, sign, first, _typed(row, "confidently", bool, sure))


def _typed(table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """An entry of one type; whole numbers pass for numbers, and truth values for nothing else.

    Raises: FindingError saying what it is.
    """
    if key not in table:
        return default
    value = table[key]
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise FindingError(f"{key} is {value!r}", allowed=names[kind])
    return kind(value)
