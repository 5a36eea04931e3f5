"""On the cluster that `cluster/local.sh` starts, which asks for a token: what doctor says, and the life of a job."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin
from genopt.testing.ports import unused_port
from genopt.testing.sleep_task import CATALOGUE, sleep_plan

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
WAIT_S = 120.0


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Cluster:
    """Nodes that the script started, and a shell with what it told to export."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def genopt(self, *words: str, **more: str) -> Ended:
        command = [sys.executable, "-m", "genopt", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | more, capture_output=True, text=True, timeout=180, check=False
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in json.loads(self.genopt("jobs", "--json").out)}

    def offer(self, *plans: Any) -> None:
        (self.folder / "catalogue.json").write_text(json.dumps([plan.model_dump(mode="json") for plan in plans]), encoding="utf-8")

    def spec(self, name: str) -> str:
        """Name of a spec in the current folder, for a run of this name."""
        content = {"model": str(self.folder / "model"), "task": "sleep", "budget": "120s", "max_trials": 0, "out": str(self.folder / name)}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return f"{name}.yaml"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("jobs")
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # short: paths of sockets may have 107 characters
    write_plugin(folder / "plugin")
    write_fake_model(folder / "model")
    script = ["bash", str(ROOT / "cluster" / "local.sh")]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "GENOPT_STORE": str(folder / "store"), "PYTHONPATH": os.pathsep.join([str(folder / "plugin"), str(ROOT)]), "WORKERS": "1", "CPUS": "1",
        "PORT": str(unused_port()), "RAY": str(Path(sys.executable).parent / "ray"), "STATE": str(folder / "state"),
        "RAY_TMPDIR": str(temporary),
        CATALOGUE: str(folder / "catalogue.json"),
    }  # fmt: skip
    try:
        started = subprocess.run([*script, "start"], env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert started.returncode == 0, started.stderr
        exported = dict(re.findall(r"(RAY_\w+)=(\S+)", started.stdout))
        assert set(exported) == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"}
        yield Cluster(folder, environment | exported)
    finally:
        subprocess.run([*script, "stop"], env=environment, capture_output=True, timeout=120, check=True)
        assert not (folder / "state").exists()
        shutil.rmtree(temporary)


@contextlib.contextmanager
def another_ray(environment: dict[str, str]) -> Iterator[None]:
    """One more Ray on this machine: Ray gives its address to the jobs of all others, as it was started last."""
    told = Path(environment["RAY_TMPDIR"], "ray", "ray_current_cluster")
    before, port = told.read_text(encoding="utf-8"), unused_port()
    command = [environment["RAY"], "start", "--head", "--block", "--node-ip-address=127.0.0.9", f"--port={port}", "--num-cpus=1",
               "--object-store-memory=100000000", "--include-dashboard=false", "--disable-usage-stats"]  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as other:
        try:
            wait_for(lambda: told.read_text(encoding="utf-8") not in {before, ""})
            yield
        finally:
            other.terminate()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)  # another machine's file: nothing tells when it changes


def finished(run: Path) -> list[str]:
    path = run / "journal.jsonl"
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [event["candidate"]["name"] for event in events if event["event"] == "candidate_finished"]


def test_doctor_finds_the_cluster_closed_and_its_nodes_alike(cluster: Cluster) -> None:
    ended = cluster.genopt("doctor", "--json")
    found = json.loads(ended.out)
    assert found["token"] is True
    assert found["dashboard"].startswith("127.0.0.1:")
    assert len(found["nodes"]) == 2
    about_machine = re.compile(r"free for the store|memory are available|so Ray would keep|C\+\+ compiler")
    assert [one for one in found["findings"] if not about_machine.search(one["what"])] == []
    assert ended.code == bool(found["findings"])


def test_a_wrong_token_is_refused_with_what_to_do(cluster: Cluster) -> None:
    (cluster.folder / "wrong").write_text("0" * 64, encoding="utf-8")
    for words in (("doctor",), ("jobs",), ("submit", "--", "status")):
        ended = cluster.genopt(*words, RAY_AUTH_TOKEN_PATH=str(cluster.folder / "wrong"))
        assert ended.code == 1
        assert "refused the token; put the cluster's token into" in ended.err
        assert "Traceback" not in ended.err


