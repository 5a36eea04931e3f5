"""Runs stages and engine sessions in processes of their own, with the interpreter of the environment that they need.

Each child gets its own session and a deadline; whatever happens, all that it started is killed when the work ends,
so that memory is truly released and a crash or hang is a typed error. It also ends when the parent disappears
(`genopt.guardian` watches it).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from genopt import clock
from genopt.child import child_environment, death_error, kill_tree, tell_where, worker_command
from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores, TokenLogProbs
from genopt.engines.distribution import Distributions, Wanted
from genopt.engines.images import GeneratedImage, ImageRequest, OnStep
from genopt.environments import place
from genopt.errors import StageError, StageTimeoutError, from_wire
from genopt.measure import gpu
from genopt.measure.process_tree import TreeMemory, TreePeak, below
from genopt.plan import JsonValue
from genopt.quality.reference import Compared
from genopt.session_worker import SessionWorker, Setting


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
            tell_where(process)
            raise StageTimeoutError(f"The stage {kind!r} passed its limit of {timeout_s:.0f} s and was stopped; give a larger --budget.") from None
        finally:
            kill_tree(process)
        if not result.exists():
            raise death_error(f"The stage {kind!r}", code, log)
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
        self._artifact, self._options, self._log = str(artifact), dict(options), log
        self.timeout_s = timeout_s
        self.threads, self.cpus = threads, tuple(cpus) if cpus is not None else None
        self.setting = Setting(engine, child_environment(threads, environment), self.cpus)
        self._worker: SessionWorker | None = None
        self._tree = TreeMemory(0)
        self.load_s = 0.0

    def open(self, ready: SessionWorker | None = None) -> Self:
        """Starts the process and loads the artifact; `load_s` is the wall time of both, whenever it was started.

        Args:
            ready: A process with this session's setting, ready before; None starts one.

        Raises:
            GenoptError: The engine refused, failed, died or took too long.
        """
        began = time.monotonic()
        worker = self._worker = SessionWorker(self.setting, self._log).start() if ready is None else ready
        worker.log = self._log
        self._tree = TreeMemory(worker.pid)
        try:
            with self._tree.watched():
                self.call("open", engine=self.setting.engine, artifact=self._artifact, options=self._options, log=str(self._log))
        except BaseException:
            self.close()
            raise
        self.load_s = worker.preparation_s + time.monotonic() - began
        return self

    @property
    def pid(self) -> int:
        """Process id of the running session."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the session is open and its process still there."""
        return self._worker is not None and self._worker.alive

    def _running(self) -> SessionWorker:
        if self._worker is None:
            raise StageError("The engine session is closed; open it first.")
        return self._worker

    def wait(self) -> int:
        """Waits until the process has ended, for whatever reason, and returns its exit status."""
        return self._running().wait()

    def send(self, message: Mapping[str, Any]) -> None:
        """See `SessionWorker.send`."""
        self._running().send(message)

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """See `SessionWorker.receive`."""
        return self._running().receive(timeout_s)

    def call(self, method: str, *, on_event: OnEvent | None = None, **arguments: Any) -> Any:
        """Calls a method of the remote session and waits for its result."""
        self.send({"method": method, "arguments": arguments, "stream": on_event is not None})
        began = time.monotonic()
        deadline = began + self.timeout_s if self._ends is None else min(began + self.timeout_s, self._ends)
        while True:
            answer = self.receive(max(deadline - time.monotonic(), 0.01))
            if answer is None:
                self._running().tell_where()
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
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self.open() if self._worker is None else self

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


class ImageProcess(EngineProcess):
    """An `ImageSession` whose engine lives in a process of its own."""

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep | None = None) -> list[GeneratedImage]:
        """See `ImageSession.generate`."""

        def on_event(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
            index, step, steps = event["step"]
            return None if on_step is None or on_step(index, step, steps) else {"cancel": index}

        payload = [request.model_dump(mode="json") for request in requests]
        found = self.call("generate", on_event=None if on_step is None else on_event, requests=payload)
        return [GeneratedImage.model_validate(item) for item in found]
