"""Requests, refusals and answers in OpenAI's shape, and text in whole pieces."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.errors import DeploymentError, ModelError, SpecError
from genopt.serving import client
from genopt.serving.exchange import Admitted, Ask, ChatMessage, Event, Piece, Refusal
from genopt.serving.ingress import create_app
from genopt.serving.text import Detokenizer, ModelText, StopScanner
from genopt.serving.wire import ChatRequest, TextRequest, error_body, parse
from genopt.testing.tiny_tokenizer import EOS_ID, write_tiny_tokenizer


def _chat(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def _asked(body: bytes) -> ChatRequest:
    found = parse(ChatRequest, body)
    assert isinstance(found, ChatRequest)
    return found


def _refused(body: bytes, kind: type[ChatRequest] | type[TextRequest] = ChatRequest) -> Refusal:
    found = parse(kind, body)
    assert isinstance(found, Refusal)
    return found


def test_text_parts_are_joined_and_unknown_fields_ignored() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert _asked(_chat(messages=[{"role": "user", "content": parts}], user="someone")).messages[0].content == "ab"


def test_the_newer_token_limit_wins_and_seeds_are_consecutive() -> None:
    asked = _asked(_chat(max_tokens=5, max_completion_tokens=7, seed=3, stop="x", n=2, stream=True))
    assert asked.token_limit() == 7
    assert [asked.ask(index).seed for index in range(asked.choices)] == [3, 4]
    assert asked.ask(0) == Ask(
        messages=(ChatMessage(role="user", content="hi"),), max_tokens=7, temperature=1.0, top_p=1.0, stop=("x",), seed=3, incremental=True
    )


def test_null_means_the_default() -> None:
    asked = _asked(_chat(temperature=None, top_p=None, stop=None, n=None, stream=None, max_tokens=None, seed=None))
    assert asked.ask(0) == Ask(messages=(ChatMessage(role="user", content="hi"),))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 5}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"tools": [{"type": "function"}]}, None),
        ({"response_format": {"type": "json_object"}}, None),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], param: str | None) -> None:
    refusal = _refused(_chat(**fields))
    assert (refusal.status, refusal.param) == (400, param)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null", b'{"model": "m"}'])
def test_a_bad_body_is_refused(body: bytes) -> None:
    assert _refused(body).status == 400
    assert _refused(body, TextRequest).status == 400


@given(st.binary(max_size=40) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["model", "messages", "prompt", "stop", "n", "stream_options", "role", "content", "tools"]), inner)).map(
    lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_body_makes_validation_raise(body: bytes) -> None:
    assert isinstance(parse(ChatRequest, body), ChatRequest | Refusal)
    assert isinstance(parse(TextRequest, body), TextRequest | Refusal)


@pytest.mark.parametrize("prompt", ["hi", ["hi"], [1, 2]])
def test_prompts_come_as_text_or_ids(prompt: object) -> None:
    found = parse(TextRequest, json.dumps({"model": "m", "prompt": prompt}).encode())
    assert isinstance(found, TextRequest)
    assert (found.ask(0).prompt, found.ask(0).prompt_ids) == ((None, (1, 2)) if prompt == [1, 2] else ("hi", None))


@pytest.mark.parametrize("prompt", [[], ["a", "b"], [-1], 3, [[1]], None])
def test_other_prompts_are_refused(prompt: object) -> None:
    assert _refused(json.dumps({"model": "m", "prompt": prompt}).encode(), TextRequest).param is not None


def test_errors_have_openais_types() -> None:
    kinds = [error_body(Refusal(status=status, message="x"))["error"]["type"] for status in (400, 429, 503)]
    assert kinds == ["invalid_request_error", "rate_limit_error", "server_error"]


@given(st.text(alphabet="ab", max_size=30), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_stop_strings_are_found_however_the_text_is_cut(text: str, stops: list[str], size: int) -> None:
    scanner, seen = StopScanner(stops), ""
    for start in range(0, len(text), size):
        seen += scanner.push(text[start : start + size])
        if scanner.stopped:
            break
    else:
        seen += scanner.flush()
    assert not any(stop in seen for stop in stops)
    assert text.startswith(seen)
    assert scanner.stopped == any(stop in text for stop in stops)
    if not scanner.stopped:
        assert seen == text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_tokenizer(folder, context=64)
    return ModelText(folder)


@pytest.mark.parametrize("text", ["plain", "héllo wörld", "日本語のテキスト" * 20, "👩‍👩‍👧 family 🇨🇭 " * 8, "a\ufffdb"])
def test_bytes_become_whole_characters(tiny: ModelText, text: str) -> None:
    detokenizer = Detokenizer(tiny.tokenizer)
    pieces = [detokenizer.push(token) for token in text.encode()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_character_that_never_ends_is_not_sent(tiny: ModelText) -> None:
    detokenizer = Detokenizer(tiny.tokenizer)
    assert "".join(detokenizer.push(token) for token in "ab👩".encode()[:-1]) == "ab"


def test_a_model_folder_tells_template_stop_tokens_and_context(tiny: ModelText, tmp_path: Path) -> None:
    assert tiny.render_chat([ChatMessage(role="user", content="hi")]) == "<|user|>hi</s><|assistant|>"
    assert (tiny.stop_token_ids, tiny.context, tiny.vocabulary) == ((EOS_ID,), 64, 258)
    assert EOS_ID in tiny.chat_ids([ChatMessage(role="user", content="hi")])
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        ModelText(tmp_path)


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ raise_exception('no system role') }}", "no system role"), ("{{ ''.__class__.__mro__ }}", "refuses"), (None, "no chat template")],
)
def test_templates_refuse_and_are_sandboxed(tmp_path: Path, template: str | None, reason: str) -> None:
    write_tiny_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")) | {"chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SpecError, match=reason):
        ModelText(tmp_path).render_chat([ChatMessage(role="user", content="hi")])


class ScriptedEngine:
    """Our own port with fixed events."""

    def __init__(self, *events: Event) -> None:
        self._events = events

    async def generate(self, ask: Ask) -> AsyncIterator[Event]:
        for event in self._events:
            yield event

    async def ready(self) -> bool:
        return False


async def _post(engine: ScriptedEngine, *, stream: bool) -> httpx.Response:
    transport = httpx.ASGITransport(app=create_app(model="m", variant="v", engine=engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.post("/v1/chat/completions", content=_chat(stream=stream))


def _run(engine: ScriptedEngine, *, stream: bool) -> httpx.Response:
    return asyncio.run(_post(engine, stream=stream))


LOST = Refusal(status=503, message="The engine failed; try again.", code="engine_failed", retry_after_s=5)


@pytest.mark.parametrize("last", [(LOST,), ()])
def test_a_failure_on_the_way_ends_a_stream_with_an_error_and_without_done(last: tuple[Event, ...]) -> None:
    answer = _run(ScriptedEngine(Admitted(prompt_tokens=1), Piece(text="a", completion_tokens=1), *last), stream=True)
    assert answer.status_code == 200
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert json.loads(events[-1])["error"]["code"] == "engine_failed"
    assert "[DONE]" not in answer.text


def test_a_failure_on_the_way_of_a_whole_answer_is_its_status() -> None:
    answer = _run(ScriptedEngine(Admitted(prompt_tokens=1), Piece(text="a", completion_tokens=1), LOST), stream=False)
    assert (answer.status_code, answer.headers["Retry-After"], answer.headers["X-Genopt-Variant"]) == (503, "5", "v")


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_before_the_first_byte_keeps_its_status(stream: bool) -> None:
    assert _run(ScriptedEngine(Refusal(status=413, message="long")), stream=stream).status_code == 413


def test_a_curl_line_survives_the_shell() -> None:
    line = client.curl_line("http://127.0.0.1:8000", "m", "what's \"up\"?")
    words = shlex.split(line)
    assert words[2] == "http://127.0.0.1:8000/v1/chat/completions"
    assert json.loads(words[-1])["messages"][0]["content"] == "what's \"up\"?"


def test_asking_where_nothing_listens_names_the_remedy() -> None:
    with pytest.raises(DeploymentError, match="genopt deploy"):
        client.ask("http://127.0.0.1:9", "hi", model="m", on_text=print)
