"""Writes a run's reports into its folder."""

from __future__ import annotations

from genopt.report import html, markdown
from genopt.report.assemble import assemble
from genopt.report.model import Report
from genopt.store.files import write_atomically
from genopt.store.run_folder import RunFolder


def write_reports(folder: RunFolder) -> Report:
    """Writes `report.json`, `report.md` and `report.html` from what the folder holds; the same folder gives the same files.

    Raises:
        SpecError: The folder's spec cannot be used.
        StorageError: The folder cannot be written.
    """
    report = assemble(folder)
    spec = (folder.path / "spec.yaml").read_text(encoding="utf-8")
    write_atomically(folder.path / "report.json", report.model_dump_json(indent=2) + "\n")
    write_atomically(folder.path / "report.md", markdown.render(report, spec))
    write_atomically(folder.path / "report.html", html.render(report, spec))
    return report
