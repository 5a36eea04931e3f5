"""Chat and text completions in OpenAI's shape."""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these local functions at run time.
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from genopt.serving import client, openapi
from genopt.serving.answer import Answer
from genopt.serving.api import Front
from genopt.serving.exchange import Refusal
from genopt.serving.wire import ChatRequest, CompletionSettings, TextRequest, parse_request

QUESTION = "What is machine learning?"


class TextApi:
    """See `genopt.serving.api.Api`."""

    @staticmethod
    def add_routes(app: FastAPI, front: Front) -> None:
        """See `Api.add_routes`."""
        backend, patience = front.backend, front.patience

        async def complete(kind: type[CompletionSettings], request: Request) -> Response:
            asked = await parse_request(kind, request)
            if isinstance(asked, Refusal):
                return front.refused(asked)
            if asked.model != backend.served().model:
                return front.refused(front.unknown(asked.model))
            caller, streamed = request.state.caller, bool(asked.stream)
            answer = Answer(asked, [partial(backend.generate, ask, caller) for ask in asked.asks()], patience, front.at_once)
            request.state.answer, request.state.stream = answer, streamed
            refusal = await answer.admit(patience.first_byte_s if streamed else patience.answer_s)
            if refusal is not None:
                return front.refused(refusal)
            named = {"X-Genopt-Variant": answer.variant} if answer.variant else {}
            if streamed:
                return StreamingResponse(answer.stream(), media_type="text/event-stream", headers={**named, "Cache-Control": "no-cache"})
            whole = await answer.whole()
            return front.refused(whole) if isinstance(whole, Refusal) else JSONResponse(whole, headers=named)

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            return await complete(ChatRequest, request)

        @app.post("/v1/completions")
        async def text(request: Request) -> Response:
            return await complete(TextRequest, request)

    @staticmethod
    def describe(model: str) -> dict[str, Any]:
        """See `Api.describe`."""
        return openapi.describe(model)

    @staticmethod
    def curl_line(url: str, model: str, example: str) -> str:
        """See `Api.curl_line`."""
        return client.curl_line(url, model, example or QUESTION)

    @staticmethod
    def ask_once(url: str, model: str, example: str, on_text: Callable[[str], None]) -> None:
        """See `Api.ask_once`; the answer is short."""
        question = example or QUESTION
        on_text(f"question {question}\nanswer   ")
        client.ask(url, question, model=model, max_tokens=64, on_text=on_text)
        on_text("\n")

    @staticmethod
    def replica() -> Callable[..., Any]:
        """See `Api.replica`."""
        from genopt.serving.replica import EngineReplica

        return EngineReplica
