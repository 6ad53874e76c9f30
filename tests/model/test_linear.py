"""Is a norm at a fixed scale the linear map of the forward pass, and is its transpose its own?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from casestudy.model.decoder import apply_norm, norm_scale, run
from casestudy.model.edits import Edit
from casestudy.model.linear import (
    bias_along,
    fold_into,
    norm_at_scale,
    pull_back,
    through_scale,
)
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.weights import Norm
from tests.measure.worlds import D_MODEL, D_VOCAB, decoder, pairs

# Layer norms, RMSNorm, RMSNorm with an offset weight, and none; all in float64.
KINDS = ("gpt2", "llama", "gemma2", "linear")
ROUNDING = {"rtol": 0.0, "atol": 1e-12}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def final(variant: str) -> tuple[Model, Norm | None]:
    model = decoder(variant)
    return model, model.weights.final_norm


@pytest.mark.parametrize("variant", KINDS)
def test_it_is_the_forward_pass_s_jacobian_at_a_fixed_scale(variant: str) -> None:
    model, norm = final(variant)
    tokens, _ = pairs([5])
    fixed = [] if norm is None else [Edit(Site.FINAL_SCALE, None, lambda scale: scale.detach())]
    trace = run(model, tokens, keep=[Site.FINAL_RESID, Site.FINAL_NORMED], edit=fixed, grad=True)
    x, normed = trace[Site.FINAL_RESID], trace[Site.FINAL_NORMED][0, -1]
    rows = [torch.autograd.grad(y, x, retain_graph=True)[0][0, -1] for y in normed]
    scale = norm_scale(model.config, x[0, -1].detach())
    unit = torch.eye(D_MODEL, dtype=torch.float64)
    columns = norm_at_scale(model.config, norm, unit, scale)
    torch.testing.assert_close(columns.T, torch.stack(rows), **ROUNDING)
    torch.testing.assert_close(
        pull_back(model.config, norm, unit, scale), torch.stack(rows), **ROUNDING
    )


@pytest.mark.parametrize("variant", KINDS[:-1])
def test_with_the_scale_s_own_change_it_is_the_whole_jacobian(variant: str) -> None:
    model, norm = final(variant)
    x, u = normal(3, D_MODEL).requires_grad_(), normal(3, D_MODEL, seed=1)
    normed = apply_norm(model.config, norm, x)
    (expected,) = torch.autograd.grad(normed, x, u)
    x = x.detach()
    scale = norm_scale(model.config, x)
    unit = norm_at_scale(model.config, Norm(), x, scale)
    v = pull_back(model.config, norm, u, scale)
    found = through_scale(v, unit, (v * unit).sum(-1))
    torch.testing.assert_close(found, expected, **ROUNDING)


@pytest.mark.parametrize("variant", KINDS)
def test_parts_and_the_bias_add_up_to_the_norm_of_the_sum(variant: str) -> None:
    model, norm = final(variant)
    parts, u = normal(6, 3, D_MODEL), normal(3, D_MODEL, seed=1)
    whole = parts.sum(0)
    shares = norm_at_scale(model.config, norm, parts, norm_scale(model.config, whole))
    along = (shares * u).sum((0, 2)) + bias_along(norm, u)
    expected = (apply_norm(model.config, norm, whole) * u).sum(1)
    torch.testing.assert_close(along, expected, **ROUNDING)


@pytest.mark.parametrize("variant", KINDS)
def test_the_two_are_adjoint(variant: str) -> None:
    model, norm = final(variant)
    x, u, scale = normal(4, D_MODEL), normal(4, D_MODEL, seed=1), normal(4, 1, seed=2).exp()
    for at in (scale, None):
        forward = (norm_at_scale(model.config, norm, x, at) * u).sum(1)
        back = (x * pull_back(model.config, norm, u, at)).sum(1)
        torch.testing.assert_close(forward, back, **ROUNDING)


@pytest.mark.parametrize("variant", KINDS)
def test_a_folded_matrix_reads_what_stands_before_the_norm(variant: str) -> None:
    model, norm = final(variant)
    x, W = normal(4, D_MODEL), model.weights.blocks[1].attn.W_Q
    read = torch.einsum("bd,hde->bhe", norm_at_scale(model.config, norm, x, None), W)
    folded = torch.einsum("bd,hde->bhe", x, fold_into(model.config, norm, W))
    torch.testing.assert_close(read, folded, **ROUNDING)
    W_U = model.weights.W_U
    assert fold_into(model.config, norm, W_U).shape == (D_MODEL, D_VOCAB)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_whose_weight_is_folded_away_still_centres_and_divides(kind: str) -> None:
    config = replace(decoder().config, norm=kind)
    x = normal(4, D_MODEL)
    scale = norm_scale(config, x)
    torch.testing.assert_close(
        norm_at_scale(config, Norm(), x, scale), apply_norm(config, Norm(), x), **ROUNDING
    )


def test_without_a_norm_nothing_is_changed() -> None:
    config, x, scale = decoder().config, normal(4, D_MODEL), normal(4, 1).exp()
    assert norm_at_scale(config, None, x, scale) is x
    assert pull_back(config, None, x, scale) is x
    assert not bias_along(None, x).any()


def test_results_have_the_wider_number_format() -> None:
    """A bfloat16 part at a float32 scale, as a trace keeps it, is not rounded again."""
    model = decoder(dtype=torch.bfloat16)
    x = normal(2, D_MODEL).bfloat16()
    scale = norm_scale(model.config, x)
    assert norm_at_scale(model.config, model.weights.final_norm, x, scale).dtype == torch.float32
    assert pull_back(model.config, model.weights.final_norm, x.double(), scale).dtype == (
        torch.float64
    )
