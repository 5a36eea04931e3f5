"""What an endpoint sends back: streamed or whole answers, taken apart, with the times at which text came."""

from __future__ import annotations

import json
from typing import Any, Literal, Protocol

ErrorName = Literal[
    "connection", "timeout", "http_429", "http_4xx", "http_5xx", "http_other", "ended_midway", "no_tokens", "bad_stream", "bad_answer", "clock",
]  # fmt: skip

EXCERPT = 200
_TEXT_KEYS = ("content", "reasoning_content", "reasoning")
"""Where servers put text; reasoning counts, since its tokens are in the usage."""
_OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")


class Answer(Protocol):
    """Reads one answer.

    Attributes:
        times: When text came, on the client's clock; of a whole answer, when all of it was there.
        tokens: New tokens by the server's usage; None where it sent none.
        prompt_tokens: Likewise.
    """

    times: list[float]
    tokens: int | None
    prompt_tokens: int | None

    def feed(self, data: bytes, at: float) -> None:
        """Reads what arrived."""

    def ended(self) -> tuple[ErrorName | None, str]:
        """What was wrong with the answer, if anything."""


class _Counted:
    """The counts and the end of an answer."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self._finish_reason: str | None = None

    def _count(self, usage: Any) -> None:
        """Takes over what is a positive number of a usage; a later one counts more."""
        found = usage or {}
        counts = (found.get("completion_tokens"), found.get("prompt_tokens"))
        self.tokens, self.prompt_tokens = (
            count if isinstance(count, int) and count > 0 else before
            for count, before in zip(counts, (self.tokens, self.prompt_tokens), strict=True)
        )  # fmt: skip

    def _nothing(self) -> tuple[ErrorName, str]:
        """The error of an answer without text."""
        said = "the answer has no text"
        return "no_tokens", f"{said}: the model ended it at once" if self._finish_reason == "stop" else said


class StreamedAnswer(_Counted):
    """Takes server-sent events apart; events that arrive together get the same time."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""
        self._complete = False
        self._error: tuple[ErrorName, str] | None = None

    def feed(self, data: bytes, at: float) -> None:
        """See `Answer.feed`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line.strip(), at)

    def ended(self) -> tuple[ErrorName | None, str]:
        """See `Answer.ended`."""
        if self._rest:
            self._line(self._rest.strip(), self.times[-1] if self.times else 0.0)
        if self._error is not None:
            return self._error
        if not self._complete:
            return "ended_midway", "the stream ended without a finish reason and without [DONE]"
        return (None, "") if self.times else self._nothing()

    def _line(self, line: bytes, at: float) -> None:
        if not line.startswith(b"data:"):
            if line and not line.startswith(_OTHER_FIELDS):
                whole = line.startswith(b"{") and b'"choices"' in line
                self._fail("bad_stream", f"{'an answer in one piece; measure it with --no-stream' if whole else 'not an event'}: {excerpt(line)}")
            return
        payload = line.removeprefix(b"data:").strip()
        if payload == b"[DONE]":
            self._complete = True
            return
        try:
            self._chunk(json.loads(payload), at)
        except (ValueError, AttributeError, TypeError, RecursionError):
            self._fail("bad_stream", f"not a chunk of a chat completion: {excerpt(payload)}")

    def _chunk(self, chunk: Any, at: float) -> None:
        if chunk.get("error"):
            self._fail("ended_midway", message(json.dumps(chunk).encode()))
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(delta.get(key) for key in _TEXT_KEYS):
                self.times.append(at)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._complete = self._complete or self._finish_reason is not None
        self._count(chunk.get("usage"))

    def _fail(self, name: ErrorName, detail: str) -> None:
        """The first problem is the telling one."""
        self._error = self._error or (name, detail)


class WholeAnswer(_Counted):
    """Collects an answer that comes in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self._body = b""
        self._at = 0.0

    def feed(self, data: bytes, at: float) -> None:
        """See `Answer.feed`."""
        self._body += data
        self._at = at

    def ended(self) -> tuple[ErrorName | None, str]:
        """See `Answer.ended`."""
        try:
            content = json.loads(self._body)
            choice = content["choices"][0]
            spoken = any(choice["message"].get(key) for key in _TEXT_KEYS)
            self._finish_reason = choice.get("finish_reason")
            self._count(content.get("usage"))
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            return "bad_answer", f"not a chat completion: {excerpt(self._body) or 'nothing'}"
        if not spoken:
            return self._nothing()
        self.times.append(self._at)
        return None, ""


def message(body: bytes) -> str:
    """The message of an error in OpenAI's shape, else the beginning of the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return excerpt(body)


def excerpt(data: bytes) -> str:
    """The beginning of something, as text."""
    return data[:EXCERPT].decode(errors="replace")
