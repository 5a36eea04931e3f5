"""Measures and judges text-to-image candidates on one node; the original and the baseline stay open as in `genopt.tasks.text_bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from genopt import clock
from genopt.measure.duel import CANDIDATE, ROLES, Comparison
from genopt.measure.exclusivity import NodeWatch
from genopt.measure.image_speed import ImageWorkload, compare, measure_aa
from genopt.measure.statistics import combine
from genopt.plan import Artifact, Candidate, Metric, Plan, Quality, Ratio, Status
from genopt.process import ImageProcess
from genopt.quality.audit import audit
from genopt.search.selection import beside
from genopt.tasks.attempts import Rows, attempt, open_references, pace_of
from genopt.tasks.base import BenchConfig, Evaluation, Progress, References
from genopt.tasks.image_data import ImageSet
from genopt.tasks.image_judge import ImageCase, ImageJudge
from genopt.tasks.sessions import RoleSessions

ROUNDS, ROUNDS_OF_LOST = 24, 4
"""Most rounds of single images; a candidate whose quality is lost gets just enough for an interval."""
SECONDS, SECONDS_OF_LOST, SECONDS_OF_REFERENCES, SECONDS_OF_AA = 20.0, 6.0, 30.0, 15.0
"""Most time for them."""


class ImageBench:
    """See `genopt.tasks.base.Bench`.

    Args:
        config: What to measure against.
        plans: The plans of the original and the baseline.
    """

    def __init__(self, config: BenchConfig, plans: tuple[Plan, Plan]) -> None:
        self._config = config
        self._plans = plans
        self._data = ImageSet.model_validate_json(Path(config.data).read_text(encoding="utf-8"))
        self._judge = ImageJudge(config, self._data, plans[0])
        self._workload = ImageWorkload(prompts=self._data.prompts, concurrency=config.concurrency)
        self._sessions = RoleSessions(config, ImageProcess)
        self._watch = NodeWatch(self._sessions.pids)
        self._baseline_ratio = Ratio(value=1.0, ci_low=1.0, ci_high=1.0)
        self._deciding: Mapping[str, Metric] = {}
        """The baseline's metrics where throughput decides."""

    def references(self, deadline: float, progress: Progress) -> References:
        """See `Bench.references`."""
        original_plan, folder = self._plans[0], Path(self._config.original)
        baseline_plan, note = open_references(
            self._sessions, self._plans, folder, deadline, progress, note="best lossless form of the original: same steps, same precision"
        )  # fmt: skip
        original, baseline = self._sessions["original"], self._sessions["baseline"]
        progress("timing baseline against original")
        found = self._compared(baseline, original, ROUNDS, SECONDS_OF_REFERENCES, ROLES, decide=self._config.batches_decide)
        progress("timing the baseline against itself (A/A)")
        aa = measure_aa(
            baseline, self._workload, seed=self._config.seed, half_width=self._config.precision, time_cap_s=SECONDS_OF_AA, watch=self._watch
        )
        self._baseline_ratio = found.ratio
        self._deciding = found.candidate_metrics if self._config.batches_decide else {}
        self._judge.prepare(original, found.baseline_metrics["latency_ms"].value / 1e3, deadline, progress)
        quality = self._judge.of_baseline(ImageCase(baseline), progress)
        unit = Ratio(value=1.0, ci_low=1.0, ci_high=1.0)
        return References(
            original=self._reference(
                original_plan, "the pipeline as it is run today", "original", found.baseline_metrics, None, {"vs_original": unit}
            ),
            baseline=self._reference(
                baseline_plan, note, "baseline", found.candidate_metrics, quality,
                {"vs_original": found.ratio, "vs_baseline": aa},
            ),
            aa=aa.model_dump(), samples=_rows("baseline", found), evaluation=self._judge.facts(),
        )  # fmt: skip

    def _reference(
        self, plan: Plan, reason: str, role: str, metrics: dict[str, Metric], quality: Quality | None, speedup: dict[str, Ratio]
    ) -> Candidate:
        folder = Path(self._config.artifact.path)
        bits = audit(folder, self._config.parameters).effective_bits
        return Candidate(
            name=plan.name, status="accepted", reason=reason, steps=plan.steps, engine=plan.engine, options=plan.options,
            artifact=self._config.artifact.model_copy(update={"effective_bits": bits}),
            metrics=self._sessions.under_conditions(role, metrics | self._sessions.loading(role, folder)), quality=quality, speedup=speedup,
        )  # fmt: skip

    def _compared(
        self, candidate: ImageProcess, baseline: ImageProcess, rounds: int, time_cap_s: float, batched: tuple[str, ...], *, decide: bool
    ) -> Comparison:  # fmt: skip
        return compare(
            candidate, baseline, self._workload, seed=self._config.seed, half_width=self._config.precision, max_rounds=rounds,
            time_cap_s=time_cap_s, batched=batched, batches_decide=decide, watch=self._watch,
        )  # fmt: skip

    def evaluate(self, plan: Plan, artifact: Artifact, deadline: float, progress: Progress) -> Evaluation:
        """See `Bench.evaluate`."""

        def measure(audited: Artifact, session: ImageProcess) -> tuple[Candidate, Rows]:
            return self._measure(plan, audited, session, deadline, progress)

        return attempt(self._config, self._sessions, plan, artifact, deadline, progress, measure)

    def _measure(self, plan: Plan, artifact: Artifact, session: ImageProcess, deadline: float, progress: Progress) -> tuple[Candidate, Rows]:
        case = ImageCase(session)
        lost = self._judge.first_look(case, progress).verdict in ("reject", "anomalous")
        progress("timing against the baseline")
        cap = min(SECONDS_OF_LOST if lost else SECONDS, max(2.0, deadline - clock.now()))
        found = self._compared(
            session, self._sessions["baseline"], ROUNDS_OF_LOST if lost else ROUNDS, cap, CANDIDATE, decide=self._config.batches_decide and not lost
        )
        quality = self._judge.verdict(case, deadline, progress)
        status, reason = outcome(quality, pace_of(found, self._deciding), self._config.quality)
        loading = self._sessions.loading("candidate", Path(artifact.path))
        candidate = Candidate(
            name=plan.name, status=status, reason=reason, steps=plan.steps, engine=plan.engine, options=plan.options, artifact=artifact,
            metrics=self._sessions.under_conditions(
                "candidate", found.candidate_metrics | beside(found.candidate_metrics, self._deciding) | loading
            ),
            quality=quality, speedup={"vs_original": combine(found.ratio, self._baseline_ratio), "vs_baseline": found.ratio},
        )  # fmt: skip
        return candidate, _rows(plan.name, found)

    def lost(self) -> bool:
        """See `Bench.lost`."""
        return self._sessions.lost()

    def close(self) -> None:
        """See `Bench.close`."""
        self._sessions.close()


