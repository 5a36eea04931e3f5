"""Results of the benchmarks on GPUs: a Parquet file each, and the table that is made of all of them.

    python tests/benchmarks/gpu/results.py          # writes results/README.md from results/*.parquet

The benchmarks beside this file append to the folder that `--save` names. A row is one figure of one case, with what it was measured on
and, since 2026-11-30, how (`parameters`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from limits import device

FOLDER = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "vllm", "torchao", "diffusers")
CONDITIONS = ("benchmark", "device", "versions", "date", "commit")
PARAMETERS = "parameters"
SCHEMA = pa.schema(
    [*((name, pa.string()) for name in (*CONDITIONS, "subject", "case", "figure")), ("value", pa.float64()), (PARAMETERS, pa.string())]
)
"""`parameters` is JSON, and null in rows that are older than the column."""
NOTES: Mapping[tuple[str, str], str] = {
    ("distillation", "b6d85fe"): "Entered from what a run printed: the commit that these rows name is without the script, which came with 8e32b96. "
    "Teacher and student had the same weights.",
    ("decode_step", "e2ba6d8"): "With int8, torchao's recipe had Inductor tune in all directions besides, as artifacts that others open do not.",
    ("fan_out", "01dd43a"): "The time on the machine ended before one GPU had measured all of them; the docstring tells how far it came.",
    ("formats", "b6d85fe"): "Batches of `torch` copied all logits to the host in every step then, which they do no more.",
    ("serving_overhead", "b6d85fe"): "Entered from what `tests/benchmarks/serving_overhead.py` printed, which saves nothing itself; that its "
    "replicas have a GPU was committed after the commit that these rows name, with ed07bc1.",
    ("serving_overhead", "a058b19"): "Entered from what `tests/benchmarks/serving_overhead.py` printed, which saves nothing itself.",
}
"""What is to be known of rows, by benchmark and commit."""


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that says where figures go."""
    parser.add_argument("--save", type=Path, help="folder of Parquet files that the figures are added to")


def save(
    folder: Path | None,
    benchmark: str,
    subject: str,
    case: str,
    figures: Mapping[str, float],
    parameters: Mapping[str, Any],
    versions: str | None = None,
) -> None:
    """Adds the figures of a case.

    Args:
        folder: Where; None saves nothing.
        benchmark: Its name, which the file has, too.
        subject: What was measured, such as a shape.
        case: In which way.
        figures: By name with unit.
        parameters: How it was measured, such as the lengths of prompts and answers.
        versions: Of the libraries, where another interpreter measured; None takes those of this one.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}.parquet"
    same = {"benchmark": benchmark, **conditions(), "subject": subject, "case": case, PARAMETERS: json.dumps(parameters)}
    if versions is not None:
        same["versions"] = versions
    rows = pa.Table.from_pylist([{**same, "figure": name, "value": value} for name, value in figures.items()], SCHEMA)
    known = [pq.read_table(path, schema=SCHEMA)] if path.exists() else []
    partial = path.with_suffix(".partial")
    pq.write_table(pa.concat_tables([*known, rows]), partial)
    partial.rename(path)


def conditions() -> dict[str, str]:
    """What is measured on, and with what."""
    count, name = device()
    where = f"{count}x {name}" if count else name
    return {"device": where, "versions": versions(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": _commit()}


def versions() -> str:
    """Of the libraries that this interpreter finds."""
    return ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))


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
    """Markdown: a section per benchmark, its conditions and parameters, a line per case, a column per figure."""
    sections: dict[tuple[str, ...], dict[tuple[str, str], dict[str, float]]] = {}
    for row in rows:
        cases = sections.setdefault((*(row[name] for name in CONDITIONS), row[PARAMETERS] or "{}"), {})
        cases.setdefault((row["subject"], row["case"]), {})[row["figure"]] = row["value"]
    lines = [
        "# Results on GPUs",
        "",
        "Made by `results.py` from the Parquet files beside it; each benchmark's docstring says what its figures are. "
        "Versions are those of all libraries that the interpreter found, used or not.",
    ]
    for (benchmark, where, libraries, date, commit, parameters), cases in sections.items():
        figures = list(dict.fromkeys(name for found in cases.values() for name in found))
        told = "".join(f"; {name} {value}" for name, value in json.loads(parameters).items() if value is not None)
        note = f" {found}" if (found := NOTES.get((benchmark, commit))) else ""
        lines += ["", f"## {benchmark}.py", "", f"{where}, {date}, commit {commit}; {libraries}{told}.{note}", ""]
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
