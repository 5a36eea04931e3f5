"""A lost replica is its caller's problem only once text has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from genopt.serving import retry
from genopt.serving.exchange import ENGINE_FAILED, ENGINE_LOST, Admitted, Ask, Caller, Event, Piece, Refusal
from genopt.serving.retry import ATTEMPTS, Retrying
from genopt.testing.scripted_backend import ADMITTED, ANSWER, ScriptedBackend

LOST, FAILED = ENGINE_LOST, ENGINE_FAILED
OTHERS = [Refusal(status=429, message="full", code="over_capacity"), Refusal(status=400, message="bad", code="invalid_value")]


class InTurn(ScriptedBackend):
    """Answers each request with the next script, and with the last one from then on."""

    def __init__(self, *scripts: Sequence[Event]) -> None:
        super().__init__()
        self._scripts = list(scripts)

    async def generate(self, ask: Ask, caller: Caller) -> AsyncGenerator[Event, None]:
        self.asked.append((ask, caller))
        for event in self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]:
            yield event


def answer(backend: InTurn) -> list[Event]:
    async def ask() -> list[Event]:
        return [event async for event in Retrying(backend).generate(Ask(prompt="hi"), Caller())]

    return asyncio.run(ask())


@pytest.mark.parametrize("lost", [(LOST,), (ADMITTED, LOST)])
def test_a_request_without_text_is_started_again(lost: tuple[Event, ...]) -> None:
    backend = InTurn(lost, lost, ANSWER)
    assert answer(backend) == list(ANSWER)
    assert len(backend.asked) == 3


@pytest.mark.parametrize("refusal", [LOST, FAILED])
def test_it_is_given_up_in_the_end(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "AGAIN_S", 0.001)
    backend = InTurn((ADMITTED, refusal))
    assert answer(backend) == [refusal]
    assert len(backend.asked) == ATTEMPTS[refusal.code]


def test_a_request_on_which_an_engine_failed_gets_one_more_chance() -> None:
    assert answer(InTurn((ADMITTED, FAILED), ANSWER)) == list(ANSWER)
    assert ATTEMPTS[FAILED.code] == 2, "it may be what the engine fails on"


def test_after_the_first_text_the_loss_is_passed_on() -> None:
    begun = (ADMITTED, Piece(text="a", completion_tokens=1), LOST)
    backend = InTurn(begun)
    assert answer(backend) == list(begun)
    assert len(backend.asked) == 1


@pytest.mark.parametrize("refusal", OTHERS, ids=lambda refusal: refusal.code)
def test_what_another_replica_would_not_mend_is_passed_on_at_once(refusal: Refusal) -> None:
    backend = InTurn((refusal,))
    assert answer(backend) == [refusal]
    assert len(backend.asked) == 1


def test_the_admission_is_that_of_who_answers() -> None:
    backend = InTurn((Admitted(prompt_tokens=1, variant="lost"), LOST), (Admitted(prompt_tokens=2, variant="other"), *ANSWER[1:]))
    assert answer(backend)[0] == Admitted(prompt_tokens=2, variant="other")


def test_leaving_closes_the_request() -> None:
    backend = ScriptedBackend(ADMITTED, Piece(text="a", completion_tokens=1), None)

    async def leave() -> None:
        events = Retrying(backend).generate(Ask(prompt="hi"), Caller())
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert backend.closed == 1


def test_readiness_and_names_are_the_backends() -> None:
    backend = ScriptedBackend(ready=False)
    assert not asyncio.run(Retrying(backend).ready())
    assert Retrying(backend).served() == backend.served()
