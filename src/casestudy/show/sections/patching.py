"""Is it causal? Which minimal edits undo the behaviour, and which activations restore it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from casestudy.results.result import Axis, Grid
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, Listing, columns_of, paragraph
from casestudy.show.sections.ledger import has_patterns, head_button
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import clean, count, digits, interval, listing, number, percent, signed

MOST_HEADS = 24
"""Rows of a figure by head and place."""


def counterfactuals(study: StoredStudy) -> list[Block]:
    """Every family of edits with its score, and those that no prompt allows."""
    table = study.table("counterfactuals", "family", "n")
    found = table.rows()
    tried = [row for row in found if row["n"]]
    if not tried:
        raise Missing("no family of edits applied to these prompts")
    rows: list[list[str | Markup]] = [
        [
            clean(row["family"]),
            str(row["n"]),
            _mean(row, "mean_clean"),
            _mean(row, "mean_corrupted"),
            _share(row.get("flip_share")),
            _share(row.get("half_share")),
        ]
        for row in tried
    ]
    left_out = [
        f"{clean(row['family'])}: {clean(row['why']).rstrip('.')}"
        for row in found
        if row.get("excluded") and row.get("why")
    ]
    head = ["Edit", "n#", "Clean#", "Edited#", "Flip#", "Lose half#"]
    caption = (
        f"{clean(table.about)} Means with 95\u00a0% intervals, in logits; the share of prompts "
        "whose difference changes sign, and that lose at least half of it."
    )
    blocks: list[Block] = [
        Listing("Minimal edits, and what they do", head, rows, caption, data=columns_of(found))
    ]
    scored = [row for row in tried if _known(row.get("flip_share"))]
    if scored:
        most = max(row["flip_share"] for row in scored)
        best = [
            f"“{clean(row['family'])}” (n\u00a0=\u00a0{row['n']})"
            for row in scored
            if row["flip_share"] == most
        ]
        words = paragraph(
            "Of {} that apply to these prompts, {} {} the preference most often: in {} of {} "
            "prompts.",
            count(len(tried), "kind of edit", "kinds of edit"),
            listing(best),
            "reverses" if len(best) == 1 else "reverse",
            percent(most),
            "its" if len(best) == 1 else "their",
        )
        blocks.insert(0, words)
    if left_out:
        blocks.append(
            Markup('<details class="more"><summary>{}</summary><ul>{}</ul></details>').format(
                "Prompts and kinds of edit that were left out, and why",
                Markup("").join(Markup("<li>{}</li>").format(line) for line in left_out),
            )
        )
    return blocks


def _share(value: Any) -> str:
    return percent(value) if _known(value) else ""


def _mean(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    ends = row.get(f"{name}_lower"), row.get(f"{name}_upper")
    shown = f" [{interval(*ends)}]" if _known(ends[0]) else ""
    return f"{number(row[name])}{shown}"


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def patching(study: StoredStudy) -> list[Block]:
    """Every patch grid, normalised."""
    names = _names(study)
    if not names:
        raise Missing("no activation was patched")
    blocks: list[Block] = []
    for name in names:
        try:
            blocks += _patch(study, name)
        except Missing:
            continue
    if not blocks:
        raise Missing("the patch grids stored have more axes than a page can show")
    return blocks


def _names(study: StoredStudy) -> list[str]:
    """The patch grids worth a figure: shares of the difference; effects only for ablations."""
    names = [name for name in sorted(study.grids) if name.startswith("patching.")]
    shares = [n for n in names if not n.endswith((".raw", ".effect"))]
    effects = [
        n for n in names if n.endswith(".effect") and n.removesuffix(".effect") not in shares
    ]
    # Where per-prompt results have a mean beside them, the mean is what is drawn.
    found = [n for n in [*shares, *effects] if f"{n}.mean" not in study.grids]
    return sorted(found, key=_rank)


def strongest(study: StoredStudy) -> Markup:
    """The strongest patch of a single part, as a sentence for the page's first paragraph.

    The residual stream is left out where a part was patched too: late in the last token it carries
    everything by construction, and says nothing about who needs what. For the same reason pairs
    that differ in their last token alone yield to pairs that differ before it.

    Raises: Missing where nothing was patched.
    """
    found = []
    for name in _names(study):
        try:
            grid, where = _cut(study, name)
        except Missing:
            continue
        stream = _parts(name)[0].startswith("resid")
        share = not name.endswith(".effect")
        rank = (share, not stream, _parts(name)[-1] != "last", abs(float(grid.values[where])))
        found.append((rank, grid, where, name))
    if not found:
        raise Missing("no activation was patched")
    (share, *_), grid, where, name = max(found, key=lambda item: item[0])
    value, ends = float(grid.values[where]), _ends(grid, where)
    what = _part(study, name, grid, where)
    if not share:
        return Markup("Removed, {} changes the difference most: by {} logits{}.").format(
            what, signed(value), ends
        )
    into, out, verb = (
        ("clean", "edited", "takes away")
        if ".noising." in name
        else ("edited", "clean", "restores")
    )
    return Markup(
        "Put into the {} prompts{}, one part of the {} run {} more of the difference than any "
        "other tried: {}, with {} of it{}."
    ).format(into, _edited(study, name), out, verb, what, number(value), ends)


def _part(study: StoredStudy, name: str, grid: Grid, where: tuple[Any, ...]) -> Markup:
    """What was patched in one cell, in words; a head opens its attention pattern."""
    site = _site(name, short=True)
    if [axis.name for axis in grid.axes] != ["layer", "head"]:
        return Markup("{}, {}").format(site, _at(grid, where))
    layer, head = (axis.labels[i] for axis, i in zip(grid.axes, where, strict=True))
    return Markup("head {} ({})").format(head_button(study, layer, head), site)


def _edited(study: StoredStudy, name: str) -> str:
    """Which edit the pairs of a grid are of, where the study says."""
    families = study.manifest.get("patch_families")
    family = families.get(name) if isinstance(families, Mapping) else None
    return f" (edit: “{clean(family)}”)" if family else ""


def _cut(study: StoredStudy, name: str) -> tuple[Grid, tuple[Any, ...]]:
    """A patch grid at the main contrast, in at most two dimensions, and its largest cell."""
    grid = study.grid(name)
    for axis in grid.axes:
        if axis.name == "contrast":
            grid = grid.select(contrast=study.contrast)
        elif len(axis) == 1:
            grid = grid.select(**{axis.name: axis.labels[0]})
    names = [axis.name for axis in grid.axes]
    if names[:2] == ["layer", "head"] and len(names) == 3:
        grid = _by_head(grid)
    if not 1 <= len(grid.axes) <= 2 or grid.axes[-1].name == "prompt":
        raise Missing(f"“{name}” has axes that no figure was made for")
    if not np.isfinite(grid.values).any():
        raise Missing(f"nothing of “{name}” could be measured")
    where = np.unravel_index(int(np.nanargmax(np.abs(grid.values))), grid.values.shape)
    return grid, tuple(where)


def _by_head(grid: Grid) -> Grid:
    """(layer, head, place) as (head, place): the heads with the largest effects, in layer order."""
    layers, heads, place = grid.axes
    flat = grid.values.reshape(-1, len(place))
    size = np.nan_to_num(np.abs(flat)).max(1)
    rows = np.sort(np.argsort(-size, kind="stable")[:MOST_HEADS])
    labels = [f"{a}.{b}" for a in layers.labels for b in heads.labels]

    def cut(array: Any) -> Any:
        return None if array is None else array.reshape(-1, len(place))[rows]

    return replace(
        grid,
        values=cut(grid.values),
        lower=cut(grid.lower),
        upper=cut(grid.upper),
        n=cut(grid.n),
        axes=(Axis("head", tuple(labels[i] for i in rows)), place),
        about=f"{grid.about} The {len(rows)} heads with the largest effects of {len(labels)}.",
    )


def _at(grid: Grid, where: tuple[Any, ...]) -> str:
    return ", ".join(
        ("" if axis.name == "role" else f"{axis.name} ") + clean(axis.labels[i])
        for axis, i in zip(grid.axes, where, strict=True)
    )


def _patch(study: StoredStudy, name: str) -> list[Block]:
    grid, where = _cut(study, name)
    values = np.asarray(grid.values, dtype=float)
    best, at, ends = float(values[where]), _at(grid, where), _ends(grid, where)
    size = signed(best, digits([best]))
    words = paragraph("Patching {}: the largest effect is {}{} at {}.", _site(name), size, ends, at)
    labels = [[clean(label) for label in axis.labels] for axis in grid.axes]
    if len(labels) == 1:  # a bare number says too little beside a bar
        labels = [[f"{grid.axes[0].name} {x}" if x.isdigit() else x for x in labels[0]]]
    plain = _site(name).striptags()
    title = f"Patching {plain}"
    alt = f"Effect of patching {plain}: the largest is {size}{ends} at {at}."
    gap = grid.error.get("gap")
    caption = clean(grid.about) + (
        f" A random sample of cells recomputed with a full forward pass differs by at most "
        f"{number(gap)}."
        if gap is not None
        else ""
    )
    mark = (
        marks.mean_bars(grid, labels[0])
        if len(grid.axes) == 1
        else marks.grid_heatmap(
            grid,
            slanted=grid.axes[1].name in ("role", "pos"),
            heads=_opens(grid) if has_patterns(study) else None,
        )
    )
    return [words, Figure(title, mark, alt, marks.Data.of(grid), caption)]


PLACES = {
    "role": "by role",
    "position": "by position",
    "all": "at all positions together",
    "last": "at the last token",
}


def _site(name: str, *, short: bool = False) -> Markup:
    """A patch grid's name in words: "attn_out by role"; short, "attn_out" beside a role."""
    parts = _parts(name)
    place = PLACES.get(parts[-1]) if len(parts) > 1 else None
    site = ".".join(parts[:-1] if place else parts)
    noising = "" if ".noising." not in name else " (noising)"
    # where a cell names its own role or position, the short form leaves the place to it
    place_named = short and parts[-1] in ("role", "position")
    words = f" {place}" if place and not place_named else ""
    return Markup("<code>{}</code>{}{}").format(clean(site), words, "" if short else noising)


def _parts(name: str) -> list[str]:
    name = name.removeprefix("patching.").removeprefix("noising.")
    return name.removesuffix(".mean").removesuffix(".effect").split(".")


ORDER = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "pattern",
)


def _rank(name: str) -> tuple[bool, int, str]:
    site = _parts(name)[0]
    return ".noising." in name, ORDER.index(site) if site in ORDER else len(ORDER), name


def _opens(grid: Grid) -> Literal["cell", "row"] | None:
    names = [axis.name for axis in grid.axes]
    return "cell" if names == ["layer", "head"] else "row" if names[0] == "head" else None


def _ends(grid: Grid, where: tuple[Any, ...]) -> str:
    if grid.lower is None or grid.upper is None:
        return ""
    n = "" if grid.n is None else f", n\u00a0=\u00a0{int(grid.n[where]):,}"
    low, high = float(grid.lower[where]), float(grid.upper[where])
    return f" [{interval(low, high, digits([float(grid.values[where])]))}{n}]"
