"""The Serve application of a canary: its engine, and the deployment that decides how much of the traffic it gets.

Both live in the cluster, so that a rollout goes on, and is rolled back, whether or not the command that began it still runs.
The weights are no `user_config`: Serve takes replicas out of service while they are reconfigured. Each router asks for its
route twice a second instead, which costs nobody a request, and falls back to the stable variant when nobody answers.
"""

# No `from __future__ import annotations` here: as in `genopt.serving.app`.
import asyncio
import time
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from genopt.serving.canary import Observation, Progress, Route
from genopt.serving.manifest import ENGINE
from genopt.serving.metrics import CanaryMetrics
from genopt.serving.rollout import Rollout, RolloutArguments, RolloutStatus

CANARY = "genopt-canary"
"""Name of the application: there is one canary at a time, beside the application whose callers it gets."""
ROLLOUT = "Rollout"
_PATIENCE_S = 3.0
_LOOK_S = 2.0


class RolloutReplica:
    """The deployment around a `Rollout`; there is one replica.

    Args:
        arguments: The rollout.
        engine: Of the canary.
    """

    def __init__(self, arguments: RolloutArguments, engine: DeploymentHandle[Any]) -> None:
        async def ready() -> bool:
            return bool(await engine.ready.remote())

        self._rollout = Rollout(arguments, ready)
        self._metrics = CanaryMetrics()

    async def exchange(self, seen: tuple[Observation, ...], dead: bool) -> Route:
        """See `Rollout.exchange`."""
        found = await self._rollout.exchange(seen, dead)
        self._metrics.note(await self._rollout.status())
        return found

    async def promote(self) -> Progress:
        """See `Rollout.promote`."""
        return self._rollout.promote()

    async def release(self) -> Progress:
        """See `Rollout.release`."""
        return self._rollout.release()

    async def roll_back(self, reason: str) -> Progress:
        """See `Rollout.roll_back`."""
        return self._rollout.roll_back(reason)

    async def status(self) -> RolloutStatus:
        """See `Rollout.status`."""
        return await self._rollout.status()


class RayControl:
    """A `Control` that is the rollout of the canary's application, where there is one."""

    def __init__(self) -> None:
        self._rollout: DeploymentHandle[RolloutReplica] | None = None
        self._present = False
        self._looked_at = float("-inf")

    async def exchange(self, seen: Sequence[Observation], dead: bool) -> Route | None:
        """See `Control.exchange`."""
        try:
            if time.monotonic() - self._looked_at > _LOOK_S:
                self._looked_at = time.monotonic()
                found = await asyncio.to_thread(find_rollout)
                # A handle that was used has a router of its own, so that one is kept for all canaries to come.
                self._rollout, self._present = self._rollout or found, found is not None
            if self._rollout is None or not self._present:
                return None
            return await asyncio.wait_for(self._rollout.exchange.remote(tuple(seen), dead), timeout=_PATIENCE_S)
        except (TimeoutError, RayError, RayServeException) as error:
            raise ConnectionError(type(error).__name__) from None


def find_rollout() -> DeploymentHandle[RolloutReplica] | None:
    """The rollout that is under way; None where there is no canary."""
    try:
        return serve.get_app_handle(CANARY)
    except RayServeException:
        return None


def status_of(rollout: DeploymentHandle[RolloutReplica] | None, wait_s: float = 10.0) -> RolloutStatus | None:
    """How a rollout stands, asked from outside of Serve; None where there is none, or it does not answer."""
    if rollout is None:
        return None
    try:
        status: RolloutStatus = rollout.status.remote().result(timeout_s=wait_s)
    except (TimeoutError, RayError, RayServeException):
        return None
    return status


def canary_application(engine: Application, arguments: RolloutArguments) -> Application:
    """Binds the canary's engine to its rollout.

    Args:
        engine: The engine deployment, as `genopt.serving.app.engine_deployment` binds it.
        arguments: The rollout.
    """
    rollout = serve.deployment()(RolloutReplica).options(
        name=ROLLOUT, num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}, health_check_period_s=5
    )
    return rollout.bind(arguments, engine)


def canary_engine() -> DeploymentHandle[Any]:
    """The handle of the canary's engine.

    Raises:
        KeyError: There is no canary.
    """
    return serve.get_deployment_handle(ENGINE, CANARY)
