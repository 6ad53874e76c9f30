"""The arguments and the result of one forward pass of a notebook.

The arguments of `HookedTransformer.forward` as one value, which `run_with_cache` and
`run_with_hooks` use too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse
from casestudy.compat.transformer_lens.layout import LeftPadded
from casestudy.compat.transformer_lens.utils import lm_cross_entropy_loss
from casestudy.errors import PromptError

RETURN_TYPES = ("logits", "loss", "both", None)


class Output(NamedTuple):
    """What `return_type="both"` returns."""

    logits: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class Forward:
    """The arguments of a forward pass, in TransformerLens's order.

    Attributes:
        input: a text, texts, ids (batch, pos), or with start_at_layer a residual stream.
        return_type: "logits" (batch, pos, d_vocab), "loss", "both", or None.
        loss_per_token: the loss at each token but the first, instead of its mean.
        prepend_bos: for texts; and whether the last of the padding before ids is BOS, where one
            token serves as both and `to_tokens` did not make them.
        padding_side: the side ids are padded on; by default `tokenizer.padding_side`.
        start_at_layer: run from this layer, on a given residual stream.
        tokens: with start_at_layer, the ids, for a loss or for left padding.
        attention_mask: ones at the prompts' tokens, in place of looking for padding.
        stop_at_layer: run the layers before this one, and return the residual stream.

    Raises: NotSupported for past_kv_cache, shortformer_pos_embed and other return types;
    PromptError for start_at_layer without a residual stream.
    """

    input: Any
    return_type: str | None = "logits"
    loss_per_token: bool = False
    prepend_bos: bool | None = None
    padding_side: str | None = None
    start_at_layer: int | None = None
    tokens: Tensor | None = None
    shortformer_pos_embed: Tensor | None = None
    attention_mask: Tensor | None = None
    stop_at_layer: int | None = None
    past_kv_cache: object | None = None

    def __post_init__(self) -> None:
        if self.past_kv_cache is not None:
            raise refuse("past_kv_cache", "Run the whole prompt; generate() does so by itself")
        if self.shortformer_pos_embed is not None:
            raise refuse("shortformer_pos_embed", "No supported model uses it")
        if self.return_type not in RETURN_TYPES:
            raise refuse(f"return_type={self.return_type!r}", allowed="logits, loss, both, None")
        if self.start_at_layer is not None and self.stream is None:
            raise PromptError(
                "start_at_layer without a residual stream", allowed="(batch, pos, d_model)"
            )

    @property
    def stream(self) -> Tensor | None:
        """The residual stream to start from; None where the run starts from ids."""
        stream = self.input
        started = self.start_at_layer is not None
        return stream if started and isinstance(stream, Tensor) and stream.ndim == 3 else None

    @property
    def unembeds(self) -> bool:
        """Whether the run goes on to the logits."""
        return self.stop_at_layer is None and self.return_type is not None

    def result(self, out: Tensor | None, layout: LeftPadded) -> Any:
        """The result, from the final logits or residual stream of the run.

        Raises: PromptError for a loss if the ids are not known.
        """
        if out is None or self.stop_at_layer is not None or self.return_type == "logits":
            return out
        if self.stream is not None and self.tokens is None:
            raise PromptError("a loss from a residual stream", allowed="tokens=, to compare with")
        mask = None if layout.shifts is None else layout.mask
        loss = lm_cross_entropy_loss(out, layout.ids, mask, self.loss_per_token)
        return loss if self.return_type == "loss" else Output(out, loss)
