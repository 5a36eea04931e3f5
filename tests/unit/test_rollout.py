"""The state of a rollout, which outlives its own process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from genopt.serving.canary import Observation, Policy, Progress, Route
from genopt.serving.rollout import Rollout, RolloutArguments, read_progress

QUICK = Policy(steps=(50.0, 100.0), step_s=0, step_requests=2)
SLOW = QUICK.model_copy(update={"step_s": 3600.0})
ANSWERED = tuple(Observation(arm="canary", tokens=5) for _ in range(2))


def arguments(folder: Path, *, rollout: str = "r", policy: Policy = QUICK) -> RolloutArguments:
    return RolloutArguments(rollout=rollout, variant="new", stable="old", policy=policy, state=str(folder / "rollout.json"))


async def _ready() -> bool:
    return True


async def _opened(given: RolloutArguments) -> Rollout:
    """A rollout whose engine has answered."""
    found = Rollout(given, _ready)
    assert (await found.exchange((), dead=False)).share == 0
    await asyncio.sleep(0)
    return found


def exchanged(given: RolloutArguments, *batches: tuple[Observation, ...], dead: bool = False) -> list[float]:
    """The shares that routers get one after the other."""

    async def run() -> list[float]:
        found = await _opened(given)
        return [(await found.exchange(batch, dead)).share for batch in batches]

    return asyncio.run(run())


def state(folder: Path) -> Progress:
    found = read_progress(folder / "rollout.json")
    assert found is not None
    return found


def test_nobody_gets_a_canary_whose_engine_does_not_answer_yet(tmp_path: Path) -> None:
    async def run() -> Route:
        opening = asyncio.Event()
        found = Rollout(arguments(tmp_path), opening.wait)
        for _ in range(3):
            route = await found.exchange(ANSWERED, dead=True)
        assert not (await found.status()).opened
        return route

    assert asyncio.run(run()).share == 0
    assert state(tmp_path).state == "running"


def test_it_advances_with_what_routers_saw_and_ends_complete(tmp_path: Path) -> None:
    assert exchanged(arguments(tmp_path), (), ANSWERED, ANSWERED[:1], ANSWERED[:1], ANSWERED) == [50, 100, 100, 100, 100]
    assert state(tmp_path).state == "complete"


def test_routers_that_ask_at_once_advance_it_by_one_step(tmp_path: Path) -> None:
    async def run() -> None:
        found = await _opened(arguments(tmp_path, policy=Policy(steps=(10, 20, 30, 100), step_s=0, step_requests=6)))
        await asyncio.gather(*(found.exchange(ANSWERED, dead=False) for _ in range(4)))
        status = await found.status()
        assert (status.share, status.progress.step_requests, status.requests["canary"]) == (20, 0, 8)

    asyncio.run(run())


def test_a_breach_is_found_while_a_step_lasts(tmp_path: Path) -> None:
    good, bad = (tuple(Observation(arm=arm, tokens=tokens) for _ in range(40)) for arm, tokens in (("stable", 100), ("canary", 20)))
    assert exchanged(arguments(tmp_path, policy=SLOW), good, bad) == [50, 0]
    assert state(tmp_path).reason.startswith("Length")


def test_what_was_seen_in_an_earlier_step_is_not_compared_with_what_is_seen_now(tmp_path: Path) -> None:
    quick, slow = (tuple(Observation(arm=arm, tokens=5, ttft_s=s) for _ in range(40)) for arm, s in (("stable", 0.1), ("canary", 0.3)))
    assert exchanged(arguments(tmp_path), quick, ANSWERED, slow) == [50, 100, 100]
    assert state(tmp_path).state == "complete"


def test_a_dead_canary_is_taken_back_and_stays_so_for_whoever_takes_over(tmp_path: Path) -> None:
    assert exchanged(arguments(tmp_path), (), dead=True) == [0]
    assert "dead" in state(tmp_path).reason
    assert exchanged(arguments(tmp_path), ANSWERED, ANSWERED) == [0, 0]
    assert exchanged(arguments(tmp_path, rollout="another", policy=SLOW), ANSWERED) == [50]


def test_who_takes_over_goes_on_at_the_same_step(tmp_path: Path) -> None:
    assert exchanged(arguments(tmp_path), ANSWERED) == [100]
    assert exchanged(arguments(tmp_path, policy=SLOW), ()) == [100]


def test_a_state_that_cannot_be_read_or_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_text("{", encoding="utf-8")
    assert exchanged(arguments(tmp_path, policy=SLOW), ()) == [50]
    assert exchanged(arguments(tmp_path / "nowhere" / "deep", policy=SLOW), ()) == [50]


def test_people_may_decide_too(tmp_path: Path) -> None:
    async def run() -> None:
        found = await _opened(arguments(tmp_path, policy=SLOW))
        found.promote()
        assert (await found.exchange((), dead=True)).share == 100
        found.release()
        assert (await found.exchange((), dead=False)).share == 0

    asyncio.run(run())
    assert state(tmp_path).state == "replaced"


@pytest.mark.parametrize("first", ["by hand", "too slow"])
def test_the_first_reason_of_a_rollback_stays_and_no_promotion_undoes_it(tmp_path: Path, first: str) -> None:
    async def run() -> None:
        found = await _opened(arguments(tmp_path))
        found.roll_back(first)
        found.roll_back("another")
        assert found.promote().state == "rolled_back"

    asyncio.run(run())
    assert (state(tmp_path).state, state(tmp_path).reason) == ("rolled_back", first)
