"""How runs and deployments stand, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genopt.console.terminal import stderr
from genopt.report import wording
from genopt.report.status import RunStatus


def print_status(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what is deployed."""
    out = console or stderr()
    if not found:
        out.print("Nothing is deployed.")
    for name, application in found.items():
        replicas = "; ".join(f"{deployment} {detail['replicas']}" for deployment, detail in application["deployments"].items())
        out.print(Text(f"{name}: {application['status'].lower()} {application['message']} {replicas}".strip()))
        if "rollout" in application:
            out.print(Text(f"  {_rollout(application['rollout'])}"))


def _rollout(found: Mapping[str, Any]) -> str:
    progress = found["progress"]
    state, reason = progress["state"].replace("_", " "), progress["reason"] if progress["state"] == "rolled_back" else found["remark"]
    return f"{progress['variant']} beside {progress['stable']}: {state}, {found['share']:g} % of the callers. {reason}"


def print_run_status(found: RunStatus, console: Console | None = None) -> None:
    """Prints how a run stands."""
    out = console or stderr()
    grid = Table.grid(padding=(0, 2))
    state = f"{found.state}, {found.phase}" if found.state == "running" else found.state
    counts = ", ".join(f"{count} {name}" for name, count in found.candidates.items()) or "none yet"
    best = wording.NONE
    if found.best is not None:
        speed = f", {found.best.speedup:.2f}× the original" if found.best.speedup else ""
        best = found.best.name + speed + (f", quality {wording.quality_percent(found.best.quality)}" if found.best.quality else "")
    rows = [("run", found.run), ("state", state), ("budget", f"{wording.duration(found.spent_s)} of {wording.duration(found.total_s)}"),
            ("candidates", counts), ("best so far", best)]  # fmt: skip
    if found.driver is not None:
        rows.insert(2, ("driver", f"process {found.driver.pid} on {found.driver.host}"))
    if found.running:
        rows.insert(-1, ("under way", ", ".join(found.running)))
    if found.deployment is not None:
        served = f"{found.deployment.variant} at {found.deployment.url}" + ("" if found.answers else ", which does not answer")
        rows.append(("deployment", served))
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    out.print(grid)
    if found.remedy:
        out.print(Text(f"→ {found.remedy.replace('`', '')}"))
