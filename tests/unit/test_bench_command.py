"""`genopt bench` against servers on real sockets: what it writes, and what it makes of servers that misbehave."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from genopt.cli import main
from genopt.measure.load_result import LoadResult

DONE = b"data: [DONE]\n\n"
JSON, SSE = "application/json", "text/event-stream"


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(piece: str = "word ", finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": finish}]})


def usage(completion: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": completion}})


def end(finish: str, tokens: int) -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}) + usage(tokens) + DONE


class Handler(BaseHTTPRequestHandler):
    """Answers as the first part of its path says; `/good` is an OpenAI-compatible endpoint.

    What misbehaves does so at every other request, so that there are successes whose numbers must not suffer.
    """

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []
    callers: ClassVar[set[tuple[str, int]]] = set()
    released: ClassVar[threading.Event] = threading.Event()
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_GET(self) -> None:
        self.callers.add(self.client_address)
        self._send(200, json.dumps({"data": [{"id": "tiny"}]}).encode(), JSON)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            self.asked.append(body)
            self.number = len(self.asked)
        self.keys.append(self.headers.get("authorization"))
        self.callers.add(self.client_address)
        kind = self.path.split("/")[1]
        if body.get("stream") and kind != "one-piece":
            BEHAVIOURS[kind if kind in ALWAYS or self.number % 2 else "good"](self)
        else:
            answer = {"choices": [{"message": {"content": "word word"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
            self._send(200, json.dumps(answer).encode(), JSON)

    def good(self) -> None:
        self._stream(text(), text(), text(), end("length", 3))

    def stops_midway(self) -> None:
        self._head(SSE)
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text()), text()))
        self.wfile.flush()
        self.close_connection = True

    def closes_at_once(self) -> None:
        self.close_connection = True

    def without_usage(self) -> None:
        self._stream(text(), text(), text(finish="length"), DONE)

    def no_tokens(self) -> None:
        self._stream(end("length", 0))

    def ends_at_once(self) -> None:
        self._stream(end("stop", 1))

    def not_openai(self) -> None:
        self._send(200, b'{"answer": "hello"}', JSON)

    def not_events(self) -> None:
        self._stream(text(), b"data: {broken\n\n", DONE)

    def fails(self) -> None:
        self._send(500, b"Internal Server Error", "text/plain")

    def refuses(self) -> None:
        self._send(429, b'{"error": {"message": "over the limit"}}', JSON, retry_after="0.2")

    def one_token(self) -> None:
        self._stream(text(), end("length", 1))

    def never_begins(self) -> None:
        """Holds its answer back until the test ends."""
        self.released.wait(30)
        self.close_connection = True

    def never_ends(self) -> None:
        self._head(SSE)
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text()), text()))
        self.wfile.flush()
        self.released.wait(30)
        self.close_connection = True

    def interrupts(self) -> None:
        """Stands for Ctrl-C, once, while the second level runs: 3 requests count tokens, the first has a warm-up of 1 and 6, the second one of 2."""
        if self.number == 3 + 1 + 6 + 2 + 1:
            os.kill(os.getpid(), signal.SIGINT)
        self.good()

    def _head(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _stream(self, *parts: bytes) -> None:
        self._head(SSE)
        for part in parts:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, status: int, body: bytes, kind: str, *, retry_after: str | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if retry_after is not None:
            self.send_header("retry-after", retry_after)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """Callers that went away are what it is for."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing."""


