"""The report's plots as inline SVG: small, deterministic, and in the colours of the page around them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from genopt.plan import Candidate, Quality, Ratio
from genopt.profiling.records import Bottleneck
from genopt.report.model import REFERENCES, Report
from genopt.search.pareto import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INKS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#0a0101": "var(--accepted)",
        "#0a0202": "var(--rejected)", "#0a0303": "var(--inconclusive)", "#0a0404": "var(--reference)", "#0a0505": "var(--winner)",
        "#0b0101": "var(--memory)", "#0b0202": "var(--compute)", "#0b0303": "var(--overhead)", "#0b0404": "var(--io)",
        "#0c0101": "var(--paper)"}  # fmt: skip
"""Placeholder colours that matplotlib draws with, and the CSS variables of the page that replace them."""

_COLOUR = {variable[6:-1]: placeholder for placeholder, variable in INKS.items()}
_MARKERS = {"reference": "s", "accepted": "o", "rejected": "X", "inconclusive": "D", "winner": "*"}
_NAMES = {"reference": "original and baseline", "accepted": "accepted", "rejected": "rejected", "inconclusive": "inconclusive", "winner": "winner"}
_HIGHEST = 1.1
"""Quality ratios above this are not drawn."""
_SPEEDS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 200)
_QUALITIES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
_PLACES = ((8, 3), (8, -12), (-8, 3), (-8, -12), (10, 15), (-10, 15), (10, -24), (-10, -24), (14, 27), (-14, 27), (14, -36), (-14, -36))
"""Where a label may stand around its point, in points, best first; from the fifth on a line leads to it."""
_LABELLED = 14
"""More labels than this cover each other; the table has the rest."""


@contextmanager
def _any_script() -> Iterator[None]:
    """Lets names of any script pass: text stays text, so the browser's fonts draw what matplotlib's own lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        yield


@_any_script()
def pareto(report: Report) -> str:
    """`pareto_figure` as an `<svg>` element; an empty text where nothing was measured."""
    if not _points(report):
        return ""
    return _svg(pareto_figure(report), "Speed against quality of every measured candidate, with 95% intervals")


def _points(report: Report) -> list[tuple[Candidate, Ratio, Quality | None]]:
    """Measured candidates; anomalous ones are left out: their numbers are not believed, and would stretch the axes."""
    return [
        (candidate, candidate.speedup["vs_original"], candidate.quality) for candidate in report.candidates
        if "vs_original" in candidate.speedup and (candidate.quality.verdict != "anomalous" if candidate.quality else candidate.name in REFERENCES)
    ]  # fmt: skip


@_any_script()
def pareto_figure(report: Report) -> Figure:
    """Speed against quality of all measured candidates with their 95% intervals; without any, axes alone."""
    points = _points(report)
    figure, axes = _axes(8.6, 4.6)
    if not points:
        return figure
    floor = min(report.quality_bar, *(_quality(quality)[1] for _, _, quality in points))
    axes.axhspan(report.quality_bar, 2, color=_COLOUR["accepted"], alpha=0.06, linewidth=0)
    axes.axhline(report.quality_bar, color=_COLOUR["muted"], linewidth=1, linestyle=(0, (5, 3)))
    axes.text(1.008, report.quality_bar, "bar", transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=_COLOUR["muted"])
    kinds = [_kind(candidate, report) for candidate, _, _ in points]
    for kind in [kind for kind in _MARKERS if kind in kinds]:
        group = [(speed, quality) for (_, speed, quality), own in zip(points, kinds, strict=True) if own == kind]
        _draw(axes, kind, group)
    _scale(axes, points, floor)
    _line(axes, report)
    axes.set_xlabel("Speed against the original (×, log scale)")
    axes.set_ylabel("Quality against the original (%)")
    legend = axes.legend(loc="upper left", bbox_to_anchor=(-0.015, 1.12), ncols=5, frameon=False, fontsize=8.5, handletextpad=0.2, columnspacing=1.2)
    for text in legend.get_texts():
        text.set_color(_COLOUR["muted"])
    figure.tight_layout()
    _label(figure, axes, points, report)
    return figure


