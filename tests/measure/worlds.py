"""Tiny random decoders of every architecture the forward pass knows, and random prompt pairs."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.model.config import ModelConfig, Rotary
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer, Tokens
from casestudy.model.weights import MLP, Attention, Block, Norm, Weights

N_LAYERS, D_MODEL, N_HEADS, D_HEAD, D_MLP, D_VOCAB, N_CTX = 3, 8, 4, 4, 12, 17, 24
_SPIN = Rotary((1.0, 0.3))

VARIANTS: dict[str, dict[str, object]] = {
    "gpt2": {},
    "linear": {"final_norm": False, "pre_norms": False, "activation": "identity"},
    "neox": {"parallel": True, "learned_positions": False, "rotary": (_SPIN,) * N_LAYERS},
    "llama": {
        "norm": "rms",
        "n_kv_heads": 2,
        "gated_mlp": True,
        "activation": "silu",
        "learned_positions": False,
        "rotary": (_SPIN,) * N_LAYERS,
    },
    "gemma2": {
        "norm": "rms",
        "norm_weight_offset": 1.0,
        "n_kv_heads": 2,
        "gated_mlp": True,
        "learned_positions": False,
        "rotary": (_SPIN, None, _SPIN),
        "windows": (None, 3, None),
        "attn_softcap": 5.0,
        "final_softcap": 3.0,
        "embed_scale": 1.5,
        "post_norms": True,
    },
    "olmo2": {
        "norm": "rms",
        "qk_norm": "all",
        "learned_positions": False,
        "rotary": (_SPIN,) * N_LAYERS,
        "post_norms": True,
        "pre_norms": False,
    },
    "gemma3": {"norm": "rms", "qk_norm": "head", "windows": (2, 4, None), "n_kv_heads": 1},
}


def decoder(
    variant: str = "gpt2", *, seed: int = 0, dtype: torch.dtype = torch.float64, n_layers: int = 3
) -> Model:
    """A random decoder, large enough weights that everything is nonlinear."""
    choices = dict(VARIANTS[variant])
    post_norms = choices.pop("post_norms", False)
    pre_norms = choices.pop("pre_norms", True)
    final_norm = choices.pop("final_norm", True)
    gated = choices.pop("gated_mlp", False)
    positions = choices.pop("learned_positions", True)
    n_kv_heads = choices.pop("n_kv_heads", N_HEADS)
    for name in ("rotary", "windows"):
        if name in choices:
            choices[name] = choices[name][:n_layers]  # type: ignore[index]
    config = ModelConfig(
        family="test",
        n_layers=n_layers,
        d_model=D_MODEL,
        n_heads=N_HEADS,
        d_head=D_HEAD,
        d_mlp=D_MLP,
        d_vocab=D_VOCAB,
        n_ctx=N_CTX,
        n_kv_heads=n_kv_heads,  # type: ignore[arg-type]
        attn_scale=(D_HEAD**-0.5,) * n_layers,
        **choices,  # type: ignore[arg-type]
    )
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int, scale: float = 0.6) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) * scale

    def norm(d: int = D_MODEL, bias: bool = config.norm == "layer") -> Norm:
        return Norm(1 + new(d, scale=0.2), new(d, scale=0.2) if bias else None)

    def block() -> Block:
        wide = N_HEADS * D_HEAD if config.qk_norm == "all" else D_HEAD
        wide_k = config.n_kv_heads * D_HEAD if config.qk_norm == "all" else D_HEAD
        attn = Attention(
            new(N_HEADS, D_MODEL, D_HEAD),
            new(config.n_kv_heads, D_MODEL, D_HEAD),
            new(config.n_kv_heads, D_MODEL, D_HEAD),
            new(N_HEADS, D_HEAD, D_MODEL),
            new(N_HEADS, D_HEAD),
            new(config.n_kv_heads, D_HEAD),
            new(config.n_kv_heads, D_HEAD),
            new(D_MODEL),
            norm(wide, False) if config.qk_norm != "none" else None,
            norm(wide_k, False) if config.qk_norm != "none" else None,
        )
        gate = new(D_MODEL, D_MLP) if gated else None
        mlp = MLP(new(D_MODEL, D_MLP), new(D_MLP, D_MODEL), gate, new(D_MLP), None, new(D_MODEL))
        return Block(
            attn,
            mlp,
            norm() if pre_norms else None,
            norm() if pre_norms else None,
            norm() if post_norms else None,
            norm() if post_norms else None,
        )

    weights = Weights(
        W_E=new(D_VOCAB, D_MODEL, scale=1.0),
        blocks=tuple(block() for _ in range(n_layers)),
        W_U=new(D_MODEL, D_VOCAB),
        W_pos=new(N_CTX, D_MODEL) if positions else None,
        final_norm=norm() if final_norm else None,
        b_U=new(D_VOCAB),
    )
    words = HFTokenizer(WordLevel({f"w{i}": i for i in range(D_VOCAB)}, unk_token="w0"))
    tokenizer = Tokenizer(words, None, None, False, N_CTX)
    return Model(config, weights, tokenizer, name=f"random-{variant}")


def pairs(
    lengths: list[int], *, seed: int = 0, first: list[int] | None = None
) -> tuple[Tokens, Tokens]:
    """Random prompts of these lengths and partners that differ from position `first` on."""
    rng = random.Random(seed)
    clean = [[rng.randrange(D_VOCAB) for _ in range(n)] for n in lengths]
    starts = first or [rng.randrange(n) for n in lengths]
    corrupted = [list(row) for row in clean]
    for row, start in zip(corrupted, starts, strict=True):
        row[start] = (row[start] + 1 + rng.randrange(D_VOCAB - 1)) % D_VOCAB
        for p in range(start + 1, len(row)):
            if rng.random() < 0.5:
                row[p] = rng.randrange(D_VOCAB)
    return Tokens.of(clean), Tokens.of(corrupted)


def contrast(n: int, *, seed: int = 0, k: int = 3) -> Contrast:
    """Random weights over a few tokens, with a constant."""
    rng = random.Random(seed)
    ids = torch.tensor([rng.sample(range(D_VOCAB), k) for _ in range(n)])
    weights = torch.tensor([[rng.uniform(-1, 1) for _ in range(k)] for _ in range(n)]).double()
    constant = torch.tensor([rng.uniform(-1, 1) for _ in range(n)]).double()
    names = tuple(map(str, range(n)))
    return Contrast("random", ids, weights, constant, names, names)
