"""On a cluster that `ray start --head` made: runs join it, Ray jobs do the same, Serve serves the winner."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import yaml

from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin
from genopt.testing.ports import unused_port

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_S = 60.0
NARROW = ("--budget", "150s", "--precision", "10%", "--include", "twice-as-fast", "--max-trials", "0")


class Cluster(NamedTuple):
    """A running head node."""

    dashboard: str
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False)

    def genopt(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "genopt", *arguments, timeout=timeout)

    def ray(self, tool: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return self.run(str(BIN / tool), *arguments, timeout=timeout)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, quickstart: tuple[Path, object], real_store: Path) -> Iterator[Cluster]:
    """Comes after the quickstart, which measures and must have the machine to itself."""
    folder = tmp_path_factory.mktemp("cluster")
    write_plugin(folder / "plugin")
    write_fake_model(folder / "model")
    port, dashboard = unused_port(), unused_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "GENOPT_STORE": str(real_store), "PYTHONPATH": str(folder / "plugin"), "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }  # fmt: skip
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={unused_port()}", f"--dashboard-agent-listen-port={unused_port()}", "--num-cpus=2",
        "--object-store-memory=200000000", "--disable-usage-stats",
    ]  # fmt: skip
    starting = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=starting, stdout=log, stderr=log, start_new_session=True)
    found = Cluster(f"http://127.0.0.1:{dashboard}", folder, environment)
    try:
        _wait_for(found.dashboard, head)
        yield found
    finally:
        _end(head)


def _end(head: subprocess.Popen[bytes]) -> None:
    """Ends the whole process group: politely first, as Ray then cleans up after itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(head.pid, number)
            head.wait(timeout=10)
    head.wait(timeout=10)


def _wait_for(dashboard: str, head: subprocess.Popen[bytes]) -> None:
    """Until the dashboard takes jobs."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            if httpx.get(f"{dashboard}/api/jobs/", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)  # nothing can be awaited before the dashboard listens
    raise AssertionError("ray start did not bring up a dashboard")


def events(run: Path, name: str) -> list[Any]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in found if event["event"] == name]


def test_a_run_joins_the_cluster(cluster: Cluster) -> None:
    run = cluster.folder / "joined"
    done = cluster.genopt(
        "optimize", str(cluster.folder / "model"), "--task", "fake-text", *NARROW, "--out", str(run)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (started,) = events(run, "run_started")
    assert started["cluster"]["how"].startswith("the Ray cluster at")


def test_the_job_script_runs_a_spec(cluster: Cluster) -> None:
    run = cluster.folder / "job"
    upload = cluster.folder / "upload"
    shutil.copytree(ROOT / "jobs", upload / "jobs")
    shutil.copytree(ROOT / "genopt", upload / "genopt", ignore=shutil.ignore_patterns("__pycache__"))
    spec = {
        "model": str(cluster.folder / "model"),
        "task": "fake-text",
        "budget": "60s",
        "include": ["twice-as-fast"],
        "max_trials": 0,
        "out": str(run),
    }
    (upload / "jobs" / "specs" / "fake.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    environment = json.dumps({"env_vars": {"PYTHONPATH": cluster.environment["PYTHONPATH"]}})
    done = cluster.ray(
        "ray", "job", "submit", "--working-dir", str(upload), "--runtime-env-json", environment, "--", sys.executable, "jobs/optimize.py",
        "--config", "jobs/specs/fake.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["winner"] == "twice-as-fast"


def test_serve_deploys_the_winner_and_the_official_client_streams_from_it(cluster: Cluster, quickstart: tuple[Path, object]) -> None:
    run, _ = quickstart
    content = yaml.safe_load((run / "serve.yaml").read_text(encoding="utf-8"))
    port = content["http_options"]["port"]
    done = cluster.ray("serve", "deploy", str(run / "serve.yaml"), "--address", cluster.dashboard)
    assert done.returncode == 0, done.stderr
    url = f"http://127.0.0.1:{port}"
    _wait_until_ready(url)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        messages: Any = [{"role": "user", "content": "What is machine learning?"}]
        stream = client.chat.completions.create(model="smollm2-135m", messages=messages, max_tokens=48, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        whole = client.chat.completions.create(model="smollm2-135m", messages=messages, max_tokens=48, temperature=0)
    assert len(pieces) > 2, "it comes while it is made; how many tokens a piece has depends on the machine"
    assert "".join(pieces) == whole.choices[0].message.content
    assert "learning" in "".join(pieces).lower()
    status = cluster.genopt("status", "--json")
    assert json.loads(status.stdout)["genopt"]["status"] == "RUNNING"
    ended = cluster.genopt("undeploy", str(run))
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/healthz", timeout=5).raise_for_status()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)  # `serve deploy` returns before anything listens
    raise AssertionError("the deployment did not become ready")
