"""Runs stages and engine sessions in processes of their own, with the interpreter of the environment that they need.

Each child gets its own session and a deadline; whatever happens, all that it started is killed when the work ends,
so that memory is truly released and a crash or hang is a typed error. It also ends when the parent disappears
(`genopt.guardian` watches it).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from genopt import catalog, clock
from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores, TokenLogProbs
from genopt.engines.distribution import Distributions, Wanted
from genopt.environments import place
from genopt.errors import OutOfMemoryError, StageCrashedError, StageError, StageTimeoutError, from_wire
from genopt.guardian import PARENT, SWEEP_S
from genopt.measure import gpu
from genopt.measure.process_tree import TreeMemory, TreePeak, below
from genopt.plan import JsonValue
from genopt.quality.reference import Compared


def child_environment(threads: int | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: explicit thread count, no hub or tokenizer chatter."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**os.environ, **quiet, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    environment.update(extra or {})
    return environment


def worker_command(environment: str | None) -> list[str]:
    """Starts `genopt.worker` with the interpreter of an environment, None being ours; its arguments follow.

    Raises:
        InfeasibleError: The environment is not built here.
    """
    return [sys.executable, "-m", "genopt.worker"] if environment is None else place.worker_command(environment)


def environment_of(engine: str) -> str | None:
    """The environment of an engine; ours for one that only children know, who then say what is wrong with it."""
    known = engine in catalog.names("engines")
    found: str | None = catalog.load("engines", engine).environment if known else None
    return found


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kills a child and all that it started, and reaps the child.

    Its guardian does it, because it alone finds what left the child's process group. It goes on where the child itself is
    already dead or does not end in time.
    """
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SWEEP_S + 1)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)


def _death_error(what: str, code: int, log: Path) -> StageError:
    if code == -signal.SIGKILL:
        return OutOfMemoryError(f"{what} was killed, most likely for lack of memory; free memory or use a smaller model (log: {log.name}).")
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return StageCrashedError(f"{what} {how}; see {log.name} in the run's logs for the cause.")


def run_stage(
    kind: str,
    payload: Mapping[str, Any],
    *,
    log: Path,
    timeout_s: float,
    threads: int | None = None,
    environment: Mapping[str, str] | None = None,
    where: str | None = None,
) -> dict[str, Any]:
    """Runs one stage to its end and returns its result.

    Args:
        kind: A key of `genopt.worker.STAGES`.
        payload: JSON values for the stage.
        log: File that receives the stage's output.
        timeout_s: Seconds after which the stage and all that it started is killed.
        threads: CPU threads, or None to leave the libraries' defaults.
        environment: Variables for the child.
        where: Catalogue name of the environment whose interpreter runs it; None is ours.

    Raises:
        InfeasibleError: That environment is not built here.
        StageTimeoutError: The deadline passed.
        StageCrashedError, OutOfMemoryError: The process died.
        GenoptError: Whatever the stage itself raised.
    """
    command, variables = worker_command(where), child_environment(threads, environment)
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="genopt-stage-") as folder, log.open("ab") as output:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        request.write_text(json.dumps({"kind": kind, "payload": dict(payload), "ends": clock.now() + timeout_s}), encoding="utf-8")
        process = subprocess.Popen(
            [*command, "stage", str(request), str(result)], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=variables if where is None else place.without_our_paths(variables),
        )  # fmt: skip
        try:
            code = process.wait(timeout=max(timeout_s, 0.1))
        except subprocess.TimeoutExpired:
            raise StageTimeoutError(f"The stage {kind!r} passed its limit of {timeout_s:.0f} s and was stopped; give a larger --budget.") from None
        finally:
            kill_tree(process)
        if not result.exists():
            raise _death_error(f"The stage {kind!r}", code, log)
        answer = json.loads(result.read_text(encoding="utf-8"))
    if "error" in answer:
        raise from_wire(answer["error"])
    value: dict[str, Any] = answer["result"]
    return value


OnEvent = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
"""Told what a call says before its result; what it returns is sent to the engine's process."""


