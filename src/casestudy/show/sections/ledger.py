"""Direct contributions: the ledger, heads and neurons, and the depth at which it appears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import components, names
from casestudy.results.components import layer_kind
from casestudy.results.names import B_U
from casestudy.results.result import Array, Axis, Grid
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, Listing, columns_of, paragraph
from casestudy.show.page import figure_html
from casestudy.show.sections.grouped_terms import MOST_TERMS, grouped
from casestudy.show.stored import UNEXPECTED, Missing, StoredStudy
from casestudy.show.text import capital, clean, interval, listing, number, ordinal, percent, signed
from casestudy.show.weighed import Weighed, weighed
from casestudy.show.wording import NOTHING, Mean, spoken


def ledger_mean(study: StoredStudy) -> list[Block]:
    """The ledger of the mean difference, as a waterfall, with b_U as a row; others folded."""
    figure, total, terms = _waterfall(study, study.contrast)
    every = []
    if len(terms) > MOST_TERMS:
        every = [_waterfall(study, study.contrast, whole=True)[0]]
    others = []
    for name in study.contrasts:
        if name != study.contrast:
            try:
                others.append(_waterfall(study, name)[0])
            except Missing:
                continue
    blocks: list[Block] = [_groups(study, terms), figure, _b_u(study, total)]
    if every:
        blocks.insert(2, folded(f"All {len(terms)} terms", every))
    if others:
        blocks.append(folded("The same account of the other contrasts", others))
    return blocks


def folded(title: str, figures: Sequence[Figure]) -> Markup:
    """Figures that a reader can open."""
    return Markup('<details class="more"><summary>{}</summary>{}</details>').format(
        title, Markup("").join(figure_html(figure) for figure in figures)
    )


def present(grid: Grid) -> Grid:
    """A ledger without the terms that this contrast does not have (a soft cap, an entropy term)."""
    keep = np.flatnonzero(np.isfinite(grid.values))
    labels = tuple(grid.axis("term").labels[i] for i in keep)
    return grid._map(lambda array: array[keep], (Axis("term", labels),))


def _waterfall(
    study: StoredStudy, contrast: str, *, whole: bool = False
) -> tuple[Figure, Mean, list[str]]:
    """A contrast's ledger: its mean and its terms; a long one is grouped unless `whole`."""
    means = study.grid(names.mean(names.LEDGER), "contrast", "term").select(contrast=contrast)
    total = Mean.of(study.grid(names.mean(names.LOGIT_DIFFERENCE), "contrast"), contrast=contrast)
    means = present(means)
    every = list(means.axis("term").labels)
    if not whole:
        means = grouped(means, _by_prompt(study, contrast, every))
    terms = list(means.axis("term").labels)
    if np.isnan(total.value) or not terms:
        raise Missing("no prompt has a ledger to average")
    lower = None if means.lower is None else marks.numbers(means.lower)
    upper = None if means.upper is None else marks.numbers(means.upper)
    values = means.values.tolist()
    gap = abs(float(means.values.sum()) - total.value)
    order = sorted(range(len(terms)), key=lambda i: -abs(values[i]))
    largest = [
        f"{clean(terms[i])} ({signed(values[i])} [{interval(lower[i], upper[i])}])"
        if lower and upper and lower[i] is not None
        else f"{clean(terms[i])} ({signed(values[i])})"
        for i in order[:3]
    ]
    main, sides = contrast == study.contrast, weighed(study, contrast)
    what = _quantity(sides)
    caption = Markup(
        "{}. Each bar starts where the one above ended, so the last bar must "
        "end where the account ends; lines are 95\u00a0% intervals of a term’s mean "
        "(n\u00a0=\u00a0{}). The terms sum to {}, the {} is {}: a gap of {} {}.{}"
    ).format(
        capital(sides.against),
        total.n,
        number(float(means.values.sum()), 3),
        what,
        number(total.value, 3),
        number(gap),
        sides.unit,
        " The outlined bar is the final norm’s bias through the unembedding."
        if B_U in terms
        else "",
    )
    figure = Figure(
        _ledger_title(len(terms) < len(every), what)
        if main
        else f"The ledger of the contrast “{spoken(contrast)}”",
        marks.Waterfall(
            *(terms, values, total.value),
            lower=lower,
            upper=upper,
            unit=sides.unit,
            marked=(B_U,),
            total_label=what,
        ),
        f"Waterfall from 0 to the mean {what}, {signed(total.value)} {sides.unit} "
        f"({total.bracket}). Largest terms: {listing(largest)}. Gap between the sum of the terms "
        f"and the difference: {number(gap)} {sides.unit}.",
        ledger_data(means, total),
        caption,
    )
    return figure, total, every


