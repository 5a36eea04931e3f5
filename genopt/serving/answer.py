"""Turns the events of a request's choices into one answer on the wire: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from genopt.plan import Record
from genopt.serving.answers import (
    SSE_COMMENT,
    SSE_END,
    ChatCompletion,
    ChatLogProbs,
    Delta,
    Head,
    TextCompletion,
    TextLogProbs,
    chat_logprobs,
    error_body,
    sse,
    text_logprobs,
    usage,
)
from genopt.serving.exchange import Admitted, Event, Picture, Piece, Refusal, ScoredToken
from genopt.serving.turns import Part, in_turns
from genopt.serving.wire import ChatRequest, CompletionSettings

BROKEN = Refusal(status=503, message="The engine ended the answer early; try again.", code="engine_failed", retry_after_s=5)


class Patience(Record):
    """How long the API waits, in seconds; nothing that a caller sends makes it longer.

    Attributes:
        body_s: For the whole body of a request.
        first_byte_s: For the admission of a streamed request, before its answer begins with comments.
        keep_alive_s: Between two comments of a stream that has nothing to say.
        answer_s: For a whole answer.
    """

    body_s: float = 10.0
    first_byte_s: float = 10.0
    keep_alive_s: float = 10.0
    answer_s: float = 600.0


class Choice:
    """What is known of one choice so far."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.reason = "stop"
        self.scored: list[ScoredToken] = []

    def take(self, piece: Piece) -> None:
        """Adds a piece."""
        self.text += piece.text
        self.tokens = piece.completion_tokens
        self.reason = piece.finish_reason or self.reason
        self.scored.extend(piece.log_probs)


