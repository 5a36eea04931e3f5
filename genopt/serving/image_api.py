"""Images in OpenAI's shape: as JSON with base64, or a single one as a PNG where the caller accepts only that."""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these local functions at run time.
import base64
import json
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from genopt.errors import DeploymentError
from genopt.serving import openapi
from genopt.serving.api import Front
from genopt.serving.exchange import Refusal
from genopt.serving.image_answer import ImageAnswer, ImagesResponse
from genopt.serving.image_wire import ImagesRequest
from genopt.serving.wire import parse_request
from genopt.store.files import write_atomically

PATH = "/v1/images/generations"
PNG = "image/png"
PROMPT, FILE, ANSWER_S = "a red bicycle in front of a white wall", "genopt-image.png", 600.0
"""What is asked for to show that a deployment answers, and where the answer goes."""
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
            images = [partial(front.backend.generate, ask, request.state.caller) for ask in asks]
            answer = ImageAnswer(images, front.patience, front.at_once)
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
    def curl_line(url: str, model: str, example: str) -> str:
        """See `Api.curl_line`; the image lands in a file."""
        body = json.dumps({"model": model, "prompt": example or PROMPT})
        headers = f"-H 'Content-Type: application/json' -H 'Accept: {PNG}'"
        return f"curl -s {shlex.quote(url + PATH)} {headers} -d {shlex.quote(body)} -o {FILE}"

    @staticmethod
    def ask_once(url: str, model: str, example: str, on_text: Callable[[str], None]) -> None:
        """See `Api.ask_once`; the image is written into the current folder."""
        prompt = example or PROMPT
        on_text(f"prompt   {prompt}\n")
        try:
            asked = {"model": model, "prompt": prompt, "seed": 0}
            found = httpx.post(url + PATH, json=asked, headers={"Accept": PNG}, timeout=ANSWER_S, trust_env=False)  # as `client.get`
        except httpx.HTTPError as error:
            raise DeploymentError(f"{url} does not answer ({type(error).__name__}); deploy the run first with `genopt deploy`.") from None
        if found.status_code != 200:
            raise DeploymentError(f"{url} answered {found.status_code} where an image was asked for; its log has the cause.")
        write_atomically(Path(FILE), found.content)
        on_text(f"image    {Path(FILE).absolute()}\n")

    @staticmethod
    def replica() -> Callable[..., Any]:
        """See `Api.replica`."""
        from genopt.serving.image_replica import ImageReplica

        return ImageReplica
