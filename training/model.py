"""The forward and backward pass of GPT-2, written for two cores with bfloat16 matrix units.

Exactly GPT-2's function (pre-norm blocks, learned positions, gelu_new, tied embeddings), with
parameters under the names and in the layout of its Hugging Face checkpoint, so that exporting is
a cast. What differs from a plain implementation is only how the arithmetic is arranged:

- matrix products in bfloat16 (ten times the float32 rate on such a CPU); the residual stream,
  the norms and the master weights stay in float32;
- the loss over the vocabulary in chunks that stay in cache, its gradient formed in the same pass,
  so that the (tokens, d_vocab) logits never exist;
- attention with its backward written out: four products and one row sum, where autograd keeps and
  copies more.

Elementwise parts go through `torch.compile` when asked, which needs a C++ compiler and saves about
a third of a step.
"""

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Parameters = dict[str, Tensor]

#: Rows of logits formed at once: 1,024 x 8,192 in bfloat16 are 16 MB, the measured optimum.
LOSS_CHUNK = 1024


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2."""

    n_layers: int = 6
    d_model: int = 256
    n_heads: int = 8
    n_ctx: int = 256
    d_vocab: int = 8192
    eps: float = 1e-5

    @property
    def d_mlp(self) -> int:
        """GPT-2's inner width."""
        return 4 * self.d_model

    def hugging_face(self) -> dict[str, Any]:
        """config.json as `transformers` writes it for this shape."""
        end_of_text = self.d_vocab - 1
        return {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.0,
            "bos_token_id": end_of_text,
            "dtype": "float16",
            "embd_pdrop": 0.0,
            "eos_token_id": end_of_text,
            "initializer_range": 0.02,
            "layer_norm_epsilon": self.eps,
            "model_type": "gpt2",
            "n_ctx": self.n_ctx,
            "n_embd": self.d_model,
            "n_head": self.n_heads,
            "n_inner": self.d_mlp,
            "n_layer": self.n_layers,
            "n_positions": self.n_ctx,
            "resid_pdrop": 0.0,
            "scale_attn_weights": True,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": self.d_vocab,
        }

    def difference(self, other: dict[str, Any]) -> list[str]:
        """The fields in which a stored configuration is not this one."""
        mine = asdict(self)
        return [
            f"{name} is {other.get(name)!r} there and {mine.get(name)!r} here"
            for name in sorted({*mine, *other})
            if mine.get(name) != other.get(name)
        ]


def keep_freed_memory() -> None:
    """Asks glibc to keep freed blocks: page faults on fresh ones took a third of each step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: slower, nothing else
        return
    for parameter, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 28)):
        mallopt(parameter, value)


def initial_parameters(config: ModelConfig, generator: torch.Generator) -> Parameters:
    """GPT-2's initial weights, but with output projections at zero.

    At zero every block starts as the identity, so early gradients reach all layers alike and no
    depth-dependent scale is needed.
    """
    d, mlp = config.d_model, config.d_mlp

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    parameters = {
        "transformer.wte.weight": normal(config.d_vocab, d, std=0.02),
        "transformer.wpe.weight": normal(config.n_ctx, d, std=0.01),
    }
    for layer in range(config.n_layers):
        block = f"transformer.h.{layer}."
        parameters |= {
            block + "ln_1.weight": torch.ones(d),
            block + "ln_1.bias": torch.zeros(d),
            block + "attn.c_attn.weight": normal(d, 3 * d, std=d**-0.5 / 2),
            block + "attn.c_attn.bias": torch.zeros(3 * d),
            block + "attn.c_proj.weight": torch.zeros(d, d),
            block + "attn.c_proj.bias": torch.zeros(d),
            block + "ln_2.weight": torch.ones(d),
            block + "ln_2.bias": torch.zeros(d),
            block + "mlp.c_fc.weight": normal(d, mlp, std=d**-0.5 / 2),
            block + "mlp.c_fc.bias": torch.zeros(mlp),
            block + "mlp.c_proj.weight": torch.zeros(mlp, d),
            block + "mlp.c_proj.bias": torch.zeros(d),
        }
    parameters |= {
        "transformer.ln_f.weight": torch.ones(d),
        "transformer.ln_f.bias": torch.zeros(d),
    }
    return parameters


# --- elementwise parts, one pass over memory each when compiled -------------------------------


def gelu_new(x: Tensor) -> Tensor:
    """x * sigmoid(2u), which equals GPT-2's x/2 * (1 + tanh u); the sigmoid is cheaper here."""
    x32 = x.float()
    u = math.sqrt(2 / math.pi) * (x32 + 0.044715 * x32 * x32 * x32)
    return (x32 * torch.sigmoid(2 * u)).to(x.dtype)


