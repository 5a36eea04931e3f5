"""Requests, refusals and answers in OpenAI's shape, and text in whole pieces."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.errors import DeploymentError, ModelError, SpecError
from genopt.serving import client, image_api
from genopt.serving.answers import chat_logprobs, error_body, sse, text_logprobs
from genopt.serving.api import Api
from genopt.serving.exchange import Ask, ChatMessage, Refusal, ScoredToken
from genopt.serving.image_api import ImageApi
from genopt.serving.text import Detokenizer, ModelText, StopScanner
from genopt.serving.text_api import TextApi
from genopt.serving.wire import ChatRequest, TextRequest, parse
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
    (message,) = _asked(_chat(messages=[{"role": "developer", "content": parts}], user="someone")).asks()[0].messages or ()
    assert message == ChatMessage(role="system", content="ab")


def test_the_newer_token_limit_wins_and_seeds_are_consecutive() -> None:
    asked = _asked(_chat(max_tokens=5, max_completion_tokens=7, seed=3, stop="x", n=2, stream=True))
    assert asked.token_limit() == 7
    assert [ask.seed for ask in asked.asks()] == [3, 4]
    assert asked.asks()[0] == Ask(
        messages=(ChatMessage(role="user", content="hi"),), max_tokens=7, temperature=1.0, top_p=1.0, stop=("x",), seed=3, incremental=True
    )


def test_null_means_the_default() -> None:
    asked = _asked(_chat(temperature=None, top_p=None, stop=None, n=None, stream=None, max_tokens=None, seed=None))
    assert asked.asks()[0] == Ask(messages=(ChatMessage(role="user", content="hi"),))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, None),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"top_logprobs": 2}, None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["x"] * 1000}, "stop"),
        ({"stop": 5}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], param: str | None) -> None:
    refusal = _refused(_chat(**fields))
    assert (refusal.status, refusal.param) == (400, param)


def test_values_that_ask_for_nothing_pass() -> None:
    asked = _asked(_chat(tools=[], frequency_penalty=0, logit_bias={}, response_format={"type": "text"}, logprobs=False))
    assert asked.asks()[0].top_logprobs is None
    _asked(_chat(repetition_penalty=1.0, top_k=-1, min_p=0.0, presence_penalty=0.0))
    assert isinstance(parse(TextRequest, b'{"model": "m", "prompt": "hi", "best_of": 1, "repetition_penalty": 1, "top_k": 0}'), TextRequest)


@pytest.mark.parametrize(("field", "value"), [("best_of", 3), ("repetition_penalty", 1.1), ("repetition_penalty", True), ("top_k", 40), ("top_k", 1)])
def test_what_would_change_the_answer_and_is_not_supported_is_refused(field: str, value: float) -> None:
    refusal = _refused(json.dumps({"model": "m", "prompt": "hi", field: value}).encode(), TextRequest)
    assert (refusal.status, refusal.param) == (400, field)


def test_log_probabilities_are_asked_for_in_each_dialect() -> None:
    assert _asked(_chat(logprobs=True)).asks()[0].top_logprobs == 0
    assert _asked(_chat(logprobs=True, top_logprobs=3)).asks()[0].top_logprobs == 3
    found = parse(TextRequest, b'{"model": "m", "prompt": "a", "logprobs": 2}')
    assert isinstance(found, TextRequest)
    assert found.asks()[0].top_logprobs == 2


def test_log_probabilities_have_openais_shapes() -> None:
    tokens = [ScoredToken(text="é", log_prob=-0.5, top=(("é", -0.5), ("\ufffd", -1.0))), ScoredToken(text="b", log_prob=-2.0)]
    first, second = chat_logprobs(tokens)["content"]
    assert first == {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
        {"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "\ufffd", "logprob": -1.0, "bytes": None}]}  # fmt: skip
    assert second["top_logprobs"] == []
    assert text_logprobs(tokens, 4) == {
        "tokens": ["é", "b"], "token_logprobs": [-0.5, -2.0], "top_logprobs": [{"é": -0.5, "\ufffd": -1.0}, {}], "text_offset": [4, 5],
    }  # fmt: skip


DEEP = b'{"model": ' + b"[" * 100_000
HUGE = b'{"model": "m", "seed": ' + b"9" * 5000 + b"}"
HALF = b'{"model": "m", "prompt": "\\ud800", "messages": [{"role": "user", "content": "\\uD800"}]}'
WIDE = HALF.decode().encode("utf-16")
RAW_HALF = b'{"model": "m", "prompt": "\xed\xa0\x80", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}'


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null", b'{"model": "m"}', DEEP, HUGE, HALF, RAW_HALF, WIDE, b'{"model": NaN}'])
def test_a_bad_body_is_refused(body: bytes) -> None:
    assert _refused(body).status == 400
    assert _refused(body, TextRequest).status == 400


@given(st.binary(max_size=40) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["model", "messages", "prompt", "stop", "n", "stream_options", "role", "content", "tools"]), inner)).map(
    lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_body_makes_validation_raise(body: bytes) -> None:
    assert isinstance(parse(ChatRequest, body), ChatRequest | Refusal)
    assert isinstance(parse(TextRequest, body), TextRequest | Refusal)


@pytest.mark.parametrize(
    ("prompt", "texts", "ids"),
    [
        ("hi", ["hi"], [None]), (["hi"], ["hi"], [None]), (["a", "b"], ["a", "b"], [None, None]), ([1, 2], [None], [(1, 2)]),
        ([[1, 2], [3]], [None, None], [(1, 2), (3,)]),
    ],
)  # fmt: skip
def test_prompts_come_as_text_or_ids_and_several_at_once(prompt: object, texts: list[object], ids: list[object]) -> None:
    found = parse(TextRequest, json.dumps({"model": "m", "prompt": prompt, "n": 2}).encode())
    assert isinstance(found, TextRequest)
    assert [ask.prompt for ask in found.asks()[::2]] == texts
    assert [ask.prompt_ids for ask in found.asks()[1::2]] == ids


@pytest.mark.parametrize("prompt", [[], ["a"] * 9, [-1], 3, [[]], ["a", 1], None])
def test_other_prompts_are_refused(prompt: object) -> None:
    assert str(_refused(json.dumps({"model": "m", "prompt": prompt}).encode(), TextRequest).param).startswith("prompt")


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


def test_a_curl_line_survives_the_shell() -> None:
    line = client.curl_line("http://127.0.0.1:8000", "m", 'what\'s "up"?')
    words = shlex.split(line)
    assert words[2] == "http://127.0.0.1:8000/v1/chat/completions"
    assert json.loads(words[-1])["messages"][0]["content"] == 'what\'s "up"?'


@pytest.mark.parametrize(("api", "read"), [(TextApi, lambda body: body["messages"][0]["content"]), (ImageApi, lambda body: body["prompt"])])
def test_a_curl_line_asks_for_what_the_run_asked_for(api: Api, read: Callable[[Any], str]) -> None:
    def prompt(example: str) -> str:
        words = shlex.split(api.curl_line("http://127.0.0.1:8000", "m", example))
        return read(json.loads(words[words.index("-d") + 1]))

    assert prompt("golden retriever") == "golden retriever"
    assert prompt(""), "where nothing is known of the model, something that any can be asked"


class Deployment(BaseHTTPRequestHandler):
    """Is ready, and answers every question with a stream or a file that says `yes`."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"yes" if self.path == image_api.PATH else sse({"choices": [{"delta": {"content": "yes"}}]}).encode())

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_deployment_on_this_machine_is_asked_past_a_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Deployment) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert client.is_ready(url)
        assert client.ask(url, "hi", model="m", on_text=lambda text: None) == "yes"
        ImageApi.ask_once(url, "m", "hi", lambda text: None)
        server.shutdown()
    assert (tmp_path / image_api.FILE).read_bytes() == b"yes"


