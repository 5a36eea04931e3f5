"""Images over HTTP in OpenAI's shape, before a backend whose pictures are fixed."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.testclient import TestClient

from genopt.serving.exchange import Admitted, AnyAsk, Caller, Event, ImageAsk, Picture, Refusal, Served
from genopt.serving.guard import Finished
from genopt.serving.image_api import PATH, ImageApi
from genopt.serving.ingress import Limits, create_app
from genopt.serving.keys import OpenGate
from genopt.testing.scripted_backend import ScriptedBackend

FILE = b"\x89PNG file"
ADMITTED, PICTURE = Admitted(prompt_tokens=0, variant="fast"), Picture(png=base64.b64encode(FILE).decode(), steps=8)


class Painter:
    """A `Backend` with fixed events."""

    def __init__(self, *events: Event) -> None:
        self._events = events
        self.asked: list[AnyAsk] = []

    async def generate(self, ask: AnyAsk, caller: Caller) -> AsyncGenerator[Event, None]:
        self.asked.append(ask)
        for event in self._events:
            yield event

    async def ready(self) -> bool:
        return True

    def served(self) -> Served:
        return Served(model="m", variant="fast")


def client(*events: Event, ended: list[Finished] | None = None) -> tuple[TestClient, Painter]:
    painter = Painter(*(events or (ADMITTED, PICTURE)))
    finished: list[Finished] = [] if ended is None else ended
    return TestClient(create_app(backend=painter, gate=OpenGate(), limits=Limits(), finished=finished.append, api=ImageApi())), painter


def test_images_come_as_base64_with_the_variant_that_made_them() -> None:
    ended: list[Finished] = []
    http, painter = client(ended=ended)
    answer = http.post(PATH, json={"model": "m", "prompt": "a cat", "n": 2, "size": "64x32", "seed": 5, "response_format": "b64_json"})
    assert answer.status_code == 200
    assert [base64.b64decode(item["b64_json"]) for item in answer.json()["data"]] == [FILE, FILE]
    assert answer.json()["created"] > 0
    assert answer.headers["X-Genopt-Variant"] == "fast"
    assert painter.asked == [ImageAsk(prompt="a cat", seed=seed, width=64, height=32) for seed in (5, 6)]
    assert (ended[0].endpoint, ended[0].status, ended[0].variant) == (PATH, 200, "fast")


def test_a_single_image_comes_as_a_file_where_that_is_accepted() -> None:
    http, _ = client()
    answer = http.post(PATH, json={"prompt": "a cat"}, headers={"Accept": "image/png"})
    assert (answer.content, answer.headers["content-type"]) == (FILE, "image/png")
    several = http.post(PATH, json={"prompt": "a cat", "n": 2}, headers={"Accept": "image/png"})
    assert (several.status_code, several.json()["error"]["param"]) == (400, "n")


def test_more_images_than_there_are_places_are_made_one_after_the_other() -> None:
    backend = ScriptedBackend(ADMITTED, 0, PICTURE, places=1)
    app = create_app(backend=backend, gate=OpenGate(), limits=Limits(at_once=1), finished=lambda _: None, api=ImageApi())
    answer = TestClient(app).post(PATH, json={"prompt": "a cat", "n": 8})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == len(backend.asked) == 8
    backend.taken = 1
    assert TestClient(app).post(PATH, json={"prompt": "a cat", "n": 8}).status_code == 429


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "a", "n": 0}, 400, "n"),
        ({"prompt": "a", "n": 1000}, 400, "n"),
        ({"prompt": "a", "size": "large"}, 400, "size"),
        ({"prompt": "a", "size": "100x64"}, 400, "size"),
        ({"prompt": "a", "size": "99999x64"}, 400, "size"),
        ({"prompt": "a", "response_format": "url"}, 400, "response_format"),
        ({"prompt": "a", "seed": -1}, 400, "seed"),
        ({"prompt": "a", "stream": True}, 400, "stream"),
        ({"prompt": "a", "model": "other"}, 404, "model"),
    ],
)
def test_bad_requests_are_refused_with_the_field_at_fault(body: dict[str, Any], status: int, param: str) -> None:
    http, painter = client()
    answer = http.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert painter.asked == []


def test_what_is_not_json_is_refused() -> None:
    http, _ = client()
    assert http.post(PATH, content="prompt=a").status_code == 415
    assert http.post(PATH, content="{", headers={"Content-Type": "application/json"}).status_code == 400


def test_a_refusal_of_the_engine_keeps_its_status() -> None:
    http, _ = client(ADMITTED, Refusal(status=400, message="The prompt is too long.", param="prompt", code="invalid_value"))
    answer = http.post(PATH, json={"prompt": "a", "n": 2})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The prompt is too long.")


def test_an_answer_that_ends_early_is_an_engine_that_failed() -> None:
    http, _ = client(ADMITTED)
    answer = http.post(PATH, json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")


def test_the_description_has_images_and_no_text() -> None:
    http, _ = client()
    found = http.get("/openapi.json").json()
    assert PATH in found["paths"]
    assert "/v1/chat/completions" not in found["paths"]
    assert json.dumps(found).count("#/components/schemas/ImagesRequest") == 1
    assert http.post("/v1/chat/completions", json={}).status_code == 404