class Answer:
    """The answer to one request: one stream of events per choice, put into the wire's shape.

    Args:
        asked: The request.
        choices: Begin the events of each choice.
        patience: How long to wait.
        at_once: Most choices under way; see `genopt.serving.turns`.

    Attributes:
        prompt_tokens: Tokens of the prompts that are admitted.
        variant: Who answers, once admitted.
        failure: What ended it early.
        first_at: When the first text was known, on the clock of `time.monotonic`.
        last_at: When the last text was known.
    """

    def __init__(self, asked: CompletionSettings, choices: Sequence[Part], patience: Patience, at_once: int) -> None:
        self._asked = asked
        self._streams = in_turns(choices, at_once)
        self._unheard = set(range(min(at_once, len(choices))))
        self._patience = patience
        self._chat = isinstance(asked, ChatRequest)
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._choices = [Choice() for _ in choices]
        self._ends = time.monotonic() + patience.answer_s
        self._admission: asyncio.Future[Refusal | None] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[tuple[int, Piece | Refusal]] = asyncio.Queue()
        self.prompt_tokens = 0
        self.variant = ""
        self.failure: Refusal | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None

    @property
    def completion_tokens(self) -> int:
        """New tokens of all choices so far."""
        return sum(choice.tokens for choice in self._choices)

    @property
    def longest(self) -> int:
        """New tokens of the choice that has most so far."""
        return max(choice.tokens for choice in self._choices)

    async def admit(self, wait_s: float) -> Refusal | None:
        """Waits until all choices that begin at once are admitted, so that a refusal has its own HTTP status; a refused request is closed.

        Args:
            wait_s: After that time the caller goes on as if it were admitted; `stream` waits for the rest.
        """
        admission = self._begin()
        await asyncio.wait({admission}, timeout=min(wait_s, self._left()))
        if not admission.done():
            return None
        self.failure = admission.result()
        return self.failure

    def _begin(self) -> asyncio.Future[Refusal | None]:
        """Starts reading what comes, once; the result is there when all choices that begin at once are admitted, or one is refused."""
        if self._admission is None:
            self._admission = asyncio.get_running_loop().create_future()
            self._pumps = [asyncio.create_task(self._pump(index, stream)) for index, stream in enumerate(self._streams)]
        return self._admission

    async def whole(self) -> ChatCompletion | TextCompletion | Refusal:
        """The complete answer."""
        async with aclosing(self._events()) as events:
            async for _, event in events:
                if isinstance(event, Refusal):
                    self.failure = event
                    return event
        counts = usage(self.prompt_tokens, self.completion_tokens)
        if self._chat:
            return {
                **self._head(), "object": "chat.completion", "usage": counts,
                "choices": [
                    {"index": index, "message": {"role": "assistant", "content": choice.text}, "logprobs": self._chat_scores(choice.scored),
                     "finish_reason": choice.reason}
                    for index, choice in enumerate(self._choices)
                ],
            }  # fmt: skip
        return {
            **self._head(), "object": "text_completion", "usage": counts,
            "choices": [
                {"index": index, "text": choice.text, "logprobs": self._text_scores(choice.scored, 0), "finish_reason": choice.reason}
                for index, choice in enumerate(self._choices)
            ],
        }  # fmt: skip

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events; a failure on the way is an event, since the status is already out."""
        async with aclosing(self._events()) as events:
            async for index, event in events:
                if event is None:
                    yield SSE_COMMENT
                elif isinstance(event, Refusal):
                    self.failure = event
                    yield sse(error_body(event))
                    return
                elif isinstance(event, Admitted) and self._chat:
                    for place in range(len(self._streams)):
                        yield self._chunk(place, {"role": "assistant", "content": ""}, (), None)
                elif isinstance(event, Piece):
                    if event.text or event.log_probs:
                        yield self._chunk(index, {"content": event.text}, event.log_probs, None)
                    if event.finish_reason is not None:
                        yield self._chunk(index, {}, (), event.finish_reason)
        if self._asked.usage_wanted:
            yield sse(self._with_usage([], usage(self.prompt_tokens, self.completion_tokens)))
        yield SSE_END

    def _chunk(self, index: int, delta: Delta, scored: Sequence[ScoredToken], reason: str | None) -> str:
        choice: dict[str, Any] = {"index": index}
        if self._chat:
            choice |= {"delta": delta, "logprobs": self._chat_scores(scored)}
        else:
            text = delta.get("content", "")
            offset = len(self._choices[index].text) - len(text)
            choice |= {"text": text, "logprobs": self._text_scores(scored, offset)}
        return sse(self._with_usage([{**choice, "finish_reason": reason}], None))

    def _with_usage(self, choices: list[dict[str, Any]], counts: object) -> dict[str, Any]:
        """A chunk; where the usage was asked for, every chunk names it, and only the last one knows it."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head(), "object": kind, "choices": choices, **({"usage": counts} if self._asked.usage_wanted else {})}

    def _head(self) -> Head:
        return {"id": self._id, "created": self._created, "model": self._asked.model, "system_fingerprint": self.variant}

    def _chat_scores(self, scored: Sequence[ScoredToken]) -> ChatLogProbs | None:
        return chat_logprobs(scored) if scored else None

    def _text_scores(self, scored: Sequence[ScoredToken], offset: int) -> TextLogProbs | None:
        return text_logprobs(scored, offset) if scored else None

    def _left(self) -> float:
        return max(self._ends - time.monotonic(), 0.0)

    async def _events(self) -> AsyncGenerator[tuple[int, Event | None], None]:
        """Admission, then the events of all choices as they come; None where there was nothing to say for a while.

        The last event of a failed answer is a refusal.
        """
        admission = self._begin()
        while not admission.done() and self._left() > 0:
            await asyncio.wait({admission}, timeout=min(self._patience.keep_alive_s, self._left()))
            if not admission.done():
                yield 0, None
        refusal = admission.result() if admission.done() else self._too_long()
        if refusal is not None:
            yield 0, refusal
            return
        yield 0, Admitted(prompt_tokens=self.prompt_tokens, variant=self.variant)
        running = len(self._pumps)
        while running:
            try:
                index, event = await asyncio.wait_for(self._arrived.get(), timeout=min(self._patience.keep_alive_s, self._left()))
            except TimeoutError:
                if self._left() <= 0:
                    yield 0, self._too_long()
                    return
                yield 0, None
                continue
            if isinstance(event, Piece):
                self._take(index, event)
                running -= event.finish_reason is not None
            yield index, event
            if isinstance(event, Refusal):
                return

    async def _pump(self, index: int, stream: AsyncGenerator[Event, None]) -> None:
        """Passes the events of one choice on; one that ends without a last event ends in a refusal."""
        ended = False
        try:
            async for event in stream:
                self._receive(index, event)
                ended = isinstance(event, Refusal) or (isinstance(event, Piece) and event.finish_reason is not None)
                if isinstance(event, Refusal):
                    return  # without reading on, which would let the next one begin
        except Exception as error:
            if self._admission is not None and not self._admission.done():
                self._admission.set_exception(error)
            raise
        finally:
            if not ended:
                self._receive(index, BROKEN)

    def _receive(self, index: int, event: Event) -> None:
        self._unheard.discard(index)
        if self._admission is not None and not self._admission.done() and (isinstance(event, Refusal) or not self._unheard):
            self._admission.set_result(event if isinstance(event, Refusal) else None)
        if isinstance(event, Admitted):
            self.prompt_tokens += 0 if index % self._asked.repeats else event.prompt_tokens
            self.variant = self.variant or event.variant
        elif not isinstance(event, Picture):
            self._arrived.put_nowait((index, event))

    def _take(self, index: int, piece: Piece) -> None:
        self._choices[index].take(piece)
        if piece.completion_tokens:
            self.last_at = time.monotonic()
            self.first_at = self.first_at or self.last_at

    def _too_long(self) -> Refusal:
        return Refusal(status=504, message=f"The answer took more than {self._patience.answer_s:.0f} s; ask for fewer tokens.", code="timeout")

    async def close(self) -> None:
        """Cancels what still runs; called once the answer is out, or its caller gone."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()
