"""How do several commands share a group of options?

typer makes an option of every parameter of a command's signature, which `inspect.signature` reads
from `__signature__` where there is one (PEP 362). A group is a dataclass whose fields are annotated
as such parameters are. `spread` gives a command that takes a group a signature with the group's
fields in its place, and puts the values together again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with an option for each field of every group among its parameters.

    Raises: TypeError where two parameters or fields have one name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    spreaded: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        group = hints[name]
        if is_dataclass(group) and isinstance(group, type):
            groups[name] = group
            kinds = get_type_hints(group, include_extras=True)
            spreaded += [
                Parameter(f.name, parameter.kind, default=f.default, annotation=kinds[f.name])
                for f in fields(group)
            ]
        else:
            spreaded.append(parameter.replace(annotation=hints[name]))
    if not groups:
        return command
    names = [parameter.name for parameter in spreaded]
    if len(set(names)) < len(names):
        raise TypeError(f"{command.__name__} has an option twice: {sorted(names)}")

    @wraps(command)
    def with_groups(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    vars(with_groups)["__signature__"] = Signature(spreaded)
    with_groups.__annotations__ = {p.name: p.annotation for p in spreaded}
    return with_groups
