"""What does a notebook find at `model.tokenizer`?

The part of a Hugging Face tokenizer's face that exploratory notebooks use, over casestudy's own.
As TransformerLens does, it pads with EOS where there is no padding token, takes EOS as BOS where
there is none, and reads "<|endoftext|>" in a text as the special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse, refuse_name
from casestudy.errors import PromptError, TokenError
from casestudy.model.tokens import Tokenizer

_REASONS = {
    "add_special_tokens": "The model's vocabulary is what it is",
    "apply_chat_template": "Write the prompt out as text",
    "pad": "model.to_tokens pads a list of prompts",
    "save_pretrained": "The tokenizer is the model's own file, tokenizer.json",
}


class CompatTokenizer:
    """A tokenizer under Hugging Face's names.

    Attributes:
        padding_side: "right" or "left"; the side `model.to_tokens` pads on.
        pad_token_id, bos_token_id, eos_token_id: and their texts, `pad_token` and so on.
    """

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        ends = [id for id in (tokenizer.eos_id, tokenizer.bos_id) if id is not None]
        self._tokenizer = tokenizer
        self._side = "right"
        self.name_or_path = name
        self.eos_token_id: int | None = ends[0] if ends else None
        self.bos_token_id: int | None = ends[-1] if ends else None
        self.pad_token_id: int | None = self.eos_token_id

    @property
    def padding_side(self) -> str:
        """Which side is padded."""
        return self._side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._side = check_side(side)

    @property
    def bos_token(self) -> str | None:
        """Its text."""
        return self._text(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """Its text."""
        return self._text(self.eos_token_id)

    @property
    def pad_token(self) -> str | None:
        """Its text; setting it to the text of a token pads with that token."""
        return self._text(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, text: str) -> None:
        self.pad_token_id = self._tokenizer.single(text)

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self._tokenizer.d_vocab

    def __len__(self) -> int:
        return self._tokenizer.d_vocab

    @property
    def vocab(self) -> dict[str, int]:
        """The tokens as the tokenizer's file writes them (a space may be Ġ), with their ids."""
        return dict(self._tokenizer.backend.get_vocab())

    def get_vocab(self) -> dict[str, int]:
        """See `vocab`."""
        return self.vocab

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """A text's ids, nothing prepended."""
        if add_special_tokens:
            raise refuse("encode(add_special_tokens=True)", "model.to_tokens prepends BOS")
        return self._tokenizer.ids(text, parse_special=True)

    def tokenize(self, text: str) -> list[str]:
        """A text's tokens, as the tokenizer's file writes them."""
        return self.convert_ids_to_tokens(self.encode(text))

    def __call__(
        self, text: str | Sequence[str], return_tensors: str | None = None, padding: bool = False
    ) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of texts, padded on `padding_side` if asked."""
        one = isinstance(text, str)
        rows = [self.encode(t) for t in ([text] if isinstance(text, str) else text)]
        masks = [[1] * len(row) for row in rows]
        if padding:
            width = max(map(len, rows))
            rows = [self.padded(row, width, self.pad_token_id or 0) for row in rows]
            masks = [self.padded(mask, width, 0) for mask in masks]
        if return_tensors == "pt":
            return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        if return_tensors is not None:
            raise refuse(f"return_tensors={return_tensors!r}", allowed="None or 'pt'")
        if one:
            return {"input_ids": rows[0], "attention_mask": masks[0]}
        return {"input_ids": rows, "attention_mask": masks}

    def padded(self, row: list[int], width: int, pad: int) -> list[int]:
        """A row filled up on the padding side."""
        padding = [pad] * (width - len(row))
        return padding + row if self._side == "left" else row + padding

    def decode(
        self,
        ids: int | Sequence[int] | Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of some ids."""
        if clean_up_tokenization_spaces:
            raise refuse("clean_up_tokenization_spaces=True", "It is not reversible")
        row = torch.as_tensor(ids).reshape(-1).tolist()
        low, high = min(row, default=0), max(row, default=0)
        if low < 0 or high >= self._tokenizer.d_vocab:
            raise TokenError(
                f"token id {low if low < 0 else high}",
                allowed=f"0 to {self._tokenizer.d_vocab - 1}",
            )
        return str(self._tokenizer.backend.decode(row, skip_special_tokens=skip_special_tokens))

    def batch_decode(
        self,
        rows: Sequence[int | Sequence[int]] | Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """The text of each row of ids; a flat row is read id by id."""
        listed = rows.tolist() if isinstance(rows, Tensor) else rows
        return [
            self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in listed
        ]

    def convert_ids_to_tokens(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Each id's token, as the tokenizer's file writes it."""
        row = torch.as_tensor(ids).reshape(-1).tolist()
        return [str(self._tokenizer.backend.id_to_token(id)) for id in row]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The ids of tokens, as the tokenizer's file writes them."""
        if isinstance(tokens, str):
            return self._id(tokens)
        return [self._id(token) for token in tokens]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise refuse_name("tokenizer", name, dir(type(self)), _REASONS)

    def _id(self, token: str) -> int:
        id = self._tokenizer.backend.token_to_id(token)
        if id is None:
            raise TokenError(f"no token is written {token!r}", hint="A space may be written Ġ")
        return int(id)

    def _text(self, id: int | None) -> str | None:
        return None if id is None else self._tokenizer.string(id)


def check_side(side: str) -> str:
    """The side itself.

    Raises: PromptError for another word.
    """
    if side not in ("left", "right"):
        raise PromptError(f"padding_side {side!r}", allowed="left, right")
    return side
