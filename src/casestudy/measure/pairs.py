"""Which prompts are compared, and which of their tokens correspond?

Clean and corrupted prompts in pairs, with the positions of their roles: the input of patching, path
patching and circuits. `counterfactual_table` has the scores of the edits that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from casestudy.behaviour.counterfactual import Counterfactual, Score
from casestudy.behaviour.prompts import Role
from casestudy.behaviour.readouts import row_of
from casestudy.behaviour.roles import roles_of, with_pair_roles
from casestudy.engine.readout import Tails
from casestudy.errors import MeasureError
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from casestudy.results import names
from casestudy.results.result import Array, Table
from casestudy.results.stats import mean_interval

Roles = Sequence[Mapping[str, Sequence[int]]]
"""One mapping per prompt, from a role's name to its positions."""

Direction = Literal["denoising", "noising"]


@dataclass(frozen=True)
class Texts:
    """The texts in which the answers of pairs are read, where these have several tokens.

    A text is the pair's prompts with the first tokens of an answer behind both of them.

    Attributes:
        pairs: each text's pair, by number; at least one text of each pair.
        tails: at how many of its last positions each text is read. A metric has a row for each of
            these readings; a pair's value is the sum of its texts'.
    """

    pairs: tuple[int, ...]
    tails: Tails

    def __post_init__(self) -> None:
        if len(self.pairs) != len(self.tails.counts) or set(self.pairs) != set(range(len(self))):
            raise MeasureError(
                f"{len(self.tails.counts)} texts of the pairs {list(self.pairs)[:10]}",
                allowed="the pair of each text; at least one text of each pair",
            )

    def __len__(self) -> int:
        """How many pairs."""
        return 1 + max(self.pairs, default=-1)

    def of(self, pairs: Sequence[int]) -> list[int]:
        """The texts of some pairs, by number."""
        mine: dict[int, list[int]] = {}
        for text, pair in enumerate(self.pairs):
            mine.setdefault(pair, []).append(text)
        return [text for pair in pairs for text in mine[pair]]

    def __getitem__(self, pairs: Sequence[int]) -> Texts:
        """Those of some of the pairs."""
        own = [i for i, pair in enumerate(pairs) for _ in self.of([pair])]
        return Texts(tuple(own), self.tails.some(self.of(pairs)))

    def added(self, values: Array, over: Callable[..., Array] = np.sum) -> Array:
        """(…, text) as (…, pair): a pair's texts added up, or reduced by another function."""
        mine = np.array(self.pairs)
        return np.stack([over(values[..., mine == i], axis=-1) for i in range(len(self))], -1)


