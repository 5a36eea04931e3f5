"""Follows the log of a Ray job, through connections that break and a head that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import aiohttp
from ray.job_submission import JobSubmissionClient

from genopt.errors import ClusterError

SILENCE_S = 120.0
"""How long a dashboard may not answer before a log is no longer followed: a restarting head takes tens of seconds."""
POLL_S = 0.5
"""How often the state of a job is asked for."""
Write = Callable[[str], object]


async def follow(client: JobSubmissionClient, job: str, write: Write, whole: Callable[[], str | None]) -> None:
    """Writes a job's log as it comes until the job has ended.

    Ray's own tail sees the end seconds late, so that the end is asked for, and the rest of the log fetched then.

    Args:
        client: Of the dashboard.
        job: Its id.
        write: Receives every part of the log once.
        whole: Asks the dashboard for the whole log of a job that has ended; None while it goes on.

    Raises:
        ClusterError: The dashboard was silent for too long.
    """
    log = _Log(write)
    tail = asyncio.create_task(_tail(client, job, log))
    heard = time.monotonic()
    try:
        while True:
            try:
                text = await asyncio.to_thread(whole)
                heard = time.monotonic()
            except ClusterError as error:
                text = None
                if time.monotonic() - heard > SILENCE_S:
                    raise ClusterError(f"{error} The job may go on: genopt jobs {job}.") from None
            if text is not None:
                log.have(0, text)
                return
            await asyncio.sleep(POLL_S)
    finally:
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)


async def _tail(client: JobSubmissionClient, job: str, log: _Log) -> None:
    """Connects as often as it takes; Ray sends the log from its beginning each time."""
    while True:
        position = 0
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
            async for text in client.tail_job_logs(job):
                log.have(position, text)
                position += len(text)
        await asyncio.sleep(POLL_S)


class _Log:
    """Writes what it has not written yet.

    Args:
        write: Receives it.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._written = 0

    def have(self, position: int, text: str) -> None:
        """Takes the part of the log that begins at a position."""
        fresh = text[max(0, self._written - position) :]
        self._written = max(self._written, position + len(text))
        if fresh:
            self._write(fresh)
