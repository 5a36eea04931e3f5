"""No request breaks the API: whatever comes, the answer has a status that callers can act on and OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genopt.serving.guard import Finished
from genopt.serving.ingress import Limits, create_app
from genopt.serving.keys import OpenGate
from genopt.testing.scripted_backend import ANSWER, ScriptedBackend

REQUESTS = 9_000
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GOOD: dict[str, Any] = {"model": "m", "prompt": "abc", "max_tokens": 2}
TALK: dict[str, Any] = {"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
ENDED: list[Finished] = []
APP = create_app(backend=ScriptedBackend(*ANSWER), gate=OpenGate(), limits=Limits(), finished=ENDED.append)


def send(method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=APP), base_url="http://test") as http:
            return await http.request(method, path, content=body, headers={"Content-Type": "application/json", **headers})

    return asyncio.run(ask())


def assert_refused(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in answer.text
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({**GOOD, "max_tokens": -1}, 400), ({**GOOD, "temperature": -0.1}, 400), ({**GOOD, "temperature": "hot"}, 400),
        ({**GOOD, "stop": ["x"] * 1000}, 400), ({**GOOD, "n": 10**9}, 400), ({**GOOD, "seed": 1.5}, 400), ({**GOOD, "model": None}, 400),
        ({**GOOD, "model": "../../etc/passwd"}, 404), ({**GOOD, "model": "x" * 10_000}, 404), ({**GOOD, "prompt": "x" * 10_000_000}, 413),
        ({**GOOD, "prompt": ["a"] * 1000}, 400), ({**TALK, "messages": []}, 400), ({**TALK, "messages": [{"role": "user"}]}, 400),
        ({**TALK, "messages": [{"role": "root", "content": "x"}]}, 400), ({"model": "m"}, 400), ([], 400), ("text", 400), (None, 400),
    ],
)  # fmt: skip
def test_bad_fields_have_their_status(body: Any, status: int) -> None:
    path = CHAT if isinstance(body, dict) and "messages" in body else COMPLETIONS
    answer = send("POST", path, {}, json.dumps(body).encode())
    assert_refused(answer, status)
    assert len(answer.text) < 1000, "an error does not send back what it was sent"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8,
)  # fmt: skip
FIELDS = st.sampled_from(["model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "n", "stream",
                          "stream_options", "logprobs", "top_logprobs", "tools", "response_format", "logit_bias", "echo", "user"])  # fmt: skip
BASES = st.sampled_from([GOOD, TALK])


def changed(base: dict[str, Any], changes: dict[str, Any]) -> bytes:
    return json.dumps({**base, **changes}).encode()


def damaged(base: dict[str, Any], place: int, junk: bytes) -> bytes:
    text = json.dumps(base).encode()
    return text[: place % len(text)] + junk + text[place % len(text) :]


BODIES = st.one_of(
    st.binary(max_size=200), st.builds(changed, BASES, st.dictionaries(FIELDS, JSON, min_size=1, max_size=3)),
    st.builds(damaged, BASES, st.integers(0, 99), st.binary(min_size=1, max_size=4)),
)  # fmt: skip
PLAIN = st.characters(codec="ascii", exclude_categories=["Cc"])
PATHS = st.sampled_from([COMPLETIONS, CHAT, COMPLETIONS, CHAT, "/v1/models"]) | st.text(PLAIN, max_size=30).map(
    lambda text: "/v1/" + "".join(f"%{ord(one):02x}" for one in text))  # fmt: skip
HEADERS = st.dictionaries(st.sampled_from(["X-Session-Id", "X-Request-Id", "Accept", "Content-Type", "Origin", "X-Request-Timeout-Seconds"]),
                          st.text(PLAIN, max_size=40).map(str.strip), max_size=2)  # fmt: skip
METHODS = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS"])


def bombard(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    before = len(ENDED)
    answer = send(method, path, headers, body)
    if answer.status_code == 200:
        assert answer.headers["Content-Type"].startswith(("application/json", "text/event-stream"))
    else:
        assert_refused(answer, 400, 404, 405, 413, 415)
    assert [request.status for request in ENDED[before:]] == [answer.status_code]


def test_no_request_breaks_it() -> None:
    """With those that follow the description or nearly do, in test_openapi.py, more than 10,000 requests."""

    @settings(max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck))
    @given(METHODS, PATHS, HEADERS, BODIES)
    def bombardment(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        bombard(method, path, headers, body)

    ENDED.clear()
    bombardment()
    assert len(ENDED) >= REQUESTS
    for path, asked in ((COMPLETIONS, GOOD), (CHAT, TALK)):
        answer = send("POST", path, {}, json.dumps(asked).encode())
        assert answer.status_code == 200, "it is healthy afterwards"
