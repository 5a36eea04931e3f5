"""Results of the benchmarks on GPUs: a Parquet file each, and the table that is made of all of them.

    python tests/benchmarks/gpu/results.py          # writes results/README.md from results/*.parquet

The benchmarks beside this file append to the folder that `--save` names. A row is one figure of one case, with what it was measured on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "vllm", "torchao", "diffusers")
CONDITIONS = ("benchmark", "device", "versions", "date", "commit")
SCHEMA = pa.schema([*((name, pa.string()) for name in (*CONDITIONS, "subject", "case", "figure")), ("value", pa.float64())])


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that says where figures go."""
    parser.add_argument("--save", type=Path, help="folder of Parquet files that the figures are added to")


def save(folder: Path | None, benchmark: str, subject: str, case: str, figures: Mapping[str, float]) -> None:
    """Adds the figures of a case.

    Args:
        folder: Where; None saves nothing.
        benchmark: Its name, which the file has, too.
        subject: What was measured, such as a shape.
        case: In which way.
        figures: By name with unit.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path, same = folder / f"{benchmark}.parquet", {"benchmark": benchmark, **conditions(), "subject": subject, "case": case}
    rows = pa.Table.from_pylist([{**same, "figure": name, "value": value} for name, value in figures.items()], SCHEMA)
    known = [pq.read_table(path, schema=SCHEMA)] if path.exists() else []
    partial = path.with_suffix(".partial")
    pq.write_table(pa.concat_tables([*known, rows]), partial)
    partial.rename(path)


def conditions() -> dict[str, str]:
    """What is measured on, and with what."""
    import torch

    there = torch.cuda.is_available()
    device = f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}" if there else "CPU"
    versions = [f"{name} {version}" for name in LIBRARIES if (version := _version(name))]
    return {"device": device, "versions": ", ".join(versions), "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": _commit()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The checkout's, or what the environment says where the files were brought without their history."""
    if told := os.environ.get("GENOPT_COMMIT"):
        return told
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: a section per benchmark and its conditions, a line per case, a column per figure."""
    sections: dict[tuple[str, ...], dict[tuple[str, str], dict[str, float]]] = {}
    for row in rows:
        cases = sections.setdefault(tuple(row[name] for name in CONDITIONS), {})
        cases.setdefault((row["subject"], row["case"]), {})[row["figure"]] = row["value"]
    lines = ["# Results on GPUs", "", "Made by `results.py` from the Parquet files beside it; each benchmark's docstring says what its figures are."]
    for (benchmark, device, versions, date, commit), cases in sections.items():
        figures = list(dict.fromkeys(name for found in cases.values() for name in found))
        lines += ["", f"## {benchmark}.py", "", f"{device}, {date}, commit {commit}; {versions}.", ""]
        lines += [f"| subject | case | {' | '.join(figures)} |", "| --- | --- |" + " ---: |" * len(figures)]
        lines += [f"| {subject} | {case} | {' | '.join(_shown(found.get(name)) for name in figures)} |" for (subject, case), found in cases.items()]
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = [row for path in sorted(FOLDER.glob("*.parquet")) for row in pq.read_table(path, schema=SCHEMA).to_pylist()]
    (FOLDER / "README.md").write_text(table(found), encoding="utf-8")
