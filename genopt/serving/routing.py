"""Sends each request to the stable variant or to a canary, and says how both did. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import takewhile
from typing import Protocol

from genopt.serving.canary import KEPT, Arm, Observation, Route, is_chosen
from genopt.serving.exchange import Admitted, AnyAsk, Ask, Backend, Caller, Event, Picture, Piece, Refusal, Served
from genopt.serving.manifest import LONGEST_STREAM_S

POLL_S = 0.5
UNHEARD_S = 10.0
"""After so long without word of the rollout the stable variant answers all."""
ALIVE_S = 60.0
"""So long after its last word a canary that is slow to admit counts as busy and not as broken."""
IN_A_ROW = 3
"""Failures of the canary, one after the other, after which it counts as dead."""
MOST_COPIES = 2
"""Copies under way at once: they must not take the room of requests that somebody waits for."""
_LOGGER = logging.getLogger("ray.serve")


class Control(Protocol):
    """Where the rollout is decided."""

    async def exchange(self, seen: Sequence[Observation], dead: bool) -> Route | None:
        """Tells what was seen and whether the canary counts as dead; returns what to do, or None where there is no canary.

        Raises:
            ConnectionError: Nobody answers.
        """


class Routed:
    """A `Backend` over two. Whatever goes wrong with the canary before its first text, the stable variant answers.

    Args:
        stable: Answers whom the canary does not.
        canary: Answers the others.
        control: Decides who that is.
        admission_s: How long the canary may take to admit a request.
    """

    def __init__(self, stable: Backend, canary: Backend, control: Control, *, admission_s: float = 5.0) -> None:
        self._stable = stable
        self._canary = canary
        self._control = control
        self._admission_s = admission_s
        self._route: Route | None = None
        self._heard_at = 0.0
        self._seen: deque[Observation] = deque(maxlen=KEPT)
        self._failures = 0
        self._canary_heard_at = -ALIVE_S
        self._copies: set[asyncio.Task[None]] = set()
        self._polling: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()

    async def generate(self, ask: AnyAsk, caller: Caller) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        await self._know()
        found = self._active()
        if found is not None and is_chosen(_identity(caller), found):
            answered = False
            async with aclosing(self._from_canary(ask, caller)) as events:
                async for event in events:
                    answered = True
                    yield event
            if answered:
                return
        watch = _Watch("stable", ask)
        async with aclosing(self._stable.generate(ask, caller)) as events:
            async for event in events:
                watch.take(event)
                if found is not None and watch.ended:  # before it is passed on: who has the last event may not ask for another
                    self._note(watch)
                    self._copy(watch, ask, caller, found)
                yield event

    def _copy(self, watch: _Watch, ask: AnyAsk, caller: Caller, found: Route) -> None:
        """Gives the canary a copy of some of the requests that the stable variant has answered."""
        if not isinstance(ask, Ask) or ask.temperature > 0:  # what has no single right text cannot be compared
            return
        if watch.complete and len(self._copies) < MOST_COPIES and secrets.randbelow(10_000) < found.copies * 100:
            copy = asyncio.create_task(self._compare(ask, caller, watch.text))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)

    async def ready(self) -> bool:
        """See `Backend.ready`."""
        await self._know()
        if await self._stable.ready():
            return True
        return self._active() is not None and await self._canary.ready()

    def served(self) -> Served:
        """See `Backend.served`."""
        return self._stable.served()

    async def _from_canary(self, ask: AnyAsk, caller: Caller) -> AsyncGenerator[Event, None]:
        """The canary's answer; nothing at all if it has none."""
        watch = _Watch("canary", ask)
        admitted: Event | None = None
        async with aclosing(self._canary.generate(ask, caller)) as events:
            try:
                async with asyncio.timeout(self._admission_s):
                    first = await anext(events, None)
            except TimeoutError:
                # A queue is no fault, and a replica that hangs is ended by its health check.
                if time.monotonic() - self._canary_heard_at > ALIVE_S:
                    self._note_failure()
                return
            self._canary_heard_at = time.monotonic()
            if first is None:
                self._note_failure()
                return
            if isinstance(first, Admitted):
                admitted = first
            elif _is_fault(first) or _is_full(first):
                if _is_fault(first):
                    self._note_failure()
                return
            else:
                yield first
                return
            async for event in events:
                watch.take(event)
                self._canary_heard_at = time.monotonic()
                if admitted is not None:
                    if watch.failed:
                        self._note_failure()
                        return
                    yield admitted
                    admitted = None
                if watch.ended:
                    self._note(watch)
                yield event

    async def _compare(self, ask: Ask, caller: Caller, expected: str) -> None:
        """Gives the canary a copy, of which only the comparison remains."""
        watch = _Watch("canary", ask)
        try:
            async with (
                asyncio.timeout(LONGEST_STREAM_S),
                aclosing(self._canary.generate(ask.model_copy(update={"incremental": False}), caller)) as events,
            ):
                async for event in events:
                    watch.take(event)
        except TimeoutError:
            self._note_failure()
            return
        if watch.failed:
            self._note_failure()
        elif watch.complete:
            self._failures = 0
            longest = max(len(expected), len(watch.text))
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, watch.text, strict=False)))
            share = alike / longest if longest else 1.0
            self._seen.append(Observation(arm="canary", tokens=watch.tokens, agreement=share))

    def _note(self, watch: _Watch) -> None:
        if watch.failed and watch.arm == "canary":
            self._note_failure()
        elif watch.failed:
            self._seen.append(Observation(arm=watch.arm, failed=True))
        elif watch.complete:
            self._failures = 0 if watch.arm == "canary" else self._failures
            self._seen.append(watch.observation())

    def _note_failure(self) -> None:
        self._failures += 1
        self._seen.append(Observation(arm="canary", failed=True))

    def _active(self) -> Route | None:
        if self._route is None or self._failures >= IN_A_ROW or time.monotonic() - self._heard_at > UNHEARD_S:
            return None
        return self._route

    async def _know(self) -> None:
        """Starts asking what to do; the first request waits a moment for the answer."""
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        if not self._asked.is_set():
            try:
                await asyncio.wait_for(self._asked.wait(), timeout=2.0)
            except TimeoutError:
                self._asked.set()

    async def _poll(self) -> None:
        while True:
            seen = tuple(self._seen)
            self._seen.clear()
            try:
                found = await self._control.exchange(seen, self._failures >= IN_A_ROW)
            except ConnectionError as error:
                _LOGGER.warning("the rollout does not answer: %s", error)
            else:
                if found is None or self._route is None or found.rollout != self._route.rollout:
                    self._failures = 0
                self._route, self._heard_at = found, time.monotonic()
            self._asked.set()
            await asyncio.sleep(POLL_S)


