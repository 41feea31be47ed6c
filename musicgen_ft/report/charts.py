"""Charts: inline SVG for the shapes, text beside it, so that the letters keep their size at every width.

A chart is one image to a screen reader, with a sentence that says what it shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from musicgen_ft.report.page import join, paragraph

MIN_BINS, MAX_BINS = 8, 28
FLOOR_DB = -60.0  # the bottom of a level strip

_FRAME = Markup(
    '<div class="plot" role="img" aria-label="{label}"><div class="unit-y" aria-hidden="true">{y_label}</div>'
    '<div class="ticks-y" aria-hidden="true" style="min-width:{y_width}ch">{y_ticks}</div>'
    '<div class="area">{svg}</div><div class="ticks-x" aria-hidden="true">{x_ticks}</div>'
    '<div class="unit-x" aria-hidden="true">{x_label}</div></div>'
)
_SVG = Markup('<svg viewBox="0 0 {} 100" preserveAspectRatio="none" aria-hidden="true">{}</svg>')


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of one kind."""

    name: str
    """What they are, in the legend."""
    tone: str
    """Colour: ``keep``, ``trim``, ``drop``, ``mute``, ``one``, ``two``, ``three``."""
    values: Sequence[float]
    """Finite or not: what is not is left out."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar, in one or more pieces."""

    label: str
    """What it is of."""
    pieces: Sequence[tuple[str, float]]
    """Tone and length of each piece, in any unit."""
    text: str
    """Its figure with unit."""
    is_rest: bool = False
    """Whether it sums up what is not shown: drawn fainter."""


def number(value: float) -> str:
    """A figure as short as it can be read: "1,234", "12", "3.4", "−0.05"."""
    size = abs(value)
    text = f"{value:,.0f}" if size >= 100 or value == round(value) else f"{value:.3g}"
    return text.replace("-", "−")


def with_unit(value: float, unit: str) -> str:
    """A figure and its unit: "3.4 kHz", "12%"."""
    return f"{number(value)}{'' if unit.startswith('%') else ' '}{unit}".rstrip()