def _quantity(sides: Weighed) -> str:
    """What a contrast is, in words."""
    return "logit difference" if sides.unit == "logits" else "difference"


def _ledger_title(is_grouped: bool, what: str) -> str:
    if is_grouped:
        return f"The ledger of the mean {what}: the largest terms, the others by kind"
    return f"The ledger: every term of the mean {what}"


def _by_prompt(study: StoredStudy, contrast: str, terms: Sequence[str]) -> Array | None:
    """(term, prompt) values of the main prompts; None where the study has no such ledger."""
    try:
        grid = study.grid(names.LEDGER, "contrast", "term", "prompt").select(contrast=contrast)
        values = grid.take("term", terms).values
    except (Missing, *UNEXPECTED):
        return None
    return values[:, study.main_prompts(grid.axis("prompt").labels)]


def ledger_data(terms: Grid, total: Mean | float) -> marks.Data:
    """A waterfall's cells: the terms and the total, and where each bar ends."""
    ends = np.cumsum(np.nan_to_num(terms.values))
    mean = total if isinstance(total, Mean) else Mean(total, float("nan"), float("nan"), 0)
    columns: dict[str, list[marks.Number]] = {
        "value": marks.numbers(np.append(terms.values, mean.value)),
        "ends at": marks.numbers(np.append(ends, mean.value)),
    }
    if isinstance(total, Mean):
        for name, end in (("lower", total.lower), ("upper", total.upper), ("n", total.n)):
            array = getattr(terms, name)
            if array is not None:
                columns[name] = marks.numbers(np.append(array, end))
    labels = [*terms.axis("term").labels, "logit difference"]
    return marks.Data([("term", labels)], columns, terms.unit, "arrays/ledger.safetensors")


EMBEDDINGS = "token and position embeddings"

GROUPS: Mapping[str, Callable[[str], bool]] = {
    "attention layers": lambda term: layer_kind(term) == "attn",
    "MLP layers": lambda term: layer_kind(term) == "mlp",
    EMBEDDINGS: lambda term: term in (names.EMBED, names.POS_EMBED),
    "the final norm’s bias b_U": lambda term: term == B_U,
    "the unembedding’s bias": lambda term: term == names.UNEMBEDDING_BIAS,
    "the soft cap": lambda term: term == names.SOFT_CAP,
    "the entropy term": lambda term: term == names.ENTROPY,
}


def group_means(study: StoredStudy) -> dict[str, Mean]:
    """The ledger summed by kind of part, per prompt, then averaged."""
    grid = study.grid(names.LEDGER, "contrast", "term", "prompt").select(contrast=study.contrast)
    terms = grid.axis("term").labels
    main = study.main_prompts(grid.axis("prompt").labels)
    found = {}
    for name, belongs in GROUPS.items():
        rows = [i for i, term in enumerate(terms) if belongs(term)]
        if rows:
            # A term that this contrast does not have is NaN in every prompt.
            there = [i for i in rows if np.isfinite(grid.values[i]).any()]
            mean = Mean.over(grid.values[there].sum(0)[main]) if there else NOTHING
            if mean.n:
                alone = name == EMBEDDINGS and len(there) == 1  # rotary: no table of positions
                found["token embeddings" if alone else name] = mean
    return found


