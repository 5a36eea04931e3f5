"""What every request passes before and after the API: size, time, headers, keys, and the record of how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genopt.plan import Record
from genopt.serving.answer import Patience
from genopt.serving.answers import error_body
from genopt.serving.exchange import Caller, Refusal

CLIENT_LEFT = 499
"""Status in records of requests whose caller went away; nobody receives it."""
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Probes need no key: they come from machines and say nothing about what is served."""
ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/models", "/openapi.json", *OPEN_PATHS})
_TRUSTED_ONLY = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""Headers with which Ray Serve's proxy would let a caller hold a place for as long as it likes."""
_ONCE = (b"authorization", b"content-type", b"content-length", b"x-session-id")
_SESSION = b"x-session-id"
_LONGEST_NAME = 128
_FAILED = Refusal(status=500, message="The server failed on this request; its log has the cause.", code="internal_error")
_LOGGER = logging.getLogger("ray.serve")
"""Serve writes what goes there into the replica's log file, with the request's id."""


class Lease(Protocol):
    """A caller that was let in."""

    key: str | None

    def end(self) -> None:
        """Called once when the request is over."""


class Gate(Protocol):
    """Decides who may ask."""

    def admit(self, secret: str | None) -> Lease | Refusal:
        """Lets a caller in.

        Args:
            secret: The key that came with the request.
        """


class Answered(Protocol):
    """What routes leave behind as `request.state.answer`.

    Attributes:
        prompt_tokens: Tokens of the prompt, where they are counted.
        variant: Who answers, once that is known.
        failure: What ended it early.
        first_at: When the first text or image was known, on the clock of `time.monotonic`.
        last_at: When the last one was.
    """

    prompt_tokens: int
    variant: str
    failure: Refusal | None
    first_at: float | None
    last_at: float | None

    @property
    def completion_tokens(self) -> int:
        """New tokens, where they are counted."""

    @property
    def longest(self) -> int:
        """Those of the choice that has most."""

    async def close(self) -> None:
        """Cancels what still runs."""


class Finished(Record):
    """How a request ended.

    Attributes:
        request: Its id.
        endpoint: Path, or `other`.
        key: Id of the caller's key.
        variant: Who answered.
        status: HTTP status, 499 where the caller went away.
        code: Short name of what went wrong; None where the caller went away, since what ends by that has not failed.
        stream: Whether it was streamed.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: New tokens.
        ttft_s: Time to the first token, of what is streamed: a whole answer tells nothing of it.
        tpot_s: Time per further token, likewise.
        e2el_s: Time to the end.
        trace: The caller's place in a trace, as its header `traceparent` says (W3C Trace Context).
    """

    request: str
    endpoint: str
    key: str | None
    variant: str
    status: int
    code: str | None
    stream: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float = 0.0
    trace: str | None = None


