"""What is a norm when its scale is held fixed?

A linear map. Therefore a logit or a score can be split among the parts of a normalised sum. With w
the norm's weight, b its bias, C the subtraction of the mean (LayerNorm; the identity for RMSNorm)
and s the scale,

    norm(Σᵢ xᵢ) = Σᵢ w · C xᵢ / s + b          `norm_at_scale`: one part's share
    u · (w · C x / s) = (C (w · u) / s) · x     `pull_back`: its transpose, since C is symmetric
    v - x̂ (x̂ · v) / d                           `through_scale`: with s's own change, x̂ = C x / s
    (w · C x) W = x (C diag(w) W)               `fold_into`: what reads the norm, W, at s = 1

b belongs to no part: `bias_along` is its contribution along a direction. Source: Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits". Cost: a few elementwise operations; no
weight of the model is changed. Results have the widest number format that goes in.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from casestudy.model.config import ModelConfig
from casestudy.model.decoder import norm_weight
from casestudy.model.weights import Norm


def norm_at_scale(
    config: ModelConfig,
    norm: Norm | None,
    x: Float[Tensor, "*rows d_model"],
    scale: Float[Tensor, "*scales one"] | None,
) -> Float[Tensor, "*rows_out d_model"]:
    """A norm of one part of a sum, at the scale of the whole and without the norm's bias.

    Args:
        config: of the model: the kind of its norms.
        norm: None leaves x as it is; `Norm()` is one whose weight is folded away.
        x: the parts; rows and scales broadcast.
        scale: what the norm divided the sum by (`norm_scale`, or a trace's scale site); None leaves
            the division out.
    """
    if norm is None:
        return x
    if config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x if scale is None else x / scale
    weight = norm_weight(config, norm)
    return x if weight is None else x * weight


def pull_back(
    config: ModelConfig,
    norm: Norm | None,
    u: Float[Tensor, "*rows d_model"],
    scale: Float[Tensor, "*scales one"] | None,
) -> Float[Tensor, "*rows_out d_model"]:
    """The direction v before a norm with v · x = u · norm_at_scale(x); arguments as there."""
    if norm is None:
        return u
    weight = norm_weight(config, norm)
    v = u if weight is None else u * weight
    if config.norm == "layer":
        v = v - v.mean(-1, keepdim=True)
    return v if scale is None else v / scale


def through_scale(
    v: Float[Tensor, "*rows d_model"],
    unit: Float[Tensor, "*units d_model"],
    along: Float[Tensor, "*alongs"],
) -> Float[Tensor, "*rows d_model"]:
    """The gradient before a norm whose scale follows its input, from that at a fixed scale.

    Args:
        v: a gradient after the norm, pulled back at the input's own scale (`pull_back`); changed in
            place, since gradients at every head's input are the largest tensors of a pass.
        unit: the input centred and divided by its scale: `norm_at_scale` of `Norm()`.
        along: v · unit, which a caller may know without the product.
    """
    return v.addcmul_(unit, (along / v.shape[-1])[..., None], value=-1.0)


def bias_along(norm: Norm | None, u: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
    """The norm's bias · u; zero without one."""
    if norm is None or norm.bias is None:
        return u.new_zeros(u.shape[:-1])
    return u @ norm.bias.to(u)


def fold_into(
    config: ModelConfig, norm: Norm | None, W: Float[Tensor, "*rows d_model n"]
) -> Float[Tensor, "*rows d_model n"]:
    """W as it reads a norm's input instead of its output, the scale and the bias left out."""
    return pull_back(config, norm, W.mT, None).mT
