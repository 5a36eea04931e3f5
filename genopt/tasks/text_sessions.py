"""The engine sessions that a text bench keeps open: original, baseline, and one candidate at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from genopt import clock
from genopt.engines.base import GenerationRequest
from genopt.errors import StageError
from genopt.measure.affinity import cpus_for
from genopt.measure.energy import joules_per_token
from genopt.measure.limits import cpu_list
from genopt.measure.page_cache import drop_pages
from genopt.measure.text_speed import TextWorkload
from genopt.plan import JsonValue, Metric, Plan
from genopt.process import SessionProcess
from genopt.quality.audit import audit
from genopt.tasks.base import BenchConfig, session_options
from genopt.tasks.session_memory import memory_metrics

QUICK_LOAD_S = 5.0
"""What loads within this time is loaded twice, from disk and from memory."""
ENERGY_PROMPTS = 3


class BenchSessions:
    """Sessions by role, each in a process of its own; idle ones wait on a pipe.

    Args:
        config: The bench's.
    """

    def __init__(self, config: BenchConfig) -> None:
        self._config = config
        self._sessions: dict[str, SessionProcess] = {}
        self._cold_s: dict[str, float] = {}

    def __getitem__(self, role: str) -> SessionProcess:
        """The open session of a role."""
        return self._sessions[role]

    def pids(self) -> list[int]:
        """Process ids of all open sessions."""
        return [session.pid for session in self._sessions.values()]

    def open(self, role: str, plan: Plan, artifact: Path, deadline: float) -> SessionProcess:
        """Opens a session from disk, and again from memory where that is quick, so that both times are known.

        Raises:
            GenoptError: The engine refused, failed or took too long, or the time is up.
        """
        drop_pages(artifact)
        session = self._session(plan, artifact, deadline).open()
        self._cold_s[role] = session.load_s
        if session.load_s <= QUICK_LOAD_S:
            session.close()
            session = self._session(plan, artifact, deadline).open()
        self._sessions[role] = session
        return session

    def _session(self, plan: Plan, artifact: Path, deadline: float) -> SessionProcess:
        left = deadline - clock.now()
        if left <= 1:
            raise StageError("The budget ended before this candidate could be opened; give a larger --budget.")
        options = session_options(plan, self._config.threads)
        threads = options["threads"]
        log = Path(self._config.logs) / f"{plan.name}.session.log"
        return SessionProcess(
            plan.engine, artifact, options, log=log, timeout_s=left, lifetime_s=left, threads=threads if isinstance(threads, int) else None,
            environment=self._config.environment, cpus=cpus_for(threads if isinstance(threads, int) else None),
        )  # fmt: skip

    def resources(self, role: str, artifact: Path, workload: TextWorkload) -> dict[str, Metric]:
        """What a session took to load, to hold and, where that is counted, in energy."""
        session, cold_s = self._sessions[role], self._cold_s[role]
        what = "start of the process until it can generate"
        cold = Metric(value=cold_s, unit="s", conditions={"what": what, "files": "on disk"})
        warm = Metric(value=session.load_s, unit="s", conditions={"what": what, "files": "in memory"})
        found = {
            "load_s": warm if cold_s <= QUICK_LOAD_S else cold, "load_cold_s": cold,
            "weights_bytes": Metric(value=float(audit(artifact, 0).bytes), unit="bytes", conditions={"what": "weight files on disk"}),
            **memory_metrics(session, context=max(map(len, workload.prompts)) + workload.output_tokens),
        }  # fmt: skip
        joules = joules_per_token(lambda: self._answered(session, workload))
        if joules is not None:
            found["energy_j_per_token"] = Metric(value=joules, unit="J/token", conditions={"what": "prompt and answer of a single stream"})
        return found

    def under_conditions(self, role: str, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """The metrics with the threads and processors that their session had."""
        session = self._sessions[role]
        where: dict[str, JsonValue] = {"threads": session.threads, "cpus": cpu_list(session.cpus) if session.cpus else None}
        return {name: found.model_copy(update={"conditions": {**found.conditions, **where}}) for name, found in metrics.items()}

    @staticmethod
    def _answered(session: SessionProcess, workload: TextWorkload) -> int:
        """Answers a few prompts one after the other; returns the number of new tokens."""
        asked = [GenerationRequest(prompt_ids=prompt, max_new_tokens=workload.output_tokens) for prompt in workload.prompts[:ENERGY_PROMPTS]]
        return sum(len(session.generate([request])[0].token_ids) for request in asked)

    def close(self, *roles: str) -> None:
        """Ends the sessions of some roles, open or not; all of them where none is named."""
        for role in roles or tuple(self._sessions):
            session = self._sessions.pop(role, None)
            if session is not None:
                session.close()
