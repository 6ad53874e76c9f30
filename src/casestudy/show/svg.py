"""How is a mark drawn as SVG?

`draw` renders every mark as an SVG made here, without a plotting library: it appears with the page,
prints, follows the page's light or dark colours, and stays legible at any width, because positions
across are percentages of the plot while text keeps its size. Marks have `data-i`, their index in
the figure's data. A short script uses it to show values on hover, for the keyboard, and as CSV. The
figure is complete without the script.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from casestudy.show.marks import (
    Bars,
    Heatmap,
    Histograms,
    Layered,
    Lines,
    Mark,
    Number,
    Real,
    Strip,
    Waterfall,
    finite,
)
from casestudy.show.text import (
    MINUS,
    amount,
    columns,
    digits,
    filled,
    number,
    shorten,
    signed,
    told_apart,
    visible,
)
from casestudy.show.wording import Spread

CHARACTER = 6.6
"""Width in pixels reserved for one column of a label; a little more than most fonts take."""


@dataclass(frozen=True)
class Drawing:
    """An SVG's parts: everything inside, and the paddings around the plot.

    Attributes:
        body: markup; x in percent of the plot's width, y in pixels from its top.
        height: of the plot, in pixels.
        pad: top, right, bottom, left of it, in pixels, where labels stand.
        min_width: below this the figure scrolls within its own box.
    """

    body: Markup
    height: Real
    pad: tuple[Real, Real, Real, Real]
    min_width: Real = 0

    def svg(self, alt: str, titles: Sequence[str] = ()) -> Markup:
        """The SVG element, with the text that stands for it where it is not seen.

        Args:
            alt: that text.
            titles: of the marks, in the order of the data: what a browser shows on hover where no
                script does it.
        """
        top, right, bottom, left = self.pad
        return filled(
            '<svg class="plot" role="img" tabindex="0" aria-label="{}" data-pad="{}" '
            'style="padding:{}px {}px {}px {}px;height:{}px{}">{}</svg>',
            alt,
            f"{top:g} {right:g} {bottom:g} {left:g}",
            *(f"{p:g}" for p in self.pad),
            f"{top + self.height + bottom:g}",
            f";min-width:{self.min_width:g}px" if self.min_width else "",
            titled(self.body, titles) if titles else self.body,
        )


def draw(mark: Mark) -> Drawing:
    """A mark as SVG."""
    match mark:
        case Waterfall():
            return _waterfall(mark)
        case Bars():
            return _bars(mark)
        case Strip():
            return _strip(mark)
        case Histograms():
            return _histograms(mark)
        case Heatmap():
            return _heatmap(mark)
        case Lines():
            return _lines(mark)
        case Layered():
            return _layered(mark)


def titled(body: Markup, titles: Sequence[str]) -> Markup:
    """The same marks, each with a title of its own inside."""

    def title(found: re.Match[str]) -> str:
        name, attributes, place = found.group("name", "attributes", "place")
        return filled(
            "<{}{}><title>{}</title></{}>", name, Markup(attributes), titles[int(place)], name
        )

    return Markup(_MARK.sub(title, body))


_MARK = re.compile(r'<(?P<name>\w+)(?P<attributes>[^<>]* data-i="(?P<place>\d+)"[^<>]*)/>')


@dataclass
class _Parts:
    parts: list[Markup] = field(default_factory=list)

    def add(self, template: str, *values: object) -> None:
        self.parts.append(filled(template, *values))

    def text(self, x: object, y: object, text: str, kind: str = "", extra: str = "") -> None:
        # `extra` is this module's own markup: an offset or a rotation.
        self.add(
            '<text x="{}" y="{}" class="{}"{}>{}</text>', x, y, kind or "l", Markup(extra), text
        )

    def join(self) -> Markup:
        return Markup("".join(self.parts))


@dataclass(frozen=True)
class Scale:
    """Values to percent of the plot's width."""

    low: Real
    high: Real

    @classmethod
    def over(cls, values: Sequence[Number], *, zero: bool = True, margin: Real = 0.04) -> Scale:
        """A scale that holds all the values, and zero."""
        known = [float(v) for v in values if v is not None and math.isfinite(v)]
        known += [0.0] if zero or not known else []
        low, high = min(known), max(known)
        room = (high - low) * margin or 1.0
        return cls(low - room if low < 0 or not zero else 0.0, high + room if high > 0 else room)

    def at(self, value: Real) -> float:
        """Percent from the left."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self, most: int = 8) -> list[Real]:
        """Round values within the scale."""
        step = round_step(self.high - self.low, most)
        first = math.ceil(self.low / step)
        return [float(f"{i * step:.12g}") for i in range(first, math.floor(self.high / step) + 1)]


def round_step(span: Real, most: int) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that a span holds at most `most` times."""
    step = 10.0 ** math.floor(math.log10(span / most))
    return step * next(m for m in (1, 2, 5, 10) if span / (step * m) <= most)


