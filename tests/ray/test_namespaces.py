"""Two nodes that have a network each, as two machines have, with a wire between them; only where the system lets this process make such."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import genopt
from genopt.distributed.cluster import HOST_LABEL, QUIET
from genopt.store.run_folder import RunFolder
from genopt.testing import fake_technique, sleep_task
from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin
from genopt.testing.sleep_task import sleep_plan

pytestmark = pytest.mark.ray
ADDRESSES = {"one": "10.77.0.1", "two": "10.77.0.2"}
PORT = 6379
READY_S = 60.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def network(host: str) -> str:
    return f"genopt-{os.getpid()}-{host}"


def allowed() -> bool:
    """Whether this process may make networks."""
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", network("probe")], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "delete", network("probe"))
    return made


class Machines(NamedTuple):
    """A folder that both see, and how a command begins on one of them."""

    folder: Path
    environment: dict[str, str]

    def run(self, host: str, *command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        inside = ["ip", "netns", "exec", network(host), *command]
        return subprocess.run(inside, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False)


if allowed():

    @pytest.fixture
    def machines() -> Iterator[Machines]:
        started: list[subprocess.Popen[bytes]] = []
        with tempfile.TemporaryDirectory(prefix="gn-") as short:  # sockets of Ray have short paths
            folder = Path(short)
            write_plugin(folder / "plugin")
            write_fake_model(folder / "model")
            paths = os.pathsep.join([str(folder / "plugin"), str(Path(genopt.__file__).parents[1])])
            ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            environment = {**ours, **QUIET, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": paths, fake_technique.LOG: str(folder / "log")}
            try:
                for host in ADDRESSES:
                    ip("netns", "add", network(host))
                ip("link", "add", "wire", "netns", network("one"), "type", "veth", "peer", "name", "wire", "netns", network("two"))
                for host, address in ADDRESSES.items():
                    ip("-n", network(host), "address", "add", f"{address}/24", "dev", "wire")
                    for device in ("lo", "wire"):
                        ip("-n", network(host), "link", "set", device, "up")
                    ip("-n", network(host), "route", "add", "default", "dev", "wire")
                    started.append(start(host, folder, environment))
                found = Machines(folder, environment)
                until_there(found)
                yield found
            finally:
                for process in reversed(started):
                    process.send_signal(signal.SIGTERM)
                    process.wait(30)
                for host in ADDRESSES:
                    subprocess.run(["ip", "netns", "delete", network(host)], capture_output=True, check=False)

    def start(host: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        first = host == "one"
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"] if first else [f"--address={ADDRESSES['one']}:{PORT}"]
        command = [
            "ip", "netns", "exec", network(host), str(Path(sys.executable).parent / "ray"), "start", "--block", *where,
            f"--node-ip-address={ADDRESSES[host]}", "--num-cpus=2", "--num-gpus=0", f"--labels={HOST_LABEL}={host}",
            "--object-store-memory=100000000", "--disable-usage-stats", *([f"--temp-dir={folder}/ray"] if first else []),
        ]  # fmt: skip
        with (folder / f"{host}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        return process

    def until_there(machines: Machines) -> None:
        """Until the cluster has both nodes."""
        asked = f"import ray; ray.init(address='{ADDRESSES['one']}:{PORT}', log_to_driver=False); print(len([n for n in ray.nodes() if n['Alive']]))"
        deadline, said = time.monotonic() + READY_S, ""
        while time.monotonic() < deadline:
            done = machines.run("one", sys.executable, "-c", asked, timeout=READY_S)
            if done.stdout.strip().endswith("2"):
                return
            said = done.stdout + done.stderr
        raise AssertionError(said[-2000:])

    def test_a_run_and_the_doctor_reach_a_node_behind_another_network(machines: Machines) -> None:
        address = f"{ADDRESSES['one']}:{PORT}"
        diagnosed = machines.run("one", sys.executable, "-m", "genopt", "doctor", "--address", address, "--json", timeout=120)
        found = json.loads(diagnosed.stdout)
        assert len(found["nodes"]) == 2
        assert not [finding for finding in found["findings"] if finding["nodes"]], "nothing is wrong with a node, nor between two"
        plans = [sleep_plan(f"plan-{number}", sleep_s=1.0, speed=1.0 + number / 10) for number in range(1, 7)]
        catalogue = machines.folder / "catalogue.json"
        catalogue.write_text(json.dumps([plan.model_dump(mode="json") for plan in plans]), encoding="utf-8")
        machines.environment[sleep_task.CATALOGUE] = str(catalogue)
        out = machines.folder / "run"
        done = machines.run(
            "one", sys.executable, "-m", "genopt", "optimize", str(machines.folder / "model"), "--task", "sleep", "--budget", "120s",
            "--address", address, "--max-trials", "0", "--store", str(machines.folder / "store"), "--out", str(out), "--json", timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["winner"] == "plan-6"
        stages = [stage for event in RunFolder(out).events() if event["event"] == "candidate_finished" for stage in event["stages"]]
        assert len({stage["node"] for stage in stages if stage["stage"] == "measure"}) == 2, "both nodes measured"
