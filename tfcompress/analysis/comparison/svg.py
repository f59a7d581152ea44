"""Plots as SVG text, for pages that need no other file. They scale with the page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import numpy as np

#: Colours that stay apart for most colour-blind readers (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Narrow, so that text stays legible where a phone shows a plot at its own width.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 62, 12, 16, 44


def scatter(
    points: Sequence[tuple[str, float, float]],
    x_label: str,
    y_label: str,
    *,
    height: int = 300,
) -> str:
    """Named points; the horizontal axis is logarithmic.

    Args:
        points: `(name, x, y)` with x > 0.
        x_label: What x is.
        y_label: What y is.
        height: Of the plot.
    """
    xs = [math.log10(x) for _, x, _ in points]
    ys = [y for _, _, y in points]
    x_low, x_high = _padded(xs, 0.15)
    y_low, y_high = _padded(ys, 0.25)
    to_x, to_y = _scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT), None
    to_y = _scale(y_low, y_high, height - _BOTTOM, _TOP)
    ticks = _log_ticks(x_low, x_high)
    body = _axes(height, x_label, y_label, [(to_x(math.log10(t)), _short(t)) for t in ticks],
                 [(to_y(t), f"{t:.4g}") for t in _ticks(y_low, y_high)])  # fmt: skip
    # Labels keep off the points and off each other.
    placed = [(to_x(x), to_y(y) + 4) for x, y in zip(xs, ys, strict=True)]
    for i, (name, x, y) in enumerate(points):
        px, py = to_x(math.log10(x)), to_y(y)
        colour = COLOURS[i % len(COLOURS)]
        body += f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{colour}"/>'
        is_right = px > _WIDTH * 0.7
        offsets = (-10, 20, -24, 34, -38, 48, -52, 62)
        free = (py + d for d in offsets if not _is_near(px, py + d, placed))
        label_y = next(free, py - 10)
        placed.append((px, label_y))
        body += _text(px + (-8 if is_right else 8), label_y, name, "end" if is_right else "start")
    return _svg(_WIDTH, height, body, f"{y_label} against {x_label}")


def bars(
    rows: Sequence[tuple[str, Sequence[float | None]]],
    names: Sequence[str],
    unit: str,
    *,
    lowest: float = 0.0,
    highest: float | None = None,
) -> str:
    """Horizontal bars in groups.

    Args:
        rows: `(label, values)`, as many values as names.
        names: Of the bars of a group.
        unit: What the values are.
        lowest: Where the axis begins.
        highest: Where it ends; at the largest value by default.
    """
    thick = 12
    step = thick * len(names) + 7
    height = _TOP + step * len(rows) + _BOTTOM
    left = min(170, 20 + 6.4 * max((len(_cut(label)) for label, _ in rows), default=1))
    values = [v for _, group in rows for v in group if v is not None and math.isfinite(v)]
    top = highest if highest is not None else max([*values, lowest + 1e-9])
    to_x = _scale(lowest, top, left, _WIDTH - 60)
    body = ""
    for i, (label, group) in enumerate(rows):
        y = _TOP + i * step
        body += _text(left - 6, y + step / 2, _cut(label), "end")
        for j, value in enumerate(group):
            if value is None:
                continue
            end = to_x(min(max(value if math.isfinite(value) else top, lowest), top))
            width, at = max(end - left, 0.5), y + j * thick
            colour = COLOURS[j % len(COLOURS)]
            body += (
                f'<rect x="{left:.1f}" y="{at:.1f}" width="{width:.1f}" height="{thick - 1}" '
                f'fill="{colour}"/>'
            )
            shown = f"{value:.3g}" if math.isfinite(value) else "∞"
            body += _text(end + 4, at + thick - 2, shown, "start", small=True)
    body += _text((left + _WIDTH) / 2, height - 8, unit, "middle")
    return _svg(_WIDTH, height, body, unit) + _legend(names if len(names) > 1 else ())


def histograms(series: Sequence[tuple[str, np.ndarray]], label: str, *, height: int = 150) -> str:
    """Histograms of several sets of values over one another, as shares.

    Args:
        series: `(name, values)`.
        label: What the values are.
        height: Of the plot.
    """
    pooled = np.concatenate([values for _, values in series])
    low, high = float(pooled.min()), float(pooled.max())
    if low == high:
        low, high = low - 1, high + 1
    edges = np.linspace(low, high, 61)
    shares = [np.histogram(v, edges)[0] / max(1, v.size) for _, v in series]
    # A pruned kernel has most of its values in one bin; the others must stay visible.
    top = max(float(np.sort(share)[-2:].mean()) for share in shares) or 1.0
    to_x = _scale(low, high, 12, 308)
    to_y = _scale(0, top, height - 30, 8)
    body = f'<line x1="12" x2="308" y1="{height - 30}" y2="{height - 30}" class="axis"/>'
    for i, share in enumerate(shares):
        path = f"M{to_x(low):.1f},{height - 30}"
        for j, value in enumerate(share):
            y = to_y(min(float(value), top))
            path += f"L{to_x(edges[j]):.1f},{y:.1f}L{to_x(edges[j + 1]):.1f},{y:.1f}"
        path += f"L{to_x(high):.1f},{height - 30}Z"
        colour = COLOURS[i % len(COLOURS)]
        body += (
            f'<path d="{path}" fill="{colour}" fill-opacity="0.35" stroke="{colour}" '
            'stroke-width="1"/>'
        )
    body += _text(12, height - 16, f"{low:.3g}", "start", small=True)
    body += _text(308, height - 16, f"{high:.3g}", "end", small=True)
    body += _text(160, height - 2, label, "middle", small=True)
    return _svg(320, height, body, f"histogram of {label}")


def matrix(values: Sequence[Sequence[int]], names: Sequence[str], title: str) -> str:
    """A confusion matrix as a heat map; rows are true classes.

    Args:
        values: Counts.
        names: Of the classes.
        title: Below the plot.
    """
    count = len(values)
    left = 16 + 6.4 * max(len(_cut(name, 12)) for name in names)
    size = min(30.0, (_WIDTH - left - 10) / count)
    height = size * count + left * 0.8 + 22
    body = ""
    for i, row in enumerate(values):
        total = max(1, sum(row))
        body += _text(left - 5, 6 + (i + 0.7) * size, _cut(names[i], 12), "end", small=True)
        for j, value in enumerate(row):
            share = value / total
            colour = "0,158,115" if i == j else "213,94,0"
            x, y = left + j * size, 6 + i * size
            body += (
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}" '
                f'fill="rgba({colour},{0.08 + 0.92 * share:.2f})"><title>{html.escape(names[i])} → '
                f"{html.escape(names[j])}: {value}</title></rect>"
            )
            if value and size >= 20:
                body += _text(x + size / 2, y + size * 0.66, str(value), "middle", small=True)
    for j, name in enumerate(names):
        x, y = left + (j + 0.5) * size, 12 + count * size
        body += (
            f'<text x="{x:.1f}" y="{y:.1f}" class="small" text-anchor="end" '
            f'transform="rotate(-50 {x:.1f} {y:.1f})">{html.escape(_cut(name, 12))}</text>'
        )
    body += _text(left, height - 4, title, "start", small=True)
    return _svg(max(left + count * size + 10, 200), height, body, title)


def _is_near(x: float, y: float, placed: Sequence[tuple[float, float]]) -> bool:
    return any(abs(y - q) < 12 and abs(x - p) < 110 for p, q in placed)


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{html.escape(name)}</span>'
        for i, name in enumerate(names)
    )
    return f'<div class="legend">{items}</div>' if names else ""


legend = _legend


def _svg(width: float, height: float, body: str, title: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{1.3 * width:.0f}px"'
    label = html.escape(title, quote=True)
    return f'<svg {size} role="img" aria-label="{label}">{body}</svg>'


def _text(x: float, y: float, text: str, anchor: str, *, small: bool = False) -> str:
    kind = ' class="small"' if small else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{html.escape(text)}</text>'


def _axes(
    height: int,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
) -> str:
    bottom, right = height - _BOTTOM, _WIDTH - _RIGHT
    body = ""
    for y, label in y_ticks:
        body += f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        body += _text(_LEFT - 6, y + 4, label, "end", small=True)
    for x, label in x_ticks:
        body += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>'
        body += _text(x, bottom + 15, label, "middle", small=True)
    body += f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>'
    body += _text((_LEFT + right) / 2, height - 6, x_label, "middle")
    middle = (_TOP + bottom) / 2
    return body + (
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{html.escape(y_label)}</text>"
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * share or max(abs(high) * 0.05, 0.05)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough)
    first = math.ceil(low / step)
    return [round((first + i) * step, 12) for i in range(6) if (first + i) * step <= high]


def _log_ticks(low: float, high: float) -> list[float]:
    found = [m * 10**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    found = [t for t in found if low <= math.log10(t) <= high]
    if len(found) < 2:
        found = [t for t in _ticks(10**low, 10**high) if t > 0]
    return found[:: -(-len(found) // 5)]


def _short(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g}"


def _cut(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"
