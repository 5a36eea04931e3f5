"""What the ingress and an engine replica say to each other: plain values, so that a refusal is data and not a traceback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

from genopt.plan import Record


class ChatMessage(Record):
    """One message of a conversation."""

    role: str
    content: str


class Ask(Record):
    """One continuation that a caller wants; exactly one of `messages`, `prompt` and `prompt_ids` is given.

    Attributes:
        messages: Conversation for the chat template.
        prompt: Text to continue.
        prompt_ids: Token ids to continue.
        max_tokens: Upper bound of new tokens; None lets the replica choose.
        temperature: 0 is greedy.
        top_p: Nucleus mass, in (0, 1].
        stop: Strings that end the text; they are not part of it.
        seed: Makes sampling repeatable; None draws one.
        incremental: Text in pieces as soon as it is known, instead of one piece at the end.
    """

    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    incremental: bool = False


class Admitted(Record):
    """The first event of a request that will be continued.

    Attributes:
        prompt_tokens: Tokens of the prompt after the chat template.
    """

    prompt_tokens: int


class Piece(Record):
    """More text.

    Attributes:
        text: New text, always whole characters; may be empty.
        completion_tokens: Tokens so far.
        finish_reason: `stop` or `length` on the last piece.
    """

    text: str
    completion_tokens: int
    finish_reason: Literal["stop", "length"] | None = None


class Refusal(Record):
    """Why a request gets no (further) answer, in the terms of OpenAI's error object.

    Attributes:
        status: HTTP status.
        message: For the caller.
        param: The request's field that is at fault.
        code: Short stable name.
        retry_after_s: When to try again, in seconds.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None


Event = Admitted | Piece | Refusal


class EngineCalls(Protocol):
    """The ingress's view of the engine replicas."""

    def generate(self, ask: Ask) -> AsyncIterator[Event]:
        """Yields `Admitted`, then pieces until one has a finish reason; a `Refusal` may come at any point and is the last event."""

    async def ready(self) -> bool:
        """Whether a replica answers."""
