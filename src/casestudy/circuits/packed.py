"""How is a step's value stored?

As named arrays and plain data (dicts, lists, numbers, text). These can be stored as npz without
pickles and as JSON, so reading them runs no code. A `Circuit` is stored as its mask, without the
graph: the reader gives the graph of the same model.

Assumes values of the types below. Cost: none; arrays are not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.cost import Extent, Plan
from casestudy.circuits.curves import Curve
from casestudy.circuits.evaluate import Evaluation
from casestudy.circuits.evidence import ExactSample, Faithfulness
from casestudy.circuits.graph import Circuit, Graph
from casestudy.circuits.knockouts import Knockouts
from casestudy.errors import MeasureError

_TYPES = {
    kind.__name__: kind
    for kind in (
        *(EdgeScores, Plan, Extent, ExactSample, Curve, Evaluation),
        *(Circuit, Faithfulness, Knockouts),
    )
}


@dataclass(frozen=True)
class Packed:
    """A value as arrays and plain data.

    Attributes:
        arrays: by their path ("evaluation.values").
        plain: the rest, as for JSON; an array is {"array": path} there.
    """

    arrays: dict[str, NDArray[Any]]
    plain: Any


def pack(value: Any) -> Packed:
    """A step's value as arrays and plain data.

    Raises: MeasureError for a value of an unknown type.
    """
    arrays: dict[str, NDArray[Any]] = {}
    return Packed(arrays, _plain(value, "", arrays))


def _plain(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.ndarray):
        arrays[path or "value"] = value
        return {"array": path or "value"}
    if isinstance(value, Graph):
        return {"graph": None}
    prefix = f"{path}." if path else ""
    if isinstance(value, Mapping):
        parts = {str(k): _plain(v, f"{prefix}{k}", arrays) for k, v in value.items()}
        return {"mapping": parts}
    if isinstance(value, tuple):
        return [_plain(v, f"{prefix}{i}", arrays) for i, v in enumerate(value)]
    name = type(value).__name__
    if _TYPES.get(name) is not type(value):
        raise MeasureError(f"a {name} cannot be stored", allowed=", ".join(_TYPES))
    parts = {f.name: getattr(value, f.name) for f in fields(value)}
    return {name: {k: _plain(v, f"{prefix}{k}", arrays) for k, v in parts.items()}}


def unpack(packed: Packed, graph: Graph) -> Any:
    """The value that was packed, with this graph.

    Raises: MeasureError for plain data that are not from `pack`, or a circuit of another graph.
    """
    return _value(packed.plain, packed.arrays, graph)


def _value(plain: Any, arrays: Mapping[str, NDArray[Any]], graph: Graph) -> Any:
    if isinstance(plain, list):
        return tuple(_value(part, arrays, graph) for part in plain)
    if not isinstance(plain, dict):
        return plain
    kind = ", ".join(plain)  # exactly one if `pack` wrote it
    content: Any = plain.get(kind)
    try:
        if kind == "graph":
            return graph
        if kind == "array":
            return arrays[content]
        parts = {name: _value(part, arrays, graph) for name, part in content.items()}
        return parts if kind == "mapping" else _TYPES[kind](**parts)
    except (KeyError, TypeError, AttributeError) as problem:
        raise MeasureError(f"no stored step of a circuit: {kind!r} ({problem})") from problem
