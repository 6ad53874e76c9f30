"""Do the decoder's variants, beyond GPT-2's, compute what transformers computes?

Reading these families' checkpoints is not here: their random weights are handed over by name, so
that every branch of the one forward pass is held to a second program, in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTJConfig,
    LlamaConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen3Config,
    StableLmConfig,
)

from casestudy.errors import EditError, SiteError
from casestudy.model.config import ModelConfig, Rotary
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.loading import BUNDLED
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokenizer, Tokens
from casestudy.model.weights import MLP, Attention, Block, Norm, Weights
from tests.helpers import perturb_

SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "vocab_size": 100,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
WINDOW = 4
# 12 tokens: three times past the window
ROWS = [list(range(12)), [7], [50, 3, 3, 9, 61]]
FREQUENCIES = tuple(10000.0 ** (-2 * i / 6) for i in range(3))

COMMON = {
    "family": "test",
    "n_layers": 3,
    "d_model": 24,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_head": 6,
    "d_mlp": 40,
    "d_vocab": 100,
    "n_ctx": 32,
    "attn_scale": (6**-0.5,) * 3,
    "norm": "rms",
    "norm_eps": 1e-6,
    "activation": "silu",
    "rotary": (Rotary(FREQUENCIES),) * 3,
}


def theirs(config: PretrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval().to(torch.float64)
    perturb_(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter *= 10  # initial weights are so small that a block barely writes
    return model


def heads(linear: nn.Linear, n: int) -> Tensor:
    """(out, in) of n heads as (head, in, d_head)."""
    return linear.weight.unflatten(0, (n, -1)).transpose(1, 2)


def norm(module: nn.Module, name: str) -> Norm | None:
    part = getattr(module, name, None)
    if part is None:
        return None
    if hasattr(part, "norms"):  # one per head
        return Norm(torch.stack([n.weight for n in part.norms]))
    return Norm(part.weight, getattr(part, "bias", None))


def llama_like(model: nn.Module, config: ModelConfig, names: dict[str, str]) -> Weights:
    """Weights of the many families that keep Llama's module names."""

    def block(layer: nn.Module) -> Block:
        a, m = layer.self_attn, layer.mlp
        return Block(
            attn=Attention(
                W_Q=heads(a.q_proj, config.n_heads),
                W_K=heads(a.k_proj, config.n_kv_heads),
                W_V=heads(a.v_proj, config.n_kv_heads),
                W_O=a.o_proj.weight.T.unflatten(0, (config.n_heads, -1)),
                q_norm=norm(a, "q_norm") or norm(a, "q_layernorm"),
                k_norm=norm(a, "k_norm") or norm(a, "k_layernorm"),
            ),
            mlp=MLP(
                W_in=m.up_proj.weight.T, W_gate=m.gate_proj.weight.T, W_out=m.down_proj.weight.T
            ),
            **{place: norm(layer, name) for place, name in names.items()},
        )

    return Weights(
        W_E=model.model.embed_tokens.weight,
        blocks=tuple(block(layer) for layer in model.model.layers),
        W_U=model.lm_head.weight.T,
        final_norm=norm(model.model, "norm"),
    )


