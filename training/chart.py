"""A line chart as a small SVG, so that the card's figures need no plotting library.

Assumes a handful of series of a few hundred points. Colours are Okabe and Ito's (2008), which
remain distinct to colour-blind readers; every line also carries its name at its end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 64, 190, 40, 56


@dataclass(frozen=True)
class Series:
    """One line: its name and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    markers: bool = False


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Powers of ten, or about five round steps."""
    if log:
        return [10.0**p for p in range(math.ceil(math.log10(low)), int(math.log10(high)) + 1)]
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """1,000,000 as 1M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:.6g}"


def line_chart(
    series: Sequence[Series],
    title: str,
    x_title: str,
    y_title: str,
    y_range: tuple[float, float],
    log_x: bool = True,
) -> str:
    """The SVG text; points at x <= 0 of a logarithmic axis are left out."""
    points = [
        [(x, y) for x, y in zip(one.x, one.y, strict=True) if x > 0 or not log_x] for one in series
    ]
    low, high = min(min(line)[0] for line in points), max(max(line)[0] for line in points)
    if low == high:  # a single place on the axis still needs a scale
        low, high = low / 2, high * 2 or 1.0
    y_low, y_high = y_range

    def across(x: float) -> float:
        share = math.log(x / low) / math.log(high / low) if log_x else (x - low) / (high - low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    bottom = HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    parts += [
        f'<path d="M{across(x):.1f} {TOP}V{bottom}" stroke="#eee"/>'
        f'<text x="{across(x):.1f}" y="{bottom + 16}" text-anchor="middle">{label(x)}</text>'
        for x in ticks(low, high, log_x)
    ]
    parts += [
        f'<path d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}" stroke="#eee"/>'
        f'<text x="{LEFT - 8}" y="{down(y) + 4:.1f}" text-anchor="end">{label(y)}</text>'
        for y in ticks(y_low, y_high, log=False)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_title)}</text>'
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_title)}</text>'
    )
    # Names at the lines' ends, pushed apart where lines end close together.
    names = sorted(range(len(series)), key=lambda index: down(points[index][-1][1]))
    height = -math.inf
    for index in names:
        one, colour = series[index], COLOURS[index % len(COLOURS)]
        dots = [(across(x), down(min(max(y, y_low), y_high))) for x, y in points[index]]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in dots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if one.markers:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        height = max(height + 15, dots[-1][1] + 4)
        name = f'<text x="{WIDTH - RIGHT + 8}" y="{height:.1f}" fill="{colour}">'
        parts.append(f"{name}{escape(one.name)}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"