@_any_script()
def shares(bottlenecks: Sequence[Bottleneck]) -> str:
    """How the original's time divides, as an `<svg>` element.

    Returns:
        An empty text where there was no profile.
    """
    if not bottlenecks:
        return ""
    figure, axes = _axes(8.6, 0.75 + 0.42 * len(bottlenecks))
    places = list(range(len(bottlenecks), 0, -1))
    widths = [100 * item.share for item in bottlenecks]
    axes.barh(places, widths, height=0.62, color=[_COLOUR[item.bound] for item in bottlenecks])
    for place, width, item in zip(places, widths, bottlenecks, strict=True):
        axes.text(width + 1, place, f"{width:.0f}%  {item.bound}", va="center", fontsize=9, color=_COLOUR["muted"])
    axes.set_yticks(places, [_short(item.name, 34) for item in bottlenecks])
    axes.set_xlim(0, max(widths) * 1.25 + 8)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("Share of the profiled time (%)")
    figure.tight_layout()
    return _svg(figure, "Share of the profiled time by bottleneck")


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot, without pyplot and its global state."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=_COLOUR["line"], linewidth=0.8)
    axes.tick_params(colors=_COLOUR["muted"], length=0, labelsize=9)
    axes.xaxis.label.set_color(_COLOUR["ink"])
    axes.yaxis.label.set_color(_COLOUR["ink"])
    axes.spines[:].set_visible(False)
    return figure, axes


def _kind(candidate: Candidate, report: Report) -> str:
    if candidate.name in REFERENCES:
        return "reference"
    if candidate.name == report.winner:
        return "winner"
    return candidate.status if candidate.status in _MARKERS else "rejected"


def _quality(quality: Quality | None) -> tuple[float, float, float]:
    """Ratio and interval; the original is 1 by definition. Ends are cut where a lone sequence leaves everything possible."""
    if quality is None:
        return 1.0, 1.0, 1.0
    return min(quality.ratio, _HIGHEST), max(0.0, quality.ci_low), min(quality.ci_high, _HIGHEST)


def _draw(axes: Axes, kind: str, group: Sequence[tuple[Ratio, Quality | None]]) -> None:
    colour = _COLOUR[kind]
    x, y = [speed.value for speed, _ in group], [_quality(quality)[0] for _, quality in group]
    across = [[max(0.0, s.value - s.ci_low) for s, _ in group], [max(0.0, s.ci_high - s.value) for s, _ in group]]
    intervals = [_quality(quality) for _, quality in group]
    along = [[max(0.0, middle - low) for middle, low, _ in intervals], [max(0.0, high - middle) for middle, _, high in intervals]]
    axes.errorbar(x, y, xerr=across, yerr=along, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2.5, alpha=0.75)
    area = 230 if kind == "winner" else 62
    axes.scatter(x, y, marker=_MARKERS[kind], s=area, color=colour, edgecolors=_COLOUR["paper"], linewidths=0.9, label=_NAMES[kind], zorder=4)


