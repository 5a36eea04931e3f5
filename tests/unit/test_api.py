"""The HTTP API over a scripted backend: statuses, headers, streams, and what callers must not be able to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genopt.serving import turns
from genopt.serving.answer import Patience
from genopt.serving.exchange import Ask, Caller, Event, Piece, Refusal, ScoredToken
from genopt.serving.guard import CLIENT_LEFT, Finished, Gate
from genopt.serving.ingress import Limits, create_app
from genopt.serving.keys import OpenGate
from genopt.testing.scripted_backend import ADMITTED, ANSWER, FULL, ScriptedBackend

CHAT = "/v1/chat/completions"
LOST = Refusal(status=503, message="The engine failed; try again.", code="engine_failed", retry_after_s=5)
HURRIED = Patience(body_s=0.2, first_byte_s=0.05, keep_alive_s=0.05, answer_s=5)


def api(backend: ScriptedBackend, ended: list[Finished] | None = None, *, gate: Gate | None = None, limits: Limits | None = None) -> ASGIApp:
    found = [] if ended is None else ended
    return create_app(backend=backend, gate=gate or OpenGate(), limits=limits or Limits(), finished=found.append)


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def send(app: ASGIApp, method: str, path: str, **request: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
            return await http.request(method, path, **request)

    return asyncio.run(ask())


def post(app: ASGIApp, content: bytes, *, path: str = CHAT, **headers: str) -> httpx.Response:
    return send(app, "POST", path, content=content, headers={"Content-Type": "application/json", **headers})


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["X-Genopt-Variant"]


@pytest.mark.parametrize("last", [(LOST,), ()])
def test_a_failure_on_the_way_ends_a_stream_with_an_error_and_without_done(last: tuple[Event, ...]) -> None:
    answer = post(api(ScriptedBackend(ADMITTED, Piece(text="a", completion_tokens=1), *last)), body(stream=True))
    assert answer.status_code == 200
    assert events(answer)[-1]["error"]["code"] == "engine_failed"
    assert "[DONE]" not in answer.text


def test_a_failure_on_the_way_of_a_whole_answer_is_its_status() -> None:
    answer = post(api(ScriptedBackend(ADMITTED, Piece(text="a", completion_tokens=1), LOST)), body())
    assert_refused(answer, 503, "engine_failed")
    assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_before_the_first_byte_keeps_its_status(stream: bool) -> None:
    assert_refused(post(api(ScriptedBackend(Refusal(status=413, message="long", code="long"))), body(stream=stream)), 413, "long")


def test_every_chunk_names_the_usage_where_it_was_asked_for_and_the_last_one_knows_it() -> None:
    chunks = events(post(api(ScriptedBackend(*ANSWER)), body(stream=True, stream_options={"include_usage": True})))
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 5)
    assert all("usage" not in chunk for chunk in events(post(api(ScriptedBackend(*ANSWER)), body(stream=True))))


def test_the_variant_that_answered_is_named_and_probes_name_the_stable_one() -> None:
    for stream in (False, True):
        assert post(api(ScriptedBackend(*ANSWER)), body(stream=stream)).headers["X-Genopt-Variant"] == "fast"
    assert send(api(ScriptedBackend()), "GET", "/healthz").headers["X-Genopt-Variant"] == "stable"


def test_readiness_is_the_backends_and_health_is_the_servers_own() -> None:
    app = api(ScriptedBackend(ready=False))
    assert send(app, "GET", "/healthz").status_code == 200
    assert_refused(send(app, "GET", "/readyz"), 503, "not_ready")


def test_log_probabilities_travel_with_their_pieces() -> None:
    tokens = (ScoredToken(text="a", log_prob=-0.1), ScoredToken(text="b", log_prob=-0.2))
    backend = ScriptedBackend(ADMITTED, *(Piece(text=token.text, completion_tokens=1, log_probs=(token,)) for token in tokens),
                              Piece(text="", completion_tokens=2, finish_reason="stop"))  # fmt: skip
    whole = post(api(backend), body(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    streamed = events(post(api(backend), body(logprobs=True, stream=True)))
    assert [entry["token"] for entry in whole] == ["a", "b"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed if chunk["choices"][0]["logprobs"]]
    assert [part["content"][0]["logprob"] for part in parts] == [-0.1, -0.2]
    prompt = json.dumps({"model": "m", "prompt": "x", "logprobs": 0, "stream": True}).encode()
    chunks = [chunk["choices"][0] for chunk in events(post(api(backend), prompt, path="/v1/completions"))]
    assert [chunk["logprobs"]["text_offset"] for chunk in chunks if chunk["logprobs"]] == [[0], [1]]


SIXTEEN = {"model": "m", "prompt": [f"p{number}" for number in range(8)], "n": 2}
PACED = (ADMITTED, 0, ANSWER[1], 0, ANSWER[2])


def test_a_request_with_more_choices_than_there_are_places_is_answered_by_a_server_that_does_nothing_else() -> None:
    backend = ScriptedBackend(*PACED, places=2)
    app = api(backend, limits=Limits(at_once=2))
    whole = post(app, json.dumps(SIXTEEN).encode(), path="/v1/completions")
    assert whole.status_code == 200, whole.text
    assert [(choice["index"], choice["text"]) for choice in whole.json()["choices"]] == [(index, "ab") for index in range(16)]
    assert whole.json()["usage"] == {"prompt_tokens": 24, "completion_tokens": 32, "total_tokens": 56}
    assert [ask.prompt for ask, _ in backend.asked] == [f"p{number}" for number in range(8) for _ in range(2)]

    streamed = post(app, json.dumps({**SIXTEEN, "stream": True, "stream_options": {"include_usage": True}}).encode(), path="/v1/completions")
    *chunks, last = events(streamed)
    texts = dict.fromkeys(range(16), "")
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert set(texts.values()) == {"ab"}
    assert sum(chunk["choices"][0]["finish_reason"] == "stop" for chunk in chunks) == 16
    assert last["usage"]["total_tokens"] == 56
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_finds_no_place_later_tries_again_as_the_others_would_be_lost(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AGAIN_S", 0)

    class Crowded(ScriptedBackend):
        """Others take all places once the first choice has begun, and leave after a few more have asked."""

        async def generate(self, ask: Ask, caller: Caller) -> AsyncGenerator[Event, None]:
            self.taken = 9 if 1 <= len(self.asked) < 4 else 0
            async for event in super().generate(ask, caller):
                yield event

    backend = Crowded(*PACED, places=9)
    answer = post(api(backend, limits=Limits(at_once=1)), body(n=3, stream=stream))
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text
    assert len(backend.asked) == 6
    assert backend.closed == 6


def test_a_full_server_turns_a_request_with_many_choices_away_at_once() -> None:
    backend = ScriptedBackend(*PACED, places=2)
    backend.taken = 2
    assert_refused(post(api(backend, limits=Limits(at_once=2)), body(n=8)), 429, FULL.code or "")
    assert len(backend.asked) <= 2


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"), ("GET", CHAT, 405, "method_not_allowed"), ("OPTIONS", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"), ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/v1/models/../../etc/passwd", 404, "not_found"), ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404, "model_not_found"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused_in_openais_shape(method: str, path: str, status: int, code: str) -> None:
    answer = send(api(ScriptedBackend()), method, path)
    assert_refused(answer, status, code)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_failure_of_ours_is_an_error_without_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ScriptedBackend):
        def generate(self, ask: Ask, caller: Caller) -> AsyncGenerator[Event, None]:
            raise ValueError("the secret of /etc")

    ended: list[Finished] = []
    answer = post(api(Broken(), ended), body())
    assert_refused(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    assert (ended[0].status, ended[0].code) == (500, "internal_error")


def test_only_json_is_taken() -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = send(api(ScriptedBackend(*ANSWER)), "POST", CHAT, content=body(), headers={"Content-Type": kind})
        assert_refused(answer, 415, "unsupported_media_type")
    assert post(api(ScriptedBackend(*ANSWER)), body(), **{"Content-Type": "Application/JSON; charset=utf-8"}).status_code == 200


def test_headers_that_serve_would_obey_are_refused() -> None:
    for name in ("X-Request-Timeout-Seconds", "x-request-disconnect-disabled"):
        assert_refused(post(api(ScriptedBackend(*ANSWER)), body(), **{name: "0"}), 400, "bad_header")


def test_headers_that_contradict_themselves_are_refused() -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api(ScriptedBackend(*ANSWER))), base_url="http://test") as http:
            headers = [("content-type", "application/json"), ("x-session-id", "a"), ("x-session-id", "b")]
            return await http.post(CHAT, content=body(), headers=headers)

    assert_refused(asyncio.run(ask()), 400, "bad_header")
    assert_refused(post(api(ScriptedBackend(*ANSWER)), body(), **{"X-Session-Id": "x" * 129}), 400, "bad_header")


def test_large_bodies_are_refused_whether_announced_or_not() -> None:
    app = api(ScriptedBackend(*ANSWER), limits=Limits(max_body_bytes=100))
    assert_refused(post(app, body(user="x" * 100)), 413, "body_too_large")
    parts: list[Message] = [{"type": "http.request", "body": b"x" * 60, "more_body": True}] * 2
    assert asyncio.run(raw(app, parts))[0]["status"] == 413


async def raw(app: ASGIApp, messages: Iterable[Message], *, then: Callable[[], Any] | None = None) -> list[Message]:
    """What the app sends for a body that comes in these messages; afterwards nothing comes, or `then` is awaited and the client leaves."""
    pending, sent = list(messages), []

    async def receive() -> Message:
        if pending:
            return pending.pop(0)
        await (asyncio.Event().wait() if then is None else then())
        return {"type": "http.disconnect"}

    async def send_(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "http_version": "1.1",
             "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"one")], "server": ("test", 80), "scheme": "http"}  # fmt: skip
    await app(scope, receive, send_)
    return sent


def test_a_body_that_trickles_is_given_up() -> None:
    ended: list[Finished] = []
    app = api(ScriptedBackend(*ANSWER), ended, limits=Limits(patience=HURRIED))
    sent = asyncio.run(asyncio.wait_for(raw(app, [{"type": "http.request", "body": b"{", "more_body": True}]), timeout=2))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert (ended[0].status, ended[0].code, ended[0].request) == (408, "slow_body", "one")


def test_a_caller_that_leaves_while_sending_is_no_error() -> None:
    ended: list[Finished] = []

    async def at_once() -> None:
        return None

    sent = asyncio.run(raw(api(ScriptedBackend(), ended), [{"type": "http.request", "body": b"{", "more_body": True}], then=at_once))
    assert sent == []
    assert ended[0].status == CLIENT_LEFT


def whole_body(**fields: object) -> list[Message]:
    return [{"type": "http.request", "body": body(**fields), "more_body": False}]


def test_a_stream_that_waits_sends_comments_before_and_between_its_pieces() -> None:
    app = api(ScriptedBackend(0.2, ADMITTED, 0.2, *ANSWER[1:]), limits=Limits(patience=HURRIED))
    sent = asyncio.run(raw(app, whole_body(stream=True)))
    text = b"".join(message.get("body", b"") for message in sent).decode()
    assert sent[0]["status"] == 200
    before, _, after = text.partition("data: ")
    assert ": keep-alive\n\n" in before
    assert ": keep-alive\n\n" in after
    assert text.endswith("data: [DONE]\n\n")


def test_a_refusal_after_the_first_comment_is_an_event() -> None:
    app = api(ScriptedBackend(0.2, LOST), limits=Limits(patience=HURRIED))
    text = b"".join(message.get("body", b"") for message in asyncio.run(raw(app, whole_body(stream=True)))).decode()
    assert '"code": "engine_failed"' in text
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [(None,), (ADMITTED, None), (ADMITTED, Piece(text="a", completion_tokens=1), None)])
def test_an_answer_has_an_end_whatever_the_caller_sends(stream: bool, script: tuple[Any, ...]) -> None:
    backend, ended = ScriptedBackend(*script), []
    app = api(backend, ended, limits=Limits(patience=HURRIED.model_copy(update={"answer_s": 0.15})))
    sent = asyncio.run(asyncio.wait_for(raw(app, whole_body(stream=stream, n=2)), timeout=3))
    assert b'"code": "timeout"' in b"".join(message.get("body", b"") for message in sent).replace(b'"code":"timeout"', b'"code": "timeout"')
    assert ended[0].code == "timeout"
    assert backend.closed == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [(None,), (ADMITTED, None), (ADMITTED, Piece(text="a", completion_tokens=1), None)])
def test_a_cancelled_request_closes_its_generation(stream: bool, script: tuple[Any, ...]) -> None:
    backend, ended = ScriptedBackend(*script), []

    async def ask() -> None:
        task = asyncio.create_task(raw(api(backend, ended), whole_body(stream=stream)))
        while not backend.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(ask())
    assert backend.closed == 1
    assert ended[0].status == CLIENT_LEFT


def test_an_answer_that_ends_as_its_caller_leaves_is_no_failure_of_the_engine() -> None:
    ended: list[Finished] = []
    app = api(ScriptedBackend(ADMITTED, Piece(text="a", completion_tokens=1)), ended)  # Serve ends what a request that is gone has asked for

    async def ask() -> None:
        async def leave_with_the_error(scope: Scope, receive: Receive, send: Send) -> None:
            async def sent(message: Message) -> None:
                await send(message)
                if b"engine_failed" in message.get("body", b""):
                    task.cancel()
                    await asyncio.Event().wait()

            await app(scope, receive, sent)

        task = asyncio.create_task(raw(leave_with_the_error, whole_body(stream=True)))
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(ask())
    assert (ended[0].status, ended[0].code) == (CLIENT_LEFT, None)


def test_a_finished_request_is_recorded_without_its_text() -> None:
    ended: list[Finished] = []
    for stream in (True, False):
        script = ScriptedBackend(ADMITTED, 0.02, *ANSWER[1:-1], 0.002, ANSWER[-1])
        post(api(script, ended), body(stream=stream), **{"X-Request-Id": "abc", "X-Session-Id": "s"})
    found, whole = ended
    assert (whole.ttft_s, whole.tpot_s, whole.completion_tokens) == (None, None, 2), "an answer that comes at once tells nothing of its tokens' times"
    assert (found.request, found.endpoint, found.variant, found.status, found.code) == ("abc", CHAT, "fast", 200, None)
    assert (found.prompt_tokens, found.completion_tokens) == (3, 2)
    assert 0.02 <= (found.ttft_s or 0) <= found.e2el_s
    assert 0.002 <= (found.tpot_s or 0) <= found.e2el_s
    assert "hi" not in found.model_dump_json()


def test_callers_are_told_apart_by_session() -> None:
    backend = ScriptedBackend(*ANSWER)
    post(api(backend), body(), **{"X-Session-Id": "s", "X-Request-Id": "abc"})
    assert backend.asked[0][1].model_copy(update={"drawn": ""}) == Caller(key=None, session="s", request="abc")
