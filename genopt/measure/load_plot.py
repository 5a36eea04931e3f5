"""Throughput against waiting times, as a picture that stands for itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.errors import SpecError
from genopt.measure.load_result import Level, LoadResult
from genopt.measure.load_spec import LimitName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".svg", ".png")
_STREAMED: tuple[LimitName, ...] = ("ttft", "tpot")
_WHOLE: tuple[LimitName, ...] = ("e2el",)
_TITLES = {"ttft": "Time to first token (TTFT)", "tpot": "Time per output token (TPOT)", "e2el": "End-to-end latency (E2EL)"}
_LONG_MS = 3000.0
"""Times from here on are drawn in seconds."""
_INK, _MUTED, _LINE, _MEDIAN, _TAIL = "#1f2430", "#5c6370", "#d9dce3", "#2f6fde", "#c4572e"


def refuse_other_kinds(path: Path | None) -> None:
    """Makes sure that a plot of that name can be drawn before time is spent on it.

    Raises:
        SpecError: It ends in something else.
    """
    if path is not None and path.suffix.lower() not in KINDS:
        raise SpecError(f"{path} is no kind of picture that can be drawn; end its name in {' or '.join(KINDS)}.")


def load_figure(result: LoadResult) -> Figure:
    """A panel per waiting time with its median and p99 over output tokens per second; every point is one level.

    A level without the metric is left out. Dashed lines are the limits that requests had to meet.
    """
    from matplotlib.figure import Figure

    panels = _STREAMED if result.spec.stream else _WHOLE
    figure = Figure(figsize=(max(6.6, 4.8 * len(panels)), 3.9), dpi=150)
    for place, name in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.set_title(_TITLES[name], color=_INK, fontsize=10, loc="left")
        axes.set_xlabel("Output tokens per second", color=_MUTED)
        axes.grid(color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_MUTED, labelsize=8.5)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_LINE)
        shown = [level for level in result.levels if f"{name}_ms" in level.metrics and "output_tok_s" in level.metrics]
        _panel(axes, shown, f"{name}_ms", result.spec.slo.get(name))
    figure.suptitle(_plain(_headline(result)), color=_INK, fontsize=10.5)
    figure.tight_layout()
    return figure


def load_plot(result: LoadResult, kind: str = ".svg") -> bytes:
    """`load_figure` as a file's content, the same for the same result.

    Args:
        result: What is drawn.
        kind: One of `KINDS`.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind.lower() == ".svg" else {"Software": None}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "load", "font.family": "sans-serif"}):
        load_figure(result).savefig(buffer, format=kind.lower().removeprefix("."), metadata=metadata)
    return buffer.getvalue()


def _headline(result: LoadResult) -> str:
    loop = "closed loop" if result.spec.concurrency else "open loop, Poisson arrivals"
    warnings = [text for text, holds in (
        ("THE CLIENT WAS SATURATED", result.client_saturated), ("some requests failed", any(level.errors for level in result.levels)),
        ("interrupted", result.interrupted),
    ) if holds]  # fmt: skip
    return " · ".join([result.model, loop, f"at most {result.spec.max_tokens} new tokens", *warnings])


def _panel(axes: Axes, levels: list[Level], name: str, limit_s: float | None) -> None:
    if not levels:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    speeds = [level.metrics["output_tok_s"].value for level in levels]
    quantiles = {quantile: [getattr(level.metrics[name], quantile) for level in levels] for quantile in ("p99", "p50")}
    unit, scale = ("s", 1e-3) if max(quantiles["p99"]) >= _LONG_MS else ("ms", 1.0)
    for quantile, label, colour in (("p99", "p99", _TAIL), ("p50", "median", _MEDIAN)):
        heights = [scale * height for height in quantiles[quantile]]
        axes.plot(speeds, heights, marker="o", markersize=4, linewidth=1.3, color=colour, label=label)
    for level, speed, height in zip(levels, speeds, quantiles["p99"], strict=True):
        box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        place = (speed, scale * height)
        axes.annotate(level.name, place, (0, 7), textcoords="offset points", ha="center", fontsize=8, color=_MUTED, bbox=box)
    if limit_s is not None:
        axes.axhline(scale * 1e3 * limit_s, color=_INK, linewidth=1, linestyle=(0, (5, 3)), label="limit")
    axes.set_ylabel(unit, color=_MUTED)
    axes.margins(y=0.2)
    axes.set_xlim(0, 1.12 * max(speeds))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_MUTED, loc="upper left")


def _plain(text: str) -> str:
    """Safe from being read as a formula."""
    return text.replace("$", r"\$")
