"""What is a model? Its configuration, its parameters, its tokenizer, and their source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from casestudy.drawing import described
from casestudy.model.chat import Chat, Messages
from casestudy.model.config import ModelConfig
from casestudy.model.tokens import Tokenizer, Tokens
from casestudy.model.weights import Weights


@dataclass(frozen=True)
class WeightsFile:
    """The one file that holds a model's weights, where its numbers may be stored in few bits.

    Attributes:
        name: the file's, without its folder.
        sha256: hash of the whole file.
        types: the formats in which the numbers are stored ("Q4_1"), and the count of each; the
            largest count first.
    """

    name: str
    sha256: str
    types: tuple[tuple[str, int], ...]

    @property
    def bits(self) -> int:
        """Bits of a number as most are stored, without the scales of its block: 4 for Q4_1."""
        digits = re.search(r"\d+", self.types[0][0])
        return int(digits[0]) if digits else 32


@dataclass(frozen=True)
class Model:
    """A decoder, as `run` and the measurements take it. It is never changed.

    Attributes:
        name: what the user called it ("tiny", "gpt2", a path).
        source: where the weights were read from, with the revision where there is one.
        rewrites: names of the weight rewrites applied (see `folding`), in order.
        file: the GGUF file that the weights were de-quantised from; None for other sources.
    """

    config: ModelConfig
    weights: Weights = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    name: str
    source: str = "memory"
    rewrites: tuple[str, ...] = ()
    file: WeightsFile | None = None

    def __post_init__(self) -> None:
        # A tokenizer that came with another model keeps that model's context length.
        if self.tokenizer.n_ctx != self.config.n_ctx:
            tokenizer = replace(self.tokenizer, n_ctx=self.config.n_ctx)
            object.__setattr__(self, "tokenizer", tokenizer)

    def __repr__(self) -> str:
        config, tokenizer = self.config, self.tokenizer
        dtype = str(self.dtype).removeprefix("torch.")
        kv = "" if config.n_kv_heads == config.n_heads else f", {config.n_kv_heads} key/value heads"
        start = tokenizer.label(tokenizer.bos_id) if tokenizer.bos_id is not None else ""
        return described(
            f"Model {self.name}",
            {
                "source": self.source,
                "family": config.family,
                "layers × heads": f"{config.n_layers} × {config.n_heads}{kv}",
                "width": f"d_model {config.d_model:,}, d_head {config.d_head}, d_mlp "
                f"{config.d_mlp:,}",
                "vocabulary": f"{config.d_vocab:,} tokens, context of {config.n_ctx:,}",
                "parameters": f"{self.n_parameters:,} in {dtype} on {self.device.type}",
                "BOS": f"every text starts with {start}" if tokenizer.prepend_bos else "not added",
                "rewrites": ", ".join(self.rewrites),
            },
        )

    @property
    def n_parameters(self) -> int:
        """Number of parameters; a tied unembedding counts once."""
        named = self.weights.named()
        tied = self.weights.tied
        return sum(tensor.numel() for name, tensor in named if not (tied and name == "W_U"))

    def with_special(self, parse: bool = True) -> Model:
        """The same model, which reads the text of a special token in a prompt as that token."""
        return replace(self, tokenizer=replace(self.tokenizer, parse_special=parse))

    def with_strict_tokens(self, strict: bool = True) -> Model:
        """The same model, which refuses an answer that changes the prompt's own tokens where both
        are read as one text ("hello wor" + "ld"), instead of measuring it with a notice."""
        return replace(self, tokenizer=replace(self.tokenizer, strict=strict))

    def chat(
        self,
        messages: Messages,
        *,
        assistant_prefix: str = "",
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        template_name: str = "",
    ) -> str:
        """Messages as the text that the model reads, up to where the assistant speaks.

        Read it with `model.with_chat(text)`, which parses its special tokens; for measurements of
        several conversations see `casestudy.chat`.

        Args:
            messages: a list of `{"role": …, "content": …}`, its JSON, or what a user says.
            assistant_prefix: the start of the assistant's turn, after which the model goes on.
            template: Jinja, in place of the checkpoint's own.
            variables: what else the template reads, such as `{"enable_thinking": False}`.
            template_name: which of the checkpoint's templates, where it has several.

        Raises: PromptError without a template or one of this name, for messages that are not well
            formed, and for a template that refuses them or does not end.
        """
        chat = Chat(assistant_prefix, template, variables or {}, template_name)
        (text,) = chat.render(self.tokenizer, [messages])
        return text

    def with_chat(self, text: str) -> Model:
        """The same model, reading what a chat template wrote: special tokens are parsed, and BOS is
        there only where the text has it."""
        tokenizer = self.tokenizer
        bos = "" if tokenizer.bos_id is None else tokenizer.backend.id_to_token(tokenizer.bos_id)
        begins = bool(bos) and text.startswith(str(bos))
        # a text that begins with BOS gets no second one, and stays known to begin with it
        return self.with_special().with_bos(begins and tokenizer.prepend_bos)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.weights.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' number format."""
        return self.weights.W_E.dtype

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 of the parameters as they are now: names, shapes, formats and bytes."""
        digest = hashlib.sha256()
        for name, tensor in self.weights.named():
            if name == "W_U" and self.weights.tied:
                continue
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def tokenize(
        self,
        prompts: str | Sequence[str],
        *,
        prepend_bos: bool | None = None,
        parse_special: bool | None = None,
    ) -> Tokens:
        """Prompts as tokens on the model's device; see `Tokenizer.tokenize`."""
        tokens = self.tokenizer.tokenize(
            prompts, prepend_bos=prepend_bos, parse_special=parse_special
        )
        return tokens.to(self.device)

    def with_bos(self, prepend: bool) -> Model:
        """The same model, whose texts start with BOS (True) or do not, wherever it reads them.

        Raises: TokenError for BOS where the tokenizer defines none.
        """
        return replace(self, tokenizer=self.tokenizer.with_bos(prepend))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Model:
        """The same model on another device or in another number format."""
        return replace(self, weights=self.weights.to(device, dtype))
