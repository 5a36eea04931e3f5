"""report.html: one file that needs no network, readable on a phone, on paper, in light and in dark."""

from __future__ import annotations

import json
import re
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from genopt.report import earlier, evidence, method, plots, predicted, profiled, sensitivity, wording
from genopt.report.by_load import by_load
from genopt.report.model import Report


def render(report: Report, spec: str) -> str:
    """The page; everything that comes from the run is escaped.

    Args:
        report: What it shows.
        spec: Text of the run's spec.yaml.
    """
    package = resources.files("genopt.report")

    def read(name: str) -> str:
        return package.joinpath(name).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(read))
    environment.filters["facts"] = lambda values: json.dumps(values, indent=2, ensure_ascii=False)
    environment.filters["code"] = _code
    template = environment.get_template("page.html.jinja")
    return template.render(
        report=report, spec=spec, wording=wording, method=method, evidence=evidence, earlier=earlier, predicted=predicted, profiled=profiled,
        sensitivity=sensitivity,
        columns=method.columns(report), tiles=method.tiles(report), load=by_load(report),
        style=Markup(read("page.css")),  # noqa: S704  (a file of this package)
        pareto=Markup(plots.pareto(report)), shares=Markup(plots.shares(report.bottlenecks)),  # noqa: S704  (matplotlib escapes text)
    )  # fmt: skip


def _code(text: str) -> Markup:
    """Escaped text in which what stands between backticks is set as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  (escaped just before)