def label_width(labels: Sequence[str], most: int = 22) -> float:
    """Pixels for the widest label, at most `most` columns of them."""
    return 14 + CHARACTER * min(most, max((columns(label) for label in labels), default=0))


def _x_axis(parts: _Parts, scale: Scale, height: Real, unit: str) -> None:
    ticks = scale.ticks()
    for tick in ticks:
        x = f"{scale.at(tick)}%"
        kind = "zero" if tick == 0 else "grid"
        parts.add('<line x1="{}" x2="{}" y1="0" y2="{}" class="{}"/>', x, x, height, kind)
        # every other number yields on a narrow screen, never zero
        step = round(tick / (ticks[1] - ticks[0])) if len(ticks) > 1 else 0
        kind = "t m alt" if step % 2 else "t m"
        parts.text(x, height + 15, f"{tick:g}".replace("-", MINUS), kind)
    parts.text("50%", height + 31, unit, "t m u")


def _waterfall(mark: Waterfall) -> Drawing:
    terms, values, total, row = mark.terms, mark.values, mark.total, mark.row
    lower, upper, marked = mark.lower, mark.upper, mark.marked
    ends = np.cumsum(np.nan_to_num(np.asarray(values, dtype=float))).tolist()
    starts = [0.0, *ends[:-1]]
    spread: list[Number] = [*starts, *ends, float(total)]
    if lower is not None and upper is not None:
        for start, low, high in zip(starts, lower, upper, strict=True):
            spread += [float(start + v) for v in (low, high) if v is not None]
    scale = Scale.over(spread)
    reached = [scale.at(0.0), *map(scale.at, ends)]
    height = row * (len(terms) + 1) + 6
    parts = _Parts()
    _x_axis(parts, scale, height, mark.unit)
    *shown, total_label = told_apart([*terms, mark.total_label], 22)
    for i, (term, value) in enumerate(zip(terms, values, strict=True)):
        y, middle = i * row, i * row + row / 2
        parts.add(
            '<rect x="0" y="{}" width="100%" height="{}" class="hit" data-i="{}"/>', y, row, i
        )
        parts.text("-8", middle, shown[i], "l e b" if term in marked else "l e")
        if math.isnan(value):
            parts.text("100%", middle, "not measured", "v q", ' dx="8"')
            continue
        left, right = sorted(reached[i : i + 2])
        kind = ("pos" if value >= 0 else "neg") + (" marked" if term in marked else "")
        parts.add(
            '<rect x="{}%" y="{}" width="{}%" height="{}" class="bar {}"/>',
            *(left, y + 3, max(round(right - left, 3), 0.15), row - 6, kind),
        )
        low, high = (None if a is None else a[i] for a in (lower, upper))
        if low is not None and high is not None:
            _whisker(parts, scale.at(starts[i] + low), scale.at(starts[i] + high), middle)
        parts.add(
            '<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="step"/>',
            *(
                reached[i + 1],
                reached[i + 1],
                y + row - 3,
                y + row + (9 if i == len(terms) - 1 else 3),
            ),
        )
        parts.text("100%", middle, signed(value), "v", ' dx="8"')
    y = len(terms) * row + 6
    left, right = sorted((scale.at(0), scale.at(total)))
    i = len(terms)
    parts.add('<line x1="0" x2="100%" y1="{}" y2="{}" class="rule"/>', y - 3, y - 3)
    parts.add('<rect x="0" y="{}" width="100%" height="{}" class="hit" data-i="{}"/>', y, row, i)
    parts.text("-8", y + row / 2, total_label, "l e b")
    parts.add(
        '<rect x="{}%" y="{}" width="{}%" height="{}" class="bar total"/>',
        *(left, y + 3, max(round(right - left, 3), 0.15), row - 6),
    )
    parts.text("100%", y + row / 2, signed(total), "v b", ' dx="8"')
    return Drawing(parts.join(), height, (6, 62, 38, label_width([*terms, mark.total_label])))


