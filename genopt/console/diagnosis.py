"""What `genopt doctor` found, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genopt.console.terminal import stderr
from genopt.distributed.diagnosis import Diagnosis, Examined
from genopt.report.wording import NONE, size

COLUMNS = ("node", "python", "ray", "genopt", "torch", "cores", "memory free", "devices", "store free", "temporary", "/dev/shm", "clock")  # noqa: S108


def print_diagnosis(found: Diagnosis, console: Console | None = None) -> None:
    """Prints a line per node and one per fault."""
    out = console or stderr()
    faulty = {node for finding in found.findings for node in finding.nodes}
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for heading in COLUMNS:
        table.add_column(heading, overflow="fold")
    for node in found.nodes:
        table.add_row(*map(Text, _cells(node)), style="red" if node.name in faulty else None)
    out.print(table)
    if found.cluster:
        dashboard = f", dashboard {found.dashboard}" if found.dashboard else ", no dashboard"
        out.print(Text(f"cluster {found.cluster}{dashboard}, {'asks for a token' if found.token else 'asks for no token'}", style="dim"))
    out.print(Text(f"store {found.store}", style="dim"), soft_wrap=True)
    for finding in found.findings:
        where = f"{', '.join(finding.nodes)}: " if finding.nodes else ""
        out.print(Text.assemble(("✗ ", "red"), f"{where}{finding.what}: {finding.remedy}"), soft_wrap=True)
    if not found.findings:
        out.print(Text("✓ nothing to mend", style="green"))


def _cells(node: Examined) -> tuple[str, ...]:
    if node.facts is None:
        return (node.name, *[NONE] * (len(COLUMNS) - 1))
    hardware, free, versions = node.facts.hardware, node.facts.free_bytes, node.facts.versions
    gpus = [f"{gpu['name']} sm {gpu['compute_capability']}, driver {gpu['driver']}" for gpu in hardware["gpus"]]
    clock = NONE if node.clock is None else f"{1e3 * node.clock.ahead_s:+.0f} ms"
    return (
        node.name, *(versions.get(name, NONE) for name in ("python", "ray", "genopt", "torch")), str(hardware["cores"]),
        size(hardware["memory_available_bytes"]), "\n".join(gpus) or "CPU", *(size(free[name]) for name in ("store", "temporary", "shared_memory")),
        clock,
    )  # fmt: skip
