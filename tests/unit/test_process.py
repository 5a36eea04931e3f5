"""Stages and sessions in processes of their own: results, errors, deaths and deadlines arrive as typed values."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import genopt
from genopt.engines.base import GenerationRequest, TokenLogProbs
from genopt.errors import InfeasibleError, ModelError, OutOfMemoryError, SpecError, StageCrashedError, StageError, StageTimeoutError
from genopt.measure.process_tree import below
from genopt.models.gguf import import_gguf
from genopt.process import SessionProcess, run_stage
from genopt.session_worker import ReadyWorker
from genopt.testing.plugin import write_plugin

TECHNIQUES = """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
import genopt
from genopt.errors import InfeasibleError

class Technique:
    @staticmethod
    def check(source, params):
        if params.get("refuse"):
            raise InfeasibleError("It cannot be done here; use another machine.", {"bits": 4})

    @staticmethod
    def apply(source, destination, params, context, progress):
        progress(f"threads {os.environ['OMP_NUM_THREADS']}, limit {context.time_limit_s}")
        progress(f"genopt of {Path(genopt.__file__).parent}")
        how = params.get("how")
        if how == "raise": raise ValueError("no such layer")
        if how == "exit": os._exit(7)
        if how == "fault": ctypes.string_at(0)
        if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
        if how in ("hang", "stubborn", "leave"):
            if how == "stubborn": signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # A grandchild in a session of its own, whose parent ends at once, and which ignores what can be ignored.
            script = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork() and os._exit(0); os.setsid();"
            script += "open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); os.rename(sys.argv[1] + '.new', sys.argv[1]); time.sleep(600)"
            subprocess.run([sys.executable, "-c", script, str(Path(destination, "child"))], check=True)
            while not Path(destination, "child").exists(): time.sleep(0.01)
            if how == "stubborn": ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock, as native code may
            if how == "hang": time.sleep(600)
        Path(destination, "made").write_text("x")