@dataclass(frozen=True)
class Sides:
    """The prompts that are run and the prompts that are patched from, with the roles of both."""

    base: Tokens
    source: Tokens
    base_roles: Roles | None
    source_roles: Roles | None
    about: tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts, pair by pair.

    Attributes:
        clean, corrupted: the same number of prompts.
        roles: each clean prompt's positions by role, for patching by role.
        corrupted_roles: of the corrupted prompts; by default those of the clean prompts, which
            needs pairs of equal length. If only one prompt of a pair has a role, or the numbers of
            tokens differ, the pair has no value for this role.
        labels: the prompts' names; their indices by default.
        texts: where answers have several tokens; `clean`, `corrupted` and their roles are then
            those of the texts (see `answer_texts.with_answers`).
    """

    clean: Tokens
    corrupted: Tokens
    roles: Roles | None = None
    corrupted_roles: Roles | None = None
    labels: tuple[str, ...] | None = None
    texts: Texts | None = None

    def __post_init__(self) -> None:
        if self.texts is not None and len(self.texts.pairs) != len(self.clean):
            raise MeasureError(
                f"{len(self.texts.pairs)} texts' pairs for {len(self.clean)} texts",
                allowed="one each",
            )
        if len(self.clean) != len(self.corrupted):
            raise MeasureError(
                f"{len(self.clean)} clean prompts and {len(self.corrupted)} corrupted ones",
                allowed="one of each per pair",
            )

    def __len__(self) -> int:
        return len(self.clean) if self.texts is None else len(self.texts)

    def __getitem__(self, pairs: list[int]) -> Pairs:
        """Some of the pairs."""
        roles, theirs, labels = self.roles, self.corrupted_roles, self.labels
        rows = pairs if self.texts is None else self.texts.of(pairs)
        return Pairs(
            self.clean[rows],
            self.corrupted[rows],
            None if roles is None else [roles[i] for i in rows],
            None if theirs is None else [theirs[i] for i in rows],
            None if labels is None else tuple(labels[i] for i in pairs),
            None if self.texts is None else self.texts[pairs],
        )

    @property
    def tails(self) -> Tails:
        """At how many of its last positions each prompt, or text, is read."""
        return Tails.ends(len(self.clean)) if self.texts is None else self.texts.tails

    def readings(self, pairs: list[int]) -> list[int]:
        """The rows of some pairs in a metric of all of them."""
        return pairs if self.texts is None else self.texts.tails.of(self.texts.of(pairs))

    def of_pairs(self, values: Array) -> Array:
        """(…, prompt or text) as (…, pair)."""
        return values if self.texts is None else self.texts.added(values)

    def sides(self, direction: Direction) -> Sides:
        """Denoising runs the corrupted prompts, noising the clean ones."""
        theirs = self.corrupted_roles
        if theirs is None and self.roles is not None:
            equal_lengths(self.clean, self.corrupted, "sharing one side's roles")
            theirs = self.roles
        if direction == "denoising":
            return Sides(self.corrupted, self.clean, theirs, self.roles, ("corrupted", "clean"))
        return Sides(self.clean, self.corrupted, self.roles, theirs, ("clean", "corrupted"))


def one_reading(pairs: Pairs, what: str) -> None:
    """Raise MeasureError for pairs whose answers have several tokens."""
    if pairs.texts is not None:
        raise MeasureError(
            f"{what} of answers of several tokens",
            allowed="answers of one token",
            hint="Patches, edge scores and circuits of edges take whole answers; or compare the "
            "answers' first tokens (scoring “first”) where these differ",
        )


UNEQUAL = "by='role', which aligns them by roles; or by='last', the last token alone"
"""How pairs of unequal length can be patched."""


def equal_lengths(
    a: Tokens, b: Tokens, what: str, sides: tuple[str, str] = ("clean", "corrupted")
) -> None:
    """Raise MeasureError, naming the pairs, if two sides differ in length."""
    lengths = zip(a.lengths.tolist(), b.lengths.tolist(), strict=True)
    unequal = [(i, m, n) for i, (m, n) in enumerate(lengths) if m != n]
    if unequal:
        here, there = (f" {side}" if side else "" for side in sides)
        listed = ", ".join(f"{m}{here} and {n}{there}" for _, m, n in unequal[:5])
        listed += ", …" if len(unequal) > 5 else ""
        raise MeasureError(
            f"the pairs {[i for i, _, _ in unequal]} are of unequal length ({listed} tokens); "
            f"{what} needs as many on both sides",
            allowed=f"pairs of as many tokens; {UNEQUAL}",
        )


def pairs_of(
    model: Model,
    counterfactuals: Sequence[Counterfactual],
    *,
    roles: Iterable[Role] = (),
    labels: Sequence[str] | None = None,
) -> Pairs:
    """Counterfactuals as pairs of tokens, with the roles of both sides.

    A corrupted prompt with the same number of tokens has its prompt's roles; otherwise roles are
    found in its own text. Every pair also has the roles of the last token and the changed tokens.

    Args:
        counterfactuals: of one family (`Score.pairs`).
        roles: in addition to the standard roles.
        labels: of the prompts; their indices in the behaviour by default.
    """
    roles = tuple(roles)
    tokenizer = model.tokenizer
    rows, found = [], []
    for pair in counterfactuals:
        clean, corrupted = (row_of(tokenizer, prompt) for prompt in (pair.clean, pair.corrupted))
        rows.append((clean, corrupted))
        here = roles_of(tokenizer, pair.clean, clean, roles)
        there = here
        if pair.aligned == "role":
            there = roles_of(tokenizer, pair.corrupted, corrupted, roles)
        found.append(
            (
                with_pair_roles(here, clean, corrupted),
                with_pair_roles(there, corrupted, clean),
            )
        )
    names = [str(pair.index) for pair in counterfactuals] if labels is None else labels
    return Pairs(
        Tokens.of([clean for clean, _ in rows]),
        Tokens.of([corrupted for _, corrupted in rows]),
        [here for here, _ in found],
        [there for _, there in found],
        tuple(names),
    )


def counterfactual_table(scores: Sequence[Score]) -> Table:
    """The families' scores, one row each, with 95 % intervals of the means."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "family",
            "n",
            "mean_clean",
            "mean_clean_lower",
            "mean_clean_upper",
            "mean_corrupted",
            "mean_corrupted_lower",
            "mean_corrupted_upper",
            "flip_share",
            "half_share",
            "differ_before_last",
            "excluded",
            "why",
        )
    }
    for score in scores:
        row: dict[str, Any] = {
            "family": score.family,
            "n": score.n,
            "flip_share": score.flip_share if score.n else None,
            "half_share": score.half_share if score.n else None,
            "differ_before_last": score.before_last.n,
            "excluded": len(score.excluded),
            "why": score.why,
        }
        for side, values in (("mean_clean", score.clean), ("mean_corrupted", score.corrupted)):
            ends: list[float | None] = [None, None, None]
            if score.n:
                ends = [
                    None if np.isnan(end[0]) else float(end[0])
                    for end in mean_interval(values[:, None])[:3]
                ]
            row |= dict(zip((side, f"{side}_lower", f"{side}_upper"), ends, strict=True))
        for name, column in columns.items():
            column.append(row[name])
    return Table(
        names.COUNTERFACTUALS,
        columns,
        about="A row per family of edits: the contrast of the clean prompts and of the edited "
        "ones, for the clean prompts' tokens.",
    )
