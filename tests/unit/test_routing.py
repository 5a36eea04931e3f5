"""Whom a router sends to a canary, and who answers when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from genopt.serving.app import HandleEngine
from genopt.serving.canary import Observation, Route
from genopt.serving.exchange import ENGINE_FAILED, Admitted, Ask, Backend, Caller, Event, Piece, Refusal, Served
from genopt.serving.routing import IN_A_ROW, Routed
from genopt.testing.scripted_backend import ScriptedBackend

STABLE = (Admitted(prompt_tokens=1, variant="old"), Piece(text="hello there", completion_tokens=2, finish_reason="stop"))
CANARY = (Admitted(prompt_tokens=1, variant="new"), Piece(text="hello world", completion_tokens=2, finish_reason="stop"))
LOST = Refusal(status=503, message="lost", code="engine_lost")


class ErringReplica:
    """A Serve handle whose replica raises; over gRPC Serve raises the same here."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.generate = self

    def options(self, *, stream: bool) -> ErringReplica:
        assert stream
        return self

    def remote(self, ask: Ask) -> AsyncGenerator[Event, None]:
        async def events() -> AsyncGenerator[Event, None]:
            yield CANARY[0]
            raise self._error

        return events()


class FixedControl:
    """Always the same route."""

    def __init__(self, *, share: float, copies: float = 0.0, silent: bool = False) -> None:
        self._route = Route(rollout="r", variant="new", share=share, copies=copies)
        self._silent = silent
        self.seen: list[Observation] = []
        self.dead = asyncio.Event()
        self.compared = asyncio.Event()
        self.told = asyncio.Event()

    async def exchange(self, seen: Sequence[Observation], dead: bool) -> Route | None:
        self.seen.extend(seen)
        if seen:
            self.told.set()
        if dead:
            self.dead.set()
        if any(one.agreement is not None for one in seen):
            self.compared.set()
        if self._silent:
            raise ConnectionError("gone")
        return self._route


async def _events(stream: AsyncGenerator[Event, None]) -> tuple[Event, ...]:
    return tuple([event async for event in stream])


def _answers(canary: Backend, control: FixedControl, *, count: int = 1) -> list[tuple[Event, ...]]:
    async def run() -> list[tuple[Event, ...]]:
        routed = Routed(ScriptedBackend(*STABLE), canary, control, admission_s=0.05)
        return [await _events(routed.generate(Ask(prompt="hi"), Caller(session="s"))) for _ in range(count)]

    return asyncio.run(run())


@pytest.mark.parametrize(("share", "expected"), [(0, STABLE), (100, CANARY)])
def test_the_share_says_who_answers(share: float, expected: tuple[Event, ...]) -> None:
    assert _answers(ScriptedBackend(*CANARY), FixedControl(share=share)) == [expected]


@pytest.mark.parametrize("script", [(LOST,), (CANARY[0], LOST), (None,), (), (Refusal(status=429, message="full", code="over_capacity"),)])
def test_without_text_from_the_canary_the_stable_variant_answers(script: tuple[Event | None, ...]) -> None:
    assert _answers(ScriptedBackend(*script), FixedControl(share=100)) == [STABLE]


@pytest.mark.parametrize("error", [TypeError("can only concatenate str"), RuntimeError("Unexpected error"), KeyError("role")])
def test_a_replica_that_errs_has_failed_so_that_the_stable_variant_answers_and_the_canary_is_taken_back(error: Exception) -> None:
    handle: Any = ErringReplica(error)
    engine = HandleEngine(handle, Served(model="m", variant="new"))
    assert asyncio.run(_events(engine.generate(Ask(prompt="hi"), Caller()))) == (CANARY[0], ENGINE_FAILED)
    assert _answers(engine, FixedControl(share=100), count=IN_A_ROW + 1) == [STABLE] * (IN_A_ROW + 1)


def test_after_its_first_text_the_loss_is_passed_on() -> None:
    begun = (CANARY[0], Piece(text="hel", completion_tokens=1), LOST)
    assert _answers(ScriptedBackend(*begun), FixedControl(share=100)) == [begun]


def test_what_is_the_callers_fault_is_not_asked_twice() -> None:
    wrong = Refusal(status=400, message="wrong", code="invalid_value")
    assert _answers(ScriptedBackend(wrong), FixedControl(share=100)) == [(wrong,)]


def test_a_dead_canary_is_not_asked_again_and_is_told_of() -> None:
    canary = ScriptedBackend(LOST)

    async def run() -> None:
        control = FixedControl(share=100)
        routed = Routed(ScriptedBackend(*STABLE), canary, control)
        for _ in range(IN_A_ROW + 5):
            assert await _events(routed.generate(Ask(prompt="hi"), Caller())) == STABLE
        await asyncio.wait_for(control.dead.wait(), timeout=5)

    asyncio.run(run())
    assert len(canary.asked) == IN_A_ROW


def test_without_word_of_the_rollout_the_stable_variant_answers() -> None:
    assert _answers(ScriptedBackend(*CANARY), FixedControl(share=100, silent=True)) == [STABLE]


@pytest.mark.parametrize(("share", "arm"), [(0, "stable"), (100, "canary")])
def test_a_caller_who_leaves_with_the_last_event_counts(share: float, arm: str) -> None:
    control = FixedControl(share=share)

    async def run() -> None:
        routed = Routed(ScriptedBackend(*STABLE), ScriptedBackend(*CANARY), control)
        async with aclosing(routed.generate(Ask(prompt="hi"), Caller(session="s"))) as events:
            async for event in events:
                if isinstance(event, Piece):
                    break
        await asyncio.wait_for(control.told.wait(), timeout=10)

    asyncio.run(run())
    assert [one.arm for one in control.seen] == [arm]


def test_copies_are_compared_and_not_returned() -> None:
    async def run() -> FixedControl:
        control = FixedControl(share=0, copies=100)
        routed = Routed(ScriptedBackend(*STABLE), ScriptedBackend(*CANARY), control)
        assert await _events(routed.generate(Ask(prompt="hi", temperature=0), Caller())) == STABLE
        await asyncio.wait_for(control.compared.wait(), timeout=5)
        return control

    found = [one for one in asyncio.run(run()).seen if one.agreement is not None]
    assert [one.agreement for one in found] == [pytest.approx(6 / 11)]
