"""One request of a load test: sends it, takes the time of what comes back, and names what went wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import httpx

from genopt.errors import EndpointError
from genopt.plan import Record

ErrorName = Literal[
    "connection", "timeout", "http_429", "http_4xx", "http_5xx", "http_other", "ended_midway", "no_tokens", "bad_stream", "clock",
]  # fmt: skip
Clock = Callable[[], float]

EXCERPT = 200
_TEXT_KEYS = ("content", "reasoning_content", "reasoning")
"""Where servers put text; reasoning counts, since its tokens are in the usage."""
_OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")


class Sample(Record):
    """One request: its times where it succeeded, the name of its error where it did not.

    Attributes:
        index: Number of the prompt.
        sent_s: When it was sent, in seconds after the level began.
        error: None for a success.
        detail: What the server or the transport said about the error.
        tokens: New tokens: the usage's count, else the number of chunks with text.
        prompt_tokens: The usage's count.
        with_usage: Whether the server sent its usage.
        ttft_ms: Send to the first chunk with text.
        e2el_ms: Send to the last chunk with text.
        tpot_ms: `(e2el_ms - ttft_ms)/(tokens - 1)`; None for one token, or where all text came in one chunk.
        itl_ms: Median gap between chunks with text; None with one chunk.
        itl_max_ms: The longest such gap.
    """

    index: int
    sent_s: float
    error: ErrorName | None = None
    detail: str = ""
    tokens: int = 0
    prompt_tokens: int | None = None
    with_usage: bool = False
    ttft_ms: float | None = None
    e2el_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: float | None = None
    itl_max_ms: float | None = None


class LoadClient:
    """Asks one endpoint for streamed chat completions.

    Args:
        http: Client to send with; whoever made it closes it.
        url: Base URL without `/v1`.
        timeout_s: Seconds after which a request is given up.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, http: httpx.AsyncClient, url: str, *, timeout_s: float, clock: Clock) -> None:
        self._http = http
        self._url = url
        self._timeout_s = timeout_s
        self._clock = clock

    async def model(self, wanted: str | None) -> str:
        """The model to ask for: the given one, else the first that the endpoint lists.

        Raises:
            EndpointError: Nothing answers there, or, without a given model, what answers lists none.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._http.get(f"{self._url}/v1/models")
        except (httpx.HTTPError, TimeoutError) as error:
            raise EndpointError(f"Nothing answers at {self._url} ({type(error).__name__}); start the server or mend the URL.") from None
        if wanted is not None:
            return wanted
        if response.status_code in (401, 403):
            raise EndpointError(f"{self._url} wants a key (it answered {response.status_code}); name the variable that holds it with --api-key-env.")
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            said = f"GET /v1/models answered {response.status_code} without a model"
            raise EndpointError(f"{self._url} is no OpenAI-compatible endpoint ({said}); mend the URL, or name the model with --model.") from None

    async def ask(self, prompt: str, *, model: str, max_tokens: int, index: int, since: float) -> Sample:
        """Sends one request and waits for the end of its answer; what goes wrong is told by the sample, never raised.

        Args:
            prompt: Content of the user's message.
            model: Name to ask for.
            max_tokens: Upper bound of new tokens.
            index: Number of the prompt.
            since: When the level began, on the client's clock.
        """
        body = {
            "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        request = self._http.build_request("POST", f"{self._url}/v1/chat/completions", json=body)
        reader, answered = _Reader(), False
        sent = self._clock()
        error: ErrorName | None
        try:
            async with asyncio.timeout(self._timeout_s), aclosing(await self._http.send(request, stream=True)) as response:
                answered = True
                if response.is_success:
                    async for data in response.aiter_bytes():
                        reader.feed(data, self._clock())
                    error, detail = reader.ended()
                else:
                    error, detail = _status_error(response.status_code), _message(await response.aread())
        except (TimeoutError, httpx.TimeoutException):
            error, detail = "timeout", f"no complete answer within {self._timeout_s:g} s"
        except httpx.DecodingError as problem:
            error, detail = "bad_stream", str(problem)
        except httpx.HTTPError as problem:
            error, detail = "ended_midway" if answered else "connection", f"{type(problem).__name__}: {problem}"
        if error is None and any(after < before for before, after in pairwise([sent, *reader.times])):
            error, detail = "clock", "the client's clock went backwards"
        if error is not None:
            return Sample(index=index, sent_s=sent - since, error=error, detail=" ".join(detail.split())[:EXCERPT])
        return _success(reader, index, sent, since)


def _success(reader: _Reader, index: int, sent: float, since: float) -> Sample:
    times = reader.times
    tokens = len(times) if reader.tokens is None else reader.tokens
    gaps = [1e3 * (after - before) for before, after in pairwise(times)]
    spread_ms = 1e3 * (times[-1] - times[0])
    return Sample(
        index=index, sent_s=sent - since, tokens=tokens, prompt_tokens=reader.prompt_tokens, with_usage=reader.tokens is not None,
        ttft_ms=1e3 * (times[0] - sent), e2el_ms=1e3 * (times[-1] - sent),
        # Where all text comes at once there is no time between tokens to speak of, only the server's buffering.
        tpot_ms=spread_ms / (tokens - 1) if gaps and tokens > 1 else None,
        itl_ms=median(gaps) if gaps else None, itl_max_ms=max(gaps) if gaps else None,
    )  # fmt: skip


class _Reader:
    """Takes server-sent events apart; events that arrive together get the same time."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self._rest = b""
        self._complete = False
        self._error: tuple[ErrorName, str] | None = None

    def feed(self, data: bytes, at: float) -> None:
        """Reads what arrived."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line.strip(), at)

    def ended(self) -> tuple[ErrorName | None, str]:
        """What was wrong with the whole stream, if anything."""
        if self._rest:
            self._line(self._rest.strip(), self.times[-1] if self.times else 0.0)
        if self._error is not None:
            return self._error
        if not self._complete:
            return "ended_midway", "the stream ended without a finish reason and without [DONE]"
        return (None, "") if self.times else ("no_tokens", "the answer has no text")

    def _line(self, line: bytes, at: float) -> None:
        if not line.startswith(b"data:"):
            if line and not line.startswith(_OTHER_FIELDS):
                self._fail("bad_stream", f"not an event: {_excerpt(line)}")
            return
        payload = line.removeprefix(b"data:").strip()
        if payload == b"[DONE]":
            self._complete = True
            return
        try:
            self._chunk(json.loads(payload), at)
        except (ValueError, AttributeError, TypeError, RecursionError):
            self._fail("bad_stream", f"not a chunk of a chat completion: {_excerpt(payload)}")

    def _chunk(self, chunk: Any, at: float) -> None:
        if chunk.get("error"):
            self._fail("ended_midway", _message(json.dumps(chunk).encode()))
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(delta.get(key) for key in _TEXT_KEYS):
                self.times.append(at)
            self._complete = self._complete or bool(choice.get("finish_reason"))
        usage = chunk.get("usage") or {}
        counts = (usage.get("completion_tokens"), usage.get("prompt_tokens"))
        self.tokens, self.prompt_tokens = (
            count if isinstance(count, int) and count > 0 else before
            for count, before in zip(counts, (self.tokens, self.prompt_tokens), strict=True)
        )  # fmt: skip

    def _fail(self, name: ErrorName, detail: str) -> None:
        """The first problem is the telling one."""
        self._error = self._error or (name, detail)


def _status_error(status: int) -> ErrorName:
    if status == 429:
        return "http_429"
    return "http_4xx" if 400 <= status < 500 else "http_5xx" if 500 <= status < 600 else "http_other"


def _message(body: bytes) -> str:
    """The message of an error in OpenAI's shape, else the beginning of the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return _excerpt(body)


def _excerpt(data: bytes) -> str:
    return data[:EXCERPT].decode(errors="replace")


def failures(samples: Sequence[Sample]) -> dict[ErrorName, int]:
    """How many requests failed, by the name of the error, the most frequent first."""
    names = [sample.error for sample in samples if sample.error is not None]
    return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}
