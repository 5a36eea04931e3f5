"""Spans of requests, sent to a collector that listens here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from genopt.errors import DeploymentError
from genopt.serving.guard import Finished
from genopt.serving.tracing import RequestTraces, noting
from genopt.testing.trace_collector import TraceCollector

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[TraceCollector]:
    with TraceCollector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


def finished(**changes: Any) -> Finished:
    return Finished(**{
        "request": "r1", "endpoint": "/v1/chat/completions", "key": None, "variant": "winner", "status": 200, "code": None, "stream": True,
        "prompt_tokens": 3, "completion_tokens": 5, "ttft_s": 0.5, "tpot_s": 0.1, "e2el_s": 0.9, **changes,
    })  # fmt: skip


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_nothing_is_sent_where_nobody_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert noting("m") == ()


def test_a_request_is_a_span_of_the_callers_trace(collector: TraceCollector) -> None:
    traces = RequestTraces("m")
    traces.note(finished(trace=f"00-{TRACE}-{SPAN}-01"))
    traces.note(finished(endpoint="/healthz"))
    traces.close()
    (span,) = collector.wait_for(1, timeout_s=10)
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("/v1/chat/completions", TRACE, SPAN)
    assert span.end_time_unix_nano - span.start_time_unix_nano == 900_000_000
    assert attributes(span) == {
        "http.route": "/v1/chat/completions", "http.response.status_code": 200, "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5, "genopt.variant": "winner", "genopt.request": "r1", "genopt.ttft_s": 0.5, "genopt.tpot_s": 0.1,
    }  # fmt: skip
    assert collector.service == "genopt"


def test_what_failed_says_so_and_bad_headers_begin_a_trace(collector: TraceCollector) -> None:
    traces = RequestTraces("m")
    traces.note(finished(status=503, code="engine_lost", trace="nonsense"))
    traces.close()
    (span,) = collector.wait_for(1, timeout_s=10)
    assert (span.status.message, attributes(span)["error.type"], span.parent_span_id) == ("engine_lost", "engine_lost", b"")


def test_the_service_has_the_name_that_its_environment_says(collector: TraceCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    traces = RequestTraces("m")
    traces.note(finished())
    traces.close()
    assert len(collector.wait_for(1, timeout_s=10)) == 1
    assert collector.service == "chat"


@pytest.mark.usefixtures("collector")
def test_a_missing_exporter_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(DeploymentError, match=r"pip install 'genopt-ray\[tracing\]'"):
        noting("m")
