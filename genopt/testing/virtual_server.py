"""A server for load tests, on an event loop whose time is virtual, so that nothing sleeps."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import httpx

from genopt.measure.load_client import LoadClient, Sample
from genopt.measure.load_result import LoadResult, result_of
from genopt.measure.load_spec import build
from genopt.measure.load_test import measure
from genopt.measure.load_transport import open_client
from genopt.measure.prompts import Prompt

URL = "http://server"
Result = TypeVar("Result")
DONE = b"data: [DONE]\n\n"
Part = tuple[float, bytes | Exception]
"""Seconds to wait, then bytes to send or the error that ends the answer."""
Answer = Callable[[httpx.Request, int], "httpx.Response | list[Part]"]
"""Gives the answer to a request and its number."""


class VirtualSelector(selectors.SelectSelector):
    """Never waits: where the loop would, time jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Sees what is ready, after as much virtual time as the loop would have waited."""
        if timeout is None:
            raise RuntimeError("everything waits and nothing is due")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds since it began."""
        return self._virtual.now

    def block(self, seconds: float) -> None:
        """Stands for a computation that holds the loop up."""
        self._virtual.now += seconds


def play(scenario: Callable[[VirtualLoop], Coroutine[Any, Any, Result]]) -> Result:
    """Runs a scenario on a loop of its own, which it is given."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(scenario(loop))


def event(content: object) -> bytes:
    """An event of a stream."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(piece: str = "word ", finish: str | None = None) -> bytes:
    """An event with a piece of the answer."""
    return event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": finish}]})


def usage(completion: int, prompt: int = 9) -> bytes:
    """The event that says how many tokens there were."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}})


def stream(first: float = 0.1, gap: float = 0.02, chunks: int = 5, tokens: int | None = None) -> list[Part]:
    """A whole answer; with usage of as many tokens as chunks unless told otherwise."""
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
    texts = [(first if number == 0 else gap, text()) for number in range(chunks)]
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    return [(0.0, role), *texts, (0.0, end), (0.0, usage(chunks if tokens is None else tokens)), (0.0, DONE)]


class Parts(httpx.AsyncByteStream):
    """An answer in parts, each after its time.

    Args:
        parts: Sent in this order.
        ended: Called when the answer is closed.
    """

    def __init__(self, parts: list[Part], ended: Callable[[], None]) -> None:
        self._parts = parts
        self._ended = ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for delay, part in self._parts:
            await asyncio.sleep(delay)
            if isinstance(part, Exception):
                raise part
            yield part

    async def aclose(self) -> None:
        """See `httpx.AsyncByteStream.aclose`."""
        self._ended()


class Server(httpx.AsyncBaseTransport):
    """Answers chat requests number 0, 1, ... as told, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.peak = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport.handle_async_request`."""
        self.bodies.append(json.loads(await request.aread()))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            found = self._answer(request, len(self.bodies) - 1)
        except BaseException:
            self._ended()
            raise
        if isinstance(found, httpx.Response):
            self._ended()
            return found
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Parts(found, self._ended))

    def _ended(self) -> None:
        self.in_flight -= 1


def run(
    server: Server, *, cpu: float = 0.1, prompts: Callable[[int], Prompt] = "prompt {}".format, different: int | None = None, **values: Any
) -> LoadResult:
    """A load test of a server.

    Args:
        server: What is asked.
        cpu: Share of a core that the client seems to need.
        prompts: Gives the prompt of each request by its number.
        different: How many different prompts there are.
        values: Settings as the command line gives them.
    """
    spec = build({"url": URL, "concurrency": ["2"] if "rate" not in values else None, "requests": 4, **values})

    async def scenario(loop: VirtualLoop) -> LoadResult:
        async with open_client(key=None, transport=server) as http:
            client = LoadClient(http, spec.url, timeout_s=spec.timeout, clock=loop.time, stream=spec.stream)
            levels = [level async for level in measure(
                spec, client, prompts, model="first", clock=loop.time, cpu_clock=lambda: cpu * loop.time()
            )]  # fmt: skip
        return result_of(levels, spec, model="first", different=different)

    return play(scenario)


def ask(
    parts: httpx.Response | list[Part] | Exception, *, times: Iterator[float] | None = None, timeout_s: float = 5.0, streamed: bool = True
) -> Sample:
    """One request alone; `times` replaces the clock."""

    def answer(request: httpx.Request, number: int) -> httpx.Response | list[Part]:
        if isinstance(parts, Exception):
            raise parts
        return parts

    async def scenario(loop: VirtualLoop) -> Sample:
        clock = loop.time if times is None else lambda: next(times)
        async with open_client(key=None, transport=Server(answer)) as http:
            client = LoadClient(http, URL, timeout_s=timeout_s, clock=clock, stream=streamed)
            return await client.ask("hi", model="m", max_tokens=8, index=3, since=0.0)

    return play(scenario)


def sample(**values: Any) -> Sample:
    """The times of a request that went well, with changes."""
    return Sample.model_validate({"index": 0, "sent_s": 0.0, "tokens": 5, "ttft_ms": 100.0, "tpot_ms": 20.0, "e2el_ms": 180.0, **values})


def whole(content: str = "some words", **more: Any) -> httpx.Response:
    """An answer in one piece."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [choice], **more})
