"""One holder at a time: on one machine and between machines, whatever clocks say and whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genopt.errors import StorageError
from genopt.store import lease as leases
from genopt.store.lease import Lease, process_started, this_machine

FAST = {"beat_s": 0.02, "stale_s": 0.4}
HOLDER = """
import sys, time
from pathlib import Path
from genopt.store.lease import Lease
print(Lease(Path(sys.argv[1])).take(), flush=True)
time.sleep(60)
"""


def far(folder: Path, machine: str = "another", **times: float) -> Lease:
    """A contender whose process numbers mean nothing here."""
    return Lease(folder, machine=machine, **{**FAST, **times})


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    found = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None
    assert found.stdout.readline() == "None\n"
    yield found
    found.kill()
    found.communicate()


def test_a_free_lease_is_taken_and_taken_again_once_released(tmp_path: Path) -> None:
    for _ in range(3):
        lease = Lease(tmp_path / "lease")
        assert lease.take() is None
        assert not lease.lost
        lease.release()
    assert Lease(tmp_path / "lease").holder() is None
    assert len(list((tmp_path / "lease").iterdir())) == 1


def test_a_living_process_of_this_machine_is_named_at_once(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    before = time.monotonic()
    other = Lease(tmp_path).take()
    assert other is not None
    assert other.pid == process.pid
    assert f"process {process.pid} on " in str(other)
    assert time.monotonic() - before < leases.BEAT_S


def test_a_stopped_process_of_this_machine_still_holds(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    assert Lease(tmp_path, stale_s=0.05).take() is not None


def test_a_killed_process_of_this_machine_is_succeeded_at_once(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    before = time.monotonic()
    assert Lease(tmp_path).take() is None
    assert time.monotonic() - before < leases.BEAT_S


def test_a_process_number_that_was_used_again_is_no_holder(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    assert lease.take() is None
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace(f'"started":{process_started(os.getpid())}', '"started":1'))
    assert Lease(tmp_path).take() is None
    assert lease.lost
    lease.release()


def test_a_living_holder_of_another_machine_is_known_by_its_beats(tmp_path: Path) -> None:
    lease = far(tmp_path)
    assert lease.take() is None
    other = Lease(tmp_path, **FAST).take()
    assert other is not None
    assert other.machine == "another"
    lease.release()
    assert Lease(tmp_path, **FAST).take() is None


def test_a_silent_holder_of_another_machine_is_succeeded_and_finds_out(tmp_path: Path) -> None:
    suspended = far(tmp_path, beat_s=60)
    assert suspended.take() is None
    before = time.monotonic()
    successor = Lease(tmp_path, **FAST)
    assert successor.take() is None
    assert time.monotonic() - before >= FAST["stale_s"]
    assert suspended.lost
    suspended.release()
    assert Lease(tmp_path, **FAST).holder() is not None, "the one that lost must not release the other's"
    successor.release()
    assert suspended.lost


def test_clocks_that_jump_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = far(tmp_path)
    assert lease.take() is None
    for jump in (1e6, -1e6):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1.7e9 + jump)
        assert Lease(tmp_path, **FAST).holder() is not None
    lease.release()


def test_a_holder_that_died_before_its_first_word_is_succeeded(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    assert Lease(tmp_path, **FAST).take() is None


def test_contenders_hold_one_after_the_other(tmp_path: Path) -> None:
    inside, most, turns = [], [], []
    start = threading.Barrier(6)

    def contend(number: int) -> None:
        start.wait()
        for _ in range(5):
            lease = far(tmp_path, machine=f"machine {number}")
            while lease.take() is not None:
                pass
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)
            turns.append(number)
            lease.release()

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 30
    assert max(most) == 1


def test_contenders_for_a_dead_holder_succeed_it_once(tmp_path: Path) -> None:
    dead = far(tmp_path, beat_s=60)
    assert dead.take() is None
    contenders = [far(tmp_path, machine=f"machine {number}") for number in range(4)]
    found: list[object] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one.take())) for one in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(None) == 1
    for one in (*contenders, dead):
        one.release()


def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="--out"):
        Lease(tmp_path / "file" / "lease").take()
    with pytest.raises(StorageError, match="--out"):
        Lease(tmp_path / "file").take()


def test_processes_know_their_machine_and_birth() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert process_started(child.pid) is not None
    child.kill()
    child.wait()
    assert process_started(child.pid) is None
    assert this_machine() == this_machine()
