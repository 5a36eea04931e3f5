"""A collector of OpenTelemetry's spans on this machine."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span


class TraceCollector:
    """Takes spans by OTLP over HTTP while it is open.

    Attributes:
        service: Name of the service that sent the latest ones.
    """

    def __init__(self) -> None:
        self.service = ""
        self._spans: list[Span] = []
        self._arrived = threading.Condition()
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)

    @property
    def url(self) -> str:
        """What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for(self, count: int, *, timeout_s: float) -> list[Span]:
        """The spans so far, as soon as there are so many."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._spans) >= count, timeout_s)
            return list(self._spans)

    def _take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        with self._arrived:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.service = next(each.value.string_value for each in group.resource.attributes if each.key == "service.name")
                self._spans += [span for scope in group.scope_spans for span in scope.spans]
            self._arrived.notify_all()

    def __enter__(self) -> Self:
        self._server.server_bind()
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
