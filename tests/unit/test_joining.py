"""Requests join a running batch: none waits for another to end, and none stalls the others."""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from genopt.engines.base import GenerationRequest
from genopt.errors import GenoptError, SpecError, StageCrashedError, StageTimeoutError
from genopt.process import SessionProcess
from genopt.serving.batching import Finish, Token
from genopt.serving.engine_thread import EngineLoad
from genopt.serving.joining import Joining
from genopt.testing.plugin import write_plugin

CRASH = 7


def request(tokens: int, *prompt: int) -> GenerationRequest:
    return GenerationRequest(prompt_ids=prompt or (1, 2), max_new_tokens=tokens)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[SessionProcess]:
    plugins = tmp_path / "plugins"
    write_plugin(plugins)
    environment = {"PYTHONPATH": os.pathsep.join([str(plugins), str(Path(__file__).parents[2])])}
    options: dict[str, Any] = {"text": "abc", "delay_ms": 2, "crash_token": CRASH}
    with SessionProcess("fake", tmp_path, options, log=tmp_path / "log", timeout_s=30.0, environment=environment) as opened:
        assert opened.joinable(2)
        yield opened


async def outcomes(scheduler: Joining, asked: GenerationRequest) -> list[Token | Finish]:
    return [outcome async for outcome in scheduler.generate(asked)]


def text(found: list[Token | Finish]) -> str:
    return bytes(outcome.id for outcome in found if isinstance(outcome, Token)).decode()


def test_a_short_request_is_done_while_a_long_one_runs(session: SessionProcess) -> None:
    seen: list[EngineLoad] = []

    async def run() -> None:
        scheduler = Joining(session, slots=2, on_change=seen.append)
        long = scheduler.generate(request(100_000))
        assert await anext(long) == Token(ord("a"), None)
        short = await asyncio.gather(*(outcomes(scheduler, request(4)) for _ in range(3)))
        assert [text(found) for found in short] == ["abca"] * 3
        assert all(found[-1] == Finish("length") for found in short)
        assert scheduler.load.running == 1
        await scheduler.check(30)
        await long.aclose()
        while scheduler.load.running:
            await asyncio.sleep(0.001)
        await scheduler.check(30)
        assert scheduler.load.batch_sizes[2] >= 4
        scheduler.close()

    asyncio.run(run())
    assert max(load.running for load in seen) == 2, "no more than there are places"
    assert max(load.waiting for load in seen) >= 1


def test_a_caller_that_leaves_the_line_takes_no_place(session: SessionProcess) -> None:
    async def run() -> None:
        scheduler = Joining(session, slots=1, on_change=lambda load: None)
        first = scheduler.generate(request(100_000))
        await anext(first)
        waiting = asyncio.create_task(outcomes(scheduler, request(5)))
        await asyncio.sleep(0)
        assert scheduler.load.waiting == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert scheduler.load.waiting == 0
        await first.aclose()
        assert text(await outcomes(scheduler, request(5))) == "abcab"
        scheduler.close()

    asyncio.run(run())


def test_a_request_that_cannot_join_fails_alone(session: SessionProcess) -> None:
    async def run() -> None:
        scheduler = Joining(session, slots=2, on_change=lambda load: None)
        async with aclosing(scheduler.generate(request(1000))) as running:
            await anext(running)
            with pytest.raises(SpecError, match="below 258"):
                await outcomes(scheduler, request(5, 999))
            assert await anext(running) == Token(ord("b"), None)
        scheduler.close()

    asyncio.run(run())


def test_when_the_process_dies_all_fail_and_the_check_tells(session: SessionProcess) -> None:
    async def run() -> None:
        scheduler = Joining(session, slots=1, on_change=lambda load: None)
        lost = asyncio.gather(outcomes(scheduler, request(5, CRASH)), outcomes(scheduler, request(5)), return_exceptions=True)
        assert [type(error) for error in await lost] == [StageCrashedError] * 2
        for attempt in (outcomes(scheduler, request(5)), scheduler.check(30)):
            with pytest.raises(StageCrashedError):
                await attempt
        assert scheduler.load.running == scheduler.load.waiting == 0
        scheduler.close()

    asyncio.run(run())


class Scripted:
    """A channel whose answers the test gives."""

    def __init__(self) -> None:
        self.sent: list[Mapping[str, Any]] = []
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()

    def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(message)

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        try:
            return self.answers.get(timeout=0.01)
        except queue.Empty:
            return None

    def close(self) -> None:
        pass


def test_an_engine_that_does_not_advance_is_stuck() -> None:
    channel = Scripted()

    async def run() -> None:
        scheduler = Joining(channel, slots=1, on_change=lambda load: None)
        running = asyncio.create_task(outcomes(scheduler, request(5)))
        while not channel.sent:
            await asyncio.sleep(0)
        await scheduler.check(30)
        with pytest.raises(StageTimeoutError, match="no step"):
            await scheduler.check(0)
        channel.answers.put({"failed": [0], "error": {"type": "OutOfMemoryError", "message": "too much"}})
        with pytest.raises(GenoptError, match="too much"):
            await running
        scheduler.close()

    asyncio.run(run())