def _groups(study: StoredStudy, terms: Sequence[str]) -> Markup:
    try:
        groups = group_means(study)
    except Missing:
        return Markup("")
    phrases = [
        Markup("{} <b>{}</b> [{}]").format(name, signed(m.value), interval(m.lower, m.upper))
        for name, m in sorted(groups.items(), key=lambda item: -abs(item[1].value))
    ]
    n = max((m.n for m in groups.values()), default=0)
    return paragraph(
        "With the final norm’s scale frozen at its measured value, the difference is a sum over "
        "the parts of the model that wrote to the residual stream. By kind of part: {} "
        "({}, mean over n\u00a0=\u00a0{} with 95 % interval). The share a part writes directly "
        "is not its causal effect: it may pass on what an earlier part wrote.",
        Markup(", ").join(phrases),
        study.unit,
        n,
    )


def _b_u(study: StoredStudy, total: Mean) -> Markup:
    """The difference with and without b_U, which a projection of the residual stream omits."""
    try:
        check = study.grid(names.LEDGER_CHECK, "contrast", "quantity", "prompt")
        check = check.select(contrast=study.contrast)
        without = check.select(quantity="without b_U").values
    except Exception as error:
        raise Missing(f"the ledger’s check is not as expected: {error}") from error
    without = without[study.main_prompts(check.axis("prompt").labels)]
    known = without[np.isfinite(without)]
    if not known.size or names.mean(names.LEDGER) not in study.grids:
        return Markup("")
    terms = study.grid(names.mean(names.LEDGER), "contrast", "term")
    if not _has_b_u(study):
        return Markup("")
    bias = Mean.of(terms, contrast=study.contrast, term=B_U)
    return Markup(
        '<aside class="note"><h3>With and without b_U</h3><p>The {} is '
        "<strong>{}</strong>; projecting the residual stream on the unembedding alone gives "
        "<strong>{}</strong>. What is left, {} [{}], is the final norm’s bias: it gives every "
        "token a constant, b_U, which does not cancel between answer and counterpart. It is the "
        "same whatever the prompt says, for the same two tokens.</p></aside>"
    ).format(
        _quantity(weighed(study)),
        number(total.value, 3),
        number(float(known.mean()), 3),
        signed(bias.value, 3),
        interval(bias.lower, bias.upper, 3),
    )


def lens(study: StoredStudy) -> list[Block]:
    """The depth at which the difference appears."""
    frozen = study.grid(names.mean(names.LENS), "contrast", "depth").select(contrast=study.contrast)
    own = None
    if names.mean(names.LENS_OWN_NORM) in study.grids:
        own = study.grid(names.mean(names.LENS_OWN_NORM), "contrast", "depth").select(
            contrast=study.contrast
        )
    frozen = replace(frozen, unit=study.unit)  # the stored grid has contrasts of both units
    depths, values, _ = _curve(frozen)
    if not np.isfinite(values).any():
        raise Missing("no prompt has a logit difference")
    steps = np.diff(values)
    n = Mean.of(frozen, depth=depths[0]).n
    largest = int(np.nanargmax(np.abs(steps))) if np.isfinite(steps).any() else 0
    half = next((d for d, v in zip(depths, values, strict=True) if v >= values[-1] / 2), "")
    reached = (
        f" The curve first reaches half of its last value at {depth_name(half)}."
        if values[-1] > 0 and half
        else ""
    )
    return [
        paragraph(
            "Projected on the contrast at every depth, the residual stream {} "
            "gains most between {} and {} ({} {}, n\u00a0=\u00a0{}).{}",
            "where the answers’ tokens are predicted"
            if study.contrast in names.WHOLES.values()
            else "of the last token",
            *(
                depth_name(depths[largest]),
                depth_name(depths[largest + 1]),
                signed(float(steps[largest])),
            ),
            *(study.unit, n, reached),
        ),
        lens_figure(
            frozen,
            own,
            alt=f", n\u00a0=\u00a0{n}.{reached}",
            caption="Mean over prompts; the band is its 95 % interval. ",
            bias=_has_b_u(study),
        ),
    ]


