"""Is it causal? Which minimal edits undo the behaviour, and which activations restore it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from casestudy.behaviour.preset_names import PRESETS
from casestudy.results import names
from casestudy.results.components import attn, mlp
from casestudy.results.result import Axis, Grid
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, Listing, columns_of, paragraph
from casestudy.show.sections.ledger import has_patterns, head_button
from casestudy.show.sections.patch_grids import (
    EMPTY,
    by_construction,
    cut_grid,
    largest,
    parts_of,
    patch_grids,
)
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import (
    capital,
    clean,
    count,
    digits,
    interval,
    listing,
    number,
    percent,
    signed,
    visible,
)


def counterfactuals(study: StoredStudy) -> list[Block]:
    """Every family of edits with its score, and the families that apply to no prompt."""
    table = study.table(names.COUNTERFACTUALS, "family", "n")
    found = table.rows()
    tried = [row for row in found if row["n"]]
    if not tried:
        raise Missing("no family of edits applied to these prompts")
    rows: list[list[str | Markup]] = [
        [
            family_name(study, row["family"]),
            str(row["n"]),
            _mean(row, "mean_clean"),
            _mean(row, "mean_corrupted"),
            _share(row.get("flip_share")),
            _share(row.get("half_share")),
        ]
        for row in tried
    ]
    left_out = [
        f"{family_name(study, row['family'])}: {clean(row['why']).rstrip('.')}"
        for row in found
        if row.get("excluded") and row.get("why")
    ]
    head = ["Edit", "n#", "Clean#", "Corrupted#", "Flip#", "Lose half#"]
    caption = (
        f"{clean(table.about)} Means with 95\u00a0% intervals, in {study.unit}; the share of "
        "prompts whose difference changes sign, and that lose at least half of it."
    )
    blocks: list[Block] = [
        Listing("Minimal edits, and what they do", head, rows, caption, data=columns_of(found))
    ]
    scored = [row for row in tried if _known(row.get("flip_share"))]
    if scored:
        most = max(row["flip_share"] for row in scored)
        best = [
            f"{quoted(study, row['family'])} (n\u00a0=\u00a0{row['n']})"
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


GIVEN = "given"
"""The family of the user's own corrupted prompts."""


def family_name(study: StoredStudy, family: object) -> str:
    """The name of a family of edits in the report."""
    if family != GIVEN:
        return clean(family)
    own = study.about("behaviour", "name") not in PRESETS
    return f"{'your' if own else 'the preset’s'} corrupted prompts"


def quoted(study: StoredStudy, family: object) -> str:
    """The name of a family of edits within a sentence."""
    name = family_name(study, family)
    return name if family == GIVEN else f"“{name}”"


FEWEST = 3
"""The least number of prompts for a sentence about a family of edits."""
STOP = ("final stop to",)
CASE = ("first letter lowered", "sentence starts lowered", "all lowered", "all upper-cased")


def what_decides(study: StoredStudy) -> Markup:
    """Which edits reverse the preference: given corrupted prompts, the final stop, the case."""
    table = study.table(names.COUNTERFACTUALS, "family", "n", "flip_share")
    rows = [r for r in table.rows() if (r["n"] or 0) >= FEWEST and _known(r["flip_share"])]
    given = next((row for row in rows if row["family"] == GIVEN), None)
    if study.about("behaviour", "answers") in ("", "space-capital"):
        stop = _most([row for row in rows if str(row["family"]).startswith(STOP)])
        case = _most([row for row in rows if row["family"] in CASE])
        if stop is not None and case is not None:
            return Markup("{} Replacing the stop{}; changing the case{}.").format(
                _verdict(stop["flip_share"], case["flip_share"]),
                *(_flips(study, stop), _flips(study, case)),
            )
    if given is None:
        raise Missing("no edits of both the final stop and the case, and no given partners")
    return Markup("{} reverse it in {} of {} pairs.").format(
        capital(family_name(study, GIVEN)), percent(given["flip_share"]), given["n"]
    )


