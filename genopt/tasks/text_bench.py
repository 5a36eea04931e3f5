"""Measures and judges language-model candidates on one node.

The original and the baseline stay open in processes of their own for the whole run: the baseline so
that every candidate is timed interleaved with it, the original so that the gate can ask for more
reference tokens when a verdict needs them. Idle sessions wait on a pipe and use no processor time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from genopt import clock
from genopt.measure.duel import CANDIDATE
from genopt.measure.exclusivity import NodeWatch, Watch
from genopt.measure.knee import knee
from genopt.measure.queueing import Load, Queued, measure_queue
from genopt.measure.statistics import combine
from genopt.measure.text_speed import TextWorkload, compare, measure_aa
from genopt.plan import Artifact, Candidate, Earlier, Metric, Plan, Quality, Ratio, Status
from genopt.process import SessionProcess
from genopt.quality.audit import audit
from genopt.search.selection import beside
from genopt.spec import parse_arrivals
from genopt.tasks.attempts import Rows, attempt, open_references, pace_of
from genopt.tasks.base import BenchConfig, Evaluation, Progress, References, told
from genopt.tasks.text_data import TextSet
from genopt.tasks.text_evidence import Case
from genopt.tasks.text_judge import TextJudge
from genopt.tasks.text_sessions import BenchSessions

ROUNDS, ROUNDS_OF_LOST = 24, 5
"""Most rounds of single streams; a candidate whose quality is lost gets just enough for an interval."""
SECONDS, SECONDS_OF_LOST, SECONDS_OF_REFERENCES, SECONDS_OF_AA = 14.0, 6.0, 20.0, 8.0
"""Most time for them."""
SECONDS_OF_ARRIVALS, SECONDS_OF_ARRIVALS_OF_LOST = 12.0, 4.0
"""Most time for requests that arrive by themselves, where the spec asks for such."""


class TextBench:
    """See `genopt.tasks.base.Bench`.

    Args:
        config: What to measure against.
        plans: The plans of the original and the baseline.
        watch: Notices what else happens on the node; None watches its processors and GPUs.
    """

    def __init__(self, config: BenchConfig, plans: tuple[Plan, Plan], watch: Watch | None = None) -> None:
        self._config = config
        self._plans = plans
        self._data = TextSet.model_validate_json(Path(config.data).read_text(encoding="utf-8"))
        self._judge = TextJudge(config, self._data, plans[0])
        self._workload = TextWorkload(prompts=self._data.prompts, output_tokens=config.output_tokens, concurrency=config.concurrency)
        self._sessions = BenchSessions(config)
        self._watch = watch or NodeWatch(self._sessions.pids)
        self._arrivals = parse_arrivals(config.arrivals)
        self._baseline_ratio = Ratio(value=1.0, ci_low=1.0, ci_high=1.0)
        self._deciding: Mapping[str, Metric] = {}
        """The baseline's metrics where throughput decides."""

    def references(self, deadline: float, progress: Progress) -> References:
        """See `Bench.references`."""
        original_plan, folder = self._plans[0], Path(self._config.original)
        baseline_plan, note = open_references(
            self._sessions, self._plans, folder, deadline, progress,
            note="best lossless form of the original in PyTorch: the decode step of a single stream compiled, batches as they are, same precision",
        )  # fmt: skip
        original, baseline = self._sessions["original"], self._sessions["baseline"]
        progress("timing baseline against original")
        seed = self._config.seed
        precision = self._config.precision
        found = compare(
            baseline, original, self._workload, seed=seed, half_width=precision, max_rounds=ROUNDS, time_cap_s=SECONDS_OF_REFERENCES,
            batches_decide=self._config.batches_decide, watch=self._watch,
        )  # fmt: skip
        progress("timing the baseline against itself (A/A)")
        aa = measure_aa(baseline, self._workload, seed=seed, half_width=precision, time_cap_s=SECONDS_OF_AA, watch=self._watch)
        self._baseline_ratio = found.ratio
        self._deciding = found.candidate_metrics if self._config.batches_decide else {}
        queued = [
            self._queue(session, role, metrics, SECONDS_OF_ARRIVALS, progress)
            for session, role, metrics in ((original, "baseline", found.baseline_metrics), (baseline, "candidate", found.candidate_metrics))
        ]  # fmt: skip
        progress("scoring the evaluation text with the original")
        self._judge.prepare(original)
        case = Case(baseline, baseline_plan, self._config.artifact)
        quality = self._judge.first_look(case, progress)
        unit = Ratio(value=1.0, ci_low=1.0, ci_high=1.0)
        return References(
            original=self._candidate(
                original_plan, "the model as it is run today", "original", found.baseline_metrics | queued[0].metrics, None, {"vs_original": unit}
            ),
            baseline=self._candidate(
                baseline_plan, note, "baseline", found.candidate_metrics | queued[1].metrics,
                quality.model_copy(update={"verdict": "reference"}), {"vs_original": found.ratio, "vs_baseline": aa},
            ).model_copy(update={"earlier": tuple(case.earlier)}),
            aa=aa.model_dump(), samples=_rows("baseline", found.raw, *(one.raw for one in queued)), evaluation=self._judge.facts(),
        )  # fmt: skip

    def _candidate(
        self, plan: Plan, reason: str, role: str, metrics: dict[str, Metric], quality: Quality | None, speedup: dict[str, Ratio]
    ) -> Candidate:
        bits = audit(Path(self._config.artifact.path), self._config.parameters).effective_bits
        resources = self._sessions.resources(role, Path(self._config.artifact.path), self._workload)
        return Candidate(
            name=plan.name, status="accepted", reason=reason, steps=plan.steps, engine=plan.engine, options=plan.options,
            artifact=self._config.artifact.model_copy(update={"effective_bits": bits}),
            metrics=self._sessions.under_conditions(role, metrics | resources), quality=quality, speedup=speedup,
        )  # fmt: skip

    def evaluate(self, plan: Plan, artifact: Artifact, deadline: float, progress: Progress) -> Evaluation:
        """See `Bench.evaluate`."""

        def measure(audited: Artifact, session: SessionProcess) -> tuple[Candidate, Rows]:
            return self._measure(plan, audited, session, deadline, progress)

        return attempt(self._config, self._sessions, plan, artifact, deadline, progress, measure)

    def _measure(self, plan: Plan, artifact: Artifact, session: SessionProcess, deadline: float, progress: Progress) -> tuple[Candidate, Rows]:
        case = Case(session, plan, artifact)
        quick = self._judge.first_look(case, progress)
        lost = quick.verdict in ("reject", "anomalous")
        progress("timing against the baseline")
        cap = min(SECONDS_OF_LOST if lost else SECONDS, max(2.0, deadline - clock.now()))
        found = compare(
            session, self._sessions["baseline"], self._workload, seed=self._config.seed, half_width=self._config.precision,
            max_rounds=ROUNDS_OF_LOST if lost else ROUNDS, time_cap_s=cap, batched=CANDIDATE,
            batches_decide=self._config.batches_decide and not lost, watch=self._watch,
        )  # fmt: skip
        patience_s = SECONDS_OF_ARRIVALS_OF_LOST if lost else min(SECONDS_OF_ARRIVALS, max(2.0, deadline - clock.now()))
        queued = self._queue(session, "candidate", found.candidate_metrics, patience_s, progress)
        quality = self._judge.verdict(case, deadline, progress)
        status, reason = _outcome(quality, pace_of(found, self._deciding), self._config.quality, case.earlier)
        speedup = {"vs_original": combine(found.ratio, self._baseline_ratio), "vs_baseline": found.ratio}
        resources = self._sessions.resources("candidate", Path(artifact.path), self._workload)
        metrics = found.candidate_metrics | beside(found.candidate_metrics, self._deciding) | queued.metrics | resources
        candidate = Candidate(
            name=plan.name, status=status, reason=reason, steps=plan.steps, engine=plan.engine, options=plan.options, artifact=artifact,
            metrics=self._sessions.under_conditions("candidate", metrics), quality=quality, speedup=speedup, earlier=tuple(case.earlier),
        )  # fmt: skip
        return candidate, _rows(plan.name, found.raw, queued.raw)

    def _queue(self, session: SessionProcess, role: str, metrics: dict[str, Metric], time_cap_s: float, progress: Progress) -> Queued:
        """What callers wait where the spec says how requests arrive; with the batches that a deployment would allow."""
        if self._arrivals is None:
            return Queued(metrics={}, raw=())
        kind, rate = self._arrivals
        progress(f"timing requests that arrive {rate:g} times a second ({kind})")
        streams = {count: metrics[f"throughput_tok_s@{count}"].value for count in self._workload.concurrency}
        load = Load(kind=kind, rate=rate, max_batch=knee(streams))
        return measure_queue(session, self._workload, load, name=role, seed=self._config.seed, time_cap_s=time_cap_s, watch=self._watch)

    def lost(self) -> bool:
        """See `Bench.lost`."""
        return self._sessions.lost()

    def close(self) -> None:
        """See `Bench.close`."""
        self._sessions.close()


def _rows(name: str, *raw: tuple[dict[str, object], ...]) -> tuple[dict[str, object], ...]:
    return tuple({"candidate": name, **sample} for rows in raw for sample in rows)


def _outcome(quality: Quality, pace: str, bar: float, earlier: Sequence[Earlier]) -> tuple[Status, str]:
    """Status and the reason that the report shows."""
    interval = f"{quality.ratio:.4f} [{quality.ci_low:.4f}, {quality.ci_high:.4f}] of the original over {quality.n} tokens"
    if earlier:
        interval += f" (scored by {', '.join(map(told, earlier))})"
    if not bar and quality.verdict == "accept":
        return "accepted", f"nothing is asked of its quality; {pace}"
    if quality.verdict == "accept":
        return "accepted", f"quality {interval} holds the bar of {bar:g}; {pace}"
    if quality.verdict == "reject":
        return "rejected", f"quality {interval} is below the bar of {bar:g}; {pace}"
    if quality.verdict == "anomalous":
        return "rejected", f"implausible output ({quality.details['anomaly']}); {pace}"
    return "inconclusive", f"quality {interval} neither clears nor misses the bar of {bar:g} ({quality.details['reason']}); {pace}"