def test_a_job_that_ctrl_c_stops_keeps_its_journal_and_goes_on(cluster: Cluster) -> None:
    run, gate = cluster.folder / "stopped", cluster.folder / "gate"
    cluster.offer(sleep_plan("first", speed=2.0), sleep_plan("second", speed=3.0, wait_for=str(gate)))
    command = [sys.executable, "-m", "genopt", "submit", "--", "optimize", "--config", cluster.spec("stopped")]
    with (
        another_ray(cluster.environment),
        subprocess.Popen(command, cwd=cluster.folder, env=cluster.environment, stderr=subprocess.PIPE, text=True) as submitted,
    ):
        wait_for(lambda: "first" in finished(run))
        submitted.send_signal(signal.SIGINT)
        _, said = submitted.communicate(timeout=WAIT_S)
    assert submitted.returncode == 130, said
    ((job, known),) = cluster.jobs().items()
    assert job in said
    assert known["status"] == "STOPPED"
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["winner"] == "first"
    assert json.loads(cluster.genopt("stop", job, "--json").out)["status"] == "STOPPED", "it is no fault that it has ended"
    gate.touch()
    again = cluster.genopt("submit", "--detach", "--", "resume", str(run))
    assert again.code == 0, again.err
    resumed = cluster.genopt("jobs", again.out.strip())
    assert resumed.code == 0, resumed.out + resumed.err
    assert "second" in resumed.out
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["winner"] == "second"
    assert finished(run).count("first") == 1
    known = cluster.jobs()[again.out.strip()]
    assert (known["command"], known["exit_code"]) == (f"resume {run}", 0)


def test_the_exit_code_of_the_verb_is_passed_on_and_no_secret_goes_along(cluster: Cluster) -> None:
    words = ("optimize", str(cluster.folder / "model"), "--budget", "5s")
    ended = cluster.genopt("submit", "--", *words, AWS_SECRET_ACCESS_KEY="a-secret", HF_TOKEN="a-secret")
    assert ended.code == 4, ended.out + ended.err
    assert "budget" in ended.out
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8").strip()
    url = f"{cluster.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    assert httpx.get(url).status_code == 401
    known = httpx.get(url, headers={"Authorization": f"Bearer {token}"}).text
    assert "optimize" in known
    assert not [secret for secret in ("a-secret", token) if secret in known + ended.out + ended.err]


def test_what_cannot_be_submitted_is_refused_before_anything_is_sent(cluster: Cluster) -> None:
    before = set(cluster.jobs())
    large = cluster.folder / "large"
    large.mkdir()
    with (large / "weights.safetensors").open("wb") as file:
        file.truncate(200 * 10**6)
    ended = cluster.genopt("submit", "--working-dir", str(large), "--", "optimize", "smollm2-135m")
    assert ended.code == 2
    assert "weights.safetensors (200 MB); list it in .rayignore" in ended.err
    for verb in ("jobs", "stop"):
        ended = cluster.genopt(verb, "no-such-job")
        assert ended.code == 2
        assert "no job 'no-such-job'; see: genopt jobs" in ended.err
    assert set(cluster.jobs()) == before


class Proxy:
    """A way to the dashboard that can break."""

    def __init__(self, target: tuple[str, int]) -> None:
        live = self._live = set[socket.socket]()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(target) as there:
                    pair = (self.request, there)
                    live.update(pair)
                    back = threading.Thread(target=pump, args=(there, self.request))
                    back.start()
                    pump(self.request, there)
                    back.join()
                    live.difference_update(pair)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def cut(self) -> None:
        for one in list(self._live):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self.cut()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


def pump(source: socket.socket, destination: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            destination.sendall(data)
        destination.shutdown(socket.SHUT_RDWR)


def test_a_log_is_followed_through_a_connection_that_breaks(cluster: Cluster) -> None:
    host, _, port = cluster.environment["RAY_API_SERVER_ADDRESS"].removeprefix("http://").partition(":")
    lines = [f"line {number}" for number in range(8)]
    script = cluster.folder / "lines.sh"
    script.write_text("\n".join(f"echo {line}; sleep 0.4" for line in lines), encoding="utf-8")
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "job", "submit", "--no-wait", "--submission-id", "lines", "--", "bash", str(script)]
    subprocess.run(command, env=cluster.environment, check=True, capture_output=True, timeout=60)
    with Proxy((host, int(port))) as proxy:
        command = [sys.executable, "-m", "genopt", "jobs", "lines", "--address", proxy.address]
        with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            read = [follower.stdout.readline()]
            proxy.cut()
            read += follower.stdout.readlines()
        assert follower.returncode == 0
    assert [line.strip() for line in read if line.startswith("line")] == lines


def test_a_job_that_nothing_has_room_for_says_so(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "genopt", "submit", "--entrypoint-num-cpus", "999", "--", "doctor"]
    with subprocess.Popen(command, env=cluster.environment, cwd=cluster.folder, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        said = next(line for line in waiting.stderr if "waits for its start" in line)
        assert "waiting for resources" in said
        assert "--entrypoint-num-cpus" in said
        waiting.send_signal(signal.SIGINT)
        assert "had not started: it is stopped when it gets its place" in waiting.stderr.read()
    assert waiting.returncode == 130


def test_a_second_start_is_refused_and_changes_nothing(cluster: Cluster) -> None:
    script = shutil.which("bash") or "bash"
    again = subprocess.run(
        [script, str(ROOT / "cluster" / "local.sh"), "start"], env=cluster.environment, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert again.returncode == 1
    assert "end it first" in again.stderr
