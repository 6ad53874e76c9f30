"""Draw the diagrams of docs/images that show ideas rather than measurements.

    python docs/diagrams.py

Plain SVG whose colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

IMAGES = Path(__file__).with_name("images")
STYLE = """
svg { --paper: #fffefb; --ink: #1b1b1a; --soft: #5d5c58; --rule: #dcd9d1; --wash: #f0ede5;
  --pos: #1f5fa8; --neg: #c4501b; --pale: #b9cde4; }
@media (prefers-color-scheme: dark) { svg { --paper: #16171a; --ink: #e6e4df; --soft: #a5a29b;
  --rule: #36373b; --wash: #26272c; --pos: #6aaef0; --neg: #f28a54; --pale: #2f4f74; } }
text { font: 13px "Helvetica Neue", "Segoe UI", Arial, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .m { text-anchor: middle; } .e { text-anchor: end; }
.tok { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.paper { fill: var(--paper); } .chip { fill: var(--wash); stroke: var(--rule); }
.none { fill: var(--wash); } .kept { fill: var(--pale); } .done { fill: var(--pos); }
.patch { fill: none; stroke: var(--neg); stroke-width: 3; }
.join { stroke: var(--pos); stroke-width: 1.6; fill: none; }
"""


def page(width: int, height: int, title: str, parts: list[str]) -> str:
    """An SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{title}</title><style>{STYLE}</style>"
        f'<rect class="paper" width="{width}" height="{height}" rx="4"/>{"".join(parts)}</svg>\n'
    )


def label(x: float, y: float, words: str, kind: str = "") -> str:
    """One line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{Markup.escape(words)}</text>'


def box(x: float, y: float, w: float, h: float, kind: str) -> str:
    """One rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="2" class="{kind}"/>'


def sweep() -> str:
    """What a patch at one layer and position can change."""
    layers, positions, layer, position = 6, 9, 2, 4
    cell, left, top = 40, 84, 40
    parts = []
    for row in range(layers):
        y = top + (layers - 1 - row) * cell
        parts.append(label(left - 12, y + 24, f"layer {row}", "e soft"))
        for column in range(positions):
            above = row >= layer and column >= position
            needed = above and (row < layers - 1 or column == positions - 1)
            read = row >= layer and column < position
            kind = "done" if needed else "kept" if read else "none"
            parts.append(box(left + column * cell + 1, y + 1, cell - 2, cell - 2, kind))
    parts.append(
        box(left + position * cell, top + (layers - 1 - layer) * cell, cell, cell, "patch")
    )
    end = left + positions * cell
    parts.append(label((left + end) / 2, 24, "positions of the prompt", "m soft"))
    for i, (kind, words) in enumerate(
        (
            ("patch", "the patched activation"),
            ("done", "computed again"),
            ("kept", "read: keys and values of the unpatched run"),
            ("none", "neither read nor computed"),
        )
    ):
        y = top + layers * cell + 22 + 26 * i
        parts += [box(left, y, 18, 18, kind), label(left + 30, y + 14, words)]
    return page(480, 410, "What a patch can change", parts)


def roles() -> str:
    """Two sentences of unequal length, and the tokens that play the same roles."""
    short = ["BOS", "Go", "."]
    long = ["BOS", "It", " was", " late", ".", " She", " left", "."]
    names = ["BOS", "first word", "earlier full stops", "final full stop"]
    width, left, gap = 78, 24, 6
    ys = {"short": 40, "names": 132, "long": 216}
    parts = []
    middle: dict[str, list[float]] = {}
    for name, tokens in (("short", short), ("long", long)):
        middle[name] = []
        for i, token in enumerate(tokens):
            x = left + i * (width + gap)
            middle[name].append(x + width / 2)
            parts.append(box(x, ys[name], width, 30, "chip"))
            words = token.replace(" ", "·")
            parts.append(label(x + width / 2, ys[name] + 20, words, "m tok"))
    has = {
        "short": {"BOS": [0], "first word": [1], "final full stop": [2]},
        "long": {
            "BOS": [0],
            "first word": [1],
            "earlier full stops": [4],
            "final full stop": [7],
        },
    }
    at = dict(zip(names, (63, 200, 400, 620), strict=True))
    for name in names:
        parts.append(label(at[name], ys["names"] + 20, name, "m"))
        parts += [
            _join(middle["short"][i], ys["short"] + 32, at[name], ys["names"] + 4)
            for i in has["short"].get(name, [])
        ]
        parts += [
            _join(at[name], ys["names"] + 28, middle["long"][i], ys["long"] - 2)
            for i in has["long"].get(name, [])
        ]
    return page(700, 272, "Roles in two sentences", parts)


def _join(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (y1 + y2) / 2
    return f'<path class="join" d="M{x1:g} {y1:g}C{x1:g} {bend:g} {x2:g} {bend:g} {x2:g} {y2:g}"/>'


if __name__ == "__main__":
    for name, drawn in (("sweep", sweep()), ("roles", roles())):
        IMAGES.joinpath(f"{name}.svg").write_text(drawn, encoding="utf-8")
        print(IMAGES / f"{name}.svg")