def _bars(mark: Bars) -> Drawing:
    labels, values, row = mark.labels, mark.values, mark.row
    lower, upper = mark.lower, mark.upper
    scale = Scale.over([*values, *(lower or ()), *(upper or ())])
    height = row * len(labels)
    parts = _Parts()
    _x_axis(parts, scale, height, mark.unit)
    texts = mark.shown or [number(v, digits(values)) for v in values]
    for i, (label, value) in enumerate(zip(told_apart(labels, 24), values, strict=True)):
        y, middle = i * row, i * row + row / 2
        parts.add(
            '<rect x="0" y="{}" width="100%" height="{}" class="hit" data-i="{}"/>', y, row, i
        )
        parts.text("-8", middle, label, "l e tk" if mark.tokens else "l e")
        if value is None:
            parts.text("100%", middle, "not measured", "v q", ' dx="8"')
            continue
        left, right = sorted((scale.at(0), scale.at(value)))
        parts.add(
            '<rect x="{}%" y="{}" width="{}%" height="{}" class="bar {}"/>',
            *(left, y + 4, max(round(right - left, 3), 0.15), row - 8),
            "pos" if value >= 0 else "neg",
        )
        low, high = (None if a is None else a[i] for a in (lower, upper))
        if low is not None and high is not None:
            _whisker(parts, scale.at(low), scale.at(high), middle)
        parts.text("100%", middle, texts[i], "v", ' dx="8"')
    right = 16 + CHARACTER * max((columns(t) for t in texts), default=0)
    return Drawing(parts.join(), height, (6, right, 38, label_width(labels, 24)))


def _whisker(parts: _Parts, low: Real, high: Real, y: Real) -> None:
    """An interval across a bar: light below dark, so that it is visible on and off the bar."""
    for kind in ("halo", "whisker"):
        parts.add('<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="{}"/>', low, high, y, y, kind)


def _strip(mark: Strip) -> Drawing:
    """The dots' height has no meaning: it keeps dots from hiding others."""
    labels, values, row = mark.labels, mark.values, mark.row
    mean, lower, upper = mark.mean, mark.lower, mark.upper
    everything = [v for line in values for v in line]
    scale = Scale.over([*everything, *(lower or ()), *(upper or ()), *(mean or ())])
    height = row * len(labels)
    radius = 3.6 if max(map(len, values), default=0) <= 60 else 2.4
    parts = _Parts()
    _x_axis(parts, scale, height, mark.unit)
    place = 0
    for i, (label, line) in enumerate(zip(told_apart(labels, 22), values, strict=True)):
        base = i * row + row * 0.62
        parts.text("-8", base - 4, label, "l e")
        lanes: list[float] = []
        order = sorted((v, j) for j, v in enumerate(line) if v is not None)
        for value, j in order:
            x = scale.at(value)
            lane = next((k for k, end in enumerate(lanes) if x - end > 1.4), len(lanes))
            lanes[lane : lane + 1] = [x]
            # With very many dots the lanes wrap: density shows as overlap of translucent dots.
            rise = (lane % max(1, int(row * 0.5 / (2 * radius)))) * 2 * radius
            parts.add(
                '<circle cx="{}%" cy="{}" r="{}" class="dot {}" data-i="{}"/>',
                *(x, round(base - 4 - rise, 1), radius, "pos" if value >= 0 else "neg"),
                place + j,
            )
        place += len(line)
        m, low, high = (None if a is None else a[i] for a in (mean, lower, upper))
        _mean(parts, scale, base + 6, m, low, high)
    return Drawing(parts.join(), height, (8, 62, 38, label_width(labels)))