def test_an_event_stays_one_line_whatever_its_text_holds() -> None:
    text = "a\u2028b\u2029c\x85d\ne\x0bf\x1cgü"
    line, end = httpx.Response(200, content=sse({"text": text}).encode()).iter_lines()
    assert (json.loads(line.removeprefix("data: ")), end) == ({"text": text}, "")
    assert "ü" in line


def test_asking_where_nothing_listens_names_the_remedy() -> None:
    with pytest.raises(DeploymentError, match="genopt deploy"):
        client.ask("http://127.0.0.1:9", "hi", model="m", on_text=print)


def write_llama_tokenizer(folder: Path) -> None:
    """One that spells what it has no token for in bytes, and takes the space before a text away, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models

    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "▁Hello", "Hello", "▁"]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("text", ["བོད་ཡིག་" * 4, "😀😃😄😁😆😅🤣😂" * 2, "你好世界" * 6])
def test_text_that_is_spelled_in_bytes_stays_whole_however_long_it_is(tmp_path: Path, text: str) -> None:
    write_llama_tokenizer(tmp_path)
    detokenizer = Detokenizer(ModelText(tmp_path).tokenizer)
    ids = [257, *(1 + byte for byte in text.encode()), 258, 259, 260]
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) == f"a{text}b HelloHello"
    assert max(map(len, pieces)) <= len(" Hello"), "each character is sent once it is whole"


def test_a_token_by_itself_keeps_the_space_before_it(tmp_path: Path) -> None:
    write_llama_tokenizer(tmp_path)
    text = ModelText(tmp_path)
    assert [text.token_text(token) for token in (259, 260, 257)] == [" Hello", "Hello", "a"]


def test_truncation_and_padding_that_a_file_tells_of_are_left_to_training(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_tiny_tokenizer(tmp_path)
    file = str(tmp_path / "tokenizer.json")
    stored = Tokenizer.from_file(file)
    stored.enable_truncation(4)
    stored.enable_padding(length=40)
    stored.save(file)
    assert ModelText(tmp_path).prompt_ids("hello world") == tuple(b"hello world")


def _with_template(folder: Path, template: str) -> ModelText:
    write_tiny_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return ModelText(folder)


def test_templates_that_mark_what_an_assistant_says_are_rendered(tmp_path: Path) -> None:
    template = "{% for one in messages %}{% generation %}{{ one | tojson(ensure_ascii=True, sort_keys=True) }}{% endgeneration %}{% endfor %}"
    assert _with_template(tmp_path, template).render_chat([ChatMessage(role="user", content="hï")]) == '{"content": "h\\u00ef", "role": "user"}'


def test_a_template_that_cannot_be_read_refuses_conversations_only(tmp_path: Path) -> None:
    text = _with_template(tmp_path, "{% unheard_of %}")
    assert (text.chats, text.prompt_ids("hi")) == (False, tuple(b"hi"))
    with pytest.raises(SpecError, match=r"cannot be read .*unheard_of.*; use /v1/completions"):
        text.render_chat([ChatMessage(role="user", content="hi")])


def test_a_template_that_errs_refuses_the_conversation(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="refuses these messages"):
        _with_template(tmp_path, "{{ messages[0].content + 1 }}").render_chat([ChatMessage(role="user", content="hi")])
