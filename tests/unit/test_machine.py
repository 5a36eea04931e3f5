"""Facts about this machine: limits of containers count, nothing personal is told, and each problem comes with its remedy."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import sys
from collections import namedtuple
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from genopt.measure import limits, machine
from genopt.testing.fake_nvml import GB10, H100, FakeNvml

Usage = namedtuple("Usage", "total used free")
Groups = Callable[[dict[str, str], str], None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Makes control groups of files, and this process a member of one."""

    def make(files: dict[str, str], membership: str) -> None:
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (tmp_path / "membership").write_text(membership)
        monkeypatch.setattr(limits, "CONTROL_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    return make


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without problems, whatever this one is."""
    monkeypatch.setattr(machine.metadata, "requires", lambda _: [])
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(1e12, 0, 1e12))
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(machine, "available_memory", lambda: 32 * 10**9)


def test_hardware_has_what_the_report_shows() -> None:
    found = machine.hardware()
    assert found["cpu"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert 0 < found["memory_available_bytes"] <= found["memory_bytes"]
    assert isinstance(found["gpus"], list)


def test_the_environment_tells_versions_and_nothing_personal() -> None:
    found = machine.environment()
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == metadata.version("torch")
    text = json.dumps([found, machine.hardware()])
    private = (socket.gethostname(), str(Path.home()), os.getcwd(), f'"{getpass.getuser()}"')
    assert not [word for word in private if len(word) > 3 and word in text]


def test_the_libraries_that_decide_bytes_are_among_those_recorded() -> None:
    assert set(machine.DECISIVE) <= set(machine.PACKAGES)
    assert machine.libraries().items() <= machine.environment()["packages"].items()


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DECISIVE", ("numpy", "surely-not-installed"))
    assert machine.libraries() == {"numpy": metadata.version("numpy")}


def test_a_quota_of_an_outer_group_counts(groups: Groups) -> None:
    groups({"pod/cpu.max": "250000 100000", "pod/box/cpu.max": "max 100000"}, "0::/pod/box\n")
    assert limits.usable_cores() == 2


def test_without_a_quota_the_affinity_counts(groups: Groups) -> None:
    groups({"cpu.max": "max 100000"}, "0::/\n")
    assert limits.usable_cores() == 16


def test_a_quota_below_one_processor_still_leaves_one(groups: Groups) -> None:
    groups({"cpu.max": "20000 100000"}, "0::/\n")
    assert limits.usable_cores() == 1


def test_version_one_groups_are_read_too(groups: Groups) -> None:
    files = {
        "cpu/box/cpu.cfs_quota_us": "400000", "cpu/box/cpu.cfs_period_us": "100000", "memory/box/memory.limit_in_bytes": "1000000000",
        "memory/box/memory.usage_in_bytes": "700000000", "memory/box/memory.stat": "cache 5\ntotal_inactive_file 100000000\n",
    }  # fmt: skip
    groups(files, "4:memory:/box\n2:cpuset:/\n1:cpu,cpuacct:/box\n")
    assert limits.usable_cores() == 4
    assert limits.total_memory() == 1_000_000_000
    assert limits.available_memory() == 400_000_000


def test_a_containers_memory_is_its_limit_and_page_cache_counts_as_free(groups: Groups) -> None:
    files = {"box/memory.max": "2000000000", "box/memory.current": "1500000000", "box/memory.stat": "anon 9\ninactive_file 250000000\n"}
    groups(files, "0::/box\n")
    assert limits.total_memory() == 2_000_000_000
    assert limits.available_memory() == 750_000_000


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([H100, GB10]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    every = machine.hardware()
    first, second = every["gpus"]
    assert first == {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * 2**30, "compute_capability": "9.0", "driver": "570.124.06"}
    assert second == {"name": "NVIDIA GB10", "memory_bytes": None, "compute_capability": "12.1", "driver": "570.124.06"}
    digests = {machine.hardware_digest(every)}
    for visible, seen in (("1", [second]), ("1, 0", [second, first]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = machine.hardware()
        assert found["gpus"] == seen
        assert machine.kernels()["gpus"] == seen
        digests.add(machine.hardware_digest(every | {"gpus": found["gpus"]}))
    assert len(digests) == 4, "speed depends on which GPUs are used"


def test_what_a_driver_does_not_tell_of_a_gpu_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([{}]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (found,) = machine.hardware()["gpus"]
    assert found == {"name": "unknown", "memory_bytes": None, "compute_capability": "unknown", "driver": "570.124.06"}


def test_without_a_working_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeNvml([H100])
    monkeypatch.setattr(driver, "nvmlInit", lambda: driver.nvmlDeviceGetDriver(0))  # which it refuses
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.hardware()["gpus"] == []


@pytest.mark.usefixtures("healthy")
def test_a_healthy_machine_has_no_problems(tmp_path: Path) -> None:
    assert machine.check_machine(tmp_path / "not" / "there" / "yet") == []


@pytest.mark.usefixtures("healthy")
def test_each_problem_is_found_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "version_info", (3, 10, 4))
    lines = ["numpy>=99", "surely-not-installed>=1", "not-wanted>=1; extra == 'test'", f"pyarrow=={metadata.version('pyarrow')}"]
    monkeypatch.setattr(machine.metadata, "requires", lambda _: lines)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(64e6, 0, 64e6))
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    monkeypatch.setattr(machine, "available_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    problems = machine.check_machine(tmp_path / "store")
    assert [problem.what for problem in problems] == [
        "Python is 3.10.4, genopt needs 3.11 or newer",
        f"numpy is {metadata.version('numpy')}, genopt needs >=99",
        "surely-not-installed is not installed",
        f"0.1 GB are free for the store {tmp_path / 'store'}",
        f"2.0 of {limits.total_memory() / 1e9:.1f} GB of memory are available",
        f"{tmp_path} has 64 MB free, so Ray would keep objects on disk",
        "There is no C++ compiler, so models cannot be compiled",
    ]
    assert "pip install 'numpy>=99'" in problems[1].remedy
    assert all(problem.remedy.endswith(".") and "\n" not in problem.remedy for problem in problems)


@pytest.mark.usefixtures("healthy")
def test_a_store_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [problem] = machine.check_machine(tmp_path / "file" / "store")
    assert "cannot be written" in problem.what
    assert "--store" in problem.remedy


@pytest.mark.usefixtures("healthy")
def test_a_store_without_permission_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    [problem] = machine.check_machine(tmp_path)
    assert "cannot be written" in problem.what


@pytest.mark.usefixtures("healthy")
def test_a_compiler_that_is_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None if name == "my-compiler" else name)
    [problem] = machine.check_machine(tmp_path)
    assert "my-compiler" in problem.what


@pytest.mark.usefixtures("healthy")
def test_an_installation_without_metadata_says_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISTRIBUTION", "surely-not-installed")
    monkeypatch.setattr(machine.metadata, "requires", metadata.distribution)
    [problem] = machine.check_machine(tmp_path)
    assert "versions cannot be checked" in problem.what


def test_real_bounds_of_this_installation_hold(tmp_path: Path) -> None:
    assert not [problem for problem in machine.check_machine(tmp_path) if "genopt needs" in problem.what or "not installed" in problem.what]
