"""A span per request for OpenTelemetry, where the replica's environment names a collector. Never what was asked or answered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from genopt.errors import DeploymentError
from genopt.serving.guard import OPEN_PATHS, Finished

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of OpenTelemetry, one of which says where spans go; its SDK reads them, and the others that it knows."""
SERVICE = "genopt"


def tracing_is_asked_for() -> bool:
    """Whether the environment names a collector."""
    return any(os.environ.get(name) for name in ENDPOINTS)


class RequestTraces:
    """Sends a span for each request that ended, as part of the caller's trace where one came with it (header `traceparent`).

    Attributes follow OpenTelemetry's conventions for HTTP servers and generative models (`gen_ai.usage.input_tokens`, ...).

    Args:
        model: Name that callers ask for.

    Raises:
        DeploymentError: The exporter is not installed.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._provider = _provider()
        self._tracer = self._provider.get_tracer(SERVICE)

    def note(self, request: Finished) -> None:
        """A request has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if request.endpoint in OPEN_PATHS:
            return
        ended = time.time_ns()
        parent = TraceContextTextMapPropagator().extract({} if request.trace is None else {"traceparent": request.trace})
        began = ended - round(request.e2el_s * 1e9)
        span = self._tracer.start_span(
            request.endpoint, context=parent, kind=SpanKind.SERVER, start_time=began, attributes=self._attributes(request)
        )  # fmt: skip
        if request.status >= 500 or request.code is not None:
            span.set_status(Status(StatusCode.ERROR, request.code))
        span.end(ended)

    def _attributes(self, request: Finished) -> dict[str, str | int | float]:
        found: dict[str, str | int | float | None] = {
            "http.route": request.endpoint, "http.response.status_code": request.status, "error.type": request.code,
            "gen_ai.request.model": self._model, "gen_ai.usage.input_tokens": request.prompt_tokens or None,
            "gen_ai.usage.output_tokens": request.completion_tokens or None, "genopt.variant": request.variant, "genopt.request": request.request,
            "genopt.key": request.key, "genopt.ttft_s": request.ttft_s, "genopt.tpot_s": request.tpot_s,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def close(self) -> None:
        """Sends what has not been sent; a process that ends in order does so by itself."""
        self._provider.shutdown()


def _provider() -> TracerProvider:
    """One of our own: Ray has others in this process."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise DeploymentError(
            f"{' or '.join(ENDPOINTS)} asks for traces, which takes an exporter; install it with: pip install 'genopt-ray[tracing]'."
        ) from None
    provider = TracerProvider(resource=Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def noting(model: str) -> tuple[Callable[[Finished], None], ...]:
    """What is told of each request for its trace; nothing where nobody asked for traces."""
    return (RequestTraces(model).note,) if tracing_is_asked_for() else ()
