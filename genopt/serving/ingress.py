"""The HTTP API in OpenAI's shape, over whatever is a `Backend`. Knows nothing of Ray."""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these local functions at run time.
import time
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from genopt.plan import Record
from genopt.serving.answer import Patience
from genopt.serving.answers import Model
from genopt.serving.api import SHOWN, Api, Front
from genopt.serving.exchange import Backend, Refusal
from genopt.serving.guard import Finished, Gate, Guard
from genopt.serving.text_api import TextApi

TEXT: Api = TextApi()
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}


class Limits(Record):
    """What one request may cost.

    Attributes:
        max_body_bytes: Larger bodies are refused unread.
        patience: How long the API waits.
        at_once: Most parts of one request, its choices or images, that the backend gets before others have ended.
    """

    max_body_bytes: int = 4 * 2**20
    patience: Patience = Patience()
    at_once: int = Field(default=8, gt=0)


def create_app(*, backend: Backend, gate: Gate, limits: Limits, finished: Callable[[Finished], None], api: Api = TEXT) -> FastAPI:
    """The API of what is served.

    Args:
        backend: Does what is asked for.
        gate: Who may ask.
        limits: What one request may cost.
        finished: Told how each request ended.
        api: What can be asked for.
    """
    app = FastAPI(title="genopt", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard, gate=gate, patience=limits.patience, max_body_bytes=limits.max_body_bytes, variant=lambda: backend.served().variant,
        finished=finished,
    )  # fmt: skip
    started = int(time.time())

    front = Front(backend, limits.patience, limits.at_once)
    refused = front.refused

    def entry() -> Model:
        return {"id": backend.served().model, "object": "model", "created": started, "owned_by": "genopt"}

    api.add_routes(app, front)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [entry()]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        return JSONResponse(entry()) if name == backend.served().model else refused(front.unknown(name))

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(api.describe(backend.served().model))

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        served = backend.served()
        if await backend.ready():
            return JSONResponse({"status": "ready", "model": served.model, "variant": served.variant})
        return refused(Refusal(status=503, message="No engine replica answers yet; try again.", code="not_ready", retry_after_s=1))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:SHOWN]}: {error.detail}; see /openapi.json for what is served."
        code = _HTTP_CODES.get(error.status_code, "http_error")
        response = refused(Refusal(status=error.status_code, message=message, code=code))
        response.headers.update(error.headers or {})
        return response

    return app
