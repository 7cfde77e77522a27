"""Line plots as SVG, small and without a library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Width and height, and the margins of the axes: left, right, top, bottom.
WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 26, 40

#: Told apart also by the colour-blind: M. Okabe and K. Ito, Color Universal Design, 2002.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


@dataclass(frozen=True)
class Panel:
    """A plot.

    Attributes:
        name, unit: of the values.
        axis: name of the common axis.
        lines: (name, places, values) of each; finite, not empty.
    """

    name: str
    unit: str
    axis: str
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]]


def draw(panel: Panel) -> str:
    """An <svg> element; `data-low` and `data-high` say which places are at its frame's sides."""
    x_low, x_high = _range([x for _, xs, _ in panel.lines for x in xs], 0.0)
    y_low, y_high = _range([y for _, _, ys in panel.lines for y in ys], 0.05)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(x: float) -> float:
        return LEFT + across * (x - x_low) / (x_high - x_low)

    def y_of(y: float) -> float:
        return TOP + down * (y_high - y) / (y_high - y_low)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="plot" data-left="{LEFT}" '
        f'data-right="{WIDTH - RIGHT}" data-low="{x_low!r}" data-high="{x_high!r}">',
        f"<title>{html.escape(panel.name)}</title>",
        f'<text x="{LEFT}" y="16" class="name">'
        f"{html.escape(panel.name)} / {html.escape(panel.unit)}</text>",
        f'<rect x="{LEFT}" y="{TOP}" width="{across}" height="{down}" class="frame"/>',
        f'<text x="{LEFT + across / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(panel.axis)}</text>",
    ]
    if len(panel.lines) > 1:
        keys = " ".join(
            f'<tspan fill="{COLOURS[k % len(COLOURS)]}">{html.escape(name.split()[-1])}</tspan>'
            for k, (name, _, _) in enumerate(panel.lines)
        )
        what = html.escape(panel.lines[0][0].split()[0])
        parts.append(f'<text x="{WIDTH - RIGHT}" y="16" text-anchor="end">{what} {keys}</text>')
    for tick, text in ticks(y_low, y_high, 5):
        y = f"{y_of(tick):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{text}</text>')
    for tick, text in ticks(x_low, x_high, 7):
        parts.append(
            f'<text x="{x_of(tick):.1f}" y="{TOP + down + 16}" text-anchor="middle">{text}</text>'
        )
    for k, (name, xs, ys) in enumerate(panel.lines):
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(
            f'<polyline points="{points}" stroke="{COLOURS[k % len(COLOURS)]}" class="line">'
            f"<title>{html.escape(name)}</title></polyline>"
        )
    parts.append(
        f'<line x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{TOP + down}" class="cursor"/></svg>'
    )
    return "".join(parts)


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers between two others, at most `most` + 1, and how they are written.

    >>> [text for _, text in ticks(0.0, 1.0, 5)]
    ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    exponent = math.floor(math.log10(step) + 1e-9)
    largest = max(abs(first), abs(last)) * step
    # plain numbers where they are short, else as many digits as tell one tick from the next
    if exponent >= -4 and largest < 1e6:
        return [
            (k * step, f"{k * step + 0.0:.{max(0, -exponent)}f}") for k in range(first, last + 1)
        ]
    digits = max(0, math.floor(math.log10(largest)) - exponent)
    return [(k * step, f"{k * step:.{digits}e}") for k in range(first, last + 1)]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Least and largest value with some margin; never empty."""
    low, high = min(values), max(values)
    width = high - low
    if not width > 1e-9 * max(abs(low), abs(high)):
        half = 0.5 * max(abs(low) * 0.01, 1e-3)
        return low - half, high + half
    return low - margin * width, high + margin * width