PRE = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
POST = {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
SANDWICH = POST | {"attn_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}


def llama() -> tuple[nn.Module, ModelConfig, Weights]:
    model = theirs(LlamaConfig(**SHAPE, rope_theta=1e4, rms_norm_eps=1e-6))
    config = ModelConfig(**COMMON)
    return model, config, llama_like(model, config, PRE)


def qwen3() -> tuple[nn.Module, ModelConfig, Weights]:
    model = theirs(Qwen3Config(**SHAPE, rms_norm_eps=1e-6))
    config = ModelConfig(**COMMON | {"qk_norm": "head"})
    return model, config, llama_like(model, config, PRE)


def olmo2() -> tuple[nn.Module, ModelConfig, Weights]:
    shape = {k: v for k, v in SHAPE.items() if k != "head_dim"}
    model = theirs(Olmo2Config(**shape, rms_norm_eps=1e-6))
    config = ModelConfig(**COMMON | {"qk_norm": "all"})
    return model, config, llama_like(model, config, POST)


def gemma2() -> tuple[nn.Module, ModelConfig, Weights]:
    model = theirs(
        Gemma2Config(
            **SHAPE,
            rms_norm_eps=1e-6,
            query_pre_attn_scalar=9,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    )
    changes = {
        "activation": "gelu_new",
        "norm_weight_offset": 1.0,
        "attn_scale": (1 / 3,) * 3,
        "attn_softcap": 2.0,
        "final_softcap": 3.0,
        "embed_scale": 24**0.5,
        "windows": (WINDOW, None, WINDOW),
    }
    config = ModelConfig(**COMMON | changes)
    return model, config, llama_like(model, config, SANDWICH)


def stablelm() -> tuple[nn.Module, ModelConfig, Weights]:
    shape = {k: v for k, v in SHAPE.items() if k != "head_dim"}
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.7}
    model = theirs(StableLmConfig(**shape, qk_layernorm=True, rope_parameters=rope))
    frequencies = (1.0, 10000.0**-0.5)
    changes = {
        "norm": "layer",
        "norm_eps": 1e-5,
        "qk_norm": "head",
        "qk_norm_kind": "layer",
        "rotary": (Rotary(frequencies),) * 3,
    }
    config = ModelConfig(**COMMON | changes)
    return model, config, llama_like(model, config, PRE)


def gptj() -> tuple[nn.Module, ModelConfig, Weights]:
    model = theirs(
        GPTJConfig(
            vocab_size=100,
            n_positions=32,
            n_embd=24,
            n_layer=3,
            n_head=4,
            rotary_dim=4,
            n_inner=40,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    frequencies = tuple(10000.0 ** (-2 * i / 4) for i in range(2))
    changes = {
        "n_kv_heads": 4,
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": "gelu_new",
        "parallel": True,
        "rotary": (Rotary(frequencies, interleaved=True),) * 3,
    }

    def block(layer: nn.Module) -> Block:
        a, m = layer.attn, layer.mlp
        return Block(
            attn=Attention(
                W_Q=heads(a.q_proj, 4),
                W_K=heads(a.k_proj, 4),
                W_V=heads(a.v_proj, 4),
                W_O=a.out_proj.weight.T.unflatten(0, (4, -1)),
            ),
            mlp=MLP(
                W_in=m.fc_in.weight.T,
                b_in=m.fc_in.bias,
                W_out=m.fc_out.weight.T,
                b_out=m.fc_out.bias,
            ),
            attn_norm=norm(layer, "ln_1"),
            mlp_norm=norm(layer, "ln_1"),
        )

    weights = Weights(
        W_E=model.transformer.wte.weight,
        blocks=tuple(block(layer) for layer in model.transformer.h),
        W_U=model.lm_head.weight.T,
        b_U=model.lm_head.bias,
        final_norm=norm(model.transformer, "ln_f"),
    )
    return model, ModelConfig(**COMMON | changes), weights


FAMILIES = (llama, qwen3, olmo2, gemma2, stablelm, gptj)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Model]:
    model, config, weights = request.param()
    weights = replace(weights, **{f: getattr(weights, f).detach() for f in ("W_E", "W_U")})
    tokenizer = Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=True, n_ctx=32)
    return model, Model(config, weights, tokenizer, name=request.param.__name__)


def test_logits_states_and_patterns(pair: tuple[nn.Module, Model]) -> None:
    model, ours = pair
    trace = run(ours, Tokens.of(ROWS), keep=["resid_pre", "pattern"], logits="all")
    for prompt, row in enumerate(ROWS):
        with torch.no_grad():
            expected = model(torch.tensor([row]), output_hidden_states=True, output_attentions=True)
        # transformers' own rotary angles, and Gemma's scale, are float32 whatever the weights are
        close = {"rtol": 0, "atol": 1e-5}
        for layer in range(3):
            states = expected.hidden_states[layer][0]
            torch.testing.assert_close(trace.of(("resid_pre", layer), prompt), states, **close)
            pattern = trace.of(("pattern", layer), prompt)
            torch.testing.assert_close(pattern, expected.attentions[layer][0], **close)
        torch.testing.assert_close(trace.logits[prompt, : len(row)], expected.logits[0], **close)


def test_fused_equals_explicit_and_alone_equals_together(pair: tuple[nn.Module, Model]) -> None:
    _, ours = pair
    keep = [site for site in Site if site not in absent(ours)]
    explicit = run(ours, Tokens.of(ROWS), keep=keep, logits="all").logits
    for prompt, row in enumerate(ROWS):
        alone = run(ours, Tokens.of([row]), logits="all").logits
        torch.testing.assert_close(explicit[prompt, : len(row)], alone[0], rtol=0, atol=1e-12)


def absent(model: Model) -> set[Site]:
    """The sites an architecture does not have, by its shape."""
    block = model.weights.blocks[0]
    return {
        *([] if model.weights.W_pos is not None else [Site.POS_EMBED]),
        *([] if block.mlp.W_gate is not None else [Site.MLP_GATE]),
        *([Site.RESID_MID] if model.config.parallel else []),
        *([] if block.attn_norm else [Site.ATTN_SCALE]),
        *([] if block.mlp_norm else [Site.MLP_SCALE]),
        *([] if block.attn_post_norm else [Site.ATTN_POST_SCALE]),
        *([] if block.mlp_post_norm else [Site.MLP_POST_SCALE]),
    }


def test_absent_sites_are_refused(pair: tuple[nn.Module, Model]) -> None:
    _, ours = pair
    for site in absent(ours):
        with pytest.raises(SiteError, match=f"never computes {site.value}"):
            run(ours, Tokens.of(ROWS), keep=[site])
        with pytest.raises(EditError, match=f"never computes {site.value}"):
            run(ours, Tokens.of(ROWS), edit=[Edit.zero(site, 0 if site.layered else None)])


@pytest.mark.parametrize("site", list(Site))
def test_identity_edits_and_slopes(pair: tuple[nn.Module, Model], site: Site) -> None:
    """An edit by itself changes nothing, and each gradient is the slope it claims to be."""
    _, ours = pair
    if site in absent(ours):
        return
    tokens, layer = Tokens.of(ROWS), 1 if site.layered else None
    key: Any = site if layer is None else (site, layer)

    def total(edit: Edit) -> float:
        return float(run(ours, tokens, edit=[edit], logits="last").logits[:, 5].sum())

    trace = run(ours, tokens, keep=[site], logits="last", grad=True)
    plain = trace.logits[:, 5].sum()
    assert total(Edit(site, layer, lambda x: x)) == pytest.approx(float(plain.detach()), abs=1e-12)
    (slope,) = torch.autograd.grad(plain, trace[key])
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(slope.shape, generator=rng, dtype=slope.dtype)
    step = 1e-5
    ends = [total(Edit.add(site, layer, sign * step * direction)) for sign in (1, -1)]
    expected = float((slope * direction).sum())
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_hand_made_linear_model() -> None:
    """Without norms, with identity for a nonlinearity: sums that can be done by hand."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    changes = {"n_layers": 1, "activation": "identity", "rotary": ()}
    config = ModelConfig(**COMMON | changes | {"attn_scale": (0.0,)})
    attn = Attention(normal(4, 24, 6), normal(2, 24, 6), normal(2, 24, 6), normal(4, 6, 24))
    block = Block(attn, MLP(W_in=normal(24, 40), W_out=normal(40, 24)))
    weights = Weights(W_E=normal(100, 24), blocks=(block,), W_U=normal(24, 100))
    tokenizer = Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=True, n_ctx=32)
    model = Model(config, weights, tokenizer, name="linear")

    x = weights.W_E[[5, 9, 61]]
    mean = x.mean(0)  # a scale of 0 makes every pattern uniform
    V = attn.W_V.repeat_interleave(2, 0)
    mid = x[-1] + torch.einsum("d,hde,hef->f", mean, V, attn.W_O)
    post = mid + mid @ block.mlp.W_in @ block.mlp.W_out
    logits = run(model, Tokens.of([[5, 9, 61]]), logits="last").logits
    torch.testing.assert_close(logits[0], post @ weights.W_U)