def _most(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return max(rows, key=lambda row: (row["flip_share"], row["n"]), default=None)


def _flips(study: StoredStudy, row: Mapping[str, Any]) -> str:
    return (
        f" ({quoted(study, row['family'])}) reverses it in {percent(row['flip_share'])} of "
        f"{row['n']} prompts"
    )


def _verdict(stop: float, case: float) -> str:
    """Which of the two edits reverses more prompts."""
    if stop > 0.5 and case > 0.5:
        return "Both the full stop and the case of the text decide."
    if stop > 0.5 or case > 0.5:
        one, other = ("full stop", "case of the text")[:: 1 if stop > 0.5 else -1]
        return f"The {one} decides, not the {other}."
    return "Neither the full stop nor the case of the text decides alone."


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
    names = patch_grids(study)
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


LEAST = 0.1
"""Least share of the difference for an effect in the first paragraph."""


def strongest(study: StoredStudy) -> Markup:
    """The strongest patch of a single part, as a sentence for the page's first paragraph.

    Trivial effects are left out: the residual stream, which carries everything at the last token in
    late layers, and the first MLP layers at a changed token, which re-encode it. Pairs that
    differ before the last token are preferred to pairs that differ only there.

    Raises: Missing if nothing was patched.
    """
    found = []
    for name in patch_grids(study):
        try:
            grid, _ = cut_grid(study, name)
            where = largest(study, grid, name)
        except Missing:
            continue
        share = not name.endswith(names.EFFECT)
        value, place = float(grid.values[where]), parts_of(name)[-1]
        # of equal effects, one at a role says more than one at a position
        size = round(value if share else abs(value), 3)
        rank = (share, place != "last", size, place == "role")
        found.append((rank, grid, where, name))
    if not found:
        raise Missing("every patched part has its effect by construction")
    (share, *_), grid, where, name = max(found, key=lambda item: item[0])
    value, ends = float(grid.values[where]), _ends(grid, where)
    what = _part(study, name, grid, where)
    if not share:
        return Markup("Removed, {} changes the difference most: by {} {}{}.").format(
            what, signed(value), clean(grid.unit), ends
        )
    corrupted = _corrupted(study, name)
    out, into, verb = (
        (f"the run of {corrupted}", "the clean run", "takes away")
        if ".noising." in name
        else ("the clean run", f"the run of {corrupted}", "restores")
    )
    if value < LEAST:
        return Markup(
            "Patched from {} into {}, no single part that was tried {} as much as a tenth of the "
            "difference."
        ).format(out, into, verb)
    return Markup(
        "Patched from {} into {}, {} {} {} of the difference{}, more than any other part that was "
        "tried.{}"
    ).format(out, into, what, verb, number(value), ends, _re_encoding(study, name, value))


def _re_encoding(study: StoredStudy, of: str, value: float) -> Markup:
    """That first MLP layers, which re-encode the changed tokens, restore more than the part that
    was named, on the same corrupted prompts; nothing where none does."""
    families = study.manifest.get("patch_families")
    families = families if isinstance(families, Mapping) else {}
    found: list[tuple[tuple[float, bool], Grid, tuple[Any, ...]]] = []
    for name in patch_grids(study):
        if parts_of(name)[0] != "mlp_out" or name.endswith(names.EFFECT):
            continue
        if families.get(name) != families.get(of) or (".noising." in name) != (".noising." in of):
            continue
        try:
            grid, _ = cut_grid(study, name)
        except Missing:
            continue
        size = np.where(by_construction(study, grid, name), grid.values, np.nan)
        if np.isfinite(size).any():
            where = tuple(np.unravel_index(int(np.nanargmax(size)), size.shape))
            most = round(float(grid.values[where]), 3)
            found.append(((most, parts_of(name)[-1] == "role"), grid, where))
    if not found:
        return Markup("")
    (most, _), grid, where = max(found, key=lambda item: item[0])
    if most <= value:
        return Markup("")
    return Markup(
        " The first MLP layers are not counted at the tokens that the pairs change: there they "
        "only re-encode these tokens, with an effect of up to {} ({})."
    ).format(number(most), _at(grid, where, "mlp_out"))


def _part(study: StoredStudy, name: str, grid: Grid, where: tuple[Any, ...]) -> Markup:
    """The patched component of one cell, in words; a head opens its attention pattern."""
    site = _site(name, short=True)
    axes = [axis.name for axis in grid.axes]
    if parts_of(name)[0] in LAYERS and axes[0] == "layer":
        at = " at the last token" if axes == ["layer"] and parts_of(name)[-1] == "last" else ""
        return Markup("<b>{}</b>{}").format(_at(grid, where, parts_of(name)[0]), at)
    if axes != ["layer", "head"]:
        return Markup("{}, {}").format(site, _at(grid, where))
    layer, head = (axis.labels[i] for axis, i in zip(grid.axes, where, strict=True))
    return Markup("head {} ({})").format(head_button(study, layer, head), site)


def _corrupted(study: StoredStudy, name: str) -> str:
    """The corrupted prompts of a grid, with their edit where the study says."""
    families = study.manifest.get("patch_families")
    family = families.get(name) if isinstance(families, Mapping) else None
    if family == GIVEN:
        return family_name(study, family)
    return "the corrupted prompts" + (f" (edit: “{clean(family)}”)" if family else "")


LAYERS = {"attn_out": attn, "mlp_out": mlp}
"""The sites whose activation in one layer is a component, and how that is spelled."""


def _at(grid: Grid, where: tuple[Any, ...], site: str = "") -> str:
    """A cell's labels: "layer 3, last token", or "attn 3, last token" for a site of `LAYERS`."""
    labels = [(axis.name, clean(axis.labels[i])) for axis, i in zip(grid.axes, where, strict=True)]
    spelled = LAYERS.get(site)
    return ", ".join(
        spelled(int(label))
        if spelled is not None and axis == "layer" and label.isdigit()
        else label
        if axis == "role"
        else f"{axis} {label}"
        for axis, label in labels
    )


def _told(study: StoredStudy, grid: Grid, name: str, where: tuple[Any, ...]) -> Markup:
    """A sentence on the largest effect; effects by construction come second."""

    def said(cell: tuple[Any, ...]) -> tuple[str, str, str]:
        value = float(grid.values[cell])
        return signed(value, digits([value])), _ends(grid, cell), _at(grid, cell)

    try:
        telling = largest(study, grid, name)
    except Missing:
        telling = where
    size, ends, at = said(telling)
    trivial = by_construction(study, grid, name)[where]
    if telling == where or not trivial or grid.values[telling] <= 0:
        size, ends, at = said(where)
        return paragraph(
            "Patching {}: the largest effect is {}{} at {}.", _site(name), size, ends, at
        )
    early, _, there = said(where)
    return paragraph(
        "Patching {}: the largest effect is {}{} at {}, apart from the first layers at the tokens "
        "that the pairs change, which re-encode these tokens (up to {} at {}).",
        *(_site(name), size, ends, at, early, there),
    )


def _patch(study: StoredStudy, name: str) -> list[Block]:
    grid, where = cut_grid(study, name)
    words = _told(study, grid, name, where)
    grid = _with_tokens(study, grid)
    best, at, ends = float(grid.values[where]), _at(grid, where), _ends(grid, where)
    size = signed(best, digits([best]))
    if best == 0:
        words = paragraph("Patching {} changes nothing anywhere.", _site(name))
    by_role = "role" in (axis.name for axis in grid.axes)
    if by_role and not name.endswith(names.EFFECT) and abs(best) < LEAST / 2:
        return [words, *_undrawn(name, best)]
    grid = _without_empty_roles(grid) if not name.endswith(names.EFFECT) else grid
    plain, mark = _site(name).striptags(), patch_mark(grid, opens=has_patterns(study))
    alt = f"Effect of patching {plain}: the largest is {size}{ends} at {at}."
    caption = _caption(study, name, grid)
    return [words, Figure(f"Patching {plain}", mark, alt, marks.Data.of(grid), caption)]


def patch_mark(
    grid: Grid, *, opens: bool, tokens: Sequence[str] = ()
) -> marks.Bars | marks.Heatmap:
    """A patch grid as bars where it has one axis, as a heatmap where it has two.

    Args:
        grid: of effects, or of shares of the difference.
        opens: whether a click on a head opens its attention pattern.
        tokens: of the one prompt whose positions the columns are; none where they are labels.
    """
    first = grid.axes[0]
    if len(grid.axes) == 1:
        named = tokens and first.name == "pos"
        labels = list(map(visible, tokens)) if named else [clean(x) for x in first.labels]
        # a label of numbers alone needs its axis name beside a bar: "layer 3", "neuron 3.512"
        bare = [x.replace(".", "", 1).isdigit() for x in labels]
        return marks.mean_bars(
            grid,
            [f"{first.name} {x}" if no else x for x, no in zip(labels, bare, strict=True)],
        )
    place, heads = grid.axes[1].name, _opens(grid) if opens else None
    mark = marks.grid_heatmap(grid, slanted=place in ("role", "pos"), heads=heads)
    if not tokens or place != "pos":
        return mark
    return replace(mark, cols=list(map(visible, tokens)), col_name="", tokens=True, slanted=False)


def _caption(study: StoredStudy, name: str, grid: Grid) -> str:
    """What was patched in which pairs, the check of exactness, and the effects by construction."""
    about = clean(grid.about).replace(f"the family “{GIVEN}”", family_name(study, GIVEN))
    if "gap" in grid.error:
        about += (
            " A random sample of cells recomputed with a full forward pass differs by at most "
            f"{number(grid.error['gap'])}."
        )
    if parts_of(name)[0].startswith("resid"):
        about += (
            " The residual stream carries all of the difference somewhere in every layer, late at "
            "the last token by construction: what this shows is where it moves."
        )
    return about


def _with_tokens(study: StoredStudy, grid: Grid) -> Grid:
    """A grid by position whose labels name the token where all prompts have the same."""
    if "pos" not in (axis.name for axis in grid.axes):
        return grid
    axis = grid.axis("pos")
    rows = study.tables[names.PROMPTS].rows() if names.PROMPTS in study.tables else []
    main = study.main_prompts([str(row["prompt"]) for row in rows])
    texts = [rows[i].get("tokens") or () for i in main]
    texts = [tokens for tokens in texts if len(tokens) == len(axis)]
    labels = []
    for label, *column in zip(axis.labels, *texts, strict=True):
        same = len(set(column)) == 1
        labels.append(f"{label} {visible(column[0])}" if same else f"{label} differs")
    if not texts:
        return grid
    axes = (Axis("pos", tuple(labels)) if a.name == "pos" else a for a in grid.axes)
    return replace(grid, axes=tuple(axes))


def _undrawn(name: str, best: float) -> list[Block]:
    """A note that a grid by role has no visible effect, and where it is stored."""
    if best == 0:
        return []
    return [
        paragraph(
            "It is not drawn: no role changes a twentieth of the difference. The study’s folder "
            "has it as <code>arrays/{}.safetensors</code>.",
            name,
        )
    ]


def _without_empty_roles(grid: Grid) -> Grid:
    """A grid by role without the roles that have no effect."""
    if [axis.name for axis in grid.axes][-1] != "role" or len(grid.axes) != 2:
        return grid
    size = np.nan_to_num(np.abs(np.asarray(grid.values, dtype=float))).max(0)
    labels = grid.axes[-1].labels
    keep = [label for label, most in zip(labels, size, strict=True) if most >= EMPTY]
    return grid.take("role", keep) if 0 < len(keep) < len(labels) else grid


PLACES = {
    "role": "by role",
    "position": "by position",
    "all": "at all positions together",
    "last": "at the last token",
}


def _site(name: str, *, short: bool = False) -> Markup:
    """A patch grid's name in words: "attn_out by role"; short, "attn_out" beside a role."""
    parts = parts_of(name)
    place = PLACES.get(parts[-1]) if len(parts) > 1 else None
    site = ".".join(parts[:-1] if place else parts)
    noising = "" if f".{names.NOISING}" not in name else " (noising)"
    # where a cell names its own role or position, the short form leaves the place to it
    place_named = short and parts[-1] in ("role", "position")
    words = f" {place}" if place and not place_named else ""
    return Markup("<code>{}</code>{}{}").format(clean(site), words, "" if short else noising)


def _opens(grid: Grid) -> Literal["cell", "row"] | None:
    names = [axis.name for axis in grid.axes]
    return "cell" if names == ["layer", "head"] else "row" if names[0] == "head" else None


def _ends(grid: Grid, where: tuple[Any, ...]) -> str:
    if grid.lower is None or grid.upper is None:
        return ""
    n = "" if grid.n is None else f", n\u00a0=\u00a0{int(grid.n[where]):,}"
    low, high = float(grid.lower[where]), float(grid.upper[where])
    return f" [{interval(low, high, digits([float(grid.values[where])]))}{n}]"