def lens_figure(
    frozen: Grid,
    own: Grid | None,
    *,
    alt: str = ".",
    caption: str = "",
    height: marks.Real = 240,
    bias: bool = True,
) -> Figure:
    """The logit difference by depth, of one prompt or as a mean over prompts.

    Args:
        frozen: over the axis depth, read with the final norm's scale frozen; its last place may be
            the logits themselves.
        own: read as if the model ended at each depth; left out where its depths are others.
        alt: what the alternative text ends in.
        caption: what the caption begins with.
        height: of the plot in pixels.
        bias: whether the final norm has a bias, which the stream lacks at the end.
    """
    depths, values, final = _curve(frozen)
    keep = len(depths)
    lower, upper = (None if a is None else a[:keep] for a in (frozen.lower, frozen.upper))
    series = [marks.Series.of("norm’s scale frozen", values, lower, upper)]
    drawn, beyond = list(series), ""
    if own is not None and own.axis("depth").labels == depths:
        name = "as if the model ended here"
        series.append(marks.Series(name, marks.numbers(own.values)))
        within, beyond = _within(own.values, np.stack([values, *_known_ends(lower, upper)]))
        drawn.append(marks.Series(name, marks.numbers(within)))
    arrival = ""
    if final is not None:
        linear = frozen.unit == "logits"
        what = "logit difference" if linear else "difference"
        arrival = f" The dashed line is the {what} itself, {number(final)}"
        missing = ["b_U"] * bias + ["the entropy term"] * (not linear)
        arrival += f": what is missing at the end is {listing(missing)}." if missing else "."
    return Figure(
        "The difference by depth: the accumulated logit lens",
        marks.Lines(
            list(map(depth_name, depths)),
            drawn,
            unit=frozen.unit,
            axis="depth: before and in the middle of each layer",
            final=final,
            height=height,
        ),
        f"Line from {number(float(values[0]))} at {depth_name(depths[0])} to "
        f"{number(float(values[-1]))} {frozen.unit} at {depth_name(depths[-1])}{alt}",
        _series_data(depths, series, frozen.unit),
        f"{caption}With the final norm’s scale frozen at its measured value, each step is the "
        f"ledger’s term of the part in between.{arrival}{beyond}",
    )


def depth_name(depth: str) -> str:
    """A place of the residual stream in figures and sentences: "end" after the last layer."""
    return "end" if depth == "final_post" else clean(depth)


def _known_ends(lower: Array | None, upper: Array | None) -> list[Array]:
    return [ends for ends in (lower, upper) if ends is not None]


def _within(own: Array, frozen: Array) -> tuple[Array, str]:
    """A second reading without its points far off the first, which would squash the figure.

    Early in the model the stream is small, and its own norm's scale magnifies it.
    """
    low, high = min(0.0, float(np.nanmin(frozen))), max(0.0, float(np.nanmax(frozen)))
    room = high - low
    off = (own < low - room) | (own > high + room)
    if not off.any():
        return own, ""
    n, furthest = int(off.sum()), float(own[off][np.argmax(np.abs(own[off]))])
    points = "point" if n == 1 else "points"
    return np.where(off, np.nan, own), (
        f" {n} {points} of the second reading beyond the frame (to {signed(furthest)}) "
        f"{'is' if n == 1 else 'are'} not drawn; the data has {'it' if n == 1 else 'them'}."
    )


def _has_b_u(study: StoredStudy) -> bool:
    grid = study.grids.get(names.mean(names.LEDGER), study.grids.get(names.LEDGER))
    return (
        grid is not None
        and B_U in present(grid.select(contrast=study.contrast)).axis("term").labels
    )


def _curve(frozen: Grid) -> tuple[tuple[str, ...], Array, float | None]:
    """Depths and values of a lens, and the logits it should arrive at, where it ends in them."""
    depths = frozen.axis("depth").labels
    if depths and depths[-1] == "logits":
        return depths[:-1], frozen.values[:-1], float(frozen.values[-1])
    return depths, frozen.values, None


