"""How does text become token ids, and back?

A `Tokenizer` wraps one tokenizer.json with the model's BOS rule; `Tokens` are the ids of some
prompts, padded on the right, with their lengths. BOS is prepended at most once, special-token text
inside a prompt is ordinary text unless asked otherwise, and nothing is truncated.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from tokenizers import Encoding, decoders
from tokenizers import Tokenizer as HFTokenizer
from torch import Tensor

from casestudy.errors import ModelError, PromptError, TokenError
from casestudy.model.chat_template import DEFAULT, templates_in
from casestudy.model.checkpoint_files import end_ids, json_object, special_id
from casestudy.model.notices import Notice
from casestudy.model.token import AnswerLike, Continuation, Token, ids_given
from casestudy.model.token_labels import is_byte_piece, labels

# Whether special-token text is parsed is a switch on the shared backend: set and used as one step.
_SWITCH = threading.Lock()


IdRows = Sequence[int] | Sequence[Sequence[int]] | Tensor | NDArray[Any]
"""Ids that somebody made: of one prompt or of several."""


def id_rows(given: object) -> list[list[int]] | None:
    """Each prompt's ids, where ids and not texts are given; None for anything else.

    Raises: TokenError for numbers that are not ids, and for more than two axes.
    """
    is_array = isinstance(given, Tensor | np.ndarray)
    rows = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if isinstance(rows, str) or not isinstance(rows, Sequence) or not len(rows):
        return [] if is_array else None
    if any(isinstance(row, str) for row in rows):
        return None
    if not any(isinstance(row, Sequence | Tensor | np.ndarray) for row in rows):
        rows = [rows]
    lists = [r.tolist() if isinstance(r, Tensor | np.ndarray) else r for r in rows]
    for row in lists:
        one = isinstance(row, Sequence)
        bad = (
            [x for x in row if isinstance(x, bool) or not isinstance(x, Integral)] if one else [row]
        )
        if bad:
            raise TokenError(
                f"{bad[0]!r} among token ids"[:100], allowed="integers, in rows of ids"
            )
    return [[int(x) for x in row] for row in lists]


@dataclass(frozen=True)
class Tokens:
    """Prompts as ids, padded on the right to a rectangle.

    Attributes:
        ids: (batch, pos); what stands in the padding means nothing.
        lengths: how many of each row are the prompt's own.
        bos: whether each row starts with a BOS that was prepended.
    """

    ids: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    bos: bool = False

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], *, pad: int = 0, bos: bool = False) -> Tokens:
        """From lists of ids, padded with `pad`."""
        if not rows or not all(len(row) for row in rows):
            raise PromptError("no tokens", allowed="at least one token per prompt")
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        return cls(ids, torch.tensor([len(row) for row in rows]), bos)

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Index of each prompt's last token."""
        return self.lengths - 1

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """True at the prompts' own tokens, False in the padding."""
        width = torch.arange(self.ids.shape[1], device=self.ids.device)
        return width < self.lengths[:, None]

    def rows(self) -> list[list[int]]:
        """Each prompt's ids without padding."""
        return [row[:n] for row, n in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]

    def __getitem__(self, index: slice | Sequence[int]) -> Tokens:
        """Some of the prompts, padded only as far as they need."""
        rows = self.rows()
        chosen = rows[index] if isinstance(index, slice) else [rows[i] for i in index]
        return Tokens.of(chosen, bos=self.bos).to(self.ids.device)

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        if self.ids.device == torch.device(device):
            return self
        return Tokens(self.ids.to(device), self.lengths.to(device), self.bos)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its model's conventions.

    A token's text is what it adds to a text before it: " It" for sentencepiece's `▁It`, and for a
    word of a vocabulary whose decoder puts the spaces between words.

    Attributes:
        backend: the Hugging Face `tokenizers` object.
        bos_id: id of the beginning-of-text token, None where the tokenizer defines none.
        eos_id: id of the end-of-text token, None where there is none.
        prepend_bos: whether texts start with BOS: the model's convention, or what `with_bos` says.
        bos_chosen: whether `with_bos` said so, and no remark on it is needed.
        n_ctx: the longest prompt the model can read.
        special: ids of control tokens, which are not text.
        n_ids: rows of the embedding, where there are more than tokens (padded to a round number):
            a model gives those spare ids logits too.
        parse_special: whether the text of a special token ("<|endoftext|>") in a prompt is read as
            that token; by default it is plain text.
        chat_template: how the model's own conversations are written, as Jinja (see `chat`).
        strict: whether an answer that changes the prompt's own tokens, read as one text with it, is
            refused; by default it is measured as it follows them, with a notice.
        more_templates: (name, template) of those that have to be asked for by name.
        end_ids: further tokens that end what the model writes, beside `eos_id`.
    """

    backend: HFTokenizer
    bos_id: int | None
    eos_id: int | None
    prepend_bos: bool
    n_ctx: int
    special: frozenset[int] = frozenset()
    n_ids: int = 0
    parse_special: bool = False
    strict: bool = False
    chat_template: str | None = None
    end_ids: frozenset[int] = frozenset()
    more_templates: tuple[tuple[str, str], ...] = ()
    bos_chosen: bool = field(default=False, compare=False)  # it changes no ids

    @classmethod
    def of(
        cls,
        backend: HFTokenizer,
        *,
        bos_id: int | None,
        eos_id: int | None,
        family_prepends: bool | None,
        declared: bool | None,
        n_ctx: int,
        templates: Mapping[str, str] | None = None,
        end_ids: Iterable[int] = (),
    ) -> Tokenizer:
        """A tokenizer with its rule for BOS.

        Args:
            backend: a tokenizer of our own, whose settings may be switched.
            bos_id, eos_id, n_ctx: see `Tokenizer`.
            templates: its chat templates by name.
            end_ids: see `Tokenizer`; ids that no token has are left out.
            family_prepends: the family's convention; None where it has none of its own.
            declared: then, what the tokenizer's configuration says (add_bos_token); None where it
                does not, and what its own post-processing does counts.
        """
        special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        prepends = family_prepends
        if prepends is None:
            prepends = declared
        if prepends is None:
            prepends = backend.encode("a", add_special_tokens=True).ids[:1] == [bos_id]
        prepends = prepends and bos_id is not None
        named = dict(templates or {})
        return cls(
            backend,
            bos_id,
            eos_id,
            prepends,
            n_ctx,
            frozenset(special),
            chat_template=named.pop(DEFAULT, None),
            more_templates=tuple(named.items()),
            end_ids=frozenset(id for id in end_ids if backend.id_to_token(id) is not None),
        )

    @classmethod
    def from_directory(cls, folder: Path, *, prepend_bos: bool | None, n_ctx: int) -> Tokenizer:
        """Read tokenizer.json, and the BOS and EOS tokens from the configuration beside it.

        Args:
            folder: where they are.
            prepend_bos: the family's convention; None leaves it to the tokenizer, as in `of`.
            n_ctx: the longest prompt the model can read.

        Raises: ModelError when tokenizer.json is missing or is not one.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json",
                hint="Save the tokenizer there with transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
            )
        try:
            backend = HFTokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"{path} is not a tokenizer: {error}") from error
        entries = json_object(folder / "tokenizer_config.json")
        declared = entries.get("add_bos_token")
        return cls.of(
            backend,
            bos_id=special_id(folder, "bos_token", backend),
            eos_id=special_id(folder, "eos_token", backend),
            end_ids=end_ids(folder),
            family_prepends=prepend_bos,
            declared=declared if isinstance(declared, bool) else None,
            n_ctx=n_ctx,
            templates=templates_in(folder, entries),
        )

    def with_bos(self, prepend: bool) -> Tokenizer:
        """The same tokenizer, which starts texts with BOS or does not.

        Raises: TokenError for BOS where none is defined.
        """
        if prepend and self.bos_id is None:
            raise TokenError("this tokenizer defines no BOS token", allowed="prepend_bos=False")
        return replace(self, prepend_bos=prepend, bos_chosen=True)

    def fitted(self, d_vocab: int, what: str) -> Tokenizer:
        """The tokenizer of an embedding with this many rows.

        Raises: ModelError where there are more tokens than rows.
        """
        if self.d_vocab > d_vocab:
            raise ModelError(
                f"{what} has {self.d_vocab} tokens, the embedding {d_vocab} rows",
                hint="They are not of the same model",
            )
        return replace(self, n_ids=d_vocab)

    @property
    def d_vocab(self) -> int:
        """How many ids the tokenizer can produce, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def ids(self, text: str, *, parse_special: bool | None = None) -> list[int]:
        """A text's ids, nothing prepended.

        Args:
            text: any text.
            parse_special: read "<|endoftext|>" and its like as the special token, not as text; by
                default as the tokenizer is set.
        """
        return list(self.encode(text, parse_special=parse_special).ids)

    def encode(self, text: str, *, parse_special: bool | None = None) -> Encoding:
        """As `ids`, with where in the text each token stands (`offsets`, in characters)."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds a lone surrogate at character {error.start}",
                allowed="text that can be written as UTF-8",
            ) from error
        parse = self.parse_special if parse_special is None else parse_special
        with _SWITCH:
            self.backend.encode_special_tokens = not parse
            return self.backend.encode(text, add_special_tokens=False)

    def tokenize(
        self,
        prompts: str | Sequence[str],
        *,
        prepend_bos: bool | None = None,
        parse_special: bool | None = None,
        first: int = 0,
    ) -> Tokens:
        """Prompts as `Tokens`.

        Args:
            prompts: a text or texts.
            prepend_bos: start each with BOS; by default as the family does. A text that already
                starts with it (parsed on request) gets no second one. An empty text is BOS alone.
            parse_special: see `ids`.
            first: the first prompt's number, in messages.

        Raises: PromptError for a prompt without any token or a too long one; TokenError where BOS
            is asked of a tokenizer that defines none.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        bos = self.prepend_bos if prepend_bos is None else prepend_bos
        if bos and self.bos_id is None:
            raise TokenError("this tokenizer defines no BOS token", allowed="prepend_bos=False")
        if not prompts:
            raise PromptError("no prompts", allowed="at least one")
        rows = []
        for i, prompt in enumerate(prompts, first):
            if prompt == "" and not bos:
                raise PromptError(
                    f"prompt {i} is empty",
                    allowed="at least one character, or BOS prepended, which then stands alone",
                )
            row = self.ids(prompt, parse_special=parse_special)
            if bos and self.bos_id is not None and row[:1] != [self.bos_id]:
                row = [self.bos_id, *row]
            rows.append(self.check_length(row, f"prompt {i}"))
        return Tokens.of(rows, pad=self.eos_id or 0, bos=bos)

    def check_length(self, row: list[int], what: str = "the prompt") -> list[int]:
        """The row itself, when the model can read that many tokens.

        Raises: PromptError naming the length and the limit.
        """
        if len(row) > self.n_ctx:
            raise PromptError(
                f"{what} is {len(row)} tokens long",
                allowed=f"at most {self.n_ctx}, BOS included",
                hint="Shorten it: nothing is truncated silently",
            )
        return row

    def single(self, text: str) -> int:
        """The id of a text that is one token.

        Raises: TokenError saying which tokens it is otherwise.
        """
        if self._anchor is not None and text in self._id_of_text:
            return self._id_of_text[text]
        ids = self.ids(text, parse_special=True)
        if self._anchor is not None or len(ids) != 1:
            raise TokenError(
                f"{text!r} is {len(ids)} tokens: {self._listed(ids)}",
                allowed="a text that is exactly one token",
                hint="A word in mid-sentence carries its leading space, as in ' He'",
            )
        return ids[0]

    def token(self, answer: str | int | Token, *, after: str | None = None) -> Token:
        """The one token that is meant.

        Args:
            answer: a text, "id:1234", an id, or a token of this vocabulary.
            after: the prompt that a text continues, see `continuation`; None for the token that
                has this text wherever it stands, as `single`.

        Raises: TokenError for what is several tokens, saying which, or no token.
        """
        if isinstance(answer, str) and ids_given(answer) is None and after is None:
            id = self.single(answer)
        else:
            ids = self.continuation(after or "", answer).ids
            if len(ids) != 1:
                raise TokenError(
                    f"{answer!r} is {len(ids)} tokens: {self._listed(ids)}",
                    allowed="a text that is exactly one token, or id:N",
                    hint="A word in mid-sentence carries its leading space, as in ' He'",
                )
            (id,) = ids
        return Token(id, self.label(id))

    def continuation(
        self, prompt: str, answer: AnswerLike, *, parse_special: bool | None = None
    ) -> Continuation:
        """The tokens by which prompt and answer, read as one text, continue the prompt.

        Where reading them as one text changes the prompt's own tokens ("hello wor" + "ld"), the
        prompt stays as it is and the answer is read as a text that follows it; a notice gives both
        readings. An answer that is the text of a special token as a whole is that token.

        Args:
            prompt: what stands before the answer, without BOS.
            answer: a text, or ids in any form of `AnswerLike`, which are taken as they are.
            parse_special: of the prompt, see `ids`.

        Raises: TokenError for an empty answer, or an id that no token has; of a `strict` tokenizer
            also where the prompt's own tokens would change.
        """
        given = ids_given(answer)
        if given is not None:
            for id in given:
                self.string(id)  # raises for an id that no token has
            return Continuation(tuple(given))
        assert isinstance(answer, str)
        special = self.backend.token_to_id(answer)
        if special is not None and special in self.special:
            return Continuation((special,))
        head = self.ids(prompt, parse_special=parse_special)
        joined = self.ids(prompt + answer, parse_special=parse_special)
        if joined[: len(head)] == head and len(joined) > len(head):
            return Continuation(tuple(joined[len(head) :]))
        ids = self._after_any(answer)
        if not ids:
            raise TokenError(f"the answer is empty: {answer!r}", allowed="at least one token")
        notice = self._joins(prompt, answer, (*head, *ids), joined)
        if self.strict:
            raise TokenError(
                notice.text.replace("measured as", "they would be read as"),
                allowed="with strict tokens, answers that leave the prompt's tokens as they are",
                hint="Move the end of the prompt into the answer (its space, or the start of its "
                "word), or name the answer by ids (id:12,345)",
            )
        return Continuation(tuple(ids), (notice,))

    def _after_any(self, answer: str) -> list[int]:
        """A text's tokens after some other text, whatever that is."""
        if self._anchor is None:
            return self.ids(answer, parse_special=False)
        if answer in self._id_of_text:
            return [self._id_of_text[answer]]
        for before in ("\n", ".", "1", "a"):
            head = self.ids(before, parse_special=False)
            joined = self.ids(before + answer, parse_special=False)
            if joined[: len(head)] == head:
                return joined[len(head) :]
        return self.ids(answer, parse_special=False)

    def _joins(
        self, prompt: str, answer: str, apart: Sequence[int], joined: Sequence[int]
    ) -> Notice:
        same = next(
            (i for i, (a, b) in enumerate(zip(apart, joined, strict=False)) if a != b),
            min(len(apart), len(joined)),
        )
        start = max(0, same - 1)
        return Notice(
            "joined",
            f"{prompt[-40:]!r} + {answer!r} as one text changes the prompt's own tokens: measured "
            f"as {self._listed(apart[start:])}, where one text is {self._listed(joined[start:])}",
        )

    def _listed(self, ids: Sequence[int]) -> str:
        return ", ".join(repr(self.label(id)) for id in ids) or "nothing"

    def written(self, id: int, *, after: str | None = None) -> str:
        """How to ask for a token: its text where that gives this id again, "id:1234" elsewhere.

        A text with a carriage return is given by id, since files and forms change line ends.
        """
        text = self.string(id)
        if "\r" in text:
            return f"id:{id}"
        try:
            again = self.token(text, after=after).id
        except TokenError:
            again = -1
        return text if again == id else f"id:{id}"

    def notices(self, text: str) -> tuple[Notice, ...]:
        """What to know of how a prompt's text is read: special tokens' texts that stay plain."""
        if self.parse_special or not any(name in text for name in self._special_names):
            return ()
        plain, parsed = (self.ids(text, parse_special=parse) for parse in (False, True))
        found = [id for id in parsed if id in self.special]
        if not found or plain == parsed:
            return ()
        count = "a special token" if len(found) == 1 else f"{len(found)} special tokens"
        names = ", ".join(dict.fromkeys(str(self.backend.id_to_token(id)) for id in found))
        return (
            Notice(
                "special",
                f"{text[:40]!r} holds the text of {count} ({names}), which is "
                f"read as plain characters, {len(plain) - len(parsed) + len(found)} tokens; "
                "--parse-special (model.with_special()) reads it as special tokens"
                + (", --chat writes messages with them" if self.chat_template else ""),
            ),
        )

    def bos_notice(self) -> tuple[Notice, ...]:
        """That this tokenizer defines a BOS which no prompt gets, unless that was asked for."""
        if self.bos_chosen or self.prepend_bos or self.bos_id is None:
            return ()
        return (
            Notice(
                "bos",
                f"the tokenizer defines the BOS token {self.string(self.bos_id)}, which prompts do "
                "not start with by this model's convention; --bos (model.with_bos(True)) adds it, "
                "--no-bos (model.with_bos(False)) silences this line",
            ),
        )

    @cached_property
    def _special_names(self) -> tuple[str, ...]:
        return tuple(name for id in self.special if (name := self.backend.id_to_token(id)))

    def labels(self, ids: Sequence[int] | Int[Tensor, " pos"]) -> list[str]:
        """Each id's label; see `label`."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return [self.label(id) for id in ids]

    def label(self, id: int) -> str:
        """One id's text for people: no two share one; a part of a character shows its bytes.

        Raises: TokenError for an id that neither the vocabulary nor the embedding holds.
        """
        if 0 <= id < len(self._labels) and self.backend.id_to_token(id) is not None:
            return self._labels[id]
        return self.string(id)

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        return labels(self.vocabulary(), self.backend.id_to_token)

    def strings(self, ids: Sequence[int] | Int[Tensor, " pos"]) -> list[str]:
        """Each id's own text. An id that is part of a character shows as U+FFFD."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return [self.string(id) for id in ids]

    def string(self, id: int) -> str:
        """One id's text; "<unused 50300>" for a spare row of the embedding.

        Raises: TokenError for an id that neither the vocabulary nor the embedding holds.
        """
        if self.backend.id_to_token(id) is not None:
            return self._texts([id])[0]
        if 0 <= id < self.n_ids:
            return f"<unused {id}>"
        raise TokenError(f"token id {id}", allowed=f"0 to {max(self.d_vocab, self.n_ids) - 1}")

    def vocabulary(self) -> list[str]:
        """Every id's text, by id."""
        return list(self._vocabulary)

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        return tuple(self._texts(range(self.d_vocab)))

    def _texts(self, ids: Sequence[int]) -> list[str]:
        if self._anchor is None:
            return self._decode([[id] for id in ids])
        anchor, before = self._anchor
        texts = self._decode([[anchor, id] for id in ids])
        return [
            (self.backend.id_to_token(id) or "") if id in self.special else text[len(before) :]
            for id, text in zip(ids, texts, strict=True)
        ]

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return list(self.backend.decode_batch(rows, skip_special_tokens=False))

    @cached_property
    def _anchor(self) -> tuple[int, str] | None:
        """A token to put before another, and its text; None where a token decodes alone.

        Byte-level tokens do. Other decoders drop a text's first space, or put the spaces between
        words themselves, so what a token adds is only seen behind another.
        """
        if isinstance(self.backend.decoder, decoders.ByteLevel):
            return None
        for letter in "aeinost1":
            for id in self.backend.encode(letter, add_special_tokens=False).ids[-1:]:
                (text,) = self._decode([[id]])
                if text.strip() and self._decode([[id, id]])[0].startswith(text):
                    return id, text
        return None

    @cached_property
    def _id_of_text(self) -> dict[str, int]:
        """The id of each token's text; a byte stands back where a token has the same text."""

        def is_byte(id: int) -> bool:
            return is_byte_piece(self.backend.id_to_token(id) or "")

        ids = sorted(range(self.d_vocab), key=is_byte, reverse=True)
        return {text: id for id, text in zip(ids, self._texts(ids), strict=True) if text}

    def continued(self, ids: Sequence[int]) -> str:
        """The text that these tokens together add to a text before them."""
        anchor, before = ([self._anchor[0]], self._anchor[1]) if self._anchor else ([], "")
        return self._decode([[*anchor, *ids]])[0][len(before) :]

    def is_special(self, id: int) -> bool:
        """Whether an id is a control token, or a spare row, rather than text."""
        return id in self.special or self.backend.id_to_token(id) is None
