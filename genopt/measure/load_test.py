"""A load test of an OpenAI-compatible endpoint, from a process of its own.

In the closed loop each of C workers sends its next request when the former has ended: that tells what the
server can do, but hides how long requests would wait in line. In the open loop requests arrive at random
(Poisson) and never wait for answers: that is what limits on latency have to hold under.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from genopt.errors import EndpointError, InterruptedRunError, SpecError
from genopt.measure.arrivals import arrivals
from genopt.measure.load_client import Clock, LoadClient, Sample, failures
from genopt.measure.load_result import Level, LoadResult, level_name, level_of, result_of
from genopt.measure.load_spec import LoadSpec, own_prompts
from genopt.measure.load_transport import open_client
from genopt.measure.made_prompts import made_prompts, tokenization_of
from genopt.measure.prompts import Prompt
from genopt.measure.saturation import Watch

WARM_UP_TOKENS = 8
PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""A worker's pause after a failure: without it, one that is refused at once would do nothing but knock. A server that says how long to
wait is obeyed, up to the longest pause. In the open loop nothing waits."""


Prompts = Callable[[int], Prompt]
"""The prompt of request `index`; the same index always gives the same prompt."""
Send = Callable[[int, int, float], Awaitable[Sample]]


class Progress(Protocol):
    """Told how a load test goes on."""

    def __call__(self, level: str, *, done: int, of: int | None, failed: int, in_flight: int) -> None:
        """A request was sent or ended; `of` is None where time and not a number ends the level."""


def silent(level: str, *, done: int, of: int | None, failed: int, in_flight: int) -> None:
    """A `Progress` that ignores everything."""


def load_test(spec: LoadSpec, progress: Progress = silent) -> LoadResult:
    """Measures an endpoint at every level of load, one after another; after Ctrl-C the result has the levels that had ended.

    Args:
        spec: What to do.
        progress: Told how it goes on.

    Raises:
        SpecError: The variable that should hold the key does not.
        DataError: The file of prompts cannot be used.
        EndpointError: The endpoint does not answer, is none, or no request succeeded.
        InterruptedRunError: Ctrl-C before the first level had ended.
    """
    key = _key(spec.api_key_env)
    own = own_prompts(spec)
    levels: list[Level] = []
    model, interrupted = "", False

    async def run() -> None:
        nonlocal model
        async with _cancelled_by_signals(), open_client(key=key) as http:
            client = LoadClient(http, spec.url, timeout_s=spec.timeout, clock=time.perf_counter, stream=spec.stream)
            model = await client.model(spec.model)
            prompts = await _prompts(spec, client, own, model)
            async for level in measure(spec, client, prompts, model=model, progress=progress):
                levels.append(level)

    try:
        asyncio.run(run())
    except (asyncio.CancelledError, KeyboardInterrupt):
        interrupted = True
    if interrupted and not any(level.succeeded for level in levels):
        raise InterruptedRunError("Interrupted before the first level had ended; nothing was written, so run it again.")
    _refuse_failure(levels, spec.url)
    return result_of(levels, spec, model=model, different=len(set(own)) or None, interrupted=interrupted)


async def _prompts(spec: LoadSpec, client: LoadClient, own: Sequence[Prompt], model: str) -> Prompts:
    """Those of a file in turn, or made ones of the length that was asked for, as the server counts it."""

    async def count(prompt: str, number: int) -> int | None:
        found = await client.ask(prompt, model=model, max_tokens=1, index=number, since=0.0)
        return found.prompt_tokens if found.error is None else None

    if own:
        return lambda index: own[index % len(own)]
    return made_prompts(spec.prompt_tokens, seed=spec.seed, tokenization=await tokenization_of(spec.prompt_tokens, count, seed=spec.seed))