def _series_data(depths: Sequence[str], series: Sequence[marks.Series], unit: str) -> marks.Data:
    none: list[marks.Number] = [None] * len(depths)
    columns = {"value": [v for line in series for v in line.values]}
    if any(line.lower is not None for line in series):
        columns["lower"] = [v for line in series for v in line.lower or none]
        columns["upper"] = [v for line in series for v in line.upper or none]
    axes = [("reading", [line.name for line in series]), ("depth", list(map(depth_name, depths)))]
    return marks.Data(axes, columns, unit, "arrays/lens.safetensors")


def heads(study: StoredStudy) -> list[Block]:
    """The direct contribution of every head."""
    means = study.grid(names.mean(names.HEAD_SHARES), "contrast", "layer", "head")
    means = means.select(contrast=study.contrast)
    top = top_heads(study, 5)
    if not top:
        raise Missing("no head’s share was measured")
    first = top[0][2]
    places = _places(first.value)
    phrases = [
        Markup("{} ({} [{}])").format(
            head_button(study, a, b), signed(m.value, places), interval(m.lower, m.upper, places)
        )
        for a, b, m in top
    ]
    opens = has_patterns(study)
    return [
        paragraph(
            "The heads with the largest direct shares: {} ({}, mean over "
            "n\u00a0=\u00a0{} with 95 % interval). They were chosen for being large out of {}, "
            "so on new prompts their means will tend to be smaller.",
            *(
                Markup(", ").join(phrases),
                study.unit,
                first.n,
                len(largest_heads(means, means.values.size)),
            ),
        ),
        heads_figure(
            means,
            alt=f" ({first.bracket})",
            caption=f"{capital(weighed(study).against_plain)}; mean over prompts. ",
            opens=opens,
        ),
    ]


def heads_figure(shares: Grid, *, alt: str = "", caption: str = "", opens: bool) -> Figure:
    """The direct contribution of every head, of one prompt or as a mean over prompts.

    Args:
        shares: over layer and head.
        alt: what the alternative text says of the largest beside its value.
        caption: what the caption begins with.
        opens: whether a click on a cell opens the head's attention pattern.
    """
    ((layer, head),) = largest_heads(shares, 1)
    value = float(shares.select(layer=layer, head=head).values)
    return Figure(
        "The direct share of every attention head",
        marks.grid_heatmap(shares, heads="cell" if opens else None),
        "Heatmap of direct shares by layer and head; the largest is "
        f"{components.head(layer, head)} with {signed(value, _places(value))} {shares.unit}{alt}.",
        marks.Data.of(shares),
        f"{caption}Blue pushes towards the answer, orange away from it."
        + (" A click on a cell opens the head’s attention pattern." if opens else ""),
    )


def _places(share: float) -> int:
    """Decimals for a head's share: small models' shares are small."""
    return 2 if abs(share) >= 0.1 else 3


def ranking(study: StoredStudy) -> list[Block]:
    """How stable the order of the heads is over prompts."""
    table = study.table(
        names.ranking(names.HEAD_SHARES), "layer", "head", "mean", "rank", "in_top_10"
    )
    ranked = sorted(table.rows(), key=lambda row: row["rank"])
    rows = ranked[:10]
    if not rows:
        raise Missing("too few prompts to resample the order of the heads")
    cells: list[list[str | Markup]] = [
        [
            head_button(study, str(r["layer"]), str(r["head"])),
            signed(r["mean"], 3),
            percent(r["in_top_10"]),
            f"{ordinal(r['rank'] + 1)}",
            f"{ordinal(int(r['rank_lower']) + 1)} to {ordinal(int(r['rank_upper']) + 1)}"
            if r.get("rank_lower") is not None
            else "",
            str(r.get("n", "")),
        ]
        for r in rows
    ]
    head = ["Head", "Mean share#", "Among the first ten#", "Place#", "95\u00a0% interval#", "n#"]
    return [
        Listing(
            "The heads in order, and how sure the order is",
            head,
            cells,
            f"{clean(table.about)} The CSV has every head.",
            data=columns_of([from_one(row) for row in ranked]),
        )
    ]


