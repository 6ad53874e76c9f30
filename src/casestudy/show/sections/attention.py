"""Where does it come from? What the largest heads attend to, and what kind of heads they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Array, Grid
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, paragraph
from casestudy.show.head_places import AttendedTokens, HeadPlaces, head_places
from casestudy.show.sections.ledger import (
    MOST_PATTERN_BYTES,
    has_patterns,
    head_button,
    pattern_names,
    top_heads,
)
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import capital, count, listing, number, percent, prose, visible
from casestudy.show.wording import spoken

HEADS = 12
"""How many heads are listed, largest direct contribution first."""


DESCRIBED = 5
"""Heads that the paragraph describes, of those listed."""
COLUMNS = 9
"""Places that are drawn, the largest first."""
MOST_KEYS = 48
"""Most tokens of one prompt that are drawn: those that get the most attention from one head."""

ATTENDED = "What the heads with the largest direct shares attend to"
READS = "Attention says what a head reads, not what it does with it."


def attention(study: StoredStudy) -> list[Block]:
    """The tokens that the heads with the largest contributions attend to from the last token."""
    found = head_places(study)
    top = [(a, b) for a, b, _ in top_heads(study, HEADS)] or list(found)[:HEADS]
    top = [head for head in top if head in found]
    if not top:
        raise Missing("no head’s attention was measured")
    phrases = [_described(study, head, found[head]) for head in top[:DESCRIBED]]
    return [
        paragraph(
            "Of the attention from the last token, where the answer is decided (mean over "
            "n\u00a0=\u00a0{}): {}. {}",
            *(found[top[0]].n, Markup("; ").join(phrases), READS),
        ),
        *_sinks(study, found),
        _grid(study, top, found),
        *_left_out(study),
    ]


def _described(study: StoredStudy, head: tuple[str, str], places: HeadPlaces) -> Markup:
    """ "Head 3.3 gives 91 % to the changed tokens (·dogs, ·horses, …)"."""
    name = Markup("head {}").format(head_button(study, *head))
    if places.is_sink:
        assert places.sink is not None
        named = f"{percent(places.sink.share)} to {_first_token(study)}"
        beside = _named(places, share=places.beside)
        if 1 - places.sink.share < BESIDE or not beside:
            return Markup("{} gives {}").format(name, named)
        return Markup("{} gives {} and, of the rest, {}").format(name, named, beside)
    shares = [(place.share, place.phrase) for place in _most(places, lambda place: place.share)]
    if places.sink is not None and places.sink.share >= NAMED:
        shares.append((places.sink.share, _first_token(study)))
    if not shares:
        return Markup("{} spreads its attention: no token gets a tenth of it").format(name)
    listed = ", ".join(f"{percent(share)} to {what}" for share, what in sorted(shares)[::-1])
    return Markup("{} gives {}{}").format(name, listed, _rest(places))


def _rest(places: HeadPlaces) -> str:
    """The remaining attention, with its largest place if that is large enough."""
    named = _most(places, lambda place: place.share)
    rest = 1 - sum(place.share for place in named)
    rest -= places.sink.share if places.sink is not None else 0.0
    if rest < NAMED:
        return ""
    next_ones = [place.phrase for place in places.places if place not in named][:2]
    return f", and {percent(rest)} to {listing([*next_ones, 'other tokens'])}"


BESIDE = 0.05
"""The least attention outside a sink for a description."""
NAMED = 0.1
"""The least share for a place to be named."""
MOST_NAMED = 3


def _most(places: HeadPlaces, share: Callable[[AttendedTokens], float]) -> list[AttendedTokens]:
    return [place for place in places.places if share(place) >= NAMED][:MOST_NAMED]


def _named(places: HeadPlaces, share: Callable[[AttendedTokens], float]) -> str:
    return ", ".join(f"{percent(share(p))} to {p.phrase}" for p in _most(places, share))


def _first_token(study: StoredStudy) -> str:
    bos = study.about("settings", "prepend_bos") == "True"
    return "BOS" if bos else "the text’s first token"


def _sinks(study: StoredStudy, found: Mapping[tuple[str, str], HeadPlaces]) -> list[Block]:
    """The heads that put most of their attention on the first token, once."""
    sinks = [head for head, places in found.items() if places.is_sink]
    if not sinks:
        return []
    names = [head_button(study, *head) for head in sinks[:HEADS]]
    more = f" and {count(len(sinks) - HEADS, 'other')}" if len(sinks) > HEADS else ""
    return [
        paragraph(
            "{} of {} heads put at least half of their attention on {}, an attention sink: {}{}. "
            "What they do shows in the rest.",
            *(len(sinks), len(found), _first_token(study), Markup(", ").join(names), more),
        )
    ]


def _grid(
    study: StoredStudy,
    top: Sequence[tuple[str, str]],
    found: Mapping[tuple[str, str], HeadPlaces],
) -> Figure:
    """Heads by the places they attend to; the last column is the remaining attention."""
    size: dict[str, float] = {}
    for head in top:
        for place in found[head].places:
            size[place.label] = max(size.get(place.label, 0.0), place.share)
    labels = sorted((label for label in size if size[label] >= NAMED / 2), key=lambda x: -size[x])
    labels = labels[:COLUMNS]
    rows = []
    for head in top:
        places = found[head]
        row = dict.fromkeys(labels, 0.0)
        for place in places.places:
            if place.label in row:
                row[place.label] += place.share
        sink = 0.0 if places.sink is None else places.sink.share
        rows.append([sink, *row.values(), max(0.0, 1 - sink - sum(row.values()))])
    values = np.array(rows)
    columns = [_first_token(study).removeprefix("the "), *labels, "elsewhere"]
    heads = [f"{a}.{b}" for a, b in top]
    i, j = np.unravel_index(int(np.argmax(values)), values.shape)
    mark = attention_mark(values, heads, columns, opens=has_patterns(study))
    return Figure(
        ATTENDED,
        replace(mark, slanted=True),
        f"Heatmap of attention by head and token or role; the largest is head {heads[i]} on "
        f"{columns[j]}, {percent(float(values[i, j]))}.",
        marks.Data(
            [("head", heads), ("place", columns)],
            {"value": marks.numbers(values)},
            "share",
            "tables/attention.tokens.parquet",
        ),
        f"Attention from the last token, mean over n\u00a0=\u00a0{found[top[0]].n}; heads in the "
        "order of their direct share. A column is a token where it is the same in all prompts, "
        "else a role. “elsewhere” is all that has no column: a row sums to 1.",
    )


def prompt_attention(
    grid: Grid, heads: Sequence[tuple[str, str]], *, opens: bool, note: str = ""
) -> Figure:
    """The tokens of one prompt that some heads attend to from its last token.

    Args:
        grid: over layer, head and key_pos, whose labels are "position:token".
        heads: (layer, head) of those that are drawn, in order.
        opens: whether a click on a row opens the head's whole pattern.
        note: what the caption says beside.
    """
    values = np.stack([grid.select(layer=a, head=b).values for a, b in heads])
    rows = [f"{a}.{b}" for a, b in heads]
    every = grid.axis("key_pos").labels
    most = np.sort(np.argsort(-values.max(0), kind="stable")[:MOST_KEYS])
    values, keys = values[:, most], [every[k] for k in most]
    left_out = len(every) - len(keys)
    tokens = [label.partition(":")[2] for label in keys]
    i, j = np.unravel_index(int(np.argmax(values)), values.shape)
    return Figure(
        ATTENDED,
        replace(attention_mark(values, rows, tokens, opens=opens), tokens=True),
        f"Heatmap of attention by head and token; the largest is head {rows[i]} on "
        f"“{visible(tokens[j])}”, {percent(float(values[i, j]))}.",
        marks.Data(
            [("head", rows), ("key_pos", keys)], {"value": marks.numbers(values)}, grid.unit
        ),
        "Attention from the last token; heads in the order of their direct share. "
        + (f"The {left_out} tokens that get the least attention are left out. " if left_out else "")
        + note
        + ("A click on a row opens the whole pattern. " if opens else "")
        + READS,
    )


def attention_mark(
    values: Array, heads: Sequence[str], places: Sequence[str], *, opens: bool
) -> marks.Heatmap:
    """Attention of some heads to some places, a row per head; full colour is all of a head's.

    Args:
        values: (head, place), shares of each head's attention.
        heads: "3.1", …
        places: tokens or roles.
        opens: whether a click on a row opens the head's whole pattern.
    """
    return marks.Heatmap(
        np.asarray(values, dtype=float),
        heads,
        places,
        unit="share of the head’s attention",
        row_name="head",
        limit=1.0,
        heads="row" if opens else None,
    )


def _left_out(study: StoredStudy) -> list[Block]:
    """A note on prompts whose patterns are not on this page, and where they are."""
    shown, left_out = pattern_names(study)
    if not left_out:
        return []
    several = len(left_out) > 1
    numbers = listing([name.removeprefix(names.PATTERNS) for name in left_out])
    return [
        Markup('<p class="notice" role="note">{}</p>').format(
            f"The attention patterns of {count(len(left_out), 'prompt')} "
            f"({numbers}) are not on this page, which holds at most "
            f"{MOST_PATTERN_BYTES / 1e6:g} MB of them: "
            + ("those of the other " + count(len(shown), "prompt") + " open. " if shown else "")
            + f"They are in the study’s folder, {'each ' if several else ''}as "
            f"arrays/{'pattern.N' if several else left_out[0]}.safetensors."
        )
    ]


def profiles(study: StoredStudy) -> list[Block]:
    """Scores for kinds of heads: previous-token, induction, copying, …"""
    grid = study.grid(names.HEAD_PROFILE, "score", "layer", "head")
    layers, heads = grid.axis("layer").labels, grid.axis("head").labels
    blocks: list[Block] = []
    phrases = []
    for k, score in enumerate(grid.axis("score").labels):
        kind = f"share on {_first_token(study)}" if score == "bos" else spoken(score)
        values = np.asarray(grid.values[k], dtype=float)
        if not np.isfinite(values).any():
            continue
        i, j = np.unravel_index(int(np.nanargmax(values)), values.shape)
        best = f"{layers[i]}.{heads[j]}"
        phrases.append(f"{kind} {number(float(values[i, j]))} (head {best})")
        # A score of 1 is a head that does exactly this; in a pale map no head does.
        share = float(np.nanmax(np.abs(values))) <= 1
        blocks.append(
            Figure(
                capital(kind),
                marks.Heatmap(
                    values,
                    list(layers),
                    list(heads),
                    unit="",
                    limit=1.0 if share else None,
                    row_name="layer",
                    col_name="head",
                    heads="cell" if has_patterns(study) else None,
                ),
                f"Heatmap of {kind} (a score) by layer and head; the highest is head "
                f"{best} with {number(float(values[i, j]))}.",
                marks.Data.of(grid.select(score=score)),
                half=True,
            )
        )
    if not blocks:
        raise Missing("no head has a profile")
    words = paragraph(
        "{} The highest score of each kind, and the head that has it: {}.",
        prose(grid.about),
        listing(phrases),
    )
    return [words, *blocks]
