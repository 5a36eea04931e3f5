"""The Serve application: the ingress in front of the engine replicas. `serve.yaml` names `build` here."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` to validate `args`.
import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from genopt import catalog
from genopt.errors import GenoptError
from genopt.plan import Record
from genopt.serving.answer import Patience
from genopt.serving.api import Api
from genopt.serving.binding import require_private
from genopt.serving.canary_app import RayControl, canary_application, canary_engine
from genopt.serving.exchange import ENGINE_FAILED, ENGINE_LOST, AnyAsk, Caller, Event, Refusal, Served
from genopt.serving.guard import Finished
from genopt.serving.ingress import Limits, create_app
from genopt.serving.keys import KeyGate, OpenGate
from genopt.serving.manifest import DRAIN_S, ENGINE, INGRESS, LONGEST_STREAM_S, ServeArguments
from genopt.serving.metrics import RequestMetrics
from genopt.serving.request_log import log_finished
from genopt.serving.retry import Retrying
from genopt.serving.rollout import RolloutArguments
from genopt.serving.routing import Routed
from genopt.serving.tracing import noting

READY_S = 5.0
KNOWN_S = 1.0
"""So long an answer about readiness holds: probes need no key, and each takes a place in the engine's queue."""
ALIVE_S = 30.0
"""An engine that said something within this time and has no place for a question is busy, and not gone."""
_UNFORESEEN = (
    ArithmeticError, AssertionError, AttributeError, GenoptError, LookupError, MemoryError, NameError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a replica's code may raise where it errs. Over gRPC Serve raises it here as it was raised there, so that it is no error of Ray."""
_LOGGER = logging.getLogger("ray.serve")


class HandleEngine:
    """A `Backend` over a Serve deployment handle; Serve's own failures become refusals.

    Args:
        handle: Of the engine deployment.
        served: What it serves.
    """

    def __init__(self, handle: DeploymentHandle[Any], served: Served) -> None:
        self._handle = handle
        self._served = served
        self._streaming = handle.options(stream=True)
        self._asking: asyncio.Task[bool] | None = None
        self._asked_at = self._heard_at = float("-inf")

    def served(self) -> Served:
        """See `Backend.served`."""
        return self._served

    async def generate(self, ask: AnyAsk, caller: Caller) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        response = cast("DeploymentResponseGenerator[Event]", self._streaming.generate.remote(ask))
        try:
            async for event in response:
                self._heard_at = time.monotonic()
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            # Only for a call that has not failed: cancelling one that has raises its failure again.
            response.cancel()
            raise
        except BackPressureError:
            yield Refusal(status=429, message="Too many requests are waiting; try again shortly.", code="over_capacity", retry_after_s=1)
        except DeploymentUnavailableError:
            yield Refusal(status=503, message="No engine replica is running; try again later.", code="no_capacity", retry_after_s=5)
        except (RayError, RayServeException):
            yield ENGINE_LOST
        except _UNFORESEEN:
            _LOGGER.exception("a replica failed on request %s", caller.request)
            yield ENGINE_FAILED

    async def ready(self) -> bool:
        """Whether a replica answers within a few seconds; one that is merely full counts as ready. All who ask at once share one question."""
        if self._asking is None or (self._asking.done() and time.monotonic() - self._asked_at > KNOWN_S):
            self._asked_at, self._asking = time.monotonic(), asyncio.create_task(self._answers())
        return await asyncio.shield(self._asking)

    async def _answers(self) -> bool:
        try:
            return bool(await asyncio.wait_for(self._handle.ready.remote(), timeout=READY_S))
        except BackPressureError:
            return True
        except TimeoutError:
            return time.monotonic() - self._heard_at < ALIVE_S
        except (RayError, RayServeException):
            return False


class CanaryEngine:
    """A `Backend` over the canary's engine, whose handle can be had only while there is one.

    Args:
        served: What the stable variant serves.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._engine: HandleEngine | None = None

    def served(self) -> Served:
        """See `Backend.served`."""
        return self._served

    async def generate(self, ask: AnyAsk, caller: Caller) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        engine = await self._found()
        if engine is None:
            yield Refusal(status=503, message="There is no canary.", code="no_capacity", retry_after_s=1)
            return
        async with aclosing(engine.generate(ask, caller)) as events:
            async for event in events:
                yield event

    async def ready(self) -> bool:
        """See `Backend.ready`."""
        engine = await self._found()
        return engine is not None and await engine.ready()

    async def _found(self) -> HandleEngine | None:
        if self._engine is None:
            try:
                self._engine = HandleEngine(await asyncio.to_thread(canary_engine), self._served)
            except KeyError:
                return None
        return self._engine


class CanaryArguments(Record):
    """What the application of a canary is built from.

    Attributes:
        serve: What the canary serves: with the model's name of the stable variant.
        rollout: How it gets its requests.
    """

    serve: ServeArguments
    rollout: RolloutArguments


@serve.ingress()
class Ingress:
    """Serves the HTTP API.

    Args:
        arguments: What is served.
        engine: Handle of the engine deployment.
        at_once: See `Limits.at_once`.
        entry: See `application`.

    Raises:
        SpecError: The file of keys cannot be used.
        DeploymentError: Serve listens in public and there are no keys, or traces are asked for that cannot be sent.
    """

    def __init__(self, arguments: ServeArguments, engine: DeploymentHandle[Any], at_once: int, entry: dict[str, Any] | None) -> None:
        _require_private(arguments.keys)
        self._traced = noting(arguments.model_id)
        self._gate = OpenGate() if arguments.keys is None else KeyGate(Path(arguments.keys))
        self._api = api_of(arguments)
        self._entry = entry
        self._limits = Limits(patience=Patience(answer_s=LONGEST_STREAM_S), at_once=at_once)
        served = Served(model=arguments.model_id, variant=arguments.variant.name)
        self._backend = Routed(Retrying(HandleEngine(engine, served)), CanaryEngine(served), RayControl())

    async def entry(self) -> dict[str, Any] | None:
        """What the application was told at its deployment; see `genopt.serving.running`."""
        return self._entry

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the constructor is done."""
        told = (log_finished, RequestMetrics().note, *self._traced)

        def finished(request: Finished) -> None:
            for note in told:
                note(request)

        return create_app(backend=self._backend, gate=self._gate, limits=self._limits, finished=finished, api=self._api)


def _require_private(keys: str | None) -> None:
    """See `genopt.serving.binding.require_private`; `serve deploy` takes the address from a file that anybody may have edited."""
    host = _get_global_client().http_config.host  # what nothing else in this process knows
    if host is not None:
        require_private(host, keys)


def application(arguments: ServeArguments, overrides: Mapping[str, Mapping[str, Any]], entry: dict[str, Any] | None = None) -> Application:
    """Binds the two deployments.

    Args:
        arguments: What is served.
        overrides: Deployment options by deployment name, as under `deployments` in `serve.yaml`.
        entry: The application in `serve.yaml`, where Serve does not read that file itself.
    """
    ingress = serve.deployment()(Ingress).options(
        **{
            "name": INGRESS,
            # The engine deployment's queue is the limit; the ingress only passes bytes on, so that health checks get through.
            "max_ongoing_requests": 1000,
            "ray_actor_options": {"num_cpus": 0.1},
            "logging_config": {"encoding": "JSON", "enable_access_log": False},  # our own line per request says more
            # An update starts the new replica before it ends the old one, so that somebody always listens.
            "max_surge_percent": 100,
            "graceful_shutdown_timeout_s": DRAIN_S,
            **overrides.get(INGRESS, {}),
        }
    )
    places = _places(arguments, overrides.get(ENGINE, {}))
    return ingress.bind(arguments, engine_deployment(arguments, overrides), places, entry)


def _places(arguments: ServeArguments, options: Mapping[str, Any]) -> int:
    """How many requests an idle engine takes that come all at once: Serve counts each as queued until a replica has accepted it."""
    accepted: int = options.get("max_ongoing_requests", arguments.accepted)
    queued: int = options.get("max_queued_requests", -1)
    return max(1, accepted if queued < 0 else min(accepted, queued))


def engine_deployment(arguments: ServeArguments, overrides: Mapping[str, Mapping[str, Any]]) -> Application:
    """Binds the engine alone; see `application`."""
    engine = serve.deployment()(api_of(arguments).replica()).options(
        **{
            "name": ENGINE,
            "ray_actor_options": {"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
            "max_ongoing_requests": arguments.accepted,
            "max_queued_requests": 8 * arguments.max_batch,
            # How long a full replica is left alone by requests that wait: with Serve's half a second, places that came free stayed empty.
            "request_router_config": RequestRouterConfig(max_backoff_s=0.1),
            # Serve replaces a replica after three misses in a row; a probe costs one message to the engine's process.
            "health_check_period_s": 5,
            "health_check_timeout_s": 30,
            "max_constructor_retry_count": 3,
            "graceful_shutdown_timeout_s": DRAIN_S,
            # As for the ingress; where an engine has a GPU, there may be none for a second one, and an update would wait for ever.
            "max_surge_percent": 0 if arguments.num_gpus else 100,
            **overrides.get(ENGINE, {}),
        }
    )
    return engine.bind(arguments)


def api_of(arguments: ServeArguments) -> Api:
    """The API of what is served, by what it makes."""
    found: Api = catalog.load("apis", arguments.modality)
    return found


def build(arguments: ServeArguments) -> Application:
    """Builds the application from `args` of `serve.yaml`, which Serve validates against `ServeArguments`."""
    return application(arguments, {})


def build_canary(arguments: CanaryArguments) -> Application:
    """Builds the application of a canary from `args`; its name has to be `genopt.serving.canary_app.CANARY`."""
    return canary_application(engine_deployment(arguments.serve, {}), arguments.rollout)
