"""Serve files that people edited before they deployed them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from genopt.plan import Plan
from genopt.serving import deployment
from genopt.serving.app import build
from genopt.serving.manifest import Scaling, ServeArguments, serve_config
from genopt.serving.running import running_content
from genopt.testing.ports import unused_port
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer
from genopt.testing.trace_collector import TraceCollector

pytestmark = pytest.mark.ray
WAIT_S = 60.0


@pytest.fixture
def content(embedded_ray: Path) -> Iterator[dict[str, Any]]:
    write_tiny_tokenizer(embedded_ray / "model", context=100)
    yield serve_config(
        application="genopt", model_id="tiny", host="127.0.0.1", port=unused_port(), artifact=embedded_ray, model_folder=embedded_ray / "model",
        variant=Plan(name="fast", engine="fake", options={"text": "hello ", "delay_ms": 1}),
        scaling=Scaling(target_ongoing_requests=4, max_ongoing_requests=6, max_queued_requests=4, min_replicas=1, max_replicas=1),
        threads=1, num_cpus=1, num_gpus=0, log_folder=embedded_ray / "logs",
    )  # fmt: skip
    serve.shutdown()


def test_each_request_is_a_span_where_the_files_environment_names_a_collector(content: dict[str, Any], tmp_path: Path) -> None:
    with TraceCollector() as collector:
        content["applications"][0]["runtime_env"] = {"env_vars": {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}}
        path = tmp_path / "serve.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        endpoint = deployment.deploy(path, wait_s=WAIT_S, progress=lambda _: None)
        with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused") as client:
            client.completions.create(model="tiny", prompt="secret", max_tokens=5)
        (span,) = collector.wait_for(1, timeout_s=WAIT_S)
    assert span.name == "/v1/completions"
    assert "secret" not in str(span), "what was asked stays here"


def test_an_application_that_serve_deployed_from_a_file_says_what_the_file_said(content: dict[str, Any]) -> None:
    (application,) = content["applications"]
    application["deployments"][0]["graceful_shutdown_timeout_s"] = 7
    serve.start(proxy_location=content["proxy_location"], http_options=content["http_options"])
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(content), _blocking=True)  # as the dashboard does for `serve deploy`
    found = deployment.config_of(running_content("genopt"), "genopt")
    expected = deployment.config_of(content, "the file")
    assert (found.arguments, found.overrides, found.url) == (expected.arguments, expected.overrides, expected.url)
    assert found.http_options["request_timeout_s"] == expected.http_options["request_timeout_s"]


def test_nobody_serves_in_public_without_keys(content: dict[str, Any]) -> None:
    """`serve deploy` starts Serve where the file says, and builds the application from what it says."""
    (application,) = content["applications"]
    serve.start(http_options={**content["http_options"], "host": "0.0.0.0"})
    serve.run_many(
        [serve.RunTarget(target=build(ServeArguments.model_validate(application["args"])), name="genopt", route_prefix="/")],
        wait_for_applications_running=False,
    )  # fmt: skip
    deadline = time.monotonic() + WAIT_S
    while (found := serve.status().applications["genopt"]).status == ApplicationStatus.DEPLOYING and time.monotonic() < deadline:
        time.sleep(0.1)  # nothing can be awaited
    assert found.status == ApplicationStatus.DEPLOY_FAILED
    assert "Serving on 0.0.0.0 needs API keys" in found.deployments["Ingress"].message
