"""A finished run on the fake engine, as its driver would have left it: for whatever reads runs."""

from __future__ import annotations

from pathlib import Path

from genopt.plan import Artifact, Candidate, JsonValue, Metric, Plan, Quality, Ratio, Status, Verdict
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder
from genopt.testing.fake_task import fake_plan, write_fake_model

WINNER = "quick"
REJECTED = "quick-but-wrong"


def write_fake_run(folder: Path, *, answers: dict[str, str] | None = None, traits: tuple[str, ...] = ("hf",), **options: JsonValue) -> RunFolder:
    """Writes a run whose winner is `quick`, with a rejected, a failed and the two reference candidates; returns its folder.

    The model lies beside the run. Needs the fake engine's plugin (`genopt.testing.plugin`) where something is opened.

    Args:
        folder: Of the run; must not exist.
        answers: What each candidate answers to everything, by name; its own name unless given.
        traits: Of every candidate's artifact.
        options: Further options of the fake engine.
    """
    model = folder.parent / f"{folder.name}-model"
    write_fake_model(model)
    artifact = Artifact(digest="d1" * 32, path=str(model.absolute()), bytes=2064, traits=traits)

    def candidate(name: str, speed: float, verdict: Verdict | None, status: Status = "accepted") -> Candidate:
        plan = fake_plan(name, text=(answers or {}).get(name, f"{name} says so. "), **options)
        return _candidate(plan, artifact, speed, verdict, status)

    run = RunFolder.create(folder, dump(build({"model": str(model), "budget": "10m"})), {"hardware": {}, "environment": {}})
    run.append("run_started", budget_s=600.0, cluster={"nodes": 1, "cpus": 2, "gpus": 0})
    run.append("model_resolved", model={
        "id": str(model), "path": str(model.absolute()), "library": "transformers", "modality": "text", "task": "fake-text",
        "architecture": "LlamaForCausalLM", "digest": artifact.digest, "parameters": 1032, "bytes": 2064, "dtype": "bfloat16",
        "max_context": 512,
    })  # fmt: skip
    run.append(
        "references", original=candidate("original", 1.0, None).model_dump(mode="json"),
        baseline=candidate("baseline", 1.5, "reference").model_dump(mode="json"), aa={"value": 1.0, "ci_low": 0.99, "ci_high": 1.01},
        evaluation={},
    )  # fmt: skip
    failed = Candidate(name="broken", status="failed", reason="its process died", engine="fake")
    for found in (candidate(WINNER, 3.0, "accept"), candidate(REJECTED, 6.0, "reject", "rejected"), failed):
        run.append("candidate_finished", candidate=found.model_dump(mode="json"), seconds=1.0)
    run.append("run_finished", spent_s=60.0, interrupted=False, reason="everything was tried")
    return run


def _candidate(plan: Plan, artifact: Artifact, speed: float, verdict: Verdict | None, status: Status) -> Candidate:
    ratio = 0.9 if verdict == "reject" else 0.997
    low, high = ratio - 0.002, ratio + 0.002
    quality = Quality(metric="likelihood_ratio", ratio=ratio, ci_low=low, ci_high=high, n=8192, verdict=verdict) if verdict else None

    def speedup(value: float) -> Ratio:
        return Ratio(value=value, ci_low=0.98 * value, ci_high=1.02 * value)

    return Candidate(
        name=plan.name, status=status, reason="as measured", engine=plan.engine, options=plan.options, artifact=artifact,
        metrics={"decode_tok_s": Metric(value=20 * speed, unit="tok/s")}, quality=quality,
        speedup={"vs_original": speedup(speed), "vs_baseline": speedup(speed / 1.5)},
    )  # fmt: skip
