"""The state of a rollout: what routers saw goes in, what they are to do comes out. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from itertools import chain
from pathlib import Path

from pydantic import ValidationError

from genopt.errors import GenoptError
from genopt.plan import Record
from genopt.serving.canary import ARMS, KEPT, Arm, Observation, Policy, Progress, Route, advance, counts, decide, route
from genopt.store.files import write_atomically

_FRESH = 20
"""New observations after which it is worth looking for a breach."""
_LOGGER = logging.getLogger("ray.serve")


class RolloutArguments(Record):
    """What a rollout is.

    Attributes:
        rollout: Its id.
        variant: The canary.
        stable: The variant beside which it runs.
        policy: How it advances.
        state: File in which its progress is kept, for when the deployment itself is replaced.
        serves: See `ServeArguments.identity`; empty where a file that somebody wrote says nothing.
    """

    rollout: str
    variant: str
    stable: str
    policy: Policy
    state: str
    serves: str = ""


class RolloutStatus(Record):
    """What a rollout tells.

    Attributes:
        progress: Where it stands.
        share: Percent of the callers that the canary answers.
        shadow: Whether it gets copies only.
        requests: Observations by variant, of the latest.
        failures: Failed ones among them.
        remark: What the present step waits for.
        opened: Whether the engine has answered.
        serves: What the canary is; see `RolloutArguments`.
        state: The file of its progress, which lies in the folder of the canary's run.
    """

    progress: Progress
    share: float
    shadow: bool
    requests: dict[Arm, int]
    failures: dict[Arm, int]
    remark: str
    opened: bool
    serves: str = ""
    state: str = ""


class Rollout:
    """Takes what routers saw, decides, and tells them what to do.

    Args:
        arguments: The rollout.
        engine_ready: Waits until the canary's engine answers; it gets nothing before.
    """

    def __init__(self, arguments: RolloutArguments, engine_ready: Callable[[], Awaitable[object]]) -> None:
        self._arguments = arguments
        self._engine_ready = engine_ready
        self._seen: dict[tuple[Arm, int], deque[Observation]] = defaultdict(lambda: deque(maxlen=KEPT))
        """By variant and step."""
        self._file = Path(arguments.state)
        begun = Progress(rollout=arguments.rollout, variant=arguments.variant, stable=arguments.stable, step_began=time.time())
        former = read_progress(self._file)
        self._progress = former if former is not None and former.rollout == arguments.rollout else begun
        self._remark = ""
        self._fresh = 0
        self._deciding = False
        self._opened = False
        self._opening: asyncio.Task[None] | None = None
        self._keep(self._progress)

    async def exchange(self, seen: tuple[Observation, ...], dead: bool) -> Route:
        """See `genopt.serving.routing.Control.exchange`."""
        policy = self._arguments.policy
        self._watch_engine()
        if not self._opened:
            self._remark = "The canary's engine is being opened."
            return Route(rollout=self._arguments.rollout, variant=self._arguments.variant, share=0, copies=0)
        step = self._progress.step
        for one in seen:
            self._seen[one.arm, step].append(one.model_copy(update={"step": step}))
        self._fresh += len(seen)
        answered = sum(counts(one, policy) for one in seen)
        self._progress = self._progress.model_copy(update={"step_requests": self._progress.step_requests + answered})
        if dead and self._progress.state in ("running", "complete"):
            self.roll_back("The canary failed several requests in a row, so that it counts as dead.")
        elif self._progress.state == "running" and not self._deciding and self._is_worth_a_look(seen):
            await self._decide()
        return route(self._progress, policy)

    def _is_worth_a_look(self, seen: tuple[Observation, ...]) -> bool:
        """A look takes 0.14 s of a processor with all that is kept, and each one more may take chance for a breach."""
        policy, progress = self._arguments.policy, self._progress
        may_advance = progress.step_requests >= policy.step_requests and time.time() - progress.step_began >= policy.step_s
        return may_advance or self._fresh >= _FRESH or any(one.failed for one in seen)

    async def _decide(self) -> None:
        """Looks at what is kept, in a thread, so that routers are answered meanwhile; one look at a time."""
        policy, self._deciding, self._fresh = self._arguments.policy, True, 0
        try:
            decision = await asyncio.to_thread(decide, self._progress, policy, self._all_seen(), time.time())
        finally:
            self._deciding = False
        self._remark = decision.reason
        if self._progress.state == "running" and decision.action != "hold":  # nobody has decided otherwise meanwhile
            self._keep(advance(self._progress, policy, decision, time.time()))

    def _all_seen(self) -> list[Observation]:
        return [*chain.from_iterable(self._seen.values())]

    def _watch_engine(self) -> None:
        if not self._opened and (self._opening is None or self._opening.done()):
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        """Waits until the engine answers; the time of the step counts from then."""
        await self._engine_ready()
        self._progress = self._progress.model_copy(update={"step_began": time.time()})
        self._opened = True

    def promote(self) -> Progress:
        """Gives the canary everything from now on, unless it was rolled back."""
        if self._progress.state != "rolled_back":
            self._keep(self._progress.model_copy(update={"state": "promoted", "reason": "It was promoted by hand."}))
        return self._progress

    def release(self) -> Progress:
        """Gives the canary nothing any more, since the stable variant is the same by now."""
        self._keep(self._progress.model_copy(update={"state": "replaced", "reason": "The stable variant is the same now."}))
        return self._progress

    def roll_back(self, reason: str) -> Progress:
        """Gives the canary nothing any more; the first reason stays."""
        if self._progress.state != "rolled_back":
            self._keep(self._progress.model_copy(update={"state": "rolled_back", "reason": reason}))
        return self._progress

    async def status(self) -> RolloutStatus:
        """Where the rollout stands."""
        self._watch_engine()
        seen = self._all_seen()
        return RolloutStatus(
            progress=self._progress, share=route(self._progress, self._arguments.policy).share, shadow=self._arguments.policy.shadow,
            requests={arm: sum(one.arm == arm for one in seen) for arm in ARMS},
            failures={arm: sum(one.arm == arm and one.failed for one in seen) for arm in ARMS}, remark=self._remark, opened=self._opened,
            serves=self._arguments.serves, state=self._arguments.state,
        )  # fmt: skip

    def _keep(self, progress: Progress) -> None:
        self._progress = progress
        try:
            write_atomically(self._file, progress.model_dump_json())
        except GenoptError:
            # The rollout itself must not end for want of a disk; only a replica that takes over begins anew.
            _LOGGER.warning("%s is %s (%s), which cannot be written down", progress.variant, progress.state, progress.reason)


def read_progress(path: Path) -> Progress | None:
    """The last state that a rollout wrote down; None where there is none."""
    try:
        return Progress.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
