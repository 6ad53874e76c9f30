"""The rearranged arithmetic is GPT-2's: its logits, its loss and its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from training.model import (
    Kernels,
    ModelConfig,
    Parameters,
    VocabularyLoss,
    final_norm,
    initial_parameters,
    loss,
)
from training.optimizer import OptimizerConfig, initial_state, orthogonalise, step
from transformers import GPT2Config, GPT2LMHeadModel

CONFIG = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_ctx=16, d_vocab=97)


@pytest.fixture
def parameters() -> Parameters:
    generator = torch.Generator().manual_seed(0)
    made = initial_parameters(CONFIG, generator)
    return {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in made.items()}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(CONFIG.d_vocab, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def reference(parameters: Parameters) -> GPT2LMHeadModel:
    stored = CONFIG.hugging_face()
    del stored["architectures"], stored["dtype"], stored["model_type"]
    model = GPT2LMHeadModel(GPT2Config(**stored)).float().eval()
    tied = {"lm_head.weight": parameters["transformer.wte.weight"]}
    model.load_state_dict(parameters | tied)
    return model


def test_float32_logits_are_those_of_transformers(
    parameters: Parameters, tokens: torch.Tensor, reference: GPT2LMHeadModel
) -> None:
    final = final_norm(parameters, tokens[:, :-1], CONFIG, Kernels(), torch.float32)
    ours = final @ parameters["transformer.wte.weight"].T
    with torch.no_grad():
        theirs = reference(tokens[:, :-1]).logits
    # Two orders of float32 sums over 32 numbers and 2 layers.
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_autograd(
    parameters: Parameters, tokens: torch.Tensor, reference: GPT2LMHeadModel
) -> None:
    weights = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    final = final_norm(weights, tokens[:, :-1], CONFIG, Kernels(), torch.float32).flatten(0, 1)
    W_E, targets = weights["transformer.wte.weight"], tokens[:, 1:].reshape(-1)
    value = VocabularyLoss.apply(final, W_E, targets, Kernels())
    value.backward()
    expected = F.cross_entropy(reference(tokens[:, :-1]).logits.flatten(0, 1), targets)
    expected.backward()
    torch.testing.assert_close(value, expected)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)


def test_the_bfloat16_loss_is_near(
    parameters: Parameters, tokens: torch.Tensor, reference: GPT2LMHeadModel
) -> None:
    half = {name: value.bfloat16() for name, value in parameters.items()}
    value = loss(half, tokens, CONFIG, Kernels())
    with torch.no_grad():
        logits = reference(tokens[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].reshape(-1))
    assert abs(value - expected) < 0.02  # eight bits of mantissa


def test_blocks_start_as_the_identity() -> None:
    made = initial_parameters(CONFIG, torch.Generator().manual_seed(0))
    final = final_norm(made, torch.tensor([[1, 2]]), CONFIG, Kernels(), torch.float32)
    W_E, W_pos = made["transformer.wte.weight"], made["transformer.wpe.weight"]
    expected = F.layer_norm(W_E[[1, 2]] + W_pos[:2], (CONFIG.d_model,))
    torch.testing.assert_close(final[0], expected)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    G = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(G).float())
    assert values.min() > 0.6
    assert values.max() < 1.3  # the quintic's own band, about 0.7 to 1.2, and bfloat16


def test_every_weight_moves_and_its_gradient_is_left_alone(parameters: Parameters) -> None:
    before = {name: value.clone() for name, value in parameters.items()}
    generator = torch.Generator().manual_seed(2)
    gradients = {k: torch.randn(v.shape, generator=generator) for k, v in parameters.items()}
    kept = {name: value.clone() for name, value in gradients.items()}
    state = initial_state(parameters)
    step(parameters, state, gradients, 1, 1.0, OptimizerConfig())
    for name, value in parameters.items():
        assert (value != before[name]).float().mean() > 0.99, name
        assert (gradients[name] == kept[name]).all(), name


def test_q_k_and_v_are_stepped_apart(parameters: Parameters) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    before = parameters[name].clone()
    gradients = {k: torch.zeros_like(v) for k, v in parameters.items()}
    gradients[name][:, : CONFIG.d_model] = torch.randn(CONFIG.d_model, CONFIG.d_model)
    step(
        parameters,
        initial_state(parameters),
        gradients,
        1,
        1.0,
        OptimizerConfig(weight_decay=0.0),
    )
    moved = (parameters[name] != before).float().mean(0)
    assert (moved[: CONFIG.d_model] > 0).all()
    assert (moved[CONFIG.d_model :] == 0).all()