def gelu_new_backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of `gelu_new` at x."""
    x32 = x.float()
    square = x32 * x32
    c = math.sqrt(2 / math.pi)
    s = torch.sigmoid(2 * c * x32 * (1 + 0.044715 * square))
    return (grad.float() * (s + x32 * s * (1 - s) * 2 * c * (1 + 3 * 0.044715 * square))).to(
        x.dtype
    )


def loss_and_gradient(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(-log p(target) per row, scale * p in the dtype of the logits)."""
    x = logits.float()
    peak = x.amax(-1, keepdim=True)
    e = (x - peak).exp()
    total = e.sum(-1, keepdim=True)
    chosen = x.gather(-1, targets[:, None])
    nll = (peak + total.log() - chosen)[:, 0]
    return nll, (e * (scale / total)).to(logits.dtype)


def softmax_backward(pattern: Tensor, grad: Tensor, scale: float) -> Tensor:
    """The gradient of softmax(scores) at this pattern, times the scale of the scores."""
    p, g = pattern.float(), grad.float()
    return (p * (g - (p * g).sum(-1, keepdim=True)) * scale).to(pattern.dtype)


@dataclass(frozen=True)
class Kernels:
    """The four elementwise parts, plain or compiled."""

    gelu: Callable[..., Tensor] = gelu_new
    gelu_backward: Callable[..., Tensor] = gelu_new_backward
    softmax_backward: Callable[..., Tensor] = softmax_backward
    loss: Callable[..., tuple[Tensor, Tensor]] = loss_and_gradient

    @classmethod
    def compiled(cls) -> "Kernels":
        """The same four through `torch.compile`; shapes are few, so each gets its own code."""
        torch._dynamo.config.cache_size_limit = 64
        return cls(*(torch.compile(part, dynamic=False) for part in vars(cls()).values()))


# --- the three parts whose backward is written out --------------------------------------------


class Gelu(torch.autograd.Function):
    """gelu_new, keeping only its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Kernels) -> Tensor:
        """gelu_new(x)."""
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return kernels.gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """In one pass from the input."""
        return ctx.kernels.gelu_backward(ctx.saved_tensors[0], grad.contiguous()), None


class Attention(torch.autograd.Function):
    """z = softmax(q k^T / sqrt(d_head) + mask) v for all heads, from the fused qkv."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Float[Tensor, "batch pos d_qkv"],
        mask: Float[Tensor, "query_pos key_pos"],
        n_heads: int,
        kernels: Kernels,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Keeps q, k, v and the pattern."""
        batch, length, width = qkv.shape
        d_head = width // 3 // n_heads
        heads = qkv.view(batch, length, 3, n_heads, d_head).permute(2, 0, 3, 1, 4)
        q, k, v = heads.reshape(3, batch * n_heads, length, d_head)
        pattern = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=d_head**-0.5).softmax(-1)
        z = torch.bmm(pattern, v).view(batch, n_heads, length, d_head)
        ctx.save_for_backward(q, k, v, pattern)
        ctx.shape, ctx.kernels = (batch, length, n_heads, d_head), kernels
        return z.transpose(1, 2).reshape(batch, length, width // 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Four products and, inside the softmax, one row sum."""
        q, k, v, pattern = ctx.saved_tensors
        batch, length, n_heads, d_head = ctx.shape
        grad_z = grad.view(batch, length, n_heads, d_head).transpose(1, 2)
        grad_z = grad_z.reshape(batch * n_heads, length, d_head)
        grad_pattern = torch.bmm(grad_z, v.transpose(1, 2))
        grad_scores = ctx.kernels.softmax_backward(pattern, grad_pattern, d_head**-0.5)
        grad_heads = torch.stack(
            [
                torch.bmm(grad_scores, k),
                torch.bmm(grad_scores.transpose(1, 2), q),
                torch.bmm(pattern.transpose(1, 2), grad_z),
            ]
        ).view(3, batch, n_heads, length, d_head)
        return grad_heads.permute(1, 3, 0, 2, 4).reshape(batch, length, -1), None, None, None