class EngineProcess:
    """A session of any modality in a process of its own; what calls there are is said by the classes that add them.

    Args:
        engine: Catalogue name.
        artifact: Folder to open.
        options: Options of the engine.
        log: File that receives the process's output.
        timeout_s: Limit of opening and of each later call, in seconds.
        lifetime_s: Seconds from now after which no call may last, whatever its own limit; None sets no end.
        threads: CPU threads, or None for the libraries' defaults.
        environment: Variables for the child.
        cpus: Processors that the child may run on; None leaves it those of this process.
    """

    def __init__(
        self,
        engine: str,
        artifact: Path,
        options: Mapping[str, JsonValue],
        *,
        log: Path,
        timeout_s: float,
        lifetime_s: float | None = None,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        cpus: Sequence[int] | None = None,
    ) -> None:
        self._ends = None if lifetime_s is None else time.monotonic() + lifetime_s
        self._engine, self._artifact, self._options = engine, str(artifact), dict(options)
        self._log = log
        self.timeout_s = timeout_s
        self._environment = child_environment(threads, environment)
        self.threads, self.cpus = threads, tuple(cpus) if cpus is not None else None
        self._process: subprocess.Popen[str] | None = None
        self._tree = TreeMemory(0)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.load_s = 0.0

    def open(self) -> Self:
        """Starts the process and loads the artifact; `load_s` is the wall time of both.

        Raises:
            GenoptError: The engine refused, failed, died or took too long.
        """
        where = environment_of(self._engine)
        command = worker_command(where)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "session", *([",".join(map(str, self.cpus))] if self.cpus else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, start_new_session=True, text=True,
                env=self._environment if where is None else place.without_our_paths(self._environment),
            )  # fmt: skip
        threading.Thread(target=self._pump, args=(self._process.stdout, self._lines), daemon=True).start()
        self._tree = TreeMemory(self._process.pid)
        try:
            with self._tree.watched():
                self.call("open", engine=self._engine, artifact=self._artifact, options=self._options)
        except BaseException:
            self.close()
            raise
        self.load_s = time.monotonic() - started
        return self

    @staticmethod
    def _pump(stream: IO[str] | None, lines: queue.Queue[str | None]) -> None:
        if stream is not None:
            for line in stream:
                lines.put(line)
        lines.put(None)

    @property
    def pid(self) -> int:
        """Process id of the running session."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the session is open and its process still there."""
        return self._process is not None and self._process.poll() is None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise StageError("The engine session is closed; open it first.")
        return self._process

    def wait(self) -> int:
        """Waits until the process has ended, for whatever reason, and returns its exit status."""
        return self._running().wait()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message to the engine's process; `genopt.worker` says which there are.

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
        return _death_error("The engine's process", process.returncode if process.returncode is not None else -signal.SIGKILL, self._log)

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message of the engine's process; None where none came in time.

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

    def call(self, method: str, *, on_event: OnEvent | None = None, **arguments: Any) -> Any:
        """Calls a method of the remote session and waits for its result."""
        self.send({"method": method, "arguments": arguments, "stream": on_event is not None})
        began = time.monotonic()
        deadline = began + self.timeout_s if self._ends is None else min(began + self.timeout_s, self._ends)
        while True:
            answer = self.receive(max(deadline - time.monotonic(), 0.01))
            if answer is None:
                self.close()
                if deadline == self._ends:
                    raise StageTimeoutError(f"The engine did not answer {method!r} before its time was over, and was stopped; give it more time.")
                raise StageTimeoutError(f"The engine did not answer {method!r} within {self.timeout_s:.1f} s and was stopped.")
            if "error" in answer:
                raise from_wire(answer["error"])
            if "result" in answer:
                return answer["result"]
            reply = on_event(answer) if on_event is not None else None
            if reply is not None:
                self.send(reply)

    def memory(self) -> Memory:
        """See `Session.memory`."""
        return Memory.model_validate(self.call("memory"))

    def tree_peak(self) -> TreePeak:
        """Resident memory of all the session's processes together: the most that was seen while it opened, at earlier calls, or now."""
        self._running()
        return self._tree.look()

    def device_bytes(self) -> int | None:
        """Memory of GPUs that the driver counts for the session's processes; None where it counts none for them."""
        return gpu.used_by(below(self.pid))

    def close(self) -> None:
        """Kills the process and all that it started; safe to call twice."""
        if self._process is not None:
            kill_tree(self._process)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError, ValueError):
                        stream.close()
            self._process = None

    def __enter__(self) -> Self:
        return self.open() if self._process is None else self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class SessionProcess(EngineProcess):
    """A `TextSession` whose engine lives in a process of its own."""

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`."""

        def on_event(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
            index, token = event["token"]
            scored = TokenLogProbs.model_validate(event["log_probs"]) if "log_probs" in event else None
            return None if on_token is None or on_token(index, token, scored) else {"cancel": index}

        payload = [request.model_dump(mode="json") for request in requests]
        found = self.call("generate", on_event=None if on_token is None else on_event, requests=payload)
        return [Generation.model_validate(item) for item in found]

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`."""
        return Scores.model_validate(self.call("score", sequences=[list(sequence) for sequence in sequences]))

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """See `TextSession.distributions`; for whole texts `record` and `compare` keep the numbers on the other side."""
        asked = wanted if isinstance(wanted, int) else wanted.tolist()
        return Distributions.from_lists(self.call("distributions", sequence=list(sequence), wanted=asked))

    def record(self, sequences: Sequence[Sequence[int]], path: Path, facts: Mapping[str, str]) -> None:
        """Lets the engine's process write its distributions to a file; see `genopt.quality.reference.record`."""
        self.call("record", sequences=[list(sequence) for sequence in sequences], path=str(path), facts=dict(facts))

    def compare(self, sequences: Sequence[Sequence[int]], path: Path) -> Compared:
        """Lets the engine's process compare itself with a written file; see `genopt.quality.reference.compare`."""
        return Compared.model_validate(self.call("compare", sequences=[list(sequence) for sequence in sequences], path=str(path)))

    def joinable(self, slots: int) -> bool:
        """Whether requests can join a running batch of the engine; see `genopt.serving.joining` for how."""
        return bool(self.call("joinable", slots=slots))
