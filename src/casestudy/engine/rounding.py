"""Do a fast way and the plain one agree up to rounding?

Two ways of computing one value differ by the rounding of what they sum. A small bound serves most
models; where activations are large or layers many, float32 itself is further from float64 than
that. Then both ways compute the sample again in float64, where a fault of the fast way remains and
rounding does not, and the rounding of the plain way is measured beside.

Assumes values of the same sample both ways. Cost: none, but where the small bound is exceeded a
copy of the model in float64 and the sample twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from casestudy.errors import MeasureError, ModelError
from casestudy.model.model import Model
from casestudy.model.ram_check import check_room

Array = NDArray[np.float64]

BothWays = Callable[[Model], tuple[Array, Array]]
"""From the model in float64 to the sample's values, the fast way and the plain one."""

_ROUNDINGS = 4
"""A gap may be so many times what the plain way's rounding was measured to be: the fast way sums in
another order, and a sample's largest rounding is not the largest there is."""


def rounding_bound(dtype: torch.dtype, size: float = 0.0) -> float:
    """What two ways of computing one value may differ by; bfloat16 promises nothing.

    Args:
        dtype: of the model.
        size: of the largest value; the bound grows with those above 10.
    """
    least = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, float("inf"))
    return least * max(1.0, size / 10)


def checked(
    model: Model, fast: Array, plain: Array, again: BothWays, what: str
) -> dict[str, float]:
    """What a sample says of the fast way.

    Args:
        model: whose values they are.
        fast, plain: (sample,) the two ways' values.
        again: both ways in float64.
        what: the fast way's values, for an error ("the sweep").

    Returns: {"gap": largest difference, "checked": sample size, "bound": what is allowed}, and,
        where float64 was asked, {"float64": largest difference there, "rounding": the plain way's
        from float64}. Without "bound" nothing is promised: in bfloat16 and float16, where there is
        no room for float64, and where the gap is rounding but more than the plain way's.
    Raises: MeasureError where the two ways differ by more than rounding.
    """
    gap = float(np.abs(fast - plain).max(initial=0.0))
    size = float(np.abs(plain).max(initial=0.0))
    error = {"gap": gap, "checked": float(len(plain))}
    least, bound = rounding_bound(model.dtype), rounding_bound(model.dtype, size)
    if bound == float("inf"):
        return error
    if gap <= bound:
        return {**error, "bound": least if gap <= least else bound}
    if model.dtype == torch.float64:
        raise _differ(what, gap, bound)
    wide = _in_float64(model)
    if wide is None:
        return error
    exact, reference = again(wide)
    error["float64"] = float(np.abs(exact - reference).max())
    allowed = rounding_bound(torch.float64, size)
    if not error["float64"] <= allowed:
        raise _differ(f"in float64 {what}", error["float64"], allowed)
    error["rounding"] = float(np.abs(plain - reference).max())
    bound = max(bound, _ROUNDINGS * error["rounding"])
    return {**error, "bound": bound} if gap <= bound else error


def _differ(what: str, gap: float, bound: float) -> MeasureError:
    return MeasureError(
        f"{what} differs from full forward passes by {gap:.2e}",
        allowed=f"at most {bound:.0e}",
        hint="Please report it with the model and what was asked",
    )


def _in_float64(model: Model) -> Model | None:
    """The model in float64; None where the device has no such numbers or no room for them."""
    if model.device.type == "mps":
        return None
    need = sum(t.numel() for name, t in model.weights.named() if name != "W_U") * 8
    try:
        check_room(need, model.device, f"{model.name} in float64")
    except ModelError:
        return None
    return model.to(dtype=torch.float64)