class VocabularyLoss(torch.autograd.Function):
    """Mean cross-entropy of x W^T against targets, without keeping the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "tokens d_model"],
        W: Float[Tensor, "d_vocab d_model"],
        targets: Int[Tensor, " tokens"],
        kernels: Kernels,
    ) -> Float[Tensor, ""]:
        """The loss; its gradient is formed here, chunk by chunk, and only handed on later."""
        grad_x, grad_W = torch.empty_like(x), torch.zeros_like(W, dtype=torch.float32)
        total = torch.zeros(())
        for begin in range(0, len(x), LOSS_CHUNK):
            part = slice(begin, begin + LOSS_CHUNK)
            logits = x[part] @ W.T
            nll, grad = kernels.loss(logits, targets[part], 1 / len(x))
            grad[torch.arange(len(nll)), targets[part]] -= 1 / len(x)
            torch.mm(grad, W, out=grad_x[part])
            grad_W += grad.T @ x[part]
            total += nll.sum()
        ctx.save_for_backward(grad_x, grad_W.to(W.dtype))
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradient that the forward pass formed."""
        grad_x, grad_W = ctx.saved_tensors
        return grad_x * grad, grad_W * grad, None, None


def final_norm(
    weights: Parameters,
    tokens: Int[Tensor, "batch pos"],
    config: ModelConfig,
    kernels: Kernels,
    dtype: torch.dtype,
) -> Float[Tensor, "batch pos d_model"]:
    """What the unembedding reads; products and patterns in `dtype`, residual stream in float32."""
    length = tokens.shape[1]
    mask = torch.full((length, length), -1e30, dtype=dtype).triu(1)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = weights[name + ".weight"].float(), weights[name + ".bias"].float()
        return F.layer_norm(x, (config.d_model,), weight, bias, config.eps).to(dtype)

    def linear(x: Tensor, name: str) -> Tensor:  # GPT-2's Conv1D holds (in, out)
        weight, bias = weights[name + ".weight"], weights[name + ".bias"]
        return torch.addmm(bias, x.flatten(0, 1), weight).view(*x.shape[:2], -1)

    W_E, W_pos = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    resid = F.embedding(tokens, W_E).float() + W_pos[:length].float()
    for layer in range(config.n_layers):
        block = f"transformer.h.{layer}."
        qkv = linear(norm(resid, block + "ln_1"), block + "attn.c_attn")
        z: Tensor = Attention.apply(qkv, mask, config.n_heads, kernels)  # type: ignore[no-untyped-call]
        resid = resid + linear(z, block + "attn.c_proj")
        pre = linear(norm(resid, block + "ln_2"), block + "mlp.c_fc")
        post: Tensor = Gelu.apply(pre, kernels)  # type: ignore[no-untyped-call]
        resid = resid + linear(post, block + "mlp.c_proj")
    return norm(resid, "transformer.ln_f")


def loss(
    weights: Parameters,
    tokens: Int[Tensor, "batch pos_plus_1"],
    config: ModelConfig,
    kernels: Kernels,
) -> Float[Tensor, ""]:
    """Mean -log p of each token after the first, given those before it, in nats."""
    final = final_norm(weights, tokens[:, :-1], config, kernels, torch.bfloat16).flatten(0, 1)
    W_E, targets = weights["transformer.wte.weight"], tokens[:, 1:].reshape(-1)
    mean: Tensor = VocabularyLoss.apply(  # type: ignore[no-untyped-call]
        final, W_E, targets, kernels
    )
    return mean


def matrices(parameters: Parameters) -> Iterator[str]:
    """The weights that Muon steps: the blocks' matrices."""
    return (name for name, value in parameters.items() if ".h." in name and value.ndim == 2)
