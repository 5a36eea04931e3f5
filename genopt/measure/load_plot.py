"""Throughput against waiting times, as an SVG that stands for itself."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from genopt.measure.load_result import Level, LoadResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (("ttft_ms", "TTFT (ms)"), ("tpot_ms", "TPOT (ms)"))
_INK, _MUTED, _LINE, _MEDIAN, _TAIL = "#1f2430", "#5c6370", "#d9dce3", "#2f6fde", "#c4572e"


def load_figure(result: LoadResult) -> Figure:
    """Two panels, TTFT and TPOT, each with median and p99 over output tokens per second; every point is one level.

    A level without the metric is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.8))
    for place, (name, title) in enumerate(_PANELS, 1):
        axes = figure.add_subplot(1, len(_PANELS), place)
        _panel(axes, [level for level in result.levels if name in level.metrics and "output_tok_s" in level.metrics], name)
        axes.set_xlabel("Output tokens per second", color=_MUTED)
        axes.set_ylabel(title, color=_MUTED)
        axes.set_ylim(bottom=0)
        axes.grid(color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_MUTED, labelsize=8.5)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_LINE)
    saturated = " (the client was saturated)" if result.client_saturated else ""
    figure.suptitle(_plain(f"{result.model}{saturated}"), color=_INK, fontsize=10)
    figure.tight_layout()
    return figure


def load_svg(result: LoadResult) -> str:
    """`load_figure` as a whole SVG document, the same for the same result."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "load", "font.family": "sans-serif"}):
        load_figure(result).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _panel(axes: Axes, levels: list[Level], name: str) -> None:
    if not levels:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_MUTED)
        return
    speeds = [level.metrics["output_tok_s"].value for level in levels]
    for quantile, colour in (("p99", _TAIL), ("p50", _MEDIAN)):
        heights = [getattr(level.metrics[name], quantile) for level in levels]
        axes.plot(speeds, heights, marker="o", markersize=4, linewidth=1.3, color=colour, label=quantile)
    for level, speed in zip(levels, speeds, strict=True):
        axes.annotate(level.name, (speed, level.metrics[name].value), (5, 5), textcoords="offset points", fontsize=8, color=_MUTED)
    axes.margins(x=0.2, y=0.15)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_MUTED)


def _plain(text: str) -> str:
    """Safe from being read as a formula."""
    return text.replace("$", r"\$")
