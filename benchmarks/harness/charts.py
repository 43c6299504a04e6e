"""Line and point charts as SVG text, for pages that are generated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 30, 50
_COLOURS = (
    *("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#c92a2a", "#5f3dc4"),
    *("#e67700", "#087f5b", "#495057", "#a61e4d", "#364fc7", "#66a80f"),
)


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Args:
        label: What it shows, with its unit.
        logarithmic: Whether it shows the logarithm.
    """

    label: str
    logarithmic: bool = False

    def scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self, low: float, high: float) -> list[float]:
        """Round values between two scaled ones."""
        if self.logarithmic:
            powers = range(math.floor(low), math.ceil(high) + 1)
            found = [
                digit * 10.0**power for power in powers for digit in (1.0, 2.0, 5.0)
            ]
            return [v for v in found if low - 1e-9 <= math.log10(v) <= high + 1e-9]
        step = 10.0 ** math.floor(math.log10(high - low))
        while (high - low) / step < 4:
            step /= 2.0
        first = math.ceil(low / step)
        return [step * k for k in range(first, math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Series:
    """Points of one name.

    Args:
        x: Where.
        y: How much.
        low: Lower end of a band, one a point; empty for no band.
        high: Upper end of the band.
        joined: Whether a line joins them.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    joined: bool = True


def chart(series: Mapping[str, Series], x_axis: Axis, y_axis: Axis) -> str:
    """Draw series by name.

    Raises:
        ValueError: When there is nothing finite to draw.
    """
    xs = [x_axis.scaled(x) for s in series.values() for x in s.x if math.isfinite(x)]
    ys = [
        y_axis.scaled(y)
        for s in series.values()
        for y in (*s.y, *s.low, *s.high)
        if math.isfinite(y)
    ]
    if not xs or not ys:
        raise ValueError("nothing finite to draw")
    # Lines may end at the frame, points may not lie on it.
    margin = 0.0 if any(s.joined for s in series.values()) else 0.04
    (x_low, x_high), (y_low, y_high) = _range(xs, margin), _range(ys, margin)
    x_span, y_span = x_high - x_low, y_high - y_low

    def at(x: float, y: float) -> str:
        right = (x_axis.scaled(x) - x_low) / x_span * (_WIDTH - _LEFT - _RIGHT)
        up = (y_axis.scaled(y) - y_low) / y_span * (_HEIGHT - _TOP - _BOTTOM)
        return f"{_LEFT + right:.1f},{_HEIGHT - _BOTTOM - up:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    corner = (x_low, y_low)
    for value in x_axis.ticks(x_low, x_high):
        x, _ = at(value, _unscaled(y_axis, corner[1])).split(",")
        bottom = _HEIGHT - _BOTTOM
        parts.append(f'<path d="M{x},{_TOP}V{bottom}" stroke="#e9ecef" fill="none"/>')
        parts.append(_text(float(x), bottom + 16, f"{value:.4g}", "middle"))
    for value in y_axis.ticks(y_low, y_high):
        _, y = at(_unscaled(x_axis, corner[0]), value).split(",")
        right = _WIDTH - _RIGHT
        parts.append(f'<path d="M{_LEFT},{y}H{right}" stroke="#e9ecef" fill="none"/>')
        parts.append(_text(_LEFT - 6, float(y) + 4, f"{value:.4g}", "end"))
    for i, (name, s) in enumerate(series.items()):
        parts += _drawn(s, _COLOURS[i % len(_COLOURS)], at)
        if len(s.x) == 1 and not s.joined:
            x, y = map(float, at(s.x[0], s.y[0]).split(","))
            parts.append(_text(x + 7, y + 4, name, "start"))
        y = _TOP + 16 * i
        colour = _COLOURS[i % len(_COLOURS)]
        right = _WIDTH - _RIGHT + 14
        parts.append(
            f'<rect x="{right}" y="{y}" width="10" height="10" fill="{colour}"/>'
        )
        parts.append(_text(right + 16, y + 9, name, "start"))
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 10, x_axis.label, "middle"))
    parts.append(_text(_LEFT, _TOP - 12, y_axis.label, "middle"))
    return "\n".join([*parts, "</svg>", ""])


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Smallest and largest, apart even where they are the same."""
    low, high = min(values), max(values)
    more = margin * (high - low) if high > low else 0.5
    return low - more, high + more


def _drawn(s: Series, colour: str, at: object) -> list[str]:
    """Band, line and points of one series."""
    parts = []
    usable = [
        i
        for i, (x, y) in enumerate(zip(s.x, s.y, strict=True))
        if math.isfinite(x) and math.isfinite(y)
    ]
    if len(s.low) == len(s.x) and len(usable) > 1:
        upper = [at(s.x[i], s.high[i]) for i in usable]  # type: ignore[operator]
        lower = [at(s.x[i], s.low[i]) for i in reversed(usable)]  # type: ignore[operator]
        parts.append(
            f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" '
            'opacity="0.12"/>'
        )
    places = [at(s.x[i], s.y[i]) for i in usable]  # type: ignore[operator]
    if s.joined:
        parts.append(
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" '
            'stroke-width="1.8"/>'
        )
    else:
        parts += [
            f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}" opacity="0.6"/>'
            for x, y in (place.split(",") for place in places)
        ]
    return parts


def _unscaled(axis: Axis, value: float) -> float:
    return 10.0**value if axis.logarithmic else value


def _text(x: float, y: float, text: str, anchor: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped}</text>'