"""


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    """Environment of children that find the engine `fake` and the technique `scripted`."""
    folder = tmp_path / "plugins"
    write_plugin(folder)
    info = folder / "scripted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[genopt.techniques]\nscripted = scripted_technique:Technique\n")
    (folder / "scripted_technique.py").write_text(TECHNIQUES)
    root = Path(__file__).parents[2]
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(root)])}


def transform(tmp_path: Path, plugins: dict[str, str], *, technique: str = "scripted", timeout_s: float = 30.0, **params: Any) -> dict[str, Any]:
    destination = tmp_path / "made"
    destination.mkdir()
    payload = {
        "technique": technique, "source": str(tmp_path), "destination": str(destination), "params": params,
        "context": {"original": str(tmp_path), "calibration": None, "seed": 0, "threads": 1},
    }  # fmt: skip
    return run_stage("transform", payload, log=tmp_path / "logs" / "stage.log", timeout_s=timeout_s, threads=1, environment=plugins)


def test_a_stage_returns_its_result_and_leaves_its_log(tmp_path: Path, plugins: dict[str, str]) -> None:
    assert transform(tmp_path, plugins) == {}
    assert (tmp_path / "made" / "made").is_file()
    log = (tmp_path / "logs" / "stage.log").read_text()
    assert "threads 1" in log
    assert 0 < float(log.partition("limit ")[2].split()[0]) < 30, "starting the process took a part of it"


def test_a_stages_own_error_keeps_its_type(tmp_path: Path, plugins: dict[str, str]) -> None:
    with pytest.raises(InfeasibleError, match="use another machine") as caught:
        transform(tmp_path, plugins, refuse=True)
    assert caught.value.details == {"bits": 4}


def test_an_unknown_technique_is_a_spec_error(tmp_path: Path, plugins: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="There is no technique 'none'"):
        transform(tmp_path, plugins, technique="none")


def test_a_foreign_error_is_a_stage_error_with_its_trace_in_the_log(tmp_path: Path, plugins: dict[str, str]) -> None:
    with pytest.raises(StageError, match="ValueError: no such layer"):
        transform(tmp_path, plugins, how="raise")
    assert "Traceback" in (tmp_path / "logs" / "stage.log").read_text()


def test_a_stage_that_dies_is_told_from_one_that_was_killed(tmp_path: Path, plugins: dict[str, str]) -> None:
    with pytest.raises(StageCrashedError, match="exit code 7"):
        transform(tmp_path, plugins, how="exit")
    (tmp_path / "made").rename(tmp_path / "first")
    with pytest.raises(OutOfMemoryError, match="lack of memory"):
        transform(tmp_path, plugins, how="kill")


def assert_gone(child: Path) -> None:
    status = Path("/proc", child.read_text(), "status")
    assert not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize("how", ["hang", "stubborn"])
def test_a_stage_that_hangs_is_stopped_with_all_that_it_started(tmp_path: Path, plugins: dict[str, str], how: str) -> None:
    with pytest.raises(StageTimeoutError, match="limit of 3 s"):
        transform(tmp_path, plugins, how=how, timeout_s=3.0)
    assert_gone(tmp_path / "made" / "child")
    assert "scripted_technique.py" in (tmp_path / "logs" / "stage.log").read_text().partition("Aborted")[2], "where it hung"


def test_what_a_stage_leaves_running_ends_with_it(tmp_path: Path, plugins: dict[str, str]) -> None:
    assert transform(tmp_path, plugins, how="leave") == {}
    assert_gone(tmp_path / "made" / "child")


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: files in it that are named as modules leave a trace where they are run."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in ("traceback", "types", "profile", "tokenizers", "torch", "scripted_technique"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + ' ')")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("downloaded")
def test_modules_in_the_current_directory_are_not_run(tmp_path: Path, plugins: dict[str, str]) -> None:
    with pytest.raises(StageError, match="ValueError: no such layer"):  # whose trace is printed
        transform(tmp_path, plugins, how="raise")
    with SessionProcess("fake", tmp_path, {"text": "abc"}, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins) as session:
        assert bytes(session.generate(ask(1))[0].token_ids) == b"abca"
    given = tmp_path / "given.gguf"
    given.write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + b"weights")
    with pytest.raises(ModelError, match="cannot be converted"):
        import_gguf(given, cache=tmp_path / "cache", progress=str)
    assert not (tmp_path / "ran").exists()


ELSEWHERE = """
import os, sys
from pathlib import Path
from genopt.process import run_stage
os.chdir("/")
payload = {
    "technique": "scripted", "source": sys.argv[1], "destination": sys.argv[1], "params": {},
    "context": {"original": sys.argv[1], "calibration": None, "seed": 0, "threads": 1},
}
run_stage("transform", payload, log=Path(sys.argv[1], "log"), timeout_s=60, threads=1)
"""


def test_a_stage_runs_the_package_that_asks_for_it_however_that_was_found(tmp_path: Path, plugins: dict[str, str]) -> None:
    """As where a checkout was the current directory when `python -m genopt` began."""
    shutil.copytree(Path(genopt.__file__).parent, tmp_path / "checkout" / "genopt", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    alone = plugins["PYTHONPATH"].partition(os.pathsep)[0]
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path / "checkout", env={**os.environ, "PYTHONPATH": alone}, check=True)
    assert f"genopt of {tmp_path / 'checkout' / 'genopt'}" in (tmp_path / "log").read_text()


RUN = """
import sys
from pathlib import Path
from genopt.process import run_stage
payload = {
    "technique": "scripted", "source": sys.argv[1], "destination": sys.argv[1], "params": {"how": "stubborn"},
    "context": {"original": sys.argv[1], "calibration": None, "seed": 0, "threads": 1},
}
run_stage("transform", payload, log=Path(sys.argv[1], "log"), timeout_s=60, threads=1)
"""


@pytest.mark.parametrize("victim", ["what waits for it", "its first process", "the group of its first process"])
def test_all_of_a_stage_ends_with(tmp_path: Path, plugins: dict[str, str], victim: str) -> None:
    """A Ray worker that is ended kills its own children first, which must not free what they started."""
    parent = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], env={**os.environ, **plugins}, stderr=subprocess.DEVNULL)
    child, deadline = tmp_path / "child", time.monotonic() + 60
    while not child.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.exists()
    stages = psutil.Process(parent.pid).children(recursive=True)
    assert len(stages) >= 2
    first = psutil.Process(parent.pid).children()[0]
    if victim == "what waits for it":
        parent.kill()
    elif victim == "its first process":
        first.kill()
    else:
        os.killpg(first.pid, signal.SIGKILL)
    psutil.wait_procs(stages, timeout=30)
    assert [process for process in stages if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert_gone(child)
    parent.wait(timeout=30)


def test_a_stage_that_dies_of_a_fault_says_which(tmp_path: Path, plugins: dict[str, str]) -> None:
    with pytest.raises(StageCrashedError, match="SIGSEGV"):
        transform(tmp_path, plugins, how="fault")


@pytest.fixture
def session(tmp_path: Path, plugins: dict[str, str]) -> Iterator[SessionProcess]:
    options: dict[str, Any] = {"text": "abc", "crash_token": 99}
    with SessionProcess("fake", tmp_path, options, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins) as opened:
        yield opened


def ask(*prompt: int, tokens: int = 4) -> list[GenerationRequest]:
    return [GenerationRequest(prompt_ids=prompt, max_new_tokens=tokens)]


def test_a_child_numbers_gpus_as_their_driver_does_whatever_the_user_set(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    closed = SessionProcess("fake", tmp_path, {}, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins)
    assert closed.setting.variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_session_generates_scores_and_reports(session: SessionProcess) -> None:
    assert session.load_s > 0
    assert bytes(session.generate(ask(1))[0].token_ids) == b"abca"
    assert session.score([[1, 2, 3]]).log_probs == ((0.0, 0.0),)
    assert session.memory().rss_bytes == 0


def test_tokens_arrive_one_by_one_and_can_be_cancelled(session: SessionProcess) -> None:
    seen: list[int] = []

    def until_two(_index: int, token: int, _scored: TokenLogProbs | None) -> bool:
        seen.append(token)
        return len(seen) < 2

    answer = session.generate(ask(1, tokens=200_000), until_two)[0]
    assert bytes(seen[:2]) == b"ab"
    assert answer.finish_reason == "cancelled"


def test_a_session_that_dies_says_so_and_ends(session: SessionProcess) -> None:
    with pytest.raises(StageCrashedError, match="exit code 1"):
        session.generate(ask(99))


def test_a_closed_session_refuses_calls(session: SessionProcess) -> None:
    session.close()
    session.close()
    with pytest.raises(StageError, match="open it first"):
        session.memory()


def test_an_engine_that_refuses_its_options_is_a_spec_error(tmp_path: Path, plugins: dict[str, str]) -> None:
    closed = SessionProcess("fake", tmp_path, {"text": ""}, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins)
    with pytest.raises(SpecError, match="Bad options"):
        closed.open()


def test_an_engine_that_does_not_answer_is_stopped(tmp_path: Path, plugins: dict[str, str]) -> None:
    options: dict[str, Any] = {"delay_ms": 60_000.0}
    with SessionProcess("fake", tmp_path, options, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins) as session:
        process = Path("/proc", str(session.pid))
        session.timeout_s = 0.2
        with pytest.raises(StageTimeoutError, match=r"did not answer 'generate' within 0\.2 s"):
            session.generate(ask(1))
        assert not process.exists()
        assert "fake_engine.py" in (tmp_path / "session.log").read_text().partition("Aborted")[2], "where it hung"


def held_pipes(session: SessionProcess) -> list[int]:
    """Opens the other ends of a session's pipes too, as does a process that the kernel does not let go."""
    paths = [path for pid in below(session.pid) for path in Path("/proc", str(pid), "fd").iterdir() if os.readlink(path).startswith("pipe:")]
    return [os.open(path, os.O_WRONLY) for path in paths]


