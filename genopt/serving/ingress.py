"""The HTTP API in OpenAI's shape, over whatever answers `EngineCalls`. Knows nothing of Ray."""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these local functions at run time.
import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from genopt.serving.exchange import Admitted, EngineCalls, Event, Piece, Refusal
from genopt.serving.wire import (
    SSE_END,
    AnswerMessage,
    ChatChoice,
    ChatDelta,
    ChatRequest,
    Choice,
    Completion,
    CompletionSettings,
    Delta,
    TextChoice,
    TextRequest,
    Usage,
    error_body,
    parse,
    sse,
)

_BROKEN = Refusal(status=503, message="The engine ended the answer early; try again.", code="engine_failed", retry_after_s=5)


def create_app(*, model: str, variant: str, engine: EngineCalls) -> FastAPI:
    """The API of one model.

    Args:
        model: Name under which clients ask for it.
        variant: Sent in the header `X-Genopt-Variant` of every answer.
        engine: Continues prompts.
    """
    app = FastAPI(title="genopt", openapi_url=None)
    started = int(time.time())
    headers = {"X-Genopt-Variant": variant}

    def refused(refusal: Refusal) -> Response:
        retry = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
        return JSONResponse(error_body(refusal), status_code=refusal.status, headers={**headers, **retry})

    def unknown(name: str) -> Refusal:
        return Refusal(status=404, message=f"The model {name!r} is not served here; ask for {model!r}.", param="model", code="model_not_found")

    def entry() -> dict[str, object]:
        return {"id": model, "object": "model", "created": started, "owned_by": "genopt"}

    async def complete(asked: CompletionSettings | Refusal) -> Response:
        if isinstance(asked, Refusal):
            return refused(asked)
        if asked.model != model:
            return refused(unknown(asked.model))
        answer = Answer(asked, [engine.generate(asked.ask(index)) for index in range(asked.choices)])
        refusal = await answer.admit()
        if refusal is not None:
            return refused(refusal)
        if asked.stream:
            return StreamingResponse(answer.stream(), media_type="text/event-stream", headers={**headers, "Cache-Control": "no-cache"})
        whole = await answer.whole()
        return refused(whole) if isinstance(whole, Refusal) else JSONResponse(whole.payload(), headers=headers)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await complete(parse(ChatRequest, await request.body()))

    @app.post("/v1/completions")
    async def text(request: Request) -> Response:
        return await complete(parse(TextRequest, await request.body()))

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [entry()]}, headers=headers)

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != model:
            return refused(unknown(name))
        return JSONResponse(entry(), headers=headers)

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"}, headers=headers)

    @app.get("/readyz")
    async def readyz() -> Response:
        if await engine.ready():
            return JSONResponse({"status": "ready", "model": model, "variant": variant}, headers=headers)
        return refused(Refusal(status=503, message="No engine replica answers yet; try again.", code="not_ready", retry_after_s=1))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return refused(Refusal(status=error.status_code, message=f"{request.method} {request.url.path}: {error.detail}.", code="http_error"))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        return refused(Refusal(status=500, message="The server failed on this request; its log has the cause.", code="internal_error"))

    return app


class Answer:
    """The answer to one request: one stream of events per choice, put into the wire's shape.

    Args:
        asked: The request.
        streams: Events of each choice.
    """

    def __init__(self, asked: CompletionSettings, streams: list[AsyncIterator[Event]]) -> None:
        self._asked = asked
        self._streams = streams
        self._chat = isinstance(asked, ChatRequest)
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._prompt_tokens = 0
        self._completion_tokens = [0] * len(streams)

    async def admit(self) -> Refusal | None:
        """Waits until every choice is admitted, so that a refusal still has its own HTTP status; a refused request is closed."""
        first = await asyncio.gather(*(anext(stream, _BROKEN) for stream in self._streams))
        for event in first:
            if isinstance(event, Admitted):
                self._prompt_tokens = event.prompt_tokens
        refusal = next((event for event in first if isinstance(event, Refusal)), None)
        if refusal is not None:
            await _close(self._streams)
        return refusal

    async def whole(self) -> Completion | Refusal:
        """The complete answer."""
        texts, reasons = [""] * len(self._streams), ["stop"] * len(self._streams)
        async for index, event in _merged(self._streams):
            if isinstance(event, Refusal):
                return event
            if isinstance(event, Piece):
                self._completion_tokens[index] = event.completion_tokens
                texts[index] += event.text
                reasons[index] = event.finish_reason or reasons[index]
        choices: list[Choice] = [
            ChatChoice(index=index, message=AnswerMessage(content=text), finish_reason=reason)
            if self._chat else TextChoice(index=index, text=text, finish_reason=reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]  # fmt: skip
        return self._completion("chat.completion" if self._chat else "text_completion", choices, self._usage())

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events; a failure on the way is an event, since the status is already out."""
        if self._chat:
            for index in range(len(self._streams)):
                yield self._chunk(ChatDelta(index=index, delta=Delta(role="assistant", content="")))
        async for index, event in _merged(self._streams):
            if isinstance(event, Refusal):
                yield sse(error_body(event))
                return
            if isinstance(event, Piece):
                self._completion_tokens[index] = event.completion_tokens
                if event.text:
                    yield self._chunk(self._part(index, event.text, None))
                if event.finish_reason is not None:
                    yield self._chunk(self._part(index, "", event.finish_reason))
        if self._asked.usage_wanted:
            yield sse(self._completion("chat.completion.chunk" if self._chat else "text_completion", [], self._usage()).payload())
        yield SSE_END

    def _part(self, index: int, text: str, reason: str | None) -> Choice:
        if self._chat:
            return ChatDelta(index=index, delta=Delta(content=text or None), finish_reason=reason)
        return TextChoice(index=index, text=text, finish_reason=reason)

    def _chunk(self, choice: Choice) -> str:
        return sse(self._completion("chat.completion.chunk" if self._chat else "text_completion", [choice], None).payload())

    def _usage(self) -> Usage:
        return Usage.of(self._prompt_tokens, sum(self._completion_tokens))

    def _completion(
        self, kind: Literal["chat.completion", "chat.completion.chunk", "text_completion"], choices: list[Choice], usage: Usage | None
    ) -> Completion:
        return Completion(id=self._id, object=kind, created=self._created, model=self._asked.model, choices=choices, usage=usage)


async def _close(streams: list[AsyncIterator[Event]]) -> None:
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


async def _merged(streams: list[AsyncIterator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    """Events of all streams as they come; leaving early closes every stream. A stream without a last event ends in a refusal."""
    events: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[Event]) -> None:
        ending: Event | None = _BROKEN
        try:
            async for event in stream:
                events.put_nowait((index, event))
                if isinstance(event, Refusal) or (isinstance(event, Piece) and event.finish_reason is not None):
                    ending = None
        finally:
            events.put_nowait((index, ending))

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            index, event = await events.get()
            if event is None:
                running -= 1
            else:
                yield index, event
                if event is _BROKEN:
                    return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _close(streams)