def legend(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Tone and name of each colour."""
    one = Markup('<li><i class="swatch {}"></i>{}</li>')
    return Markup('<ul class="legend" role="list">{}</ul>').format(join(one.format(*pair) for pair in pairs))


def bars(rows: Sequence[Bar]) -> Markup:
    """Horizontal bars, a line each: label, bar, figure. All share one scale that begins at 0."""
    longest = max((sum(length for _, length in row.pieces) for row in rows), default=0) or 1
    one = Markup('<li{}><span class="label" title="{}">{}</span><span class="track">{}</span><span>{}</span></li>')
    piece = Markup('<i class="{}" style="width:{:.2f}%"></i>')
    return Markup('<ul class="bars" role="list">{}</ul>').format(
        join(
            one.format(
                Markup(' class="rest"') if row.is_rest else "",
                row.label,
                row.label,
                join(piece.format(tone, 100 * length / longest) for tone, length in row.pieces if length > 0),
                row.text,
            )
            for row in rows
        )
    )


def shares(pieces: Sequence[tuple[str, str, float, str]], *, label: str) -> Markup:
    """One bar over the whole width, in pieces that sum to all, and its legend: tone, name, amount, figure."""
    total = sum(amount for _, _, amount, _ in pieces) or 1
    piece = Markup('<i class="{}" style="flex-grow:{:.5f}" title="{}: {}"></i>')
    drawn = join(piece.format(tone, n / total, name, text) for tone, name, n, text in pieces if n > 0)
    names = legend([(tone, f"{name} {text}") for tone, name, _, text in pieces])
    return Markup('<div class="shares" role="img" aria-label="{}">{}</div>{}').format(label, drawn, names)


def histogram(
    series: Sequence[Series], *, what: str, unit: str, counted: str, limits: tuple[float, float] | None = None
) -> Markup:
    """How many values fall where, the series on top of each other; a dashed line marks the median of all.

    Args:
        series: the values.
        what: name of the quantity, for the sentence that a screen reader says.
        unit: of the values.
        counted: what is counted, plural.
        limits: the range to show; None takes it from the data. Few values far out are counted in the last bar.
    """
    finite = [np.asarray([v for v in part.values if math.isfinite(v)], np.float64) for part in series]
    values = np.concatenate([*finite, np.zeros(0)])
    if not len(values):
        return paragraph("Not measured.", tone="muted")
    edges = _edges(values, limits)
    counts = [np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] for part in finite]
    y_ticks = _ticks(0, float(np.sum(counts, axis=0).max()), 4, whole=True)
    median = float(np.median(values))
    span = edges[-1] - edges[0]
    width = 100 / (len(edges) - 1)
    shapes: list[Markup] = []
    base = np.zeros(len(edges) - 1)
    rectangle = Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>')
    for part, count in zip(series, counts, strict=True):
        for i in np.flatnonzero(count):
            height = 100 * count[i] / y_ticks[-1]
            y = 100 - 100 * base[i] / y_ticks[-1] - height
            words = f"{number(edges[i])} to {with_unit(edges[i + 1], unit)}: {count[i]:,} {counted}, {part.name}"
            shapes.append(rectangle.format(part.tone, i * width + 0.06 * width, y, 0.88 * width, height, words))
        base += count
    at = 100 * (min(max(median, edges[0]), edges[-1]) - edges[0]) / span
    shapes.append(Markup('<path class="median" d="M{:.2f} 0V100"/>').format(at))
    low, high = np.percentile(values, [25, 75])
    label = (
        f"Histogram of {what} of {len(values):,} {counted}: median {with_unit(median, unit)}, "
        f"middle half from {number(low)} to {with_unit(high, unit)}"
    )
    plot = _frame(join(shapes), label, (edges[0], edges[-1]), y_ticks, unit, counted)
    beyond = [(values < edges[0]).sum(), (values > edges[-1]).sum()]
    if not any(beyond):
        return plot
    where = [
        f"{beyond[0]:,} below {with_unit(edges[0], unit)}" if beyond[0] else "",
        f"{beyond[1]:,} above {with_unit(edges[-1], unit)}" if beyond[1] else "",
    ]
    text = f"In the outermost bar{'s' if all(beyond) else ''}: also {' and '.join(filter(None, where))}."
    return join([plot, paragraph(text, tone="note")])


def lines(series: Mapping[str, Sequence[tuple[float, float]]], *, what: str, x_label: str, y_label: str) -> Markup:
    """Curves over one axis, with a legend where there are several.

    Args:
        series: name of each curve, and its points (x, y) in the order of x; a y that is not finite breaks the curve.
        what: name of the chart, for the sentence that a screen reader says.
        x_label: what the x are, with unit.
        y_label: what the y are, with unit.
    """
    points = [(x, y) for curve in series.values() for x, y in curve if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return paragraph("Nothing recorded yet.", tone="muted")
    xs, ys = zip(*points, strict=True)
    x_range = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    y_ticks = _ticks(min(ys), max(ys), 5)
    tones = ("one", "two", "three", "four")
    shapes = [Markup('<path class="rule" d="{}"/>').format(" ".join(
        f"M0 {_place(tick, y_ticks):.2f}H100" for tick in y_ticks
    ))]  # fmt: skip
    for number_, curve in enumerate(series.values()):
        d = ""
        is_down = False
        for x, y in curve:
            if not (math.isfinite(x) and math.isfinite(y)):
                is_down = False
                continue
            place = 100 * (x - x_range[0]) / (x_range[1] - x_range[0])
            d += f"{'L' if is_down else 'M'}{place:.2f} {_place(y, y_ticks):.2f}"
            is_down = True
        shapes.append(Markup('<path class="line {}" d="{}"/>').format(tones[number_ % len(tones)], d))
    label = f"{what}: {', '.join(f'{name} ends at {number(curve[-1][1])}' for name, curve in series.items() if curve)}"
    plot = _frame(join(shapes), label, x_range, y_ticks, x_label, y_label)
    return join([legend([(tones[i % 4], name) for i, name in enumerate(series)]), plot]) if len(series) > 1 else plot


def waveform(samples: npt.NDArray[np.float32], *, columns: int = 400) -> Markup:
    """The envelope of an excerpt, full scale at its edges; columns that reach full scale are marked.

    Args:
        samples: float [C, L].
        columns: how many pairs of lowest and highest sample are drawn.
    """
    L = samples.shape[1]
    columns = max(1, min(columns, L))
    starts = np.arange(columns) * L // columns
    low = np.minimum.reduceat(samples.min(axis=0), starts)
    high = np.maximum.reduceat(samples.max(axis=0), starts)
    tops, bottoms = 50 - 50 * np.clip(high, -1, 1), 50 - 50 * np.clip(low, -1, 1)
    bottoms = np.maximum(bottoms, tops + 0.6)  # silence is a line, not nothing
    full = np.maximum(high, -low) >= 0.999
    path = "".join(f"M{x}.5 {top:.1f}V{bottom:.1f}" for x, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)))
    marks = "".join(f"M{x}.5 0V6M{x}.5 94V100" for x in np.flatnonzero(full))
    shapes = [Markup('<path class="wave" d="{}"/>').format(path)]
    if marks:
        shapes.append(Markup('<path class="full" d="{}"/>').format(marks))
    return _SVG.format(columns, join(shapes))


def level_strip(
    levels_db: npt.NDArray[np.floating], *, start_s: float = 0, stop_s: float | None = None, columns: int = 160
) -> Markup:
    """The level of a whole track, second by second; what lies outside of the kept part is fainter.

    Args:
        levels_db: float [S], dB relative to full scale; not finite counts as silence.
        start_s: where the kept part begins.
        stop_s: where it ends; None is the track's end.
        columns: how many bars are drawn at most, each the loudest of its seconds.
    """
    S = len(levels_db)
    if S == 0:
        return Markup()
    columns = min(columns, S)
    starts = np.arange(columns) * S // columns
    levels = np.nan_to_num(levels_db.astype(np.float64), nan=FLOOR_DB, neginf=FLOOR_DB, posinf=0)
    heights = 100 * np.clip(1 - np.maximum.reduceat(levels, starts) / FLOOR_DB, 0.02, 1)
    is_kept = (starts + S / columns > start_s) & (starts < (S if stop_s is None else stop_s))
    shapes = [
        Markup('<path class="{}" d="{}"/>').format(
            tone, "".join(f"M{x} 100V{100 - heights[x]:.0f}h1V100" for x in np.flatnonzero(chosen))
        )
        for tone, chosen in (("level", is_kept), ("level cut", ~is_kept))
        if chosen.any()
    ]
    return Markup('<span class="strip">{}</span>').format(_SVG.format(columns, join(shapes)))


def _frame(
    shapes: Markup, label: str, x_range: tuple[float, float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> Markup:
    """Axes around the shapes, which lie in a square of 100 by 100."""
    x_ticks = [tick for tick in _ticks(*x_range, 6) if x_range[0] <= tick <= x_range[1]]
    mark = Markup('<span style="{}:{:.2f}%">{}</span>')
    return _FRAME.format(
        label=label,
        svg=_SVG.format(100, shapes),
        x_label=x_label,
        y_label=y_label,
        y_width=max(len(number(tick)) for tick in y_ticks),
        x_ticks=join(
            mark.format("left", 100 * (tick - x_range[0]) / (x_range[1] - x_range[0]), number(tick)) for tick in x_ticks
        ),
        y_ticks=join(mark.format("top", _place(tick, y_ticks), number(tick)) for tick in y_ticks),
    )


def _place(value: float, ticks: Sequence[float]) -> float:
    """Where a value lies between the lowest tick (100) and the highest (0)."""
    return 100 * (ticks[-1] - value) / (ticks[-1] - ticks[0])


def _step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10, ... that divides ``span`` into no more than ``most``."""
    if not span > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most * (1 + 1e-9))


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from ``low`` or less to ``high`` or more."""
    step = _step(high - low, most)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def _edges(values: npt.NDArray[np.float64], limits: tuple[float, float] | None) -> npt.NDArray[np.float64]:
    """Edges of bars of equal, round width."""
    low, high = limits or (float(values.min()), float(values.max()))
    if limits is None:  # a track of two hours must not squeeze all others into one bar
        p5, median, p95 = np.percentile(values, [5, 50, 95])
        high = float(p95) if p95 > median and high - median > 4 * (p95 - median) else high
        low = float(p5) if p5 < median and median - low > 4 * (median - p5) else low
    step = _step(high - low, min(max(round(2.5 * math.sqrt(len(values))), MIN_BINS), MAX_BINS))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last - first < 2:  # equal values: one bar in the middle of a few
        first, last = first - 2, first + 3
    return np.arange(first, last + 1, dtype=np.float64) * np.float64(step)
