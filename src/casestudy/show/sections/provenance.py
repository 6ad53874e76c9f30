"""Where do the numbers come from, and what was not measured?"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show import marks
from casestudy.show.blocks import Absent, Block, Figure, Listing
from casestudy.show.sections.ledger import from_one
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import amount, clean, number, shorten

_BOOKKEEPING = frozenset({names.LEDGER_CHECK, names.CHUNKS})
MOST_CELLS = 4000
"""Most cells of a figure in the appendix; larger grids are listed with their shape."""


def declared_absent(study: StoredStudy) -> list[Absent]:
    """What the study records as not measured."""
    found = study.manifest.get("not_measured", [])
    return [
        Absent(clean(entry.get("what", "")), clean(entry.get("why", "")))
        for entry in (found if isinstance(found, list) else [])
        if isinstance(entry, Mapping)
    ]


def facts(study: StoredStudy) -> list[tuple[str, str]]:
    """The main facts: model, file, prompts, versions and time."""
    model, behaviour = "model", "behaviour"
    shape = [
        (study.about(model, key), what)
        for key, what in (
            ("n_layers", "layers"),
            ("n_heads", "heads"),
            ("d_model", "dimensions"),
            ("d_vocab", "tokens in the vocabulary"),
        )
    ]
    rewrites = study.manifest.get("model", {})
    rewrites = rewrites.get("rewrites") if isinstance(rewrites, Mapping) else None
    lines = [
        (
            "Behaviour",
            f"{study.about(behaviour, 'name')}: {study.about(behaviour, 'about')}".strip(": "),
        ),
        ("Model", study.about(model, "name")),
        ("Architecture", ", ".join(f"{value} {what}" for value, what in shape if value)),
        ("Weights", study.about(model, "weight_hash")),
        ("Weights read from", _file(study)),
        (
            "Rewrites",
            ", ".join(map(clean, rewrites)) if rewrites else "none" if rewrites == [] else "",
        ),
        (
            "Arithmetic",
            ", ".join(filter(None, (study.about(model, "dtype"), study.about(model, "device")))),
        ),
        (
            "BOS",
            {"True": "prepended", "False": "not prepended"}.get(
                study.about("settings", "prepend_bos"), ""
            ),
        ),
        ("Chat template", _chat(study)),
        ("Versions", _versions(study)),
        ("Started", study.about("created")),
        ("Finished", study.about("finished")),
        ("Time to measure the prompts", f"{number(_float(study.manifest.get('seconds')), 1)} s"),
    ]
    return [(name, value) for name, value in lines if value and value != "not measured s"]


def _file(study: StoredStudy) -> str:
    """The file of the weights, and the number of bits in which it stores them."""
    model = study.manifest.get("model", {})
    file = model.get("file") if isinstance(model, Mapping) else None
    if not isinstance(file, Mapping) or not isinstance(file.get("stored_as"), Mapping):
        return ""
    counts = {clean(kind): _float(n) or 0.0 for kind, n in file["stored_as"].items()}
    whole = sum(counts.values()) or 1.0
    shares = ", ".join(f"{100 * n / whole:.3g} % as {kind}" for kind, n in counts.items())
    digits = re.search(r"\d+", next(iter(counts), ""))
    most = f"de-quantised from {digits[0]} bits" if digits and int(digits[0]) < 16 else "as stored"
    return f"{clean(file.get('name'))}, {most} ({shares}); SHA-256 {clean(file.get('sha256'))}"


def _chat(study: StoredStudy) -> str:
    """The chat template that wrote the prompts, where one did."""
    behaviour = study.manifest.get("behaviour", {})
    chat = behaviour.get("chat") if isinstance(behaviour, Mapping) else None
    if not isinstance(chat, Mapping):
        return ""
    prefix = clean(chat.get("assistant_prefix", ""))
    begun = f"; the assistant’s turn begins with “{prefix}”" if prefix else ""
    return f"SHA-256 {clean(chat.get('template_sha256', ''))}{begun}"


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _versions(study: StoredStudy) -> str:
    versions = study.manifest.get("versions", {})
    if not isinstance(versions, Mapping):
        return ""
    return ", ".join(f"{clean(name)} {clean(value)}" for name, value in versions.items())


def short_manifest(study: StoredStudy) -> dict[str, Any]:
    """The manifest for the page: long lists are replaced by their length."""

    def brief(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): brief(v) for k, v in value.items()}
        if isinstance(value, list):
            if len(value) > 12:
                return [*map(brief, value[:8]), f"… {len(value) - 8} more"]
            return [brief(v) for v in value]
        return shorten(value, 400) if isinstance(value, str) else value

    found = brief(study.manifest)
    return found if isinstance(found, dict) else {}


def leftovers(study: StoredStudy, shown: Collection[str]) -> list[Block]:
    """Stored results that no section shows: a figure for each that can be drawn, else a table row.

    Args:
        study: as it was stored.
        shown: names of the grids and tables that the sections show.
    """
    unknown = [study.grids[n] for n in sorted(set(study.grids) - set(shown) - _BOOKKEEPING)]
    # a grid whose mean is shown is listed; any other is drawn
    drawn = [g for g in unknown if _drawable(g) and names.mean(g.name) not in shown]
    blocks: list[Block] = [_plain(grid) for grid in drawn]
    for name in sorted(set(study.tables) - set(shown) - _BOOKKEEPING):
        table = study.tables[name]
        rows = [from_one(row) for row in table.rows()]
        if not rows:
            continue
        cells = [[_cell(value) for value in row.values()] for row in rows[:30]]
        more = f" The first 30 of {len(rows):,} rows." if len(rows) > 30 else ""
        blocks.append(
            Listing(
                clean(name),
                list(map(clean, table.columns)),
                cells,
                clean(table.about) + more,
                data={key: column[:MOST_CELLS] for key, column in table.columns.items()},
            )
        )
    rest = [_summary(g) for g in unknown if g.name not in {grid.name for grid in drawn}]
    if rest:
        head = ["Name", "Axes", "Smallest#", "Largest#", "Unit"]
        about = "Each is a file of its own under `arrays/` in the study’s folder."
        blocks.append(Listing("Arrays that were stored and are not drawn here", head, rest, about))
    if not blocks:
        raise Missing("")
    return blocks


def _drawable(grid: Grid) -> bool:
    known = np.isfinite(np.asarray(grid.values, dtype=float)).any()
    several = grid.name.endswith((names.BY_GROUP, names.RAW))
    return (
        bool(known)
        and 1 <= grid.values.ndim <= 2
        and grid.values.size <= MOST_CELLS
        and not several
    )


def _summary(grid: Grid) -> list[str | Markup]:
    values = np.asarray(grid.values, dtype=float)
    known = values[np.isfinite(values)]
    ends = [amount(float(known.min())), amount(float(known.max()))] if known.size else ["", ""]
    shape = " × ".join(f"{len(axis)} {axis.name}" for axis in grid.axes) or "one number"
    return [clean(grid.name), clean(shape), *ends, clean(grid.unit)]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return amount(value, 3)
    return "" if value is None else shorten(clean(value), 60)


def _plain(grid: Grid) -> Figure:
    """A grid that no section knows, drawn by its number of axes."""
    about = f"{clean(grid.about)} Axes: {', '.join(a.name for a in grid.axes)}."
    mark, alt = marks.mark_of(grid), marks.alternative(grid)
    return Figure(clean(grid.name), mark, alt, marks.Data.of(grid), about)
