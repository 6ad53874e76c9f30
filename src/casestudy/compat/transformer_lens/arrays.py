"""How is a trace converted for tools that use TransformerLens's names?

To a dictionary of numpy arrays with TransformerLens's shapes: activations of the last tokens only
have no pos axis, as with `pos_slice=-1`. Rows are padded on the right; values in the padding have
no meaning.
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
    """The activations of a trace by TransformerLens's names, and "logits" if there are any.

    numpy has no bfloat16: such tensors become float32, with the same values.

    Args:
        trace: from `run`.
        model: of the run; the names depend on its architecture.

    Raises: SiteError naming kept sites without a name in TransformerLens.
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
