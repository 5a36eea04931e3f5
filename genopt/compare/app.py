"""The page and its few requests. Every address below `/r/` carries a rater's secret; nothing else is served."""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these local functions at run time.
import base64
import hashlib
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint

from genopt.compare.ballot_box import BallotBox, Place, Said
from genopt.compare.raters import Rater
from genopt.errors import NotOpenError, StorageError
from genopt.plan import Record
from genopt.quality.comparison import ImageAnswer, TextAnswer
from genopt.quality.preference import HumanResult

LONGEST_BODY = 1_000
"""Bytes; a vote has about forty."""


class VoteRequest(Record):
    """The body of a vote."""

    position: int = Field(ge=0)
    said: Said


def create_app(box: BallotBox, evaluate: Callable[[], HumanResult]) -> FastAPI:
    """The page of one comparison.

    Args:
        box: Takes the votes.
        evaluate: The result so far, of all raters.
    """
    app = FastAPI(title="genopt compare", openapi_url=None, docs_url=None, redoc_url=None)
    page = resources.files("genopt.compare").joinpath("page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(page), "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    }  # fmt: skip

    def rater_of(token: str) -> Rater:
        rater = box.rater(token)
        if rater is None:
            raise HTTPException(404, "This link is not valid; ask for yours")
        return rater

    def result_for(rater: Rater) -> JSONResponse:
        choices = box.choices(rater)
        return JSONResponse({**evaluate().model_dump(mode="json"), "yours": dict(choices), "rater": rater.name})

    @app.middleware("http")
    async def guard(request: Request, answer: RequestResponseEndpoint) -> Response:
        response = await answer(request)
        response.headers.update(headers)
        return response

    @app.get("/r/{token}")
    def show_page(token: str) -> Response:
        rater_of(token)
        return HTMLResponse(page)

    @app.get("/r/{token}/sheet")
    def sheet(token: str) -> Response:
        return JSONResponse(box.sheet(rater_of(token)).model_dump(mode="json"))

    @app.get("/r/{token}/questions/{position}")
    def question(token: str, position: int) -> Response:
        shown = box.exhibit(rater_of(token), position)
        answers = {place: _wire(answer, f"images/{position}/{place}") for place, answer in (("left", shown.left), ("right", shown.right))}
        return JSONResponse({"position": position, "prompt": shown.prompt, **answers})

    @app.get("/r/{token}/images/{position}/{place}")
    def image(token: str, position: int, place: Place) -> Response:
        path = box.image(rater_of(token), position, place)
        if path is None or not path.is_file():
            raise HTTPException(404, "There is no picture here")
        # Not the file itself: with it goes when it was written, and all pictures of one variant were written before the other's.
        return Response(path.read_bytes(), media_type="image/png")

    @app.post("/r/{token}/votes")
    async def vote(token: str, request: Request) -> Response:
        rater, asked = rater_of(token), VoteRequest.model_validate_json(await _body(request))
        await run_in_threadpool(box.cast, rater, asked.position, asked.said)
        return JSONResponse({"position": asked.position, "said": asked.said})

    @app.post("/r/{token}/finish")
    def finish(token: str) -> Response:
        rater = rater_of(token)
        box.finish(rater)
        return result_for(rater)

    @app.get("/r/{token}/result")
    def result(token: str) -> Response:
        return result_for(rater_of(token))

    @app.get("/")
    def root() -> Response:
        return PlainTextResponse("Open the link that was made for you; genopt printed one for each rater.\n", status_code=404)

    @app.get("/favicon.ico")
    def icon() -> Response:
        """Browsers ask for one; there is none."""
        return Response(status_code=204)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, f"{error.detail}.")

    @app.exception_handler(NotOpenError)
    async def not_open(request: Request, error: NotOpenError) -> Response:
        return _problem(409, str(error))

    @app.exception_handler(IndexError)
    async def no_such_question(request: Request, error: IndexError) -> Response:
        return _problem(404, "There is no such question.")

    @app.exception_handler(ValidationError)
    async def bad_vote(request: Request, error: ValidationError) -> Response:
        return _problem(422, "This is not a vote: it takes a position, and as said one of left, right, tie and bad.")

    @app.exception_handler(StorageError)
    async def not_written(request: Request, error: StorageError) -> Response:
        return _problem(507, "Your vote could not be written down; the owner of this page has to make room on the disk.")

    return app


def content_security_policy(page: str) -> str:
    """Allows the page's own style and script, by their digests, and its own pictures and requests; nothing else."""
    style, script = (_digests(page, tag) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _digests(page: str, tag: str) -> str:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks)


def _wire(answer: TextAnswer | ImageAnswer, address: str) -> dict[str, Any]:
    """An answer as the page gets it, without what might tell the variants apart."""
    if isinstance(answer, ImageAnswer):
        return {"kind": "image", "address": address}
    return {"kind": "text", "text": answer.text, "cut": answer.cut}


async def _body(request: Request) -> bytes:
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > LONGEST_BODY:
            raise HTTPException(413, "A vote is not that long")
    return found


def _problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status)
