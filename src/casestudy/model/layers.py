"""How are some layers of a model run alone?

A run over a large corpus needs the layers up to one alone, and an ablation in layer l repeats only
the layers from l on. `layers_of` is the model with some of its layers: what it computes in them is
what the whole model computes, from the same residual stream. Cost: none; weights are shared.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from casestudy.errors import SiteError
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site


def layers_of(model: Model, first: int, stop: int) -> Model:
    """The model with its layers from `first` to `stop - 1`, which are then counted from 0.

    The embeddings stay; to go on from a residual stream, run it with `from_stream`.
    Raises: SiteError for layers the model does not have, or none.
    """
    n = model.config.n_layers
    if not 0 <= first < stop <= n:
        raise SiteError(f"layers {first} to {stop - 1}", allowed=f"some of 0 to {n - 1}")
    some = slice(first, stop)
    config = model.config
    config = replace(
        config,
        n_layers=stop - first,
        attn_scale=config.attn_scale[some],
        rotary=config.rotary[some],
        windows=config.windows[some],
    )
    weights = replace(model.weights, blocks=model.weights.blocks[some])
    return replace(model, config=config, weights=weights)


def from_stream(resid_pre: Float[Tensor, "batch pos d_model"]) -> Edit:
    """The edit by which a run goes on from a residual stream, in place of the embeddings."""
    return Edit.replace(Site.RESID_PRE, 0, resid_pre)