class _Watch:
    """What the events of one request tell."""

    def __init__(self, arm: Arm, ask: AnyAsk) -> None:
        self.arm = arm
        self._incremental = isinstance(ask, Ask) and ask.incremental
        self._began = time.monotonic()
        self._first_at: float | None = None
        self._ended_at = 0.0
        self.text = ""
        self.tokens = 0
        self.complete = False
        self.failed = False

    @property
    def ended(self) -> bool:
        """Whether the last event was seen."""
        return self.complete or self.failed

    def take(self, event: Event) -> None:
        if isinstance(event, Refusal):
            self.failed = _is_fault(event)
        elif isinstance(event, Piece):
            self._ended_at = time.monotonic()
            self._first_at = self._first_at or self._ended_at
            self.text += event.text
            self.tokens = event.completion_tokens
            self.complete = event.finish_reason is not None
        elif isinstance(event, Picture):
            self._first_at = self._ended_at = time.monotonic()
            self.tokens, self.complete = event.steps, True

    def observation(self) -> Observation:
        if self._first_at is None or not self.tokens:
            return Observation(arm=self.arm)
        if not self._incremental:
            return Observation(arm=self.arm, tokens=self.tokens, token_s=(self._ended_at - self._began) / self.tokens)
        further = self.tokens - 1
        tpot = (self._ended_at - self._first_at) / further if further and self._ended_at > self._first_at else None
        return Observation(arm=self.arm, tokens=self.tokens, ttft_s=self._first_at - self._began, tpot_s=tpot)


def _identity(caller: Caller) -> str:
    """Who keeps one variant: a session, else a key; who gives neither is somebody else at each request."""
    if caller.session is None and caller.key is None:
        return caller.drawn
    return f"{caller.key or ''}\0{caller.session or ''}"


def _is_fault(event: Event) -> bool:
    return isinstance(event, Refusal) and event.status >= 500


def _is_full(event: Event) -> bool:
    return isinstance(event, Refusal) and event.status == 429