BEHAVIOURS: dict[str, Callable[[Handler], None]] = {
    name.replace("_", "-"): method for name, method in vars(Handler).items() if callable(method) and not name.startswith(("_", "do", "log"))
}
ALWAYS = {"interrupts", "without-usage", "one-token", "refuses-all", "ends-at-once-all"}
BEHAVIOURS |= {"refuses-all": Handler.refuses, "ends-at-once-all": Handler.ends_at_once}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's address, without the part that chooses its behaviour."""
    for name, value in (("asked", []), ("keys", []), ("callers", set()), ("released", threading.Event())):
        monkeypatch.setattr(Handler, name, value)
    with Server(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        Handler.released.set()
        found.shutdown()
        thread.join()


def bench(capsys: pytest.CaptureFixture[str], url: str, *words: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """The JSON document and what was shown of a small load test."""
    assert main(["bench", url, "--concurrency", "2", "--requests", "6", "--max-tokens", "3", "--json", *words]) == code
    found = capsys.readouterr()
    return json.loads(found.out), found.err


# Servers that misbehave


BAD = {
    "stops-midway": ("ended_midway", "RemoteProtocolError"), "closes-at-once": ("connection", "RemoteProtocolError"),
    "no-tokens": ("no_tokens", "the answer has no text"), "ends-at-once": ("no_tokens", "the model ended it at once"),
    "not-openai": ("bad_stream", '{"answer": "hello"}'), "not-events": ("bad_stream", "{broken"),
    "fails": ("http_5xx", "500: Internal Server Error"), "refuses": ("http_429", "429: over the limit"),
    "never-begins": ("timeout", "no text within 0.4 s"), "never-ends": ("timeout", "no complete answer within 0.4 s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_a_bad_server_does_is_counted_named_and_kept_out_of_the_numbers(kind: str, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, said = BAD[kind]
    document, shown = bench(capsys, f"{server}/{kind}", "--timeout", "400ms", "--slo", "ttft=1s,e2el=2s")
    (level,) = document["levels"]
    assert (level["sent"], level["succeeded"], level["errors"]) == (6, 3, {name: 3})
    assert said in level["examples"][name]
    assert level["goodput"]["share"] == 0.5
    assert f"3 of 6 requests failed: 3 {name}" in shown
    _samples_are_what_the_summary_claims(level)


def _samples_are_what_the_summary_claims(level: dict[str, Any]) -> None:
    good = [sample for sample in level["samples"] if sample["error"] is None]
    assert level["succeeded"] == len(good)
    for metric, key in (("ttft_ms", "ttft_ms"), ("tpot_ms", "tpot_ms"), ("e2el_ms", "e2el_ms"), ("output_tokens", "tokens")):
        values = [sample[key] for sample in good if sample[key] is not None]
        assert level["metrics"].get(metric, {"n": 0})["n"] == len(values)
    assert level["metrics"].get("itl_ms", {"n": 0})["n"] == sum(len(sample["itl_ms"]) for sample in good)
    assert level["metrics"]["requests_s"]["n"] == level["metrics"]["output_tok_s"]["n"] == len(good)
    assert {sample["ttft_ms"] for sample in level["samples"] if sample["error"] is not None} <= {None}


def test_a_stream_without_usage_is_counted_in_chunks(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    document, shown = bench(capsys, f"{server}/without-usage")
    (level,) = document["levels"]
    assert (level["succeeded"], level["without_usage"]) == (6, 6)
    assert {sample["tokens"] for sample in level["samples"]} == {3}
    assert "6 answers came without usage" in shown
    _samples_are_what_the_summary_claims(level)


def test_answers_of_one_token_have_no_time_per_token(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    document, shown = bench(capsys, f"{server}/one-token", "--slo", "tpot=1ms")
    (level,) = document["levels"]
    assert {"tpot_ms", "itl_ms", "itl_max_ms"}.isdisjoint(level["metrics"])
    assert level["goodput"]["share"] == 1.0
    assert "TPOT:" not in shown
    _samples_are_what_the_summary_claims(level)


@pytest.mark.parametrize(("kind", "said"), [
    ("refuses-all", "6 http_429; the first said: 429: over the limit"), ("ends-at-once-all", "6 no_tokens; the first said: the answer has no text"),
])  # fmt: skip
def test_without_a_success_there_is_no_result(kind: str, said: str, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    document, shown = bench(capsys, f"{server}/{kind}", "--out", str(out), code=1)
    assert said in shown.splitlines()[-1]
    assert "None of 6 requests" in document["error"]["message"]
    assert not out.exists()


def test_a_server_that_cannot_stream_is_measured_without(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    document, shown = bench(capsys, f"{server}/one-piece", code=1)
    assert "--no-stream" in document["error"]["message"]
    document, shown = bench(capsys, f"{server}/one-piece", "--no-stream")
    (level,) = document["levels"]
    assert (level["succeeded"], level["metrics"]["e2el_ms"]["n"], level["metrics"]["output_tokens"]["value"]) == (6, 6, 2.0)
    assert "TTFT" not in shown


def test_a_clock_that_goes_backwards_costs_the_requests_and_divides_by_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backwards = iter(range(10**6, 0, -1))
    monkeypatch.setattr("genopt.measure.load_test.time.perf_counter", lambda: float(next(backwards)))
    document, _ = bench(capsys, f"{server}/good", code=1)
    assert "6 clock" in document["error"]["message"]


def test_a_name_that_is_not_known_and_a_port_where_nobody_listens_are_said_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for url in (f"http://127.0.0.1:{taken.getsockname()[1]}", "http://no-such-host.invalid:8000"):
            assert main(["bench", url]) == 1
            (sentence,) = capsys.readouterr().err.strip().splitlines()
            assert f"Nothing answers at {url}" in sentence


def test_ctrl_c_keeps_the_levels_that_had_ended(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    assert main(["bench", f"{server}/interrupts", "--concurrency", "1,2,3", "--requests", "6", "--out", str(out)]) == 130
    document = json.loads(out.read_text())
    assert [level["concurrency"] for level in document["levels"]] == [1]
    assert document["interrupted"] is True
    gc.collect()  # what a task that was not waited for has to say comes when it is collected
    (*_, last) = capsys.readouterr().err.splitlines()
    assert last.startswith("genopt: Interrupted after 1 of 3 levels")


def test_ctrl_c_before_the_first_level_ended_writes_nothing(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    assert main(["bench", f"{server}/interrupts", "--concurrency", "4", "--requests", "12", "--out", str(out)]) == 130
    gc.collect()
    assert "Interrupted before the first level had ended" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


# The command


def test_the_command_writes_json_a_file_and_a_plot(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "load.json", tmp_path / "load.svg"
    words = ["bench", f"{server}/good/v1", "--concurrency", "1,2", "--requests", "4", "--slo", "ttft=9s", "--json"]
    assert main([*words, "--out", str(out), "--plot", str(plot)]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document == json.loads(out.read_text())
    assert [(level["concurrency"], level["succeeded"], level["goodput"]["share"]) for level in document["levels"]] == [(1, 4, 1.0), (2, 4, 1.0)]
    assert document["model"] == "tiny"
    assert LoadResult.model_validate(document).levels[1].metrics["ttft_ms"].n == 4
    assert "TTFT: send to the first chunk with text" in shown.err
    assert "<svg" in plot.read_text()


def test_rates_are_levels_of_their_own(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"{server}/good", "--rate", "40,80", "--requests", "4", "--json"]) == 0
    shown = capsys.readouterr()
    assert [(level["rate"], level["concurrency"], level["succeeded"]) for level in json.loads(shown.out)["levels"]] == [(40, None, 4), (80, None, 4)]
    assert "40 per s" in shown.err


def test_prompts_of_ones_own_are_sent_in_turn_and_noted_where_they_repeat(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "one"}\n{"messages": [{"role": "system", "content": "two"}, {"role": "user", "content": "three"}]}\n')
    _, shown = bench(capsys, f"{server}/good", "--prompts", str(path))
    contents = [[turn["content"] for turn in body["messages"]] for body in Handler.asked]
    assert sorted(contents) == [["one"]] * 4 + [["two", "three"]] * 4
    assert "8 requests shared 2 prompts" in shown


def test_connections_are_as_many_as_requests_at_once_and_are_used_again(server: str) -> None:
    assert main(["bench", f"{server}/good", "--concurrency", "3", "--requests", "12"]) == 0
    assert len(Handler.keys) == 3 + 3 + 12
    assert len(Handler.callers) == 3


def test_an_existing_file_is_refused_before_anything_is_sent(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "load.svg").write_text("mine")
    for flag in ("--out", "--plot"):
        assert main(["bench", f"{server}/good", flag, str(tmp_path / "load.svg")]) == 2
        assert "exists already" in capsys.readouterr().err
        assert main(["bench", f"{server}/good", flag, str(tmp_path / "none" / "load.svg")]) == 2
        assert "There is no folder" in capsys.readouterr().err
    assert main(["bench", f"{server}/good", "--plot", str(tmp_path / "load.jpg")]) == 2
    assert "end its name in .svg or .png" in capsys.readouterr().err
    assert (tmp_path / "load.svg").read_text() == "mine"
    assert Handler.keys == []


def test_a_key_is_sent_only_when_asked_for_and_never_written(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    words = ["bench", f"{server}/good", "--concurrency", "1", "--requests", "1", "--json"]
    assert main(words) == 0
    assert set(Handler.keys) == {None}
    assert main([*words, "--api-key-env", "OPENAI_API_KEY"]) == 0
    assert Handler.keys[-1] == "Bearer sk-secret"
    shown = capsys.readouterr()
    assert "sk-secret" not in shown.out + shown.err
    assert main([*words, "--api-key-env", "NO_SUCH_KEY"]) == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code", "said"), [
    (["http://127.0.0.1:9"], 1, "start the server"),
    (["http://127.0.0.1:9", "--model", "m"], 1, "start the server"),
    (["nowhere"], 2, "not a web address"),
    (["http://127.0.0.1:9", "--slo", "ttft=quick"], 2, "--slo"),
    (["http://127.0.0.1:9", "--slo", "ttft=1s", "--no-stream"], 2, "limit e2el"),
    (["http://127.0.0.1:9", "--prompts", "none.txt"], 2, "none.txt"),
    (["http://127.0.0.1:9", "--rate", "2", "--concurrency", "4"], 2, "give one of the two"),
])  # fmt: skip
def test_what_cannot_work_ends_in_one_sentence(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == code
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert said in shown[0]


@pytest.mark.parametrize(("status", "body", "words"), [
    (401, b"{}", "--api-key-env"), (404, b"not here", "no OpenAI-compatible endpoint"), (200, b"<html>", "no OpenAI-compatible endpoint"),
    (200, b'{"data": []}', "no OpenAI-compatible endpoint"), (200, b'["a"]', "no OpenAI-compatible endpoint"),
])  # fmt: skip
def test_what_lists_no_model_is_no_endpoint(
    status: int, body: bytes, words: str, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler._send(status, body, JSON))
    assert main(["bench", f"{server}/good"]) == 1
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert words in sentence


def test_an_endpoint_that_lists_nothing_is_asked_for_a_model_that_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler._send(404, b"not here", JSON))
    assert main(["bench", f"{server}/good", "--concurrency", "1", "--requests", "1", "--model", "mine"]) == 0
    assert {asked["model"] for asked in Handler.asked} == {"mine"}


def test_the_help_names_the_flags_and_the_definition(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    for words in ("--concurrency", "--rate", "--slo", "--api-key-env", "--no-stream", "TPOT = (E2EL - TTFT)/(n - 1)"):
        assert words in shown