@asynccontextmanager
async def _cancelled_by_signals() -> AsyncIterator[None]:
    """Lets the first Ctrl-C or SIGTERM cancel this task, so that its requests end in order; a second one acts as before the block."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            if loop.remove_signal_handler(number) and handler is not None:
                signal.signal(number, handler)

    def cancel() -> None:
        restore()
        task.cancel()

    for number in before:
        loop.add_signal_handler(number, cancel)
    try:
        yield
    finally:
        restore()


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key or not (key.isascii() and key.isprintable()):
        raise SpecError(f"The environment variable {variable} holds no key; set it, or leave --api-key-env out.")
    return key


async def measure(
    spec: LoadSpec,
    client: LoadClient,
    prompts: Prompts,
    *,
    model: str,
    progress: Progress = silent,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> AsyncIterator[Level]:
    """The levels of a load test, each once it has ended.

    Args:
        spec: What to do; the endpoint and the key are the client's.
        client: Whom to ask, with the same clock.
        prompts: What to ask.
        model: Whom to ask for.
        progress: Told how it goes on.
        clock: Monotonic clock in seconds.
        cpu_clock: Processor time of this process in seconds.
    """
    asked = 0

    async def send(index: int, tokens: int, since: float) -> Sample:
        return await client.ask(prompts(index), model=model, max_tokens=tokens, index=index, since=since)

    loads: list[tuple[int | None, float | None]] = [*((streams, None) for streams in spec.concurrency), *((None, rate) for rate in spec.rate)]
    for streams, rate in loads:
        name = level_name(streams, rate)
        progress(f"{name}, warming up", done=0, of=spec.requests, failed=0, in_flight=0)

        def tell(done: int, failed: int, in_flight: int, name: str = name) -> None:
            progress(name, done=done, of=spec.requests, failed=failed, in_flight=in_flight)

        run = _Run(spec, send, first=asked, tell=tell, clock=clock)
        warm_up = await run.warm_up(streams or 1)
        async with Watch(clock, cpu_clock) as watch:
            await (run.open_loop(arrivals("poisson", rate, seed=spec.seed)) if rate else run.closed_loop(streams or 1))
        asked = run.next
        yield level_of(run, spec, concurrency=streams, rate=rate, warm_up=warm_up, client=watch.load())


def _refuse_failure(levels: Sequence[Level], url: str) -> None:
    """A load test without one success has measured nothing."""
    if any(level.succeeded for level in levels):
        return
    samples = [sample for level in levels for sample in level.samples]
    errors = failures(samples)
    said = next((sample.detail for sample in samples if sample.detail), "nothing")
    counts = ", ".join(f"{count} {name}" for name, count in errors.items()) or "none was sent"
    what = f"None of {len(samples)} requests to {url} succeeded ({counts}; the first said: {said.rstrip('.')})"
    raise EndpointError(f"{what}; mend the server, or use less load.", {"errors": dict(errors)})


class _Run:
    """One level while it runs.

    Args:
        spec: What to do.
        send: Sends request number `index` with an upper bound of new tokens; the third argument is when the level began.
        first: Number of the level's first request.
        tell: Told after every change how many requests have ended, failed and are under way.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, spec: LoadSpec, send: Send, *, first: int, tell: Callable[[int, int, int], None], clock: Clock) -> None:
        self._spec = spec
        self._send = send
        self._tell = tell
        self._clock = clock
        self._began = self._last_end = 0.0
        self._first_send: float | None = None
        self._sent = self._failed = self._in_flight = 0
        self.next = first
        self.samples: list[Sample] = []
        self.request_s = 0.0
        self.peak = 0

    @property
    def wall_s(self) -> float:
        """First send to last end."""
        return max(0.0, self._last_end - self._first_send) if self._first_send is not None else 0.0

    async def warm_up(self, streams: int) -> list[Sample]:
        """Short requests, as many at once as the level will have: they open the connections and show the server that batch size."""
        tokens = min(self._spec.max_tokens, WARM_UP_TOKENS)
        indices = range(self.next, self.next + streams)
        self.next += streams
        return list(await asyncio.gather(*(self._send(index, tokens, self._clock()) for index in indices)))

    async def closed_loop(self, streams: int) -> None:
        """Workers that each send the next request when the former has ended."""
        self._began = self._clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(self._worker())

    async def open_loop(self, arrivals: Iterator[float]) -> None:
        """Requests that are sent when they arrive, however many are under way."""
        self._began = self._clock()
        async with asyncio.TaskGroup() as group:
            for at in arrivals:
                if not self._goes_on(at):
                    break
                await asyncio.sleep(max(0.0, self._began + at - self._clock()))
                group.create_task(self._request(self._claim()))

    async def _worker(self) -> None:
        while self._goes_on(self._clock() - self._began):
            sample = await self._request(self._claim())
            if sample.error is not None:
                await asyncio.sleep(min(LONGEST_PAUSE_S, max(PAUSE_S, sample.retry_after_s or 0.0)))

    def _goes_on(self, elapsed_s: float) -> bool:
        enough = self._spec.requests is not None and self._sent >= self._spec.requests
        return not enough and (self._spec.duration is None or elapsed_s < self._spec.duration)

    def _claim(self) -> int:
        """The next request's number; taken before anything is waited for, so that no two workers get the same."""
        self._sent += 1
        self.next += 1
        return self.next - 1

    async def _request(self, index: int) -> Sample:
        begun = self._clock()
        self._first_send = begun if self._first_send is None else self._first_send
        self._in_flight += 1
        self.peak = max(self.peak, self._in_flight)
        sample = await self._send(index, self._spec.max_tokens, self._began)
        self._in_flight -= 1
        self._last_end = self._clock()
        self.request_s += max(0.0, self._last_end - begun)
        self.samples.append(sample)
        self._failed += sample.error is not None
        self._tell(len(self.samples), self._failed, self._in_flight)
        return sample
