"""The verbs as Ray jobs: submits a command, follows its log and passes its exit code on."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from genopt.distributed.cluster import TOKEN_REMEDY, present_token
from genopt.errors import ClusterError, SpecError

DASHBOARD = "http://127.0.0.1:8265"
VERBS = ("optimize", "resume", "report", "deploy", "undeploy", "status", "doctor", "profile", "plan")


def submit_verb(words: Sequence[str], *, address: str | None, working_dir: Path | None, write: Callable[[str], object]) -> int:
    """Runs `genopt <words>` as a Ray job.

    On the cluster genopt must be installed. A job on this machine runs with this process's interpreter, any
    other with the cluster's `python`.

    Args:
        words: A verb and its arguments.
        address: The cluster's dashboard; None takes `RAY_API_SERVER_ADDRESS` or this machine's.
        working_dir: Folder that is uploaded and becomes the job's current folder.
        write: Receives the job's log as it comes.

    Returns:
        The job's exit code; 130 when Ctrl-C stopped it.

    Raises:
        SpecError: The verb cannot be submitted.
        ClusterError: The dashboard does not answer.
    """
    if not words or words[0] not in VERBS:
        raise SpecError(f"{' '.join(words) or 'nothing'!r} cannot be submitted; write for example: genopt submit -- optimize MODEL --budget 60m.")
    target = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
    interpreter = sys.executable if urlsplit(target).hostname in ("127.0.0.1", "localhost", "::1") else "python"
    environment: dict[str, object] = {"working_dir": str(working_dir)} if working_dir is not None else {}
    client = _client(target)
    try:
        job = client.submit_job(entrypoint=shlex.join([interpreter, "-m", "genopt", *words]), runtime_env=environment)
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"The cluster at {target} refused the job ({_first_line(error)}); see `genopt doctor --address`.") from None
    write(f"{job} runs at {target}\n")
    try:
        asyncio.run(_follow(client, job, write))
    except KeyboardInterrupt:
        client.stop_job(job)
        write(f"{job} was told to stop; it writes its report first (ray job logs {job}).\n")
        return 130
    return _exit_code(client, job)


def _client(target: str) -> JobSubmissionClient:
    present_token()
    try:
        return JobSubmissionClient(target)
    except AuthenticationError:
        raise ClusterError(f"The Ray dashboard at {target} refused the token; {TOKEN_REMEDY}.") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"No Ray dashboard answers at {target} ({_first_line(error)}); start a cluster with `ray start --head`, or give --address."
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


async def _follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> None:
    async for text in client.tail_job_logs(job):
        write(text)


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    details = client.get_job_info(job)
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    return 0 if details.status == JobStatus.SUCCEEDED else 1