def _mean(parts: _Parts, scale: Scale, y: Real, mean: Number, low: Number, high: Number) -> None:
    """A mean and its interval below a row's prompts, and its value at the right."""
    if low is not None and high is not None:
        parts.add(
            '<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="mean"/>',
            *(scale.at(low), scale.at(high), y, y),
        )
    if mean is not None:
        parts.add('<circle cx="{}%" cy="{}" r="3.4" class="mean"/>', scale.at(mean), y)
        parts.text("100%", y, signed(mean), "v", ' dx="8"')


def _histograms(mark: Histograms) -> Drawing:
    labels, edges, counts, row = mark.labels, mark.edges, mark.counts, mark.row
    spreads, means = mark.spreads, mark.means
    ends = [v for m in means if m is not None for v in (m.lower, m.upper)]
    scale = Scale.over([*edges, *ends])
    height, tall = row * len(labels), row - 34
    parts = _Parts()
    _x_axis(parts, scale, height, mark.unit)
    for i, (label, line) in enumerate(zip(told_apart(labels, 22), counts.tolist(), strict=True)):
        base = i * row + tall + 4
        spread, mean = spreads[i], means[i]
        parts.text("-8", base - 16, label, "l e")
        parts.text("-8", base - 1, f"n = {spread.n if spread else 0:,}", "t e k")
        fullest = max(line) or 1
        for j, count in enumerate(line):
            if not count:
                continue
            left, right = scale.at(edges[j]), scale.at(edges[j + 1])
            # a bin with one prompt of thousands is drawn too
            size = round(max(1.0, tall * count / fullest), 2)
            parts.add(
                '<rect x="{}%" y="{}" width="{}%" height="{}" class="bin {}" data-i="{}"/>',
                *(left, round(base - size, 2), round(right - left, 3), size),
                *("neg" if edges[j] < 0 else "pos", i * len(line) + j),
            )
        if spread is not None:
            _box(parts, scale, base + 8, spread)
        if mean is not None:
            _mean(parts, scale, base + 20, *map(finite, (mean.value, mean.lower, mean.upper)))
    return Drawing(parts.join(), height, (8, 62, 38, label_width(labels)))


def _box(parts: _Parts, scale: Scale, y: Real, spread: Spread) -> None:
    low, first, median, third, high = (
        scale.at(v) for v in (spread.low, spread.first, spread.median, spread.third, spread.high)
    )
    parts.add('<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="box"/>', low, high, y, y)
    parts.add(
        '<rect x="{}%" y="{}" width="{}%" height="8" class="box"/>',
        *(first, y - 4, max(round(third - first, 3), 0.15)),
    )
    parts.add('<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="box"/>', median, median, y - 4, y + 4)


