"""Routers and the rollout together, without Ray: everybody is answered, whatever becomes of the canary."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from genopt.serving.canary import Observation, Policy, Route
from genopt.serving.exchange import Admitted, Ask, Caller, Event, Piece, Refusal
from genopt.serving.rollout import Rollout, RolloutArguments
from genopt.serving.routing import Routed
from genopt.testing.scripted_backend import ScriptedBackend

CALLERS = 12


def answer(variant: str) -> tuple[Event, ...]:
    return Admitted(prompt_tokens=1, variant=variant), Piece(text="hello", completion_tokens=2, finish_reason="stop")


class Direct:
    """A `Control` that calls the rollout."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    async def exchange(self, seen: Sequence[Observation], dead: bool) -> Route | None:
        return await self._rollout.exchange(tuple(seen), dead)


async def _until(rollout: Rollout, routed: Routed, state: str) -> set[str]:
    """Asks as many callers until the rollout has come to a state; returns who answered."""
    answered: set[str] = set()
    async with asyncio.timeout(20):
        while (await rollout.status()).progress.state != state:
            for number in range(CALLERS):
                events = [event async for event in routed.generate(Ask(prompt="hi", temperature=0), Caller(session=str(number)))]
                assert isinstance(events[0], Admitted), events
                assert isinstance(events[-1], Piece), events
                answered.add(events[0].variant)
            await asyncio.sleep(0.05)
    return answered


@pytest.mark.parametrize(
    ("script", "shadow", "state", "answered"),
    [
        (answer("new"), False, "complete", {"old", "new"}),
        (answer("new"), True, "complete", {"old"}),
        ((Refusal(status=503, message="lost", code="engine_lost"),), False, "rolled_back", {"old"}),
        ((Admitted(prompt_tokens=1), Piece(text="no", completion_tokens=1, finish_reason="stop")), True, "rolled_back", {"old"}),
    ],
    ids=["healthy", "shadow", "dead", "other-answers"],
)
def test_a_rollout_ends_as_its_canary_deserves(script: tuple[Event, ...], shadow: bool, state: str, answered: set[str], tmp_path: Path) -> None:
    async def ready() -> bool:
        return True

    async def run() -> None:
        policy = Policy(steps=(50.0, 100.0), step_s=0.2, step_requests=15, shadow=shadow, longer=10, shorter=0.1, slower=100)
        given = RolloutArguments(rollout="r", variant="new", stable="old", policy=policy, state=str(tmp_path / "rollout.json"))
        rollout = Rollout(given, ready)
        routed = Routed(ScriptedBackend(*answer("old")), ScriptedBackend(*script), Direct(rollout))
        assert await _until(rollout, routed, state) == answered

    asyncio.run(run())
