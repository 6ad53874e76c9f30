"""Which tokens does each head attend to?

The stored attention to tokens gives a description of every head: the tokens of a role ("changed
tokens": ·dogs, ·horses), or a token without a role, and the remaining attention. If a head puts
most of its attention on the first token (BOS, or the text's first token if no BOS is prepended),
this token is an attention sink, and the description is of the other attention. Older studies have
only whole patterns of a few prompts; then these are used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from casestudy.results import names
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import visible

SINK = 0.5
"""The first token is a sink if it gets at least this share of a head's attention."""
LEAST_SHARE = 0.02
"""The least attention to a token in whole patterns, as in the study's own table."""
EXAMPLES = 3
"""Tokens named as examples of a role."""

FIRST = "first token"
"""The name of a first token that is not BOS."""


@dataclass(frozen=True)
class AttendedTokens:
    """Tokens that a head attends to.

    Attributes:
        role: of the tokens; "" for a token without one.
        tokens: the different tokens, the most frequent first.
        share: of the head's attention, mean over prompts.
    """

    role: str
    tokens: tuple[str, ...]
    share: float

    @property
    def label(self) -> str:
        """For an axis: a token that is always the same, else the role."""
        if not self.role or len(self.tokens) == 1:
            return f"“{visible(self.tokens[0])}”"
        return self.role

    @property
    def phrase(self) -> str:
        """For a sentence: the role with examples, or the token."""
        shown = ", ".join(visible(token) for token in self.tokens[:EXAMPLES])
        more = ", …" if len(self.tokens) > EXAMPLES else ""
        if not self.role:
            return shown
        one = len(self.tokens) == 1
        return f"{shown} ({self.role})" if one else f"the {self.role} ({shown}{more})"


@dataclass(frozen=True)
class HeadPlaces:
    """A head's attention from the last token.

    Attributes:
        places: other than the sink, the largest share first.
        sink: the first token, with its share.
        n: prompts.
    """

    places: tuple[AttendedTokens, ...]
    sink: AttendedTokens | None
    n: int

    @property
    def is_sink(self) -> bool:
        """Whether most of the attention is on the first token."""
        return self.sink is not None and self.sink.share >= SINK

    @property
    def left_over(self) -> float:
        """The attention to tokens that are not listed."""
        named = sum(place.share for place in self.places)
        return max(0.0, 1 - named - (0.0 if self.sink is None else self.sink.share))

    def beside(self, place: AttendedTokens) -> float:
        """A place's share of the attention outside the sink."""
        rest = 1 - (0.0 if self.sink is None else self.sink.share)
        return place.share / rest if rest > 0 else 0.0


Cell = tuple[str, str, str, int, str, str, float]
"""prompt, layer, head, position, token, role, share."""


def head_places(study: StoredStudy) -> dict[tuple[str, str], HeadPlaces]:
    """Every head's places by (layer, head).

    Raises: Missing if the study has neither attention to tokens nor whole patterns.
    """
    cells = list(_listed(study) if names.ATTENTION_TOKENS in study.tables else _whole(study))
    if not cells:
        raise Missing("the study holds no attention to tokens")
    prompts = {cell[0] for cell in cells}
    by_head: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_head[cell[1], cell[2]].append(cell)
    return {head: _places(rows, len(prompts)) for head, rows in by_head.items()}


def _places(cells: Sequence[Cell], n: int) -> HeadPlaces:
    shares: dict[tuple[str, str], float] = defaultdict(float)
    tokens: dict[tuple[str, str], list[str]] = defaultdict(list)
    for _, _, _, pos, token, role, share in cells:
        key = (FIRST, "") if pos == 0 else (role, "" if role else token)
        shares[key] += share / n
        tokens[key].append(token)
    found = {}
    for key, share in shares.items():
        role, token = key
        by_count = Counter(tokens[key]).most_common() if role else [(token, 0)]
        found[key] = AttendedTokens(role, tuple(t for t, _ in by_count), share)
    sink = found.pop((FIRST, ""), None)
    order = sorted(found.values(), key=lambda place: -place.share)
    return HeadPlaces(tuple(order), sink, n)


def _listed(study: StoredStudy) -> Iterator[Cell]:
    kinds = {"prompt": str, "layer": str, "head": str, "pos": int, "token": str, "role": str}
    kinds["share"] = float
    table = study.table(names.ATTENTION_TOKENS, *kinds)
    return zip(*(map(kind, table.columns[name]) for name, kind in kinds.items()), strict=True)


def _whole(study: StoredStudy) -> Iterator[Cell]:
    """The last rows of the whole patterns."""
    for name in sorted(study.grids):
        if not name.startswith(names.PATTERNS):
            continue
        grid = study.grid(name, "layer", "head", "query_pos", "key_pos")
        last = np.asarray(grid.values[:, :, -1], dtype=float)
        layers, heads = grid.axis("layer").labels, grid.axis("head").labels
        tokens = [label.partition(":")[2] for label in grid.axis("key_pos").labels]
        for i, j, pos in np.argwhere(np.nan_to_num(last) >= LEAST_SHARE).tolist():
            role = names.LAST_TOKEN if pos == len(tokens) - 1 else ""
            yield (
                *(name.removeprefix(names.PATTERNS), layers[i], heads[j], pos, tokens[pos], role),
                float(last[i, j, pos]),
            )
