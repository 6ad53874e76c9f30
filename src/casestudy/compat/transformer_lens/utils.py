"""The helper functions `utils.…` of notebooks.

Loss, accuracy, sampling and slicing as in TransformerLens; functions that download data sets or
train are refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse_import
from casestudy.compat.transformer_lens.factored_matrix import composition_scores
from casestudy.compat.transformer_lens.names import get_act_name
from casestudy.errors import CasestudyError

__all__ = [
    "USE_DEFAULT_VALUE",
    "Slice",
    "SliceInput",
    "composition_scores",
    "get_act_name",
    "get_corner",
    "get_device",
    "is_lower_triangular",
    "is_square",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "remove_batch_dim",
    "sample_logits",
    "test_prompt",
    "to_numpy",
    "transpose",
]

USE_DEFAULT_VALUE = None
SliceInput = Any

_REASONS = {
    "download_file_from_hf": "huggingface_hub.hf_hub_download does it",
    "get_dataset": "The datasets package does it",
    "get_attention_mask": "Padding is known from the tokens; no mask is needed",
    "keep_single_column": "The datasets package does it",
    "tokenize_and_concatenate": "Nothing is trained here; model.to_tokens reads prompts",
    "print_gpu_mem": "torch.cuda.memory_allocated() says it",
    "gelu_new": "torch.nn.functional.gelu(x, approximate='tanh') is the same function",
    "gelu_fast": "torch.nn.functional.gelu(x, approximate='tanh') is the same function",
    "solu": "No supported model uses it",
    "repeat_along_head_dimension": "einops.repeat does it",
}


def get_device() -> torch.device:
    """CUDA where there is one, else the CPU. MPS is never chosen: it has given wrong logits."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_numpy(tensor: Any) -> NDArray[Any]:
    """A tensor, list or number as an array."""
    if isinstance(tensor, Tensor):
        x: Tensor = tensor.detach().cpu()
        # numpy has no bfloat16
        return np.asarray(x.float() if x.dtype == torch.bfloat16 else x)
    return np.asarray(tensor)


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first n entries along every axis."""
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def transpose(tensor: Tensor) -> Tensor:
    """The last two axes swapped."""
    return tensor.transpose(-1, -2)


def is_square(x: Tensor) -> bool:
    """Whether it is a square matrix."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether it is a square matrix with nothing above its diagonal."""
    return is_square(x) and x.equal(x.tril())


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """The one entry of a batch of one; a larger batch as it is."""
    return tensor[0] if tensor.shape[0] == 1 else tensor


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Tensor | None = None,
    per_token: bool = False,
) -> Tensor:
    """Mean negative log-probability of each next token, or one value per token but the first.

    Padding (0 in the mask) neither predicts nor is predicted: 0 per token, and left out of the
    mean.
    """
    log_probs = F.log_softmax(logits, -1)[:, :-1]
    predicted = log_probs.gather(-1, tokens[:, 1:, None].long())[..., 0]
    n = predicted.numel()
    if attention_mask is not None:
        there = attention_mask.bool()
        both = there[:, :-1] & there[:, 1:]
        predicted = predicted.masked_fill(~both, 0.0)
        n = int(both.sum())
    return -predicted if per_token else -predicted.sum() / n


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    per_token: bool = False,
) -> Tensor:
    """How often the most probable token is the next one; or per token, without the first."""
    correct = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return correct if per_token else correct.sum() / correct.numel()


def sample_logits(
    final_logits: Float[Tensor, "batch d_vocab"],
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    tokens: Int[Tensor, "batch pos"] | None = None,
) -> Int[Tensor, " batch"]:
    """Draw a token per row; at temperature 0 take the likeliest.

    Args:
        final_logits: at the last position.
        top_k: sample only from the k most probable tokens.
        top_p: or from the fewest tokens with this total probability.
        temperature: divides the logits.
        freq_penalty: subtracted from a token's logit for each occurrence in `tokens`.
        tokens: the text so far.
    """
    if temperature == 0.0:
        return final_logits.argmax(-1)
    logits = final_logits / temperature
    if freq_penalty:
        if tokens is None:
            raise CasestudyError("a freq_penalty without tokens", allowed="tokens=")
        counts = torch.stack([row.bincount(minlength=logits.shape[-1]) for row in tokens])
        logits = logits - freq_penalty * counts
    if top_k is not None:
        if top_k < 1:
            raise CasestudyError(f"top_k {top_k}", allowed="1 or more")
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif top_p is not None:
        if not 0.0 < top_p <= 1.0:
            raise CasestudyError(f"top_p {top_p}", allowed="above 0, at most 1")
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before > top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return logits.float().softmax(-1).multinomial(1)[:, 0]