def _scale(axes: Axes, points: Sequence[tuple[Candidate, Ratio, Quality | None]], floor: float) -> None:
    """Logarithmic speed; quality stretched around the bar, where decisions fall, without losing what lies far below."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    slowest, fastest = min(speed.ci_low for _, speed, _ in points), max(speed.ci_high for _, speed, _ in points)
    highest = max(1.0, *(_quality(quality)[2] for _, _, quality in points))
    left, right = 0.85 * max(slowest, 0.01), 1.4 * fastest
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_xticks([tick for tick in _SPEEDS if left <= tick <= right])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    if floor >= 0.9 or highest > 1.015:
        margin = 0.08 * (highest - floor) + 0.0005
        axes.set_ylim(floor - margin, highest + margin)
    else:
        spread = 0.02
        axes.set_yscale("function", functions=(lambda y: -_log(1.02 - y, spread), lambda v: 1.02 - _exp(-v, spread)))
        axes.set_ylim(max(0.0, floor - 0.03), min(1.015, highest + 0.004))
        axes.set_yticks([tick for tick in _QUALITIES if tick >= floor - 0.03])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def _log(value: Any, spread: float) -> Any:
    import numpy as np

    return np.log(np.maximum(value, 1e-4) / spread)


def _exp(value: Any, spread: float) -> Any:
    import numpy as np

    return spread * np.exp(value)


def _line(axes: Axes, report: Report) -> None:
    """Joins what nothing beats in both speed and quality."""
    points = {
        candidate.name: (candidate.speedup["vs_original"].value, _quality(candidate.quality)[0]) for candidate in report.candidates
        if candidate.status == "accepted" and "vs_original" in candidate.speedup
    }  # fmt: skip
    line = sorted(points[name] for name in front(points))
    axes.plot([x for x, _ in line], [y for _, y in line], color=_COLOUR["accepted"], linewidth=1.2, alpha=0.45, zorder=2)


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[Candidate, Ratio, Quality | None]], report: Report) -> None:
    """Names the points, the most telling first; each name takes the first free place around its point."""
    ranked = sorted(points, key=lambda point: (point[0].name != report.winner, point[0].name not in REFERENCES, -point[1].value))[:_LABELLED]
    figure.canvas.draw()
    scale = figure.dpi / 72
    dots = [axes.transData.transform((speed.value, _quality(quality)[0])) for _, speed, quality in points]
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in dots]
    frame = axes.get_window_extent()
    bar = axes.transData.transform((1, report.quality_bar))[1]
    taken.append((frame.x0, bar - scale, frame.x1, bar + scale))
    for candidate, speed, quality in ranked:
        text, at = _short(candidate.name, 30), (speed.value, _quality(quality)[0])
        width, height = 4.7 * scale * len(text), 9 * scale
        x, y = axes.transData.transform(at)
        for place, (dx, dy) in enumerate(_PLACES):
            left, low = x + dx * scale - (width if dx < 0 else 0), y + dy * scale
            inside = left >= frame.x0 and left + width <= frame.x1 and low >= frame.y0 and low + height <= frame.y1
            if inside and not any(left < b[2] and b[0] < left + width and low < b[3] and b[1] < low + height for b in taken):
                won = candidate.name == report.winner
                axes.annotate(
                    text, at, (dx, dy), textcoords="offset points", fontsize=8.5, zorder=5, ha="right" if dx < 0 else "left",
                    color=_COLOUR["ink" if won else "muted"], fontweight="bold" if won else "normal",
                    arrowprops={"arrowstyle": "-", "color": _COLOUR["muted"], "linewidth": 0.6} if place >= 4 else None,
                )  # fmt: skip
                taken.append((left, low, left + width, low + height))
                break


def _short(text: str, limit: int) -> str:
    """Cut to a length, and safe from being read as a formula."""
    return (text if len(text) <= limit else f"{text[: limit - 1]}…").replace("$", r"\$")


def _svg(figure: Figure, title: str) -> str:
    """Renders without date and random ids, leaves text as text, and turns placeholder colours into CSS variables."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'font: ([^";]*?)\'[^"]*?sans-serif', r"font: \1system-ui, sans-serif", drawing)
    for placeholder, variable in INKS.items():
        drawing = drawing.replace(placeholder, variable)
    width, height = (float(points) for points in re.findall(r'(?:width|height)="([\d.]+)pt"', drawing)[:2])
    opening = f'<svg class="plot" role="img" aria-label="{title}" viewBox="0 0 {width:g} {height:g}">'
    # Both plots stand in one page, where ids must differ.
    prefix = title.split()[0].lower()
    drawing = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-{len(title)}-", drawing)
    return re.sub(r"<svg[^>]*>", opening, drawing, count=1)
