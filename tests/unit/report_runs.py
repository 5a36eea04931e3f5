"""Run folders that the tests of reports write about, and what a browser sees of a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from genopt.plan import Artifact, Candidate, Metric, Quality, Ratio, Step
from genopt.report.model import Report
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder

ENVIRONMENT = {
    "environment": {"python": "3.11.2", "packages": {"torch": "2.13.0", "ray": "2.60.0"}, "git": None, "platform": "Linux"},
    "hardware": {"cpu": "Example CPU", "cores": 8, "memory_bytes": 32_000_000_000, "nodes": [{"cpus": 8, "gpus": 0}]},
}
MODEL = {
    "id": "smollm2-135m", "path": "/models/smollm2", "library": "transformers", "modality": "text", "task": "text-generation",
    "architecture": "LlamaForCausalLM", "revision": None, "digest": "d1" * 32, "parameters": 134_515_008, "bytes": 538_060_032,
    "dtype": "float32", "max_context": 8192, "note": "These weights come from a 4-bit grid.",
    "components": [], "denoiser": None,
}  # fmt: skip
PROFILE = {
    "bottlenecks": [
        {"name": "linear layers", "share": 0.71, "bound": "memory", "detail": "21 of 25 GB/s", "advice": "Store weights in 8 bits."},
        {"name": "framework", "share": 0.22, "bound": "overhead", "detail": "412 launches per token", "advice": "Compile, or use another engine."},
    ],
    "advice": "Decoding reads every weight once per token.", "ceilings": {"read_gb_s": 25.1, "matmul_gflop_s": 410.0}, "mbu": 0.37, "mfu": 0.04,
    "decode_ms": 42.0,
}  # fmt: skip


def metric(value: float, unit: str, spread: float = 0.02) -> Metric:
    low, high = value * (1 - spread), value * (1 + spread)
    return Metric(value=value, unit=unit, p50=value, p90=high, p99=high, ci_low=low, ci_high=high, n=8, conditions={"prompt_tokens": 64})


def ratio(value: float, spread: float = 0.02) -> Ratio:
    return Ratio(value=value, ci_low=value * (1 - spread), ci_high=value * (1 + spread))


def candidate(
    name: str, status: str, speed: float, quality: float, *, reason: str = "as measured", megabytes: int = 180, width: float = 0.002
) -> Candidate:
    """A measured candidate; `speed` is against the original, whose baseline is 1.6 times as fast."""
    verdict = {"accepted": "accept", "rejected": "reject"}.get(status, "inconclusive")
    return Candidate.model_validate({
        "name": name, "status": status, "reason": reason, "engine": "ort_genai",
        "steps": (Step(technique="onnx_genai", params={"precision": "int8", "keep": ["head"]}),),
        "artifact": Artifact(digest="ab" * 32, path="/store/ab", bytes=megabytes * 10**6, traits=("onnx_genai",), effective_bits=8.6),
        "metrics": {
            "decode_tok_s": metric(24 * speed, "tok/s"), "ttft_ms": metric(120 / speed, "ms"), "tpot_ms": metric(41 / speed, "ms"),
            "throughput_tok_s@1": metric(23 * speed, "tok/s"), "throughput_tok_s@4": metric(50 * speed, "tok/s"),
            "peak_memory_bytes": Metric(value=3.1e9 / speed, unit="bytes"), "load_s": Metric(value=2.1, unit="s"),
        },
        "quality": Quality(metric="likelihood", ratio=quality, ci_low=quality - width, ci_high=quality + width, n=16384, verdict=verdict),
        "speedup": {"vs_original": ratio(speed), "vs_baseline": ratio(speed / 1.6)},
    })  # fmt: skip


ORIGINAL = candidate("original", "accepted", 1.0, 1.0, megabytes=538).model_copy(update={"quality": None, "speedup": {"vs_original": ratio(1, 0)}})
BASELINE = candidate("baseline", "accepted", 1.6, 1.0, megabytes=538, width=0.0)
FOUND = (
    candidate("ort-int8-g32", "accepted", 4.1, 0.9962),
    candidate("ort-fp32", "accepted", 2.0, 1.0, megabytes=540),
    candidate("ort-int4-g32", "rejected", 6.2, 0.934, megabytes=110),
    candidate("ort-int8-g128", "rejected", 4.9, 0.9868),
    candidate("drop-2-layers", "inconclusive", 2.2, 0.9895),
    Candidate(name="too-big", status="infeasible", reason="needs 64 GB", engine="torch"),
    Candidate(name="late", status="skipped", reason="expected 90 s, 12 s were left", engine="torch"),
    Candidate(name="broken", status="failed", reason="its process died; see logs", engine="torch"),
)


def run_folder(
    path: Path, *, references: bool = True, found: tuple[Candidate, ...] = FOUND, finished: bool = True, slo: str = "", objective: str = "latency",
    **model: Any,
) -> RunFolder:  # fmt: skip
    """A run folder with the journal that a driver would have written."""
    spec = build({"model": "smollm2-135m", "budget": "10m", "slo": slo, "objective": objective})
    run = RunFolder.create(path / "run", dump(spec), ENVIRONMENT)
    run.append("run_started", budget_s=600.0, cluster={"nodes": 1})
    run.append("model_resolved", model={**MODEL, **model})
    run.append("phase", name="profile", seconds=20.0)
    run.append("profile", profile=PROFILE)
    if references:
        aa = {"value": 1.001, "ci_low": 0.99, "ci_high": 1.012}
        facts = {"source": "help texts", "digest": "ev", "available_tokens": 65536, "looks": [2048, 8192]}
        run.append("references", original=ORIGINAL.model_dump(mode="json"), baseline=BASELINE.model_dump(mode="json"), aa=aa, evaluation=facts)
        for item in found:
            run.append("candidate_finished", candidate=item.model_dump(mode="json"), seconds=31.0)
    run.append("phase", name="measure", seconds=300.0)
    run.append("phase", name="measure", seconds=45.5)
    if finished:
        run.append("run_finished", spent_s=411.0, interrupted=False, reason="everything was tried")
    return run


class Page(HTMLParser):
    """Collects what a browser would see and load."""

    VOID = frozenset({"meta", "br", "img", "link", "path", "use"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "data", "action"):
                (self.anchors if str(value).startswith("#") else self.loads).append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(run: RunFolder) -> Page:
    return Page((run.path / "report.html").read_text(encoding="utf-8"))


def steps(report: Report) -> str:
    return "\n".join(report.next_steps)