def test_an_engine_whose_output_stays_open_is_given_up_in_time(tmp_path: Path, plugins: dict[str, str]) -> None:
    options: dict[str, Any] = {"delay_ms": 60_000.0}
    session = SessionProcess("fake", tmp_path, options, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins).open()
    held = held_pipes(session)
    session.timeout_s = 0.2
    with ThreadPoolExecutor() as caller:
        asked = caller.submit(session.generate, ask(1))
        try:
            assert held
            assert isinstance(asked.exception(timeout=20), StageTimeoutError)
        finally:
            for pipe in held:
                os.close(pipe)


def test_an_engine_is_stopped_at_the_end_of_its_lifetime(tmp_path: Path, plugins: dict[str, str]) -> None:
    options: dict[str, Any] = {"delay_ms": 60_000.0}
    closed = SessionProcess("fake", tmp_path, options, log=tmp_path / "session.log", timeout_s=60.0, lifetime_s=6.0, environment=plugins)
    began = time.monotonic()
    with closed as session, pytest.raises(StageTimeoutError, match="did not answer 'generate' before its time was over"):
        session.generate(ask(1))
    assert time.monotonic() - began < 12


def test_a_process_made_ready_opens_what_comes_next_and_another_one_takes_its_place(tmp_path: Path, plugins: dict[str, str]) -> None:
    ready = ReadyWorker(tmp_path / "ready.log")
    logs = [tmp_path / "first.log", tmp_path / "second.log", tmp_path / "other.log"]
    first, second = (SessionProcess("fake", tmp_path, {"text": "abc"}, log=log, timeout_s=30.0, environment=plugins) for log in logs[:2])
    other = SessionProcess("fake", tmp_path, {"text": "abc"}, log=logs[2], timeout_s=30.0, threads=1, environment=plugins)
    try:
        assert ready.exchange(first.setting) is None
        first.open()
        ready.settle()
        assert (tmp_path / "ready.log").read_text() == "prepared\n"
        worker = ready.exchange(second.setting)
        assert worker is not None
        began = time.monotonic()
        with second.open(worker):
            assert second.load_s > time.monotonic() - began, "the time before it was asked for counts"
            assert second.pid == worker.pid != first.pid
            assert bytes(second.generate(ask(1))[0].token_ids) == b"abca"
            with pytest.raises(StageError, match="no method 'sing'"):
                second.call("sing")
        assert "no method 'sing'" in logs[1].read_text(), "what it says from then on is in the log of what it opened"
        assert ready.exchange(other.setting) is None, "its threads were settled when it started"
    finally:
        ready.close()
        first.close()


def test_a_process_made_ready_that_fails_or_dies_is_no_candidates_fault(
    tmp_path: Path, plugins: dict[str, str], started: Callable[[], set[psutil.Process]]
) -> None:
    ready = ReadyWorker(tmp_path / "ready.log")
    unknown = SessionProcess("none", tmp_path, {}, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins)
    assert ready.exchange(unknown.setting) is None
    ready.settle()
    assert ready.exchange(unknown.setting) is None
    with pytest.raises(SpecError, match="There is no engine 'none'"):
        unknown.open()
    session = SessionProcess("fake", tmp_path, {}, log=tmp_path / "session.log", timeout_s=30.0, environment=plugins)
    ready.exchange(session.setting)
    ready.settle()
    gone = started()
    for process in gone:
        process.kill()
    psutil.wait_procs(gone, timeout=30)
    try:
        assert gone
        assert ready.exchange(session.setting) is None
    finally:
        ready.close()
    assert not started()