class Slice:
    """What to take along one axis: an index (the axis goes), (start, stop), a list, or all."""

    def __init__(self, input_slice: SliceInput = None) -> None:
        self.slice: Any
        if input_slice is None:
            self.slice, self.mode = slice(None), "identity"
        elif isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "slice"
        elif isinstance(input_slice, tuple):
            self.slice, self.mode = slice(*input_slice), "slice"
        elif isinstance(input_slice, int):
            self.slice, self.mode = input_slice, "int"
        elif isinstance(input_slice, (list, Tensor, np.ndarray)):
            self.slice, self.mode = to_numpy(input_slice), "array"
        else:
            raise CasestudyError(
                f"a slice of {type(input_slice).__name__}",
                allowed="an index, a (start, stop) tuple, a list of indices, or None",
            )

    @classmethod
    def of(cls, input_slice: SliceInput) -> Slice:
        """A slice as it is, or made."""
        return input_slice if isinstance(input_slice, Slice) else cls(input_slice)

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The tensor's part along `dim`."""
        index: list[Any] = [slice(None)] * tensor.ndim
        index[dim] = self.slice
        return tensor[tuple(index)]

    def indices(self, max_ctx: int | None = None) -> NDArray[Any]:
        """Which indices of an axis of length max_ctx are taken."""
        if self.mode == "int":
            return np.array([self.slice])
        if max_ctx is None:
            raise CasestudyError("indices of a slice", allowed="max_ctx=, the axis's length")
        return np.asarray(np.arange(max_ctx)[self.slice])

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode}"


def _test_prompt(
    prompt: str,
    answer: str | list[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print how well a model predicts an answer: its rank at each token, and what ranks above.

    Args:
        prompt: the text before it.
        answer: the text to predict; of several, each first token is compared.
        model: a `HookedTransformer`.
        prepend_space_to_answer: put a space before an answer that has none.
        print_details: print tokens and the top of each list, not only the ranks.
        prepend_bos: start with BOS; by default as the model does.
        top_k: how many of each position's likeliest tokens to print.
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else f" {text}" for text in answers]
    several = len(answers) > 1
    shown = model.to_str_tokens(prompt, prepend_bos=prepend_bos)
    start = model.to_tokens(prompt, prepend_bos=prepend_bos)[0]
    rows = [
        model.to_tokens(text, prepend_bos=False)[0][: 1 if several else None] for text in answers
    ]
    strings = [model.to_str_tokens(text, prepend_bos=False) for text in answers]
    if print_details:
        print("Tokenized prompt:", shown)
        print(
            "Tokenized answers:" if several else "Tokenized answer:",
            strings if several else strings[0],
        )
    tokens = torch.stack([torch.cat([start, row]) for row in rows])
    with torch.no_grad():
        logits = model(tokens, prepend_bos=prepend_bos)
    probs = logits.softmax(-1)
    ranks: list[list[tuple[str, int]]] = []
    for step in range(len(rows[0])):
        at = len(start) + step - 1
        ordered, order = probs[:, at].sort(descending=True)
        found = [int((order[i] == row[step]).nonzero()) for i, row in enumerate(rows)]
        ranks.append([(strings[i][step], rank) for i, rank in enumerate(found)])
        if not print_details:
            continue
        print(f"Performance on answer token{'s' if several else ''}:")
        for i, row in enumerate(rows):
            logit, prob = logits[i, at, row[step]].item(), probs[i, at, row[step]].item()
            print(
                f"Rank: {found[i]: <8} Logit: {logit:5.2f} Prob: {prob:6.2%} "
                f"Token: |{strings[i][step]}|"
            )
        for place in range(top_k):
            id = order[0, place]
            print(
                f"Top {place}th token. Logit: {logits[0, at, id].item():5.2f} "
                f"Prob: {ordered[0, place].item():6.2%} Token: |{model.to_string(id)}|"
            )
    print("Ranks of the answer tokens:", ranks if several else [rank[0] for rank in ranks])


# Its name is TransformerLens's; pytest would otherwise collect it where a test imports it.
test_prompt = _test_prompt
test_prompt.__test__ = False  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    if name in _REASONS:
        raise refuse_import("utils", name, _REASONS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