def from_one(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table with ranks from 1; results count from 0."""
    return {
        name: value + 1 if name in RANKS and isinstance(value, int | float) else value
        for name, value in row.items()
    }


RANKS = ("rank", "rank_lower", "rank_upper")
"""Columns that results count from 0."""


def top_heads(study: StoredStudy, most: int) -> list[tuple[str, str, Mean]]:
    """The heads with the largest mean direct contribution, with its value."""
    if names.mean(names.HEAD_SHARES) not in study.grids:
        return []
    means = study.grid(names.mean(names.HEAD_SHARES), "contrast", "layer", "head")
    means = means.select(contrast=study.contrast)
    pairs = largest_heads(means, most)
    return [(a, b, Mean.of(means, layer=a, head=b)) for a, b in pairs]


def largest_heads(shares: Grid, most: int) -> list[tuple[str, str]]:
    """(layer, head) of the heads with the largest direct contributions, largest first.

    Without heads that were not measured, and without biases.
    """
    layers, heads = shares.axis("layer").labels, shares.axis("head").labels
    cells = [
        (-abs(value), i, j)
        for (i, j), value in np.ndenumerate(shares.values)
        if np.isfinite(value) and heads[j].isdigit()
    ]
    return [(layers[i], heads[j]) for _, i, j in sorted(cells)[:most]]


MOST_PATTERN_BYTES = 3_000_000
"""Attention patterns are the largest thing a report holds; beyond this, prompts are left out."""

PATTERN_AXES = ("layer", "head", "query_pos", "key_pos")


def pattern_names(study: StoredStudy) -> tuple[list[str], list[str]]:
    """The whole attention patterns on the page, and those left out.

    A byte per entry on and below the diagonal, the shortest names first, as far as they fit.
    """
    shown: list[str] = []
    left_out: list[str] = []
    size = 0
    patterns = [name for name in study.grids if name.startswith(names.PATTERNS)]
    for name in sorted(patterns, key=lambda name: (len(name), name)):
        axes = {axis.name: len(axis) for axis in study.grids[name].axes}
        if sorted(axes) != sorted(PATTERN_AXES) or axes["query_pos"] != axes["key_pos"]:
            continue
        n = axes["key_pos"]
        size += axes["layer"] * axes["head"] * n * (n + 1) // 2
        (shown if size <= MOST_PATTERN_BYTES else left_out).append(name)
    return shown, left_out


def has_patterns(study: StoredStudy) -> bool:
    """Whether there is a whole attention pattern to open."""
    return bool(pattern_names(study)[0])


def head_button(study: StoredStudy, layer: str, head: str) -> Markup:
    """A head's name; where patterns are stored, a button that opens its pattern."""
    if not has_patterns(study):
        return Markup("<b>{}.{}</b>").format(layer, head)
    return Markup(
        '<button type="button" class="link" data-head="{}.{}" aria-haspopup="dialog">{}.{}</button>'
    ).format(layer, head, layer, head)


def neurons(study: StoredStudy) -> list[Block]:
    """The neurons with the largest direct contribution."""
    table = study.table(names.NEURON_SHARES, "contrast", "layer", "neuron", "mean")
    contrast = study.contrast_in(list(dict.fromkeys(table.columns["contrast"])))
    rows = [row for row in table.rows() if row["contrast"] == contrast]
    if not rows:
        raise Missing("no neuron’s share was measured for this contrast")
    rows.sort(key=lambda row: -abs(row["mean"]))
    cells: list[list[str | Markup]] = [
        [
            components.neuron(row["layer"], row["neuron"]),
            signed(row["mean"], 3),
            interval(row.get("lower"), row.get("upper"), 3),
            str(row.get("n", "")),
        ]
        for row in rows[:10]
    ]
    of = (
        "" if contrast == study.contrast else f" {capital(weighed(study, contrast).against_plain)}."
    )
    total = "" if len(rows) <= 10 else f" The first 10 of {len(rows)} stored; the CSV has all."
    return [
        Listing(
            "The neurons with the largest direct share",
            ["Neuron", "Mean#", "95 % interval#", "n#"],
            cells,
            clean(table.about) + total + of,
            data=columns_of(rows),
        )
    ]