class Guard:
    """ASGI middleware around the API.

    Args:
        app: The API.
        gate: Who may ask.
        patience: How long a body may take.
        max_body_bytes: Larger bodies are refused.
        variant: Names the variant for answers that no engine gave.
        finished: Told how each request ended.
    """

    def __init__(
        self, app: ASGIApp, *, gate: Gate, patience: Patience, max_body_bytes: int, variant: Callable[[], str], finished: Callable[[Finished], None]
    ) -> None:
        self._app = app
        self._gate = gate
        self._patience = patience
        self._max_body_bytes = max_body_bytes
        self._variant = variant
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._variant())
        lease: Lease | None = None
        try:
            admitted = self._admit(scope)
            if isinstance(admitted, Refusal):
                await exchange.refuse(admitted)
                return
            lease = admitted
            body = await self._body(scope, receive)
            if body is None:
                exchange.status = CLIENT_LEFT
                return
            if isinstance(body, Refusal):
                await exchange.refuse(body, close=True)
                return
            scope["state"] = {"caller": exchange.caller(lease.key if lease is not None else None)}
            await self._app(scope, _replayed(body, receive), exchange.send)
        except asyncio.CancelledError:
            exchange.status = CLIENT_LEFT
            raise
        except Exception:  # the caller gets an answer, and the log the cause
            _LOGGER.exception("request %s failed", exchange.request_id)
            await exchange.refuse(_FAILED)
        finally:
            await exchange.close()
            if lease is not None:
                lease.end()
            self._finished(exchange.finished(lease.key if lease is not None else None))

    def _admit(self, scope: Scope) -> Lease | Refusal | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        names = [name for name, _ in headers]
        for name in _TRUSTED_ONLY:
            if name in names:
                return Refusal(status=400, message=f"The header {name.decode()} is not for callers; leave it out.", code="bad_header")
        for name in _ONCE:
            if names.count(name) > 1:
                return Refusal(status=400, message=f"The header {name.decode()} came more than once; send it once.", code="bad_header")
        session = dict(headers).get(_SESSION, b"")
        if len(session) > _LONGEST_NAME or not session.isascii():
            return Refusal(status=400, message=f"X-Session-Id is longer than {_LONGEST_NAME} bytes or not ASCII; shorten it.", code="bad_header")
        if scope["path"] in OPEN_PATHS:
            return None
        return self._gate.admit(_secret(dict(headers).get(b"authorization", b"")))

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Refusal | None:
        """The whole body, if it is neither too large nor too slow; None where the caller went away."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 18 or int(announced) > self._max_body_bytes:
            return self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._patience.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max_body_bytes:
                        return self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return Refusal(status=408, message=f"The body took more than {self._patience.body_s:.0f} s to arrive; send it at once.", code="slow_body")

    def _too_large(self) -> Refusal:
        return Refusal(status=413, message=f"The body has more than {self._max_body_bytes} bytes; send less.", code="body_too_large")


class _Exchange:
    """One request on its way: what was sent, and by whom."""

    def __init__(self, scope: Scope, send: Send, variant: str) -> None:
        self._scope = scope
        self._send = send
        self._variant = variant
        self._headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self._began = time.monotonic()
        self.status = 0
        self._code: str | None = None

    def caller(self, key: str | None) -> Caller:
        return Caller(key=key, session=self._headers.get(_SESSION, b"").decode() or None, request=self.request_id, drawn=secrets.token_hex(8))

    @property
    def request_id(self) -> str:
        return self._headers.get(b"x-request-id", b"").decode("ascii", "replace")[:_LONGEST_NAME]

    @property
    def _trace(self) -> str | None:
        return self._headers.get(b"traceparent", b"").decode("ascii", "replace")[:_LONGEST_NAME] or None

    @property
    def _answer(self) -> Answered | None:
        state: MutableMapping[str, Any] = self._scope.get("state", {})
        return state.get("answer")

    async def close(self) -> None:
        if self._answer is not None:
            await self._answer.close()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.setdefault("headers", [])
            known = any(name.lower() == b"x-genopt-variant" for name, _ in headers)
            if not known and (self._answer is None or self.status >= 400):  # else who answers is not known yet
                headers.append((b"x-genopt-variant", self._variant.encode("ascii", "replace")))
            headers.append((b"x-content-type-options", b"nosniff"))
        await self._send(message)

    async def refuse(self, refusal: Refusal, *, close: bool = False) -> None:
        """Answers with an error, unless an answer is already on its way; that one ends without its last event."""
        self._code = refusal.code
        if self.status:
            return
        content = json.dumps(error_body(refusal)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if close:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})

    def finished(self, key: str | None) -> Finished:
        now = time.monotonic()
        path = self._scope["path"]
        state: MutableMapping[str, Any] = self._scope.get("state", {})
        answer, streamed = self._answer, bool(state.get("stream"))
        times: dict[str, Any] = {}
        if answer is not None:
            times = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
            if streamed and answer.first_at is not None and answer.last_at is not None:
                span, further = answer.last_at - answer.first_at, answer.longest - 1
                times |= {"ttft_s": answer.first_at - self._began, "tpot_s": span / further if span > 0 and further > 0 else None}
        failure = answer.failure if answer is not None else None
        code = failure.code if failure is not None else self._code
        return Finished(
            request=self.request_id, endpoint=path if path in ENDPOINTS else "other", key=key,
            variant=(answer.variant if answer is not None else "") or self._variant, status=self.status,
            code=None if self.status == CLIENT_LEFT else code, stream=streamed, e2el_s=now - self._began,
            trace=self._trace, **times,
        )  # fmt: skip


def _secret(authorization: bytes) -> str | None:
    scheme, _, secret = authorization.decode("latin-1").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then what follows it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
