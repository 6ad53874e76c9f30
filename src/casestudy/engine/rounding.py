"""Do the fast way and the plain way of a computation agree up to rounding?

Two ways of computing one value differ by rounding. A small bound is enough for most models. With
large activations or many layers, float32 itself differs from float64 by more than this bound. Then
both ways compute the sample again in float64: an error of the fast way remains there, and rounding
does not. The rounding of the plain way is measured as well.

Assumes values of the same sample for both ways. Cost: none; if the small bound is exceeded, a copy
of the model in float64, and the sample twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from casestudy.errors import MeasureError, ModelError
from casestudy.model.model import Model
from casestudy.model.ram_check import check_room

Array = NDArray[np.float64]

BothWays = Callable[[Model], tuple[Array, Array]]
"""Maps the model in float64 to the sample's values, computed the fast way and the plain way."""

_ROUNDINGS = 4
"""A gap may be at most this multiple of the plain way's measured rounding: the fast way sums in
another order, and the largest rounding in a sample is not the largest of all."""


def rounding_bound(dtype: torch.dtype, size: float = 0.0) -> float:
    """The allowed difference of two ways of computing one value; no bound for bfloat16.

    Args:
        dtype: of the model.
        size: of the largest value; above 10 the bound grows with it.
    """
    least = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, float("inf"))
    return least * max(1.0, size / 10)


def worst_gap(gaps: Float[Tensor, " value"], bounds: Float[Tensor, " value"]) -> dict[str, float]:
    """The gap closest to its bound, with that bound; the largest gap, without a bound, if none is
    guaranteed (an infinite one); empty if every gap is NaN.

    Args:
        gaps: absolute differences; NaN where nothing was measured.
        bounds: what is allowed.
    """
    known = ~gaps.isnan()
    if not bool(known.any()):
        return {}
    gaps, bounds = gaps[known], bounds[known]
    if bool(bounds.isinf().all()):
        return {"gap": float(gaps.max())}
    worst = (gaps / bounds).argmax()
    return {"gap": float(gaps[worst]), "bound": float(bounds[worst])}


def checked(
    model: Model, fast: Array, plain: Array, again: BothWays, what: str
) -> dict[str, float]:
    """Compare the fast way with the plain way on a sample.

    Args:
        model: of the values.
        fast, plain: (sample,) the values of the two ways.
        again: computes both ways in float64.
        what: names the fast way in an error ("the sweep").

    Returns: {"gap": largest difference, "checked": sample size, "bound": what is allowed}, and,
        if float64 was computed, {"float64": largest difference there, "rounding": of the plain way
        from float64}. "bound" is absent if no bound is guaranteed: in bfloat16 and float16, if
        there is no memory for float64, and if the gap is rounding but larger than the plain way's.
    Raises: MeasureError if the two ways differ by more than rounding.
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
    """The model in float64; None if the device has no float64 or not enough memory."""
    if model.device.type == "mps":
        return None
    need = sum(t.numel() for name, t in model.weights.named() if name != "W_U") * 8
    try:
        check_room(need, model.device, f"{model.name} in float64")
    except ModelError:
        return None
    return model.to(dtype=torch.float64)
