"""The engine sessions that a bench keeps open: original, baseline, and one candidate at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from genopt import clock
from genopt.errors import StageError
from genopt.measure.affinity import cpus_for
from genopt.measure.limits import cpu_list, usable_cpus
from genopt.measure.page_cache import drop_pages, where_files_are
from genopt.plan import JsonValue, Metric, Plan
from genopt.process import EngineProcess
from genopt.quality.audit import audit
from genopt.session_worker import ReadyWorker
from genopt.tasks.base import BenchConfig, session_options
from genopt.tasks.session_memory import memory_metrics

CPUS_FOR_TWO = 8
"""Processors from which on one session opens as fast while another process imports what the next one needs."""
QUICK_LOAD_S = 5.0
"""What loads within this time is loaded twice, from disk and from memory."""

Process = TypeVar("Process", bound=EngineProcess)


class _FirstOpening(NamedTuple):
    """What opening a session took at first, and where its files were then."""

    seconds: float
    files: str


class RoleSessions(Generic[Process]):
    """Sessions by role, each in a process of its own; idle ones wait on a pipe.

    Args:
        config: The bench's.
        process: What sessions of the task's modality are.
    """

    def __init__(self, config: BenchConfig, process: type[Process]) -> None:
        self._config = config
        self._process = process
        self._sessions: dict[str, Process] = {}
        self._first: dict[str, _FirstOpening] = {}
        self._ready = ReadyWorker(Path(config.logs) / "ready.session.log")

    def __getitem__(self, role: str) -> Process:
        """The open session of a role."""
        return self._sessions[role]

    def pids(self) -> list[int]:
        """Process ids of all open sessions."""
        return [session.pid for session in self._sessions.values()]

    def lost(self) -> bool:
        """Whether one that was opened and not closed here has died or was given up."""
        return not all(session.alive for session in list(self._sessions.values()))

    def open(self, role: str, plan: Plan, artifact: Path, deadline: float) -> Process:
        """Opens a session from disk, and again from memory where that is quick, so that both times are known.

        What another session keeps mapped stays in memory, as the original's files do, and then no time from disk is known.

        Raises:
            GenoptError: The engine refused, failed or took too long, or the time is up.
        """
        drop_pages(artifact)
        files = where_files_are(artifact)
        session = self._session(plan, artifact, deadline)
        if len(usable_cpus()) >= CPUS_FOR_TWO:
            session.open(self._ready.exchange(session.setting))
            self._ready.settle()
        else:
            session.open()
        self._first[role] = _FirstOpening(session.load_s, files)
        if session.load_s <= QUICK_LOAD_S:
            session.close()
            session = self._session(plan, artifact, deadline).open()
        self._sessions[role] = session
        return session

    def _session(self, plan: Plan, artifact: Path, deadline: float) -> Process:
        left = deadline - clock.now()
        if left <= 1:
            raise StageError("The budget ended before this candidate could be opened; give a larger --budget.")
        options = session_options(plan, self._config.threads)
        threads = options["threads"]
        log = Path(self._config.logs) / f"{plan.name}.session.log"
        return self._process(
            plan.engine, artifact, options, log=log, timeout_s=left, lifetime_s=left, threads=threads if isinstance(threads, int) else None,
            environment=self._config.environment, cpus=cpus_for(threads if isinstance(threads, int) else None),
        )  # fmt: skip

    def loading(self, role: str, artifact: Path, *, context: int = 0) -> dict[str, Metric]:
        """What a session took to load and to hold.

        Args:
            role: Of an open session.
            artifact: What it has open.
            context: Tokens of one measured request with its answer, where there are such.
        """
        session, first = self._sessions[role], self._first[role]
        what = "start of the process until it can generate"
        cold = Metric(value=first.seconds, unit="s", conditions={"what": what, "files": first.files})
        warm = Metric(value=session.load_s, unit="s", conditions={"what": what, "files": "in memory"})
        return {
            "load_s": warm if first.seconds <= QUICK_LOAD_S else cold, **({"load_cold_s": cold} if first.files == "on disk" else {}),
            "weights_bytes": Metric(value=float(audit(artifact, 0).bytes), unit="bytes", conditions={"what": "weight files on disk"}),
            **memory_metrics(session, context=context),
        }  # fmt: skip

    def under_conditions(self, role: str, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """The metrics with the threads and processors that their session had."""
        session = self._sessions[role]
        where: dict[str, JsonValue] = {"threads": session.threads, "cpus": cpu_list(session.cpus) if session.cpus else None}
        return {name: found.model_copy(update={"conditions": {**found.conditions, **where}}) for name, found in metrics.items()}

    def close(self, *roles: str) -> None:
        """Ends the sessions of some roles, open or not; where none is named, all of them and what was made ready."""
        if not roles:
            self._ready.close()
        for role in roles or tuple(self._sessions):
            session = self._sessions.pop(role, None)
            if session is not None:
                session.close()
