"""The API does what its description says, for requests that follow the description and for ones that do not."""

from __future__ import annotations

import json

import schemathesis
from hypothesis import HealthCheck, settings

from genopt.serving.ingress import Limits, create_app
from genopt.serving.keys import OpenGate
from genopt.serving.openapi import describe
from genopt.testing.scripted_backend import ANSWER, ScriptedBackend

APP = create_app(backend=ScriptedBackend(*ANSWER), gate=OpenGate(), limits=Limits(), finished=lambda request: None)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.parametrize()
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described_and_bad_requests_are_refused(case: schemathesis.Case) -> None:
    case.call_and_validate()


def test_the_description_is_plain_json_and_names_the_model() -> None:
    found = describe("m")
    assert json.loads(json.dumps(found)) == found
    assert found["components"]["schemas"]["ChatRequest"]["properties"]["model"] == {"const": "m", "type": "string"}