def _rows(name: str, found: Comparison) -> tuple[dict[str, object], ...]:
    return tuple({"candidate": name, **sample} for sample in found.raw)


def outcome(quality: Quality, pace: str, bar: float) -> tuple[Status, str]:
    """Status and the reason that the report shows: the same images made faster are told from different ones that are as good.

    Args:
        quality: The verdict.
        pace: How fast it was, in words.
        bar: The quality bar.
    """
    if quality.verdict == "anomalous":
        return "rejected", f"implausible images ({quality.details['anomaly']}); {pace}"
    same = bool(quality.details.get("same_images"))
    likeness = f"mean SSIM {quality.details.get('ssim', 0.0):.3f}"
    if quality.metric == "ssim":
        score = f"{likeness} over {quality.n} images, without a scorer"
    else:
        interval = f"{quality.ratio:.4f} [{quality.ci_low:.4f}, {quality.ci_high:.4f}]"
        score = f"{quality.metric} {interval} of the original over {quality.n} images, {likeness}"
    if not bar and quality.verdict == "accept":
        return "accepted", f"nothing is asked of its quality; {pace}"
    if quality.verdict == "accept":
        what = "the same images" if same else "different images, as good as the original's"
        return "accepted", f"{what} ({score}): holds the bar of {bar:g}; {pace}"
    if quality.verdict == "reject":
        return "rejected", f"worse images ({score}): below the bar of {bar:g}; {pace}"
    return "inconclusive", f"{'the same' if same else 'different'} images ({score}), undecided: {quality.details['reason']}; {pace}"