def _heatmap(mark: Heatmap) -> Drawing:
    values, rows, cols, unit, limit = mark.values, mark.rows, mark.cols, mark.unit, mark.full
    tokens, slanted, heads = mark.tokens, mark.slanted, mark.heads
    cell = 22 if len(rows) <= 16 else 17 if len(rows) <= 40 else 12
    height = cell * len(rows)
    parts = _Parts()
    wide = 100 / max(1, len(cols))
    named = told_apart(rows, 18)
    for i, row in enumerate(values.tolist()):
        parts.text("-8", i * cell + cell / 2, named[i], "l e")
        for j, value in enumerate(row):
            k = i * len(cols) + j
            kind, depth = _shade(value, limit)
            head = rows[i] if heads == "row" else f"{rows[i]}.{cols[j]}" if heads else ""
            # an attention layer's biases stand beside its heads, and have no pattern
            extra = filled(' data-head="{}"', head) if head[-1:].isdigit() else ""
            shade = Markup(f' style="--t:{depth}"') if depth else ""
            parts.add(
                '<rect x="{}%" y="{}" width="{}%" height="{}" class="c {}"{} data-i="{}"{}/>',
                *(round(j * wide, 3), i * cell, round(wide, 3), cell, kind, shade, k, extra),
            )
    shown = told_apart([visible(c) if tokens else c for c in cols], 20)
    longest = max(map(columns, shown), default=1)
    fits = longest * len(cols) <= (45 if slanted else 60)
    narrow = not tokens and (fits or (longest <= 3 and not slanted))
    every = 1 if tokens or len(cols) <= 16 else math.ceil(len(cols) / 16)
    for j, label in enumerate(shown):
        if j % every:
            continue
        x = f"{round((j + 0.5) * wide, 3)}%"
        if narrow:
            parts.text(x, height + 14, label, "t m")
        else:
            # SVG rotates about a point in user units, so the label hangs in a nested svg.
            parts.add(
                '<svg x="{}" y="{}" overflow="visible"><text class="t e{}" '
                'transform="rotate(-45)">{}</text></svg>',
                *(x, height + 10, " tk" if tokens else "", label),
            )
    # slanted at 45 degrees, a label reaches down by 0.71 of its length
    below = 18 if narrow else 12 + 0.71 * (CHARACTER if tokens else 5.8) * longest
    if mark.col_name:
        parts.text("50%", height + below + 10, mark.col_name, "t m u")
        below += 16
    _legend(parts, height + below + 12, limit, unit, bool((values < -UNSEEN * limit).any()))
    left = label_width([*rows, mark.row_name], 18)
    if not narrow:
        # a slanted label reaches left of its column's middle as far as down
        for j, label in enumerate(shown[:8]):
            size = (CHARACTER if tokens else 5.8) * columns(label)
            left = max(left, round(0.71 * size - 15 * (j + 0.5)))
    if mark.row_name:
        parts.text("-8", -9, mark.row_name, "l e u")
    least = left + 20 + (15 if not narrow else 17) * len(cols)
    pad = (
        18 if mark.row_name else 6,
        14,
        below + (40 if columns(unit) <= SHORT_UNIT else 54),
        left,
    )
    return Drawing(parts.join(), height, pad, least if least > 300 else 0)


def _shade(value: Real, limit: Real) -> tuple[str, float]:
    if not math.isfinite(value):
        return "nan", 0.0
    return ("p" if value >= 0 else "n"), round(min(1.0, abs(value) / limit), 3)


UNSEEN = 0.005
"""Share of full colour: what is below zero by less, such as rounding, adds no second colour."""
SHORT_UNIT = 14
"""Units of so many columns stand beside the colour scale, longer ones below it."""


def _legend(parts: _Parts, y: Real, limit: Real, unit: str, both: bool) -> None:
    """The colour scale: 21 steps from -limit to limit, or 11 from zero."""
    steps = range(-10, 11) if both else range(11)
    for k, step in enumerate(steps):
        parts.add(
            '<rect x="{}" y="{}" width="7.2" height="8" class="c {}" style="--t:{}"/>',
            *(k * 7, y, "p" if step >= 0 else "n", abs(step) / 10),
        )
    end = 7 * len(steps)
    if both:
        parts.text(0, y + 19, amount(-limit), "t m")
        parts.text(end / 2, y + 19, "0", "t m")
    else:
        parts.text(0, y + 19, "0", "t m")
    parts.text(end, y + 19, amount(limit), "t m")
    if columns(unit) <= SHORT_UNIT:
        parts.text(end + 10, y + 8, unit, "t")
    else:
        parts.text(0, y + 34, shorten(unit, 48), "t")


