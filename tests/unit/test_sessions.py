"""The sessions that a bench keeps open: where there are many processors, another process is made ready while one opens."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from genopt import clock
from genopt.engines.base import GenerationRequest
from genopt.measure import energy
from genopt.measure.text_speed import TextWorkload
from genopt.plan import Artifact, Plan
from genopt.process import SessionProcess
from genopt.tasks import sessions
from genopt.tasks.base import BenchConfig
from genopt.tasks.sessions import CPUS_FOR_TWO, RoleSessions
from genopt.tasks.text_sessions import BenchSessions
from genopt.testing.disk import is_on_disk
from genopt.testing.plugin import write_plugin


@pytest.fixture
def config(tmp_path: Path) -> BenchConfig:
    """Of a bench whose engine is a fake."""
    write_plugin(tmp_path / "plugins")
    (tmp_path / "model").mkdir()
    return BenchConfig(
        original=str(tmp_path / "model"), artifact=Artifact(digest="d", path=str(tmp_path / "model"), bytes=1), data="", logs=str(tmp_path / "logs"),
        quality=0.0, concurrency=(1,), output_tokens=8, threads=1, parameters=1, seed=0,
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path / "plugins"), str(Path(__file__).parents[2])])},
    )  # fmt: skip


@pytest.fixture
def opened(config: BenchConfig, started: Callable[[], set[psutil.Process]]) -> Iterator[RoleSessions[SessionProcess]]:
    found = RoleSessions(config, SessionProcess)
    yield found
    found.close()
    assert not started()


def opens(found: RoleSessions[SessionProcess], role: str, folder: Path) -> SessionProcess:
    plan = Plan(name=role, steps=(), engine="fake", options={"text": "abc"})
    session = found.open(role, plan, folder / "model", clock.now() + 60)
    assert bytes(session.generate([GenerationRequest(prompt_ids=(1,), max_new_tokens=2)])[0].token_ids) == b"ab"
    return session


@pytest.mark.parametrize(("cpus", "ready"), [(CPUS_FOR_TWO, True), (CPUS_FOR_TWO - 1, False)])
def test_one_process_is_made_ready_where_there_are_many_processors(
    opened: RoleSessions[SessionProcess],
    started: Callable[[], set[psutil.Process]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    ready: bool,
) -> None:
    monkeypatch.setattr(sessions, "usable_cpus", lambda: tuple(range(cpus)))
    for role in ("original", "candidate"):
        session = opens(opened, role, tmp_path)
        assert session.pid in opened.pids()
    assert len({process.pid for process in started()} - set(opened.pids())) == ready
    assert (tmp_path / "logs" / "ready.session.log").exists() == ready
    opened.close("candidate")
    assert len(started()) == 1 + ready, "it stays for the next one"
    assert not opened.lost()


def test_only_what_was_loaded_from_disk_is_said_to_be(opened: RoleSessions[SessionProcess], tmp_path: Path) -> None:
    if not is_on_disk(tmp_path):
        pytest.skip("temporary files are in memory here")
    weights = tmp_path / "model" / "weights"
    weights.write_bytes(os.urandom(64 * mmap.PAGESIZE))
    with weights.open("rb") as stream:
        os.fsync(stream.fileno())
        opens(opened, "original", tmp_path)
        assert opened.loading("original", weights.parent)["load_cold_s"].conditions["files"] == "on disk"
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as kept:  # as the original's session keeps its weights
            assert len(kept[:: mmap.PAGESIZE]) == 64
            opens(opened, "baseline", tmp_path)
    found = opened.loading("baseline", weights.parent)
    assert "load_cold_s" not in found
    assert found["load_s"].conditions["files"] == "in memory"


@pytest.mark.parametrize("alone", [True, False])
def test_on_a_part_of_a_node_the_energy_of_its_processors_is_no_sessions(
    config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, content in (("name", "package-0"), ("energy_uj", "7000000"), ("max_energy_range_uj", "262143328850")):
        (zone / name).write_text(content)
    monkeypatch.setattr(energy, "POWERCAP", zone.parent)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = BenchSessions(config.model_copy(update={"alone": alone}))
    try:
        opens(found, "original", tmp_path)
        workload = TextWorkload(prompts=((1, 2),), output_tokens=2, concurrency=(1,))
        assert ("energy_j_per_token" in found.resources("original", tmp_path / "model", workload)) == alone
    finally:
        found.close()
