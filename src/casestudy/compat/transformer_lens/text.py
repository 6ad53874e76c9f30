"""How does a notebook turn text into ids and back?

The part of `HookedTransformer` that needs its tokenizer, and no forward pass: the ids of texts,
padded on either side, the texts of ids, and where a batch's padding is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from casestudy.compat.transformer_lens.config import HookedTransformerConfig
from casestudy.compat.transformer_lens.layout import INTEGERS, LeftPadded, PaddedIds, plain
from casestudy.compat.transformer_lens.tokenizer import CompatTokenizer, check_side
from casestudy.errors import PromptError, TokenError
from casestudy.model.model import Model
from casestudy.model.tokens import id_rows


class TextMethods:
    """Text and ids of a model.

    Attributes:
        model, cfg, tokenizer: as of `HookedTransformer`.
    """

    model: Model
    cfg: HookedTransformerConfig
    tokenizer: CompatTokenizer

    def to_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool | None = None,
    ) -> Tensor:
        """Texts as a (batch, pos) tensor of ids, padded on `tokenizer.padding_side`.

        Args:
            input: a text or texts; "<|endoftext|>" in one is the special token.
            prepend_bos: start each with BOS; by default as `cfg.default_prepend_bos` says.
            padding_side: the side to pad on, for this call.
            move_to_device: put the ids where the model is.
            truncate: True cuts a text to `cfg.n_ctx` tokens, as TransformerLens does unasked.

        Raises: PromptError for a prompt that is too long, unless truncate=True.
        """
        texts = [input] if isinstance(input, str) else list(input)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise PromptError(
                f"to_tokens of {input!r}"[:100] if texts else "no texts",
                allowed="a text or texts, at least one",
                hint="Ids are taken as they are, wherever the model runs",
            )
        bos = self._prepends(prepend_bos)
        rows = [([self._bos()] if bos else []) + self.tokenizer.encode(text) for text in texts]
        if truncate:
            rows = [row[: self.model.config.n_ctx] for row in rows]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise PromptError(f"{text!r} is no tokens", allowed="at least one per text")
            self.model.tokenizer.check_length(row, repr(text[:40]))
        width = max(map(len, rows))
        with self._padding(padding_side):
            pad = self.tokenizer.pad_token_id or 0
            padded = [self.tokenizer.padded(row, width, pad) for row in rows]
            ids = torch.tensor(padded)
            if self.tokenizer.padding_side == "left":
                # the ids carry their padding, since padding and BOS may look the same
                ids = PaddedIds.of(ids, [width - len(row) for row in rows])
        return ids.to(self.model.device) if move_to_device else ids

    def to_string(self, tokens: Any) -> Any:
        """The text of ids: one text of an id or a row, a list of a batch."""
        ids = torch.as_tensor(np.asarray(tokens) if isinstance(tokens, list) else tokens)
        if ids.ndim == 2:
            return self.tokenizer.batch_decode(ids)
        if ids.ndim > 2:
            raise TokenError(f"ids of shape {tuple(ids.shape)}", allowed="one or two axes")
        return self.tokenizer.decode(ids)

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> Any:
        """Each token's own text, of a text, a row of ids, or a list of either."""
        if isinstance(input, list | tuple) and not _is_row(input):
            return [self.to_str_tokens(item, prepend_bos, padding_side) for item in input]
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos, padding_side)[0]
        ids = torch.as_tensor(input).squeeze()
        if ids.ndim > 1:
            raise TokenError(f"ids of shape {tuple(ids.shape)}", allowed="one row of ids")
        return self.model.tokenizer.strings(ids.reshape(-1).tolist())

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises: TokenError saying which tokens it is otherwise.
        """
        return self.model.tokenizer.single(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        return self.model.tokenizer.string(int(int_token))

    def get_token_position(
        self,
        single_token: str | int,
        input: Any,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token stands in a text or a row of ids: the "first" or the "last" place."""
        if mode not in ("first", "last"):
            raise TokenError(f"mode {mode!r}", allowed="first, last")
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos, padding_side)
        row = torch.as_tensor(np.asarray(input) if isinstance(input, list) else input).squeeze(0)
        id = self.to_single_token(single_token) if isinstance(single_token, str) else single_token
        found = (row == int(id)).nonzero().flatten().tolist()
        if not found:
            raise TokenError(f"{single_token!r} does not stand in the prompt")
        return int(found[0 if mode == "first" else -1])

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """Each token's column of W_U, along a new last axis."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        ids = torch.as_tensor(tokens, device=self.model.device)
        if ids.numel() == 1:
            ids = ids.reshape(())
        return self.model.weights.W_U.T[ids]

    def _ids(self, input: Any, prepend_bos: bool | None) -> Tensor:
        """Texts or ids as (batch, pos) ids; ids come as one row or rows, in a tensor, an array or
        lists, and are taken as they are.

        Raises: TokenError for numbers that are not ids, and for rows of unequal length.
        """
        if isinstance(input, Tensor) and input.ndim == 2 and input.dtype in INTEGERS:
            return input
        rows = id_rows(input)
        if rows is None:
            return self.to_tokens(input, prepend_bos)
        lengths = sorted({len(row) for row in rows})
        if len(lengths) != 1 or not lengths[0]:
            raise TokenError(
                f"rows of {', '.join(map(str, lengths)) or 'no'} ids",
                allowed="rows of as many ids each, at least one",
                hint="Pad them and say so with attention_mask=, or give texts",
            )
        ids = torch.tensor(rows, device=self.model.device)
        if isinstance(input, PaddedIds):
            return PaddedIds.of(ids, [input.padding.get(tuple(row), 0) for row in rows])
        return ids

    def _bos(self) -> int:
        id = self.tokenizer.bos_token_id
        if id is None:
            raise TokenError("this tokenizer defines no BOS token", allowed="prepend_bos=False")
        return id

    def _prepends(self, prepend_bos: bool | None) -> bool:
        return bool(self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos)

    @contextmanager
    def _padding(self, side: str | None) -> Iterator[None]:
        before = self.tokenizer.padding_side
        self.tokenizer.padding_side = before if side is None else check_side(side)
        try:
            yield
        finally:
            self.tokenizer.padding_side = before

    def _layout(
        self, ids: Tensor, prepend_bos: bool | None, attention_mask: Tensor | None
    ) -> LeftPadded:
        """Where the padding of ids is: from a mask, or as `to_tokens` put it, or by its look.

        Raises: PromptError for a mask with holes.
        """
        ids = ids.to(self.model.device).long()
        if attention_mask is not None:
            mask = attention_mask.to(ids.device).bool()
            if mask.shape != ids.shape or not bool((mask.int().diff(dim=1) >= 0).all()):
                raise PromptError(
                    f"an attention_mask of shape {tuple(mask.shape)} that is not padding before "
                    f"prompts of shape {tuple(ids.shape)}",
                    allowed="zeros, then ones, in each row",
                )
            shifts = (~mask).sum(1)
        else:
            known = ids.padding if isinstance(ids, PaddedIds) else {}
            before = [
                known[tuple(row)] if tuple(row) in known else self._padding_before(row, prepend_bos)
                for row in ids.tolist()
            ]
            shifts = torch.tensor(before, device=ids.device)
        return LeftPadded(plain(ids), shifts if bool(shifts.any()) else None)

    def _padding_before(self, row: list[int], prepend_bos: bool | None) -> int:
        """How much padding a row of ids begins with, by its look."""
        if self.tokenizer.padding_side == "right":
            return 0
        pad = self.tokenizer.pad_token_id
        before = next((i for i, id in enumerate(row) if id != pad), len(row))
        if before and self._prepends(prepend_bos) and pad == self.tokenizer.bos_token_id:
            before -= 1  # the last of them is BOS
        return min(before, len(row) - 1)


def _is_row(given: list[Any] | tuple[Any, ...]) -> bool:
    """Whether these are the ids of one prompt."""
    return bool(given) and all(isinstance(one, int | np.integer) for one in given)
