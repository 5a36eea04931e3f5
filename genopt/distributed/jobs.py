"""The verbs as Ray jobs: submits a command, follows its log through lost connections, passes its exit code on, lists and stops."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from genopt.distributed.cluster import TOKEN_REMEDY, present_token
from genopt.distributed.job_log import POLL_S, Write, follow
from genopt.distributed.upload import working_folder
from genopt.errors import ClusterError, SpecError
from genopt.plan import Record
from genopt.serving.binding import is_loopback

DASHBOARD = "http://127.0.0.1:8265"
VERBS = ("optimize", "resume", "report", "deploy", "undeploy", "status", "doctor", "profile", "plan")
OURS = "genopt"
"""Key of a job's metadata: the command."""
STOP_S = 90.0
"""Longest wait for a job that was told to stop; its report takes seconds, and the cluster kills it when its own patience ends."""
START_TIMEOUT = "after 15 minutes unless RAY_JOB_START_TIMEOUT_SECONDS says otherwise on the head"
PENDING_S = 10.0
"""How long a job may wait for its start before its user is told why."""
CHATTY = ("ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Loggers of Ray that tell users of each connection that ended and each file that was packed."""


class Entrypoint(Record):
    """What a job's own process takes of the cluster; nothing leaves it on the head.

    Attributes:
        num_cpus: Processors.
        memory: Bytes.
        labels: Labels of the node that it runs on.
    """

    num_cpus: float = Field(default=0.0, ge=0)
    memory: int = Field(default=0, ge=0)
    labels: dict[str, str] = {}


class Job(Record):
    """A submitted command.

    Attributes:
        id: Its name, for `genopt jobs` and `genopt stop`.
        command: The verb and its arguments.
        status: As Ray says it, such as RUNNING.
        started: Unix time; None before it starts.
        ended: Unix time; None before it ends.
        exit_code: Of the command; None before it ends, and where the job was stopped, of which Ray keeps none.
        message: What Ray says about it.
    """

    id: str
    command: str
    status: str
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str = ""

    @property
    def waits(self) -> bool:
        """Whether it has not started."""
        return self.status == str(JobStatus.PENDING.value)


class Jobs:
    """The jobs of a cluster.

    Args:
        address: The cluster's dashboard; None takes `RAY_API_SERVER_ADDRESS` or this machine's.

    Raises:
        ClusterError: The dashboard does not answer, or refuses the token.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
        present_token()
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self._client = JobSubmissionClient(self.address)
        except AuthenticationError:
            raise ClusterError(f"The Ray dashboard at {self.address} refused the token; {TOKEN_REMEDY}.") from None
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"No Ray dashboard answers at {self.address} ({_first_line(error)}); start a cluster with `ray start --head`, or give --address."
            ) from None

    def submit(self, words: Sequence[str], *, working_dir: Path | None = None, entrypoint: Entrypoint | None = None) -> str:
        """Starts `genopt <words>` as a job and returns its id.

        On the cluster genopt must be installed for its `python`; on this machine the job runs with this process's interpreter. Files that
        the command names by a relative path go along.

        Args:
            words: A verb and its arguments.
            working_dir: Folder that goes along as a whole instead and becomes the job's current folder.
            entrypoint: What the job's own process takes.

        Raises:
            SpecError: The verb cannot be submitted, or what should go along cannot.
            ClusterError: The cluster refuses the job, or does not answer.
        """
        require_verb(words)
        asked = entrypoint or Entrypoint()
        command = f"{_interpreter(self.address)} -m genopt {shlex.join(words)}"
        environment: dict[str, object] = {"env_vars": {"PYTHONUNBUFFERED": "1"}}
        with working_folder(words, working_dir) as folder:
            if folder is not None:
                environment["working_dir"] = str(folder)
            try:
                job: str = self._client.submit_job(
                    entrypoint=command, runtime_env=environment,
                    submission_id=f"genopt-{words[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
                    metadata={OURS: shlex.join(words)}, entrypoint_num_cpus=asked.num_cpus or None, entrypoint_memory=asked.memory or None,
                    entrypoint_label_selector=asked.labels or None,
                )  # fmt: skip
            except OSError as error:  # before the others: an answer that is no JSON is a ValueError as well
                if error.filename is not None:
                    raise SpecError(f"Cannot take {error.filename} along ({error.strerror}); make it readable, or list it in .rayignore.") from None
                raise self._silent(error) from None
            except (RuntimeError, ValueError) as error:
                raise ClusterError(f"The cluster at {self.address} refused the job ({_first_line(error)}); see `genopt doctor --address`.") from None
        return job

    def follow(self, job: str, write: Write, notice: Write = lambda _: None) -> int:
        """Writes a job's log as it comes until it ends, and returns its exit code.

        Args:
            job: Its id.
            write: Receives the log.
            notice: Told once where the job waits long for its start.

        Raises:
            SpecError: There is no such job.
            ClusterError: The dashboard was silent for too long, or the cluster lost the job.
        """
        known = self.details(job)
        patience = Patience(job, notice)

        def whole() -> str | None:
            nonlocal known
            known = self.details(job)
            patience.note(known)
            return self._log(job) if JobStatus(known.status).is_terminal() else None

        asyncio.run(follow(self._client, job, write, whole))
        return _exit_code(known)

    def listed(self) -> list[Job]:
        """The cluster's genopt jobs, the latest first.

        Raises:
            ClusterError: The dashboard does not answer.
        """
        with self._heard():
            found = self._client.list_jobs()
        ours = [_job(one) for one in found if OURS in (one.metadata or {})]
        return sorted(ours, key=lambda job: job.started or float("inf"), reverse=True)

    def stop(self, job: str) -> Job:
        """Ends a job as Ctrl-C would, so that it writes its report, and returns how it ended.

        One that nothing has room for stays `PENDING`: Ray tells it to stop when it gets its place, so there is nothing to wait for.

        Raises:
            SpecError: There is no such job.
            ClusterError: It does not end, or the dashboard does not answer.
        """
        self.details(job)
        with self._heard(job):
            self._client.stop_job(job)
        until = time.monotonic() + STOP_S
        patience = time.monotonic() + PENDING_S
        while not JobStatus((details := self.details(job)).status).is_terminal():
            if details.status == JobStatus.PENDING and time.monotonic() > patience:
                break
            if time.monotonic() > until:
                raise ClusterError(f"The job {job} did not end within {STOP_S:.0f} s; look at `genopt jobs {job}` and at `ray status`.")
            time.sleep(POLL_S)
        return _job(self.details(job))

    def details(self, job: str) -> JobDetails:
        """What Ray knows of a job.

        Raises:
            SpecError: There is no such job.
            ClusterError: The dashboard does not answer.
        """
        with self._heard(job):
            return self._client.get_job_info(job)

    def _log(self, job: str) -> str:
        with self._heard(job):
            text: str = self._client.get_job_logs(job)
        return text

    @contextmanager
    def _heard(self, job: str = "") -> Iterator[None]:
        """Tells what to do where the dashboard does not answer; its client lets the OSErrors of requests through, which are not Python's own."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if job and "does not exist" in str(error):
                raise SpecError(f"The cluster at {self.address} has no job {job!r}; see: genopt jobs.") from None
            raise self._silent(error) from None

    def _silent(self, error: Exception) -> ClusterError:
        return ClusterError(f"The Ray dashboard at {self.address} does not answer ({_first_line(error)}); see `ray status` on the cluster's head.")


class Patience:
    """Tells users once why a job does not start.

    Args:
        job: Its id.
        notice: Receives the text.
    """

    def __init__(self, job: str, notice: Write) -> None:
        self._job, self._notice = job, notice
        self._began = time.monotonic()
        self._told = False

    def note(self, details: JobDetails) -> None:
        """Takes what Ray says of the job now."""
        if details.status == JobStatus.PENDING and not self._told and time.monotonic() - self._began > PENDING_S:
            self._told = True
            reason = _first_line(RuntimeError(details.message or "no reason given."))
            self._notice(
                f"{self._job} waits for its start: {reason} `ray status` shows what is free; its own process needs no processors, so leave "
                f"--entrypoint-num-cpus, -memory and -label out. Ray gives it up {START_TIMEOUT}."
            )


def require_verb(words: Sequence[str]) -> None:
    """Refuses a command that makes no sense as a job.

    Raises:
        SpecError: Its verb is none of `VERBS`.
    """
    if not words or words[0] not in VERBS:
        raise SpecError(f"{' '.join(words) or 'nothing'!r} cannot be submitted; write for example: genopt submit -- optimize MODEL --budget 60m.")


def _interpreter(address: str) -> str:
    """Ours where it exists on the node, a loopback address being this machine's unless it is forwarded to a cluster's, as a shell reads it."""
    if is_loopback(urlsplit(address).hostname or ""):
        return f"$(command -v {shlex.quote(sys.executable)} || echo python)"
    return "python"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _job(details: JobDetails) -> Job:
    return Job(
        id=details.submission_id or "", command=(details.metadata or {}).get(OURS, details.entrypoint), status=str(JobStatus(details.status).value),
        started=_seconds(details.start_time), ended=_seconds(details.end_time), exit_code=details.driver_exit_code, message=details.message or "",
    )  # fmt: skip


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1e3 if milliseconds else None


def _exit_code(details: JobDetails) -> int:
    """The command's; where it has none the cluster ended or never started it.

    Raises:
        ClusterError: The cluster never started it, or lost it.
    """
    if details.driver_exit_code is not None and details.driver_exit_code >= 0:
        return int(details.driver_exit_code)
    if details.status == JobStatus.STOPPED:
        return 130
    raise ClusterError(f"The cluster lost the job {details.submission_id} ({_first_line(RuntimeError(details.message or 'no reason given'))}); "
                       "where it had begun a run, go on with `genopt submit -- resume RUN`.")  # fmt: skip
