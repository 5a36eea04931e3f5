"""A profile on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from genopt.console.terminal import stderr
from genopt.profiling.records import Bottleneck, GraphBreaks, Phase
from genopt.report import profiled, wording
from genopt.report.profiled import Table


def print_profile(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints where a model's time goes, against what this machine reaches.

    Args:
        found: The profile as plain values.
        console: Where to write; stderr unless given.
    """
    out = console or stderr()
    phases = [Phase.model_validate(phase) for phase in found.get("phases", ())]
    for title, table in _tables(found, phases):
        out.print()
        out.print(Text(title, style="bold"))
        out.print(table)
    out.print()
    if found.get("graph_breaks"):
        _print_breaks(out, GraphBreaks.model_validate(found["graph_breaks"]))
    limits = "; ".join(f"{what} {value}" for what, value in profiled.ceilings(found["ceilings"]))
    origin = f", {found['ceilings_origin']}" if found.get("ceilings_origin") else ""
    out.print(Text(f"Limits of this machine{origin}: {limits}.", style="dim"))
    out.print(Text(_conditions(found), style="dim"))
    out.print(Text(_traces(found.get("traces", {})), style="dim"), soft_wrap=True)
    out.print()
    out.print(Text(str(found["advice"]), style="bold"))


def _tables(found: Mapping[str, Any], phases: list[Phase]) -> list[tuple[str, rich_table.Table]]:
    items = [Bottleneck.model_validate(item) for item in found["bottlenecks"]]
    rows = tuple((item.name, wording.percent(item.share, 0), item.bound, item.detail, item.advice) for item in items)
    parts = Table(title="Where the time goes", headings=("part", "share", "bound by", "measured", "advice"), rows=rows, numbers=(1,))
    tables = [parts]
    if phases:
        tables += [profiled.phases(phases), profiled.families(phases), *(profiled.operators(phase) for phase in phases if phase.operators)]
    return [(table.title, _rich(table)) for table in tables]


def _rich(table: Table) -> rich_table.Table:
    found = rich_table.Table(box=None, pad_edge=False, header_style="bold dim")
    for place, heading in enumerate(table.headings):
        found.add_column(heading.lower() if heading.istitle() else heading, overflow="fold", justify="right" if place in table.numbers else "left")
    for row in table.rows:
        found.add_row(*map(Text, row))
    return found


def _print_breaks(out: Console, found: GraphBreaks) -> None:
    out.print(Text(profiled.breaks(found)))
    for place, reason in profiled.break_places(found).rows:
        out.print(Text(f"  {place}  {reason}"))


def _conditions(found: Mapping[str, Any]) -> str:
    """What was measured on what, as far as the profile says."""
    parts = [f"{found['prompt_tokens']} tokens of prompt"] if "prompt_tokens" in found else []
    parts += [f"{found['dtype']} on {found['device']}"] if "dtype" in found else []
    parts += [f"{found['threads']} threads on processors {found['cpus']}"] if "cpus" in found else []
    return f"Measured in {wording.duration(found['seconds'])}: {', '.join(parts)}." if parts else f"Measured in {wording.duration(found['seconds'])}."


def _traces(paths: Mapping[str, str]) -> str:
    if not paths:
        return "Traces were not kept; --out FOLDER keeps them for Perfetto (ui.perfetto.dev) or chrome://tracing."
    return "Traces for Perfetto (ui.perfetto.dev) or chrome://tracing: " + ", ".join(f"{name} {path}" for name, path in paths.items())