def _lines(mark: Lines) -> Drawing:
    labels, series, final, height = mark.labels, mark.series, mark.final, mark.height
    ends = [v for line in series for edge in (line.lower, line.upper) for v in edge or ()]
    scale = Scale.over([*(v for line in series for v in line.values), *ends, final])
    n = max(1, len(labels))

    def x(i: int) -> float:
        return round(100 * (i + 0.5) / n, 3)

    def y(value: Real) -> float:
        return round(height * (1 - scale.at(value) / 100), 2)

    parts = _Parts()
    for tick in scale.ticks():
        kind = "zero" if tick == 0 else "grid"
        parts.add('<line x1="0" x2="100%" y1="{}" y2="{}" class="{}"/>', y(tick), y(tick), kind)
        parts.text("-8", y(tick), f"{tick:g}".replace("-", MINUS), "t e k")
    if final is not None:
        parts.add('<line x1="0" x2="100%" y1="{}" y2="{}" class="final"/>', y(final), y(final))
    for k, one in enumerate(series):
        line, low, high = one.values, one.lower, one.upper
        if low is not None and high is not None:
            known = [i for i in range(n) if low[i] is not None and high[i] is not None]
            edge = [f"{x(i)},{y(float(high[i] or 0))}" for i in known]
            edge += [f"{x(i)},{y(float(low[i] or 0))}" for i in reversed(known)]
            parts.add(
                '<svg width="100%" height="{}" viewBox="0 0 100 {}" preserveAspectRatio="none">'
                '<polygon points="{}" class="band s{}"/></svg>',
                *(height, height, " ".join(edge), k % 6),
            )
        runs = _runs(line)
        for run in runs:
            points = " ".join(f"{x(i)},{y(float(line[i] or 0))}" for i in run)
            parts.add(
                '<svg width="100%" height="{}" viewBox="0 0 100 {}" preserveAspectRatio="none">'
                '<polyline points="{}" class="line s{}"/></svg>',
                *(height, height, points, k % 6),
            )
        for i, value in enumerate(line):
            if value is not None:
                parts.add(
                    '<circle cx="{}%" cy="{}" r="3" class="point s{}" data-i="{}"/>',
                    *(x(i), y(value), k % 6, k * len(labels) + i),
                )
    every, ticks = math.ceil(n / 14), told_apart(labels, 9)
    for k, i in enumerate(range(0, n, every)):
        # every other label yields on a narrow screen
        parts.text(f"{x(i)}%", height + 15, ticks[i], "t m alt" if k % 2 else "t m")
    parts.text("50%", height + 31, mark.axis, "t m u")
    parts.text("0", -9, mark.unit, "t u")
    top = 22
    if len(series) > 1:
        for k, name in enumerate(told_apart([one.name for one in series], 44)):
            up = -26 - 15 * (len(series) - 1 - k)
            parts.add('<line x1="0" x2="22" y1="{}" y2="{}" class="line s{}"/>', up, up, k % 6)
            parts.text(28, up, name, "t k")
        top = 22 + 15 * len(series) + 4
    return Drawing(parts.join(), height, (top, 14, 38, 46), 300 if n > 20 else 0)


def _runs(line: Sequence[Number]) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for i, value in enumerate(line):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(i)
    return [run for run in runs if len(run) > 1]


def _layered(mark: Layered) -> Drawing:
    """On the page a node under the pointer leaves only its own edges in full colour."""
    nodes, edges = mark.nodes, mark.edges
    depths = sorted({depth for depth, _ in nodes.values()})
    row = 52
    height = row * len(depths)
    place: dict[str, tuple[float, float]] = {}
    for i, depth in enumerate(depths):
        level = sorted((order, name) for name, (d, order) in nodes.items() if d == depth)
        for j, (_, name) in enumerate(level):
            x = 100 * (j + 0.5) / len(level)
            # Rows of few nodes step aside in turn, so that edges do not hide behind one another.
            x += (7 if i % 2 else -7) if len(level) < 3 and 0 < i < len(depths) - 1 else 0
            place[name] = (round(x, 2), height - (i + 0.5) * row)
    largest = max((abs(score) for _, _, score in edges), default=0.0) or 1.0
    parts = _Parts()
    number = {name: i for i, name in enumerate(nodes)}
    for i, (source, target, score) in enumerate(edges):
        (x1, y1), (x2, y2) = place[source], place[target]
        between = filled(' data-ends="{} {}"', number[source], number[target])
        kind, width = "pos" if score >= 0 else "neg", round(0.8 + 4.2 * abs(score) / largest, 2)
        ends = (f"{x1}%", f"{x2}%", y1, y2)
        for name, size, data in (
            (f"edge {kind}", width, between),
            ("edge reach", 12, filled(' data-i="{}"', i)),
        ):
            parts.add(
                '<line x1="{}" x2="{}" y1="{}" y2="{}" class="{}" stroke-width="{}"{}/>',
                *(*ends, name, size, data),
            )
    for name, (x, y) in place.items():
        own = filled(' data-node="{}"', number[name])
        parts.text(f"{x}%", y, name, "v m node", own)
    return Drawing(parts.join(), height, (8, 30, 8, 30), 300)
