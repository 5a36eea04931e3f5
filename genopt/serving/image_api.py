"""Images in OpenAI's shape: as JSON with base64, or a single one as a PNG where the caller accepts only that."""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these local functions at run time.
import base64
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from genopt.serving import openapi
from genopt.serving.api import Front
from genopt.serving.exchange import Refusal
from genopt.serving.image_answer import ImageAnswer, ImagesResponse
from genopt.serving.image_wire import ImagesRequest
from genopt.serving.wire import parse_request

PATH = "/v1/images/generations"
PNG = "image/png"
_ONE_PNG = Refusal(status=400, message=f"A single image fits into {PNG}; ask for n=1, or accept application/json.", param="n", code="invalid_value")


class ImageApi:
    """See `genopt.serving.api.Api`."""

    @staticmethod
    def add_routes(app: FastAPI, front: Front) -> None:
        """See `Api.add_routes`."""

        @app.post(PATH)
        async def images(request: Request) -> Response:
            asked = await parse_request(ImagesRequest, request)
            if isinstance(asked, Refusal):
                return front.refused(asked)
            if asked.model is not None and asked.model != front.backend.served().model:
                return front.refused(front.unknown(asked.model))
            asks, as_file = asked.asks(), request.headers.get("accept", "").partition(";")[0].strip().lower() == PNG
            if as_file and len(asks) > 1:
                return front.refused(_ONE_PNG)
            answer = ImageAnswer([front.backend.generate(ask, request.state.caller) for ask in asks], front.patience)
            request.state.answer = answer
            found = await answer.pictures()
            if isinstance(found, Refusal):
                return front.refused(found)
            named = {"X-Genopt-Variant": answer.variant} if answer.variant else {}
            if as_file:
                return Response(base64.b64decode(found[0].png), media_type=PNG, headers=named)
            content: ImagesResponse = {"created": int(time.time()), "data": [{"b64_json": picture.png} for picture in found]}
            return JSONResponse(content, headers=named)

    @staticmethod
    def describe(model: str) -> dict[str, Any]:
        """See `Api.describe`."""
        file = {PNG: {"schema": {"type": "string", "contentMediaType": PNG}}}
        path = openapi.operation("images", "ImagesRequest", "ImagesResponse", file, "The images.")
        return openapi.description(model, {PATH: {"post": path}}, (ImagesRequest,), (ImagesResponse,))

    @staticmethod
    def replica() -> Callable[..., Any]:
        """See `Api.replica`."""
        from genopt.serving.image_replica import ImageReplica

        return ImageReplica
