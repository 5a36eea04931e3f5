"""Processes that hold engines' sessions: one can be made ready before it is known what it will open."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from genopt.child import death_error, environment_of, kill_tree, tell_where, worker_command
from genopt.environments import place
from genopt.errors import GenoptError, StageError, StageTimeoutError, from_wire


class Setting(NamedTuple):
    """What is settled when a process starts, whatever it opens later.

    Attributes:
        engine: Catalogue name.
        variables: Its environment variables.
        cpus: Processors that it may run on; None leaves it those of this process.
    """

    engine: str
    variables: Mapping[str, str]
    cpus: tuple[int, ...] | None


class SessionWorker:
    """A process of `genopt.worker session`, which is spoken to in messages.

    Args:
        setting: What it is started with.
        log: File that receives its output.
    """

    def __init__(self, setting: Setting, log: Path) -> None:
        self.setting, self.log = setting, log
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._started = 0.0
        self.preparation_s = 0.0
        """Seconds from its start until what `prepare` asks for was there."""

    def start(self) -> Self:
        """Starts the process.

        Raises:
            InfeasibleError: The engine's environment is not built here.
        """
        where, cpus, variables = environment_of(self.setting.engine), self.setting.cpus, dict(self.setting.variables)
        command = worker_command(where)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "session", *([",".join(map(str, cpus))] if cpus else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, start_new_session=True, text=True,
                env=variables if where is None else place.without_our_paths(variables),
            )  # fmt: skip
        threading.Thread(target=self._pump, args=(self._process.stdout,), daemon=True).start()
        return self

    def _pump(self, stream: IO[str] | None) -> None:
        if stream is not None:
            with stream:
                for line in stream:
                    self._lines.put(line)
        self._lines.put(None)

    def prepare(self) -> None:
        """Asks for what opening needs, whatever is opened, to be imported; `await_prepared` waits for it."""
        self.send({"method": "prepare", "arguments": {"engine": self.setting.engine}, "stream": False})

    def await_prepared(self, timeout_s: float) -> None:
        """Waits until the process works no more.

        Raises:
            GenoptError: It failed, died or took too long.
        """
        answer = self.receive(timeout_s)
        if answer is None:
            raise StageTimeoutError(f"The engine did not answer 'prepare' within {timeout_s:.1f} s; give it more time.")
        if "error" in answer:
            raise from_wire(answer["error"])
        self.preparation_s = answer["result"] - self._started  # on a clock that processes share

    @property
    def pid(self) -> int:
        """Process id."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise StageError("The engine session is closed; open it first.")
        return self._process

    def wait(self) -> int:
        """Waits until the process has ended, for whatever reason, and returns its exit status."""
        return self._running().wait()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message; `genopt.worker` says which there are.

        Raises:
            StageError: The process is gone.
        """
        process = self._running()
        try:
            if process.stdin is not None:
                process.stdin.write(json.dumps(message) + "\n")
                process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._died() from None

    def _died(self) -> StageError:
        process = self._running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        return death_error("The engine's process", process.returncode if process.returncode is not None else -signal.SIGKILL, self.log)

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message of the process; None where none came in time.

        Raises:
            StageError: The process is gone.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if line is None:
            raise self._died()
        message: dict[str, Any] = json.loads(line)
        return message

    def tell_where(self) -> None:
        """Has what hangs say where in the log, and ends it by that."""
        tell_where(self._running())

    def close(self) -> None:
        """Kills the process and all that it started; safe to call twice.

        Its output is left to the thread that reads it, which holds its lock for as long as any process has the other end, even one that the kernel
        does not let go: whoever waited for that lock would never tell what went wrong.
        """
        if self._process is not None:
            kill_tree(self._process)
            if self._process.stdin is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._process.stdin.close()
            self._process = None


class ReadyWorker:
    """Keeps one process ready for the session that is opened next, as most that follow one another are alike.

    Args:
        log: File that receives what the process says before it opens something.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._worker: SessionWorker | None = None

    def exchange(self, setting: Setting) -> SessionWorker | None:
        """The process that is ready where it suits, and begins to make another one ready.

        Returns:
            None where there is none, or one with another setting, which is ended.
        """
        self.settle()
        found, self._worker = self._worker, None
        if found is not None and not (found.setting == setting and found.alive):
            found.close()
            found = None
        worker = SessionWorker(setting, self._log)
        try:
            worker.start().prepare()
        except GenoptError:  # whoever opens the session says so
            worker.close()
        else:
            self._worker = worker
        return found

    def settle(self, timeout_s: float = 60.0) -> None:
        """Waits until the process that is made ready works no more, so that it disturbs no measurement; one that fails is ended."""
        worker = self._worker
        if worker is None or worker.preparation_s:
            return
        try:
            worker.await_prepared(timeout_s)
        except GenoptError:
            self.close()

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
