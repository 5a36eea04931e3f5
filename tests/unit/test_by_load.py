"""The report's table of speeds by load: who is fastest where, and what callers wait."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from genopt.plan import Candidate, Metric
from genopt.report.assemble import assemble
from genopt.report.by_load import ByLoad, by_load
from genopt.report.write import write_reports
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder


def throughput(rates: Mapping[int, float], spread: float = 0.01) -> dict[str, Metric]:
    return {
        f"throughput_tok_s@{streams}": Metric(value=rate, unit="tok/s", ci_low=rate * (1 - spread), ci_high=rate * (1 + spread), n=3)
        for streams, rate in rates.items()
    }


def waiting(p50: float, p99: float, busy: float) -> dict[str, Metric]:
    return {"ttft_ms@poisson": Metric(value=p50, unit="ms", p50=p50, p90=p99, p99=p99, n=64, conditions={"rate": 2.5, "busy": busy})}


def written(path: Path, found: Mapping[str, tuple[str, dict[str, Metric]]], modality: str = "text") -> RunFolder:
    """A run whose first two candidates are the references."""
    run = RunFolder.create(path / "run", dump(build({"model": "m"})), {})
    run.append("model_resolved", model={"id": "m", "modality": modality})
    made = [Candidate(name=name, status=status, reason="", engine="e", metrics=metrics) for name, (status, metrics) in found.items()]
    original, baseline, *others = (one.model_dump(mode="json") for one in made)
    run.append("references", original=original, baseline=baseline, aa={"value": 1, "ci_low": 0.99, "ci_high": 1.01}, evaluation={})
    for other in others:
        run.append("candidate_finished", candidate=other, seconds=1.0)
    return run


def table(path: Path, found: Mapping[str, tuple[str, dict[str, Metric]]], modality: str = "text") -> ByLoad:
    return by_load(assemble(written(path, found, modality)))


FOUND = {
    "original": ("accepted", throughput({1: 20, 32: 200})), "baseline": ("accepted", throughput({1: 40, 32: 400})),
    "int4": ("accepted", throughput({1: 100, 32: 300})), "int8": ("accepted", throughput({1: 80, 32: 390}, spread=0.05)),
    "broken-but-fast": ("rejected", throughput({1: 200, 32: 900})), "crashed": ("failed", {}),
}  # fmt: skip


def marks(found: ByLoad) -> dict[str, list[str]]:
    return {row.name: [cell.mark for cell in row.cells] for row in found.rows}


def test_the_fastest_of_each_load_that_holds_the_quality_is_marked(tmp_path: Path) -> None:
    found = table(tmp_path, FOUND)
    assert found.headings == ["1 stream", "32 streams"]
    assert marks(found) == {
        "original": ["", ""], "baseline": ["", "best"], "int4": ["best", ""], "int8": ["", "tied"], "broken-but-fast": ["", ""],
    }  # fmt: skip
    assert found.remark.endswith("the fastest changes with the number of streams: int4 at 1, baseline at 32.")
    assert [cell.text for row in found.rows if row.name == "broken-but-fast" for cell in row.cells] == ["200 tok/s", "900 tok/s"]


def test_one_that_is_fastest_everywhere_is_named_once(tmp_path: Path) -> None:
    found = table(tmp_path, {**FOUND, "best": ("accepted", throughput({1: 150, 32: 800}))})
    assert found.remark == "Of all that hold the quality, best is the fastest at every number of streams."


def test_what_callers_wait_stands_beside_it(tmp_path: Path) -> None:
    found = table(tmp_path, {
        "original": ("accepted", {**throughput({1: 20}), **waiting(900, 4000, 0.97)}),
        "baseline": ("accepted", {**throughput({1: 40}), **waiting(300.4, 950, 0.6)}), "int4": ("accepted", throughput({1: 50})),
    })  # fmt: skip
    assert found.headings == ["1 stream", "TTFT p50 / p99 at 2.5 requests a second (poisson)", "Busy"]
    assert [cell.text for cell in found.rows[1].cells] == ["40.0 tok/s", "300 ms / 950 ms", "60%"]
    assert [cell.text for cell in found.rows[2].cells] == ["50.0 tok/s", "–", "–"]


def test_one_load_alone_is_no_table(tmp_path: Path) -> None:
    assert table(tmp_path, {name: (status, throughput({1: 5})) for name, (status, _) in FOUND.items()}).rows == []


def test_images_have_their_own_rate(tmp_path: Path) -> None:
    rates = {f"images_per_s@{count}": Metric(value=count / 2, unit="images/s") for count in (1, 2)}
    found = table(tmp_path, dict.fromkeys(("original", "baseline"), ("accepted", rates)), modality="image")
    assert [cell.text for cell in found.rows[0].cells] == ["0.50 images/s", "1.00 images/s"]


def test_page_and_markdown_have_the_table(tmp_path: Path) -> None:
    run = written(tmp_path, FOUND)
    write_reports(run)
    assert "| int4 | accepted | ★ **100 tok/s** | 300 tok/s |" in (run.path / "report.md").read_text(encoding="utf-8")
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert '<td class="n best">★ 400 tok/s</td>' in page
    assert '<td class="n tied">≈ 390 tok/s</td>' in page
