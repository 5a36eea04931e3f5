"""The HTTP API in OpenAI's shape, over whatever is a `Backend`. Knows nothing of Ray."""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these local functions at run time.
import time
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from genopt.plan import Record
from genopt.serving.answer import Answer, Patience
from genopt.serving.answers import Model, error_body
from genopt.serving.exchange import Backend, Refusal
from genopt.serving.guard import Finished, Gate, Guard
from genopt.serving.openapi import describe
from genopt.serving.wire import ChatRequest, CompletionSettings, TextRequest, parse

_SHOWN = 64
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}


class Limits(Record):
    """What one request may cost.

    Attributes:
        max_body_bytes: Larger bodies are refused unread.
        patience: How long the API waits.
    """

    max_body_bytes: int = 4 * 2**20
    patience: Patience = Patience()


def create_app(*, backend: Backend, gate: Gate, limits: Limits, finished: Callable[[Finished], None]) -> FastAPI:
    """The API of what is served.

    Args:
        backend: Continues prompts.
        gate: Who may ask.
        limits: What one request may cost.
        finished: Told how each request ended.
    """
    app = FastAPI(title="genopt", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard, gate=gate, patience=limits.patience, max_body_bytes=limits.max_body_bytes, variant=lambda: backend.served().variant,
        finished=finished,
    )  # fmt: skip
    started = int(time.time())

    def refused(refusal: Refusal) -> Response:
        retry = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
        return JSONResponse(error_body(refusal), status_code=refusal.status, headers=retry)

    def unknown(name: str) -> Refusal:
        model, shown = backend.served().model, name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        return Refusal(status=404, message=f"The model {shown!r} is not served here; ask for {model!r}.", param="model", code="model_not_found")

    def entry() -> Model:
        return {"id": backend.served().model, "object": "model", "created": started, "owned_by": "genopt"}

    async def complete(kind: type[CompletionSettings], request: Request) -> Response:
        asked = parse(kind, await request.body()) if _is_json(request) else _NOT_JSON
        if isinstance(asked, Refusal):
            return refused(asked)
        if asked.model != backend.served().model:
            return refused(unknown(asked.model))
        caller, streamed = request.state.caller, bool(asked.stream)
        answer = Answer(asked, [backend.generate(ask, caller) for ask in asked.asks()], limits.patience)
        request.state.answer, request.state.stream = answer, streamed
        refusal = await answer.admit(limits.patience.first_byte_s if streamed else limits.patience.answer_s)
        if refusal is not None:
            return refused(refusal)
        named = {"X-Genopt-Variant": answer.variant} if answer.variant else {}
        if streamed:
            return StreamingResponse(answer.stream(), media_type="text/event-stream", headers={**named, "Cache-Control": "no-cache"})
        whole = await answer.whole()
        return refused(whole) if isinstance(whole, Refusal) else JSONResponse(whole, headers=named)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await complete(ChatRequest, request)

    @app.post("/v1/completions")
    async def text(request: Request) -> Response:
        return await complete(TextRequest, request)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [entry()]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        return JSONResponse(entry()) if name == backend.served().model else refused(unknown(name))

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(describe(backend.served().model))

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
        message = f"{request.method} {request.url.path[:_SHOWN]}: {error.detail}; see /openapi.json for what is served."
        code = _HTTP_CODES.get(error.status_code, "http_error")
        response = refused(Refusal(status=error.status_code, message=message, code=code))
        response.headers.update(error.headers or {})
        return response

    return app


_NOT_JSON = Refusal(status=415, message="The body has to be JSON; send the header 'Content-Type: application/json'.", code="unsupported_media_type")


def _is_json(request: Request) -> bool:
    """Browsers send other types across sites without asking first, so that a page could use a server on its reader's machine."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
