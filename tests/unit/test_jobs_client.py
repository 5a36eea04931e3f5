"""What is said and done where a cluster's dashboard goes away, and comes back or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from genopt.distributed import job_log
from genopt.distributed.jobs import Jobs
from genopt.errors import ClusterError

JOB = "genopt-optimize-1"
LOG = "first\nsecond\n"


def details(status: str, exit_code: int | None = None) -> dict[str, Any]:
    return {"type": "SUBMISSION", "submission_id": JOB, "entrypoint": "genopt", "status": status, "driver_exit_code": exit_code}


class Dashboard(ThreadingHTTPServer):
    """As much of Ray's as its client of jobs asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.silent = False
        self.asked: list[str] = []
        self.job = details("RUNNING")
        self.before: Callable[[str], None] = lambda _: None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        if not self.path.endswith("/tail"):
            self.server.before(self.path)
            self.server.asked.append(self.path)
        if self.server.silent:
            return  # the connection is closed without an answer, as when the dashboard's process ends
        content = {
            "/api/version": {"ray_version": "2.60.0", "version": "4", "ray_commit": "", "session_name": ""},
            f"/api/jobs/{JOB}": self.server.job, f"/api/jobs/{JOB}/logs": {"logs": LOG},
        }.get(self.path)  # fmt: skip
        body = json.dumps(content).encode()
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(job_log, "POLL_S", 0.01)
    with Dashboard() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_log_is_followed_through_connections_that_break(dashboard: Dashboard) -> None:
    info, logs = f"/api/jobs/{JOB}", f"/api/jobs/{JOB}/logs"

    def before(path: str) -> None:
        """Breaks the second and third question for the job, then the first one for its log."""
        questions = dashboard.asked.count(info) + (path == info)
        dashboard.silent = (path == info and questions in (2, 3)) or (path == logs and logs not in dashboard.asked)
        if questions > 4:
            dashboard.job = details("SUCCEEDED", exit_code=3)

    written: list[str] = []
    jobs = Jobs(dashboard.address)
    dashboard.before = before
    assert jobs.follow(JOB, written.append) == 3
    assert "".join(written) == LOG
    assert dashboard.asked.count(logs) == 2


def test_a_dashboard_that_stays_away_is_given_up_with_what_to_do(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "SILENCE_S", 0.1)
    jobs = Jobs(dashboard.address)

    def before(_: str) -> None:
        dashboard.silent = f"/api/jobs/{JOB}" in dashboard.asked

    dashboard.before = before
    with pytest.raises(ClusterError, match=rf"does not answer .* see `ray status` .* The job may go on: genopt jobs {JOB}\."):
        jobs.follow(JOB, lambda _: None)


@pytest.mark.parametrize(
    "ask",
    [
        lambda jobs: jobs.submit(["status"]), lambda jobs: jobs.listed(), lambda jobs: jobs.details(JOB), lambda jobs: jobs.stop(JOB),
        lambda jobs: jobs.follow(JOB, lambda _: None),
    ],
    ids=["submit", "list", "details", "stop", "follow"],
)  # fmt: skip
def test_whatever_is_asked_of_a_dashboard_that_is_away_is_refused_with_what_to_do(dashboard: Dashboard, ask: Callable[[Jobs], object]) -> None:
    jobs = Jobs(dashboard.address)
    dashboard.silent = True
    with pytest.raises(ClusterError, match=r"does not answer .* see `ray status`"):
        ask(jobs)


def test_a_dashboard_that_goes_away_before_it_stops_a_job_is_named(dashboard: Dashboard) -> None:
    jobs = Jobs(dashboard.address)

    def before(path: str) -> None:
        dashboard.silent = path.endswith("/stop")

    dashboard.before = before
    with pytest.raises(ClusterError, match="does not answer"):
        jobs.stop(JOB)
