"""Checks every annotated shape and type, at a tenth of what jaxtyping's own decorator costs.

jaxtyping's import hook decorates each function and dataclass of a package with its `jaxtyped`. On
every call that binds the arguments and checks two generated functions, whatever is annotated: four
fifths of the time of a test with a small model. `install` has the hook apply `checked` instead,
which checks the same annotations by the same two libraries and raises the same error:

- A function without a shape in its annotations is checked by beartype alone.
- One with shapes is checked by beartype within a jaxtyping context, so that an axis has one size
  in all arguments and in what is returned.
- A function made within another is compiled once, not each time it is made.
- An annotation that only names its axes, as all of ours do, is compared with a tensor directly;
  jaxtyping's own check, four times as long, decides wherever that comparison does not say yes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, get_args, get_type_hints

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import _array_types, _storage

CONF = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
ORIGINAL = jaxtyping.jaxtyped
CONTEXT = ORIGINAL("context")  # within it axes have no sizes yet; it has no state of its own
HELD = "__beartype_func"  # the keyword in which beartype's wrapper holds the function it checks


def install(package: str) -> None:
    """Check every function and dataclass of `package`; to be called before it is imported."""
    jaxtyping.jaxtyped = checked  # the hook looks its decorator up by this name
    _array_types._MetaAbstractArray.__instancecheck__ = fits
    jaxtyping.install_import_hook(package, "beartype.beartype")


def checked(decorated: Any = None, **_: Any) -> Any:
    """The decorator that the hook applies to functions and classes; the checker is beartype."""
    if decorated is None:
        return checked
    if not inspect.isclass(decorated):
        return checked_function(decorated)
    init = vars(decorated).get("__init__")
    if dataclasses.is_dataclass(decorated) and init and not hasattr(init, "__wrapped__"):
        decorated.__init__ = checked_function(init)  # type: ignore[misc]
    return decorated


class Check(NamedTuple):
    """How one function is checked: beartype's wrapper, and whether an annotation has a shape."""

    wrapper: FunctionType
    shaped: bool


_inner: dict[CodeType, Check] = {}  # of functions made within functions


def checked_function(function: FunctionType) -> Callable[..., Any]:
    """`function`, which raises TypeCheckError for what its annotations do not allow."""
    if "<locals>" not in function.__qualname__:
        check = check_of(function)
    else:
        if function.__code__ not in _inner:
            _inner[function.__code__] = check_of(function)
        check = _inner[function.__code__]
    wrapper = holding(check.wrapper, function)
    if not check.shaped:
        return wrapper
    if inspect.isgeneratorfunction(function):  # beartype checks it when its first value is taken
        return ORIGINAL(function, typechecker=beartype)  # type: ignore[no-any-return]

    @functools.wraps(function)
    def within_a_context(*args: Any, **kwargs: Any) -> Any:
        with CONTEXT:
            return wrapper(*args, **kwargs)

    return within_a_context


def check_of(function: FunctionType) -> Check:
    """The check by beartype, of a double of `function` that keeps nothing of its surroundings."""
    closure = function.__closure__ and tuple(CellType() for _ in function.__closure__)
    double = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        closure,
    )
    double.__kwdefaults__ = function.__kwdefaults__
    double.__module__, double.__qualname__ = function.__module__, function.__qualname__
    hints = {name: hint_of(function, hint) for name, hint in function.__annotations__.items()}
    double.__annotations__ = hints
    return Check(beartype(conf=CONF)(double), any(map(has_shapes, hints.values())))


def holding(wrapper: FunctionType, function: FunctionType) -> FunctionType:
    """beartype's `wrapper`, around `function` in place of its double."""
    if HELD not in (wrapper.__kwdefaults__ or {}):
        return function  # nothing in its annotations to check
    copy = FunctionType(wrapper.__code__, wrapper.__globals__, function.__name__)
    functools.update_wrapper(copy, function)
    copy.__kwdefaults__ = wrapper.__kwdefaults__ | {HELD: function}
    return copy


def hint_of(function: FunctionType, annotation: object) -> object:
    """What an annotation, usually a string, stands for."""

    def annotated() -> None: ...

    annotated.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(annotated, function.__globals__, include_extras=True)["value"]
    except Exception:  # noqa: BLE001  # as in jaxtyping: a name of a later line, or for mypy alone
        return Any


def has_shapes(hint: object) -> bool:
    """Whether a jaxtyping annotation is anywhere in `hint`."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)
    return any(map(has_shapes, parts))


TENSOR = torch.Tensor
FULL_CHECK = _array_types._MetaAbstractArray.__instancecheck__


class Axes(NamedTuple):
    """An annotation's axes, where all of them are just different names.

    Attributes:
        dtypes: that are allowed.
        names: of all axes but a variadic one.
        at: where the variadic one is; None where there is none.
        variadic: its name; "" for `...`.
    """

    dtypes: frozenset[torch.dtype]
    names: tuple[str, ...]
    at: int | None
    variadic: str


@functools.cache
def axes_of(annotation: Any) -> Axes | None:
    """The axes of a jaxtyping annotation; None where a name alone does not say what is allowed."""
    dims, at = list(annotation.dims), annotation.index_variadic
    rest = [] if at is None else [dims.pop(at)]
    names = [dim.name for dim in dims if type(dim) is _array_types._NamedDim]
    plain = len(set(names)) == len(annotation.dims) - len(rest) and all(
        dim is _array_types._anonymous_variadic_dim or type(dim) is _array_types._NamedVariadicDim
        for dim in rest
    )
    special = any(
        getattr(dim, "broadcastable", False) or getattr(dim, "treepath", False)
        for dim in (*dims, *rest)
    )
    any_dtype = annotation.dtypes is _array_types._any_dtype
    if annotation.array_type is not torch.Tensor or not plain or special or any_dtype:
        return None
    dtypes = {getattr(torch, name, None) for name in annotation.dtypes if isinstance(name, str)}
    variadic = getattr(rest[0], "name", "") if rest else ""
    return Axes(frozenset(dtypes - {None}), tuple(names), at, variadic)


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is what a jaxtyping annotation says, given the axes known in this call.

    The same answer as jaxtyping's, and the same axes known after it.
    """
    axes = axes_of(annotation)
    stack = getattr(_storage._shape_storage, "memo_stack", None)
    if not stack or axes is None or not isinstance(value, TENSOR) or value.dtype not in axes.dtypes:
        return bool(FULL_CHECK(annotation, value))
    sizes, parts, *_ = stack[-1]
    known = sizes.copy()
    _, names, at, variadic = axes
    shape, middle = value.shape, None
    if at is not None and len(shape) >= len(names):
        end = len(shape) - len(names) + at
        middle = shape[at:end]
        shape = (*shape[:at], *shape[end:])
    if len(shape) == len(names):
        for name, size in zip(names, shape, strict=True):
            if sizes.setdefault(name, size) != size:
                break
        else:
            if not variadic or parts.setdefault(variadic, (False, middle)) == (False, middle):
                return True
    sizes.clear()
    sizes.update(known)
    return bool(FULL_CHECK(annotation, value))
