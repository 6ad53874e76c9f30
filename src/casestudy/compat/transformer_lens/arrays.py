"""How is a trace handed on to tools that know TransformerLens's names?

As a dictionary of numpy arrays. Shapes are TransformerLens's own: what was kept at the last tokens
alone has no pos axis, as there with `pos_slice=-1`. Rows are padded on the right; what stands in
the padding means nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from casestudy.compat.transformer_lens.names import DOCS, names_of
from casestudy.errors import SiteError
from casestudy.model.model import Model
from casestudy.model.sites import address_name
from casestudy.model.trace import Trace


def to_numpy(trace: Trace, model: Model) -> dict[str, NDArray[Any]]:
    """What a trace kept, by TransformerLens's names, and "logits" where there are any.

    numpy knows no bfloat16: such tensors become float32, which holds the same numbers.

    Args:
        trace: what `run` returned.
        model: which it ran; the names depend on its architecture.

    Raises: SiteError naming what was kept under no name of TransformerLens.
    """
    names = {(name.site, name.layer): name.text for name in names_of(model).values()}
    kept = {**trace.lasts, **trace.values}
    nameless = [address_name(*address) for address in kept if address not in names]
    if nameless:
        raise SiteError(
            f"TransformerLens has no name for {', '.join(nameless)}",
            hint=f"Leave them out of keep=, or read them off the trace itself. {DOCS}",
        )
    arrays = {names[address]: _array(x) for address, x in kept.items()}
    return arrays if trace.logits is None else {**arrays, "logits": _array(trace.logits)}


def _array(x: Tensor) -> NDArray[Any]:
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
