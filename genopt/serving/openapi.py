"""The API's description (OpenAPI 3.1), made from the types that it is implemented with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from genopt.serving.answers import ChatCompletion, Error, Model, ModelList, TextCompletion
from genopt.serving.wire import ChatRequest, TextRequest
from genopt.version import __version__

_REFERENCE = "#/components/schemas/{model}"
_REFUSALS = {
    "400": "The request cannot be used; `param` names the field.",
    "401": "The key is missing or wrong.",
    "404": "No such model or path.",
    "408": "The body came too slowly.",
    "413": "The body, or the prompt with its answer, is too long.",
    "415": "The body is not JSON.",
    "429": "Too many requests; `Retry-After` says when to come back.",
    "500": "The server failed.",
    "503": "No engine replica can answer now.",
    "504": "The answer took too long.",
}


def describe(model: str) -> dict[str, Any]:
    """The description of the API that serves a language model.

    Args:
        model: The only name that requests may ask for.
    """
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    streamed = {"text/event-stream": {"schema": event}}
    said = "The answer, whole or as events."
    paths = {
        "/v1/chat/completions": {"post": operation("chat", "ChatRequest", "ChatCompletion", streamed, said)},
        "/v1/completions": {"post": operation("complete", "TextRequest", "TextCompletion", streamed, said)},
    }
    return description(model, paths, (ChatRequest, TextRequest), (ChatCompletion, TextCompletion))


def description(model: str, paths: Mapping[str, Any], requests: Sequence[type[BaseModel]], answers: Sequence[Any]) -> dict[str, Any]:
    """The description of an API with what all APIs have.

    Args:
        model: The only name that requests may ask for.
        paths: Its own.
        requests: Bodies that they take.
        answers: What they answer, as typed dictionaries.
    """
    _, found = models_json_schema([(request, "validation") for request in requests], ref_template=_REFERENCE)
    schemas: dict[str, Any] = dict(found["$defs"])
    for request in requests:
        schemas[request.__name__]["properties"]["model"] = {"const": model, "type": "string"}
    for shape in (*answers, Error, Model, ModelList):
        schema = TypeAdapter(shape).json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schemas[shape.__name__] = schema
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "genopt", "version": __version__, "description": "OpenAI-compatible API of one model."},
        "paths": {
            **paths,
            "/v1/models": {"get": _get("models", _ref("ModelList"))},
            "/v1/models/{name}": {"get": {**_get("model", _ref("Model"), "404"), "parameters": [_path_parameter("name")]}},
            "/healthz": {"get": {**_get("alive", status), "security": []}},
            "/readyz": {"get": {**_get("ready", status, "503"), "security": []}},
        },
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=name)}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: {"description": _REFUSALS[status], **_json(_ref("Error"))} for status in statuses}


def _get(name: str, schema: Mapping[str, Any], *statuses: str) -> dict[str, Any]:
    refusals = _errors("400", "401", "429", *statuses)
    return {"operationId": name, "responses": {"200": {"description": "What was asked for.", **_json(schema)}, **refusals}}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def operation(name: str, request: str, answer: str, others: Mapping[str, Any], said: str) -> dict[str, Any]:
    """A path that is asked with JSON.

    Args:
        name: Of the operation.
        request: Schema of the body.
        answer: Schema of the answer as JSON.
        others: What else it may be, by media type.
        said: What the answer is.
    """
    whole = _json(_ref(answer))["content"]
    return {
        "operationId": name,
        "requestBody": {"required": True, **_json(_ref(request))},
        "responses": {"200": {"description": said, "content": {**whole, **others}}, **_errors(*_REFUSALS)},
    }
