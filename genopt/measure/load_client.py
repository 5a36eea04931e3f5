"""One request of a load test: sends it, takes the time of what comes back, and names what went wrong."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import httpx

from genopt.errors import EndpointError
from genopt.measure.load_answer import EXCERPT, Answer, ErrorName, StreamedAnswer, WholeAnswer, message
from genopt.measure.prompts import Prompt
from genopt.plan import Record

Clock = Callable[[], float]


class Sample(Record):
    """One request: its times where it succeeded, the name of its error where it did not.

    Attributes:
        index: Number of the prompt.
        sent_s: When it was sent, in seconds after the level began.
        error: None for a success.
        detail: What the server or the transport said about the error.
        retry_after_s: How long a server that refused asked to wait.
        tokens: New tokens: the usage's count, else the number of chunks with text; None for a whole answer without usage.
        prompt_tokens: The usage's count.
        with_usage: Whether the server sent its usage.
        ttft_ms: Send to the first chunk with text; None for a whole answer.
        e2el_ms: Send to the last chunk with text.
        tpot_ms: `(e2el_ms - ttft_ms)/(tokens - 1)`; None for one token, or where all text came in one chunk.
        itl_ms: The gaps between chunks with text, in order; none where all text came in one chunk.
    """

    index: int
    sent_s: float
    error: ErrorName | None = None
    detail: str = ""
    retry_after_s: float | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    with_usage: bool = False
    ttft_ms: float | None = None
    e2el_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: tuple[float, ...] = ()


class LoadClient:
    """Asks one endpoint for chat completions.

    Args:
        http: Client to send with; whoever made it closes it.
        url: Base URL without `/v1`.
        timeout_s: Seconds after which a request is given up.
        clock: Monotonic clock in seconds.
        stream: Ask for the answers token by token.
    """

    def __init__(self, http: httpx.AsyncClient, url: str, *, timeout_s: float, clock: Clock, stream: bool = True) -> None:
        self._http = http
        self._url = url
        self._timeout_s = timeout_s
        self._clock = clock
        self._stream = stream

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

    async def ask(self, prompt: Prompt, *, model: str, max_tokens: int, index: int, since: float) -> Sample:
        """Sends one request and waits for the end of its answer; what goes wrong is told by the sample, never raised.

        Args:
            prompt: Content of the user's message, or a whole conversation.
            model: Name to ask for.
            max_tokens: Upper bound of new tokens.
            index: Number of the prompt.
            since: When the level began, on the client's clock.
        """
        request = self._http.build_request("POST", f"{self._url}/v1/chat/completions", json=self._body(prompt, model, max_tokens))
        answer: Answer = StreamedAnswer() if self._stream else WholeAnswer()
        answered, retry_after_s = False, None
        sent = self._clock()
        error: ErrorName | None
        try:
            async with asyncio.timeout(self._timeout_s), aclosing(await self._http.send(request, stream=True)) as response:
                answered = True
                if response.is_success:
                    async for data in response.aiter_bytes():
                        answer.feed(data, self._clock())
                    error, detail = answer.ended()
                else:
                    retry_after_s = _seconds(response.headers.get("retry-after"))
                    error, detail = _status_error(response.status_code), f"{response.status_code}: {message(await response.aread())}"
        except (TimeoutError, httpx.TimeoutException):
            error, detail = "timeout", f"{'no complete answer' if answer.times else 'no text'} within {self._timeout_s:g} s"
        except httpx.DecodingError as problem:
            error, detail = "bad_stream" if self._stream else "bad_answer", str(problem)
        except httpx.HTTPError as problem:
            error, detail = "ended_midway" if answered else "connection", f"{type(problem).__name__}: {problem}"
        if error is None and any(after < before for before, after in pairwise([sent, *answer.times])):
            error, detail = "clock", "the client's clock went backwards"
        if error is not None:
            return Sample(index=index, sent_s=sent - since, error=error, detail=" ".join(detail.split())[:EXCERPT], retry_after_s=retry_after_s)
        return self._success(answer, index, sent, since)

    def _body(self, prompt: Prompt, model: str, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        return {**body, "stream": True, "stream_options": {"include_usage": True}} if self._stream else body

    def _success(self, answer: Answer, index: int, sent: float, since: float) -> Sample:
        first, last = (1e3 * (at - sent) for at in (answer.times[0], answer.times[-1]))
        if not self._stream:
            return Sample(
                index=index, sent_s=sent - since, tokens=answer.tokens, prompt_tokens=answer.prompt_tokens,
                with_usage=answer.tokens is not None, e2el_ms=last,
            )  # fmt: skip
        tokens = len(answer.times) if answer.tokens is None else answer.tokens
        return Sample(
            index=index, sent_s=sent - since, tokens=tokens, prompt_tokens=answer.prompt_tokens, with_usage=answer.tokens is not None,
            ttft_ms=first, e2el_ms=last,
            # Where all text comes at once there is no time between tokens to speak of, only the server's buffering.
            tpot_ms=(last - first) / (tokens - 1) if len(answer.times) > 1 and tokens > 1 else None,
            itl_ms=tuple(round(1e3 * (after - before), 3) for before, after in pairwise(answer.times)),
        )  # fmt: skip


def _status_error(status: int) -> ErrorName:
    if status == 429:
        return "http_429"
    return "http_4xx" if 400 <= status < 500 else "http_5xx" if 500 <= status < 600 else "http_other"


def _seconds(header: str | None) -> float | None:
    """The seconds of a `Retry-After`; the other form, a date, is not used by model servers and is ignored."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def failures(samples: Sequence[Sample]) -> dict[ErrorName, int]:
    """How many requests failed, by the name of the error, the most frequent first."""
    names = [sample.error for sample in samples if sample.error is not None]
    return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}
