"""The profile in the report and on the terminal: phases, parts, operators, graph breaks, traces and limits, all of it or what there is."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from genopt.console.profile import print_profile
from genopt.profiling.records import Bottleneck, FamilyShare, GraphBreak, GraphBreaks, Operator, Phase
from genopt.report import profiled
from genopt.report.write import write_reports
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder

MLP = FamilyShare(name="MLP", ms=30.0, time_share=0.6, bytes=2e8, byte_share=0.75, operations=4e8)
PREFILL = Phase(
    name="prefill", ms=1234.5, bytes=2.7e8, operations=1.72e10, mbu=0.02, mfu=0.61, limited_by="arithmetic", bound="compute",
    causes_ms={"arithmetic": 750.0, "host loop": 480.0, "tokenizer": 4.5}, detail="prefill: 1234 ms",
    families=(MLP, FamilyShare(name="framework | overhead", ms=1.0, time_share=0.1, bytes=0, byte_share=0, operations=0)),
    operators=(Operator(name="aten::mm", calls=1210, ms=700.0, share=0.57), Operator(name="aten::<script>", calls=1, ms=0.0001, share=0.0)),
)  # fmt: skip
DECODE = PREFILL.model_copy(update={"name": "decode step", "ms": 40.0, "limited_by": "reading memory", "bound": "memory", "families": (MLP,)})
PLACE = GraphBreak(file="transformers/models/odd/modeling_odd.py", line=42, reason="Tensor.item()")
BREAKS = GraphBreaks(count=1, graphs=3, breaks=(PLACE,), note="one step on a static cache, traced in 6.1 s")
PROFILE: dict[str, Any] = {
    "bottlenecks": [Bottleneck(name="MLP", share=1.0, bound="memory", detail="30 ms", advice="Fewer bits.").model_dump()],
    "advice": "Fewer bits come first.", "phases": [PREFILL.model_dump(), DECODE.model_dump()], "graph_breaks": BREAKS.model_dump(),
    "traces": {"prefill": "/elsewhere/run/profile/prefill.json.gz", "decode step": "/elsewhere/run/profile/decode.json.gz"},
    "ceilings": {"read_gb_s": 38.04, "matmul_bf16_gflop_s": 1234.0, "matmul_int8_gop_s": 4.2, "launch_us": 2.81},
    "ceilings_origin": "measured 3 hours ago on this kind of hardware", "mbu": 0.37, "mfu": 0.6, "decode_ms": 40.0,
    "prompt_tokens": 64, "dtype": "bfloat16", "device": "cpu", "threads": 2, "cpus": "0-1", "seconds": 21.5,
}  # fmt: skip


def reports(folder: Path, profile: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Page, Markdown and JSON of a run that has nothing but its profile."""
    run = RunFolder.create(folder / "run", dump(build({"model": "m"})), {"hardware": {}, "environment": {}})
    run.append("run_started", budget_s=60.0)
    run.append("profile", profile=profile)
    write_reports(run)
    page, markdown, content = ((run.path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md", "report.json"))
    return page, markdown, json.loads(content)


def printed(profile: dict[str, Any], width: int = 150) -> str:
    target = io.StringIO()
    print_profile(profile, console=Console(file=target, width=width))
    return target.getvalue()


PHRASES = (
    "1,234 ms", "17.2 GFLOP", "61.0%", "2.0%", "arithmetic 61%, host loop 39%", "reading memory", "aten::mm", "1,210", "57.0%",
    "Graph breaks under torch.compile: 1 place, 3 graphs instead of one", "transformers/models/odd/modeling_odd.py:42", "Tensor.item()",
    "roducts in bf16", "1,234 GFLOP/s", "4.2 GOP/s", "2.81 µs", "measured 3 hours ago", "75.0%",
)  # fmt: skip


def test_the_page_has_all_of_it_and_escapes_it(tmp_path: Path) -> None:
    page, _, _ = reports(tmp_path, PROFILE)
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert [phrase for phrase in PHRASES if phrase not in text] == []
    assert '<a href="profile/decode.json.gz">' in page
    assert "aten::&lt;script&gt;" in page
    assert "<script" not in page


def test_the_markdown_has_all_of_it_in_tables_that_hold(tmp_path: Path) -> None:
    _, markdown, _ = reports(tmp_path, PROFILE)
    plain = markdown.replace("\\", "")
    assert [phrase for phrase in PHRASES if phrase not in plain] == []
    assert "`profile/prefill.json.gz`" in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_the_json_keeps_phases_operators_breaks_and_traces(tmp_path: Path) -> None:
    _, _, content = reports(tmp_path, PROFILE)
    profile = content["profile"]
    assert [phase["operators"][0]["name"] for phase in profile["phases"]] == ["aten::mm", "aten::mm"]
    assert profile["graph_breaks"]["breaks"][0]["line"] == 42
    assert profile["traces"] == {"prefill": "profile/prefill.json.gz", "decode step": "profile/decode.json.gz"}
    assert profile["details"]["decode_ms"] == 40.0


def test_the_terminal_has_all_of_it(tmp_path: Path) -> None:
    text = " ".join(printed(PROFILE, width=400).split())
    assert [phrase for phrase in PHRASES if phrase not in text] == []
    assert "/elsewhere/run/profile/decode.json.gz" in text
    assert "Measured in 21.5 s: 64 tokens of prompt, bfloat16 on cpu, 2 threads on processors 0-1." in text
    assert text.endswith("Fewer bits come first.")


def test_a_narrow_terminal_loses_no_row() -> None:
    assert "aten::mm" in printed(PROFILE, width=60)


def test_without_traces_the_terminal_says_how_to_keep_them() -> None:
    assert "--out FOLDER keeps them" in printed({**PROFILE, "traces": {}})


def test_a_profile_of_an_earlier_version_has_what_it_had(tmp_path: Path) -> None:
    new = ("phases", "graph_breaks", "traces", "ceilings_origin", "cpus")
    old = {name: value for name, value in PROFILE.items() if name not in new}
    page, markdown, content = reports(tmp_path, old)
    assert content["profile"]["phases"] == []
    assert "Memory bandwidth used" in page
    assert "Graph breaks" not in page + markdown
    assert "Where the time goes" in printed(old)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (GraphBreaks(count=0, graphs=1, note="traced"), "Graph breaks under torch.compile: 0, so the whole step is one graph (traced)."),
        (GraphBreaks(note="not traced: no time"), "Graph breaks under torch.compile: not traced: no time."),
        (BREAKS.model_copy(update={"count": 2}), f"Graph breaks under torch.compile: 2 places, 3 graphs instead of one ({BREAKS.note})."),
    ],
)
def test_graph_breaks_are_said_whatever_was_found(found: GraphBreaks, sentence: str) -> None:
    assert profiled.breaks(found) == sentence


def test_times_and_operations_are_written_with_three_digits() -> None:
    assert [profiled.milliseconds(value) for value in (0.0, 0.0123, 9.876, 1234.5)] == ["< 0.001 ms", "0.0123 ms", "9.88 ms", "1,234 ms"]
    assert [profiled.operations(value) for value in (0.0, 5e3, 2e6, 3e9, 4.5e13)] == ["0 kFLOP", "5 kFLOP", "2 MFLOP", "3 GFLOP", "45 TFLOP"]
