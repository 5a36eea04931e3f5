"""What the ingress and an engine replica say to each other: plain values, so that a refusal is data and not a traceback."""

from __future__ import annotations

from collections.abc import AsyncGenerator
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
        top_logprobs: Report each token's log-probability and those of this many most probable ones; None reports nothing.
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
    top_logprobs: int | None = None
    incremental: bool = False


class ImageAsk(Record):
    """One image that a caller wants.

    Attributes:
        prompt: What it shows.
        seed: Makes it repeatable; None draws one.
        width: Pixels; None takes the pipeline's own.
        height: Likewise.
    """

    prompt: str
    seed: int | None = None
    width: int | None = None
    height: int | None = None


AnyAsk = Ask | ImageAsk


class Caller(Record):
    """Who asks, as far as that matters for where a request goes.

    Attributes:
        key: Id of the API key, where keys are in use.
        session: What the caller sent as `X-Session-Id`.
        request: Id of the request, for logs.
        drawn: A name by chance, the same for all that the request asks for.
    """

    key: str | None = None
    session: str | None = None
    request: str = ""
    drawn: str = ""


class Admitted(Record):
    """The first event of a request that will be continued.

    Attributes:
        prompt_tokens: Tokens of the prompt after the chat template.
        variant: Name of the plan that answers.
    """

    prompt_tokens: int
    variant: str = ""


class ScoredToken(Record):
    """A token of the answer with its natural log-probability and the most probable ones at its place, best first."""

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


class Piece(Record):
    """More text.

    Attributes:
        text: New text, always whole characters; may be empty.
        completion_tokens: Tokens so far.
        log_probs: The tokens since the piece before, where the request asked for log-probabilities.
        finish_reason: `stop` or `length` on the last piece.
    """

    text: str
    completion_tokens: int
    log_probs: tuple[ScoredToken, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None


class Picture(Record):
    """A whole image, the last event of a request for one.

    Attributes:
        png: The file in base64.
        steps: Denoising steps that it took.
    """

    png: str
    steps: int


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


ENGINE_LOST = Refusal(status=503, message="The engine replica was lost; try again.", code="engine_lost", retry_after_s=5)
"""The replica is gone, or about to be; the request did not get to an engine or was one of many that ran on it."""
ENGINE_FAILED = Refusal(status=503, message="The engine failed; try again.", code="engine_failed", retry_after_s=5)
"""The engine failed while it worked on the request. The cause is in the logs of the replica and the engine: it may name paths that are no
caller's business."""
Event = Admitted | Piece | Picture | Refusal


class Served(Record):
    """What is served now: the name that clients ask for, and the variant that answers unless a canary does."""

    model: str
    variant: str


class Backend(Protocol):
    """The ingress's view of what continues prompts or makes images."""

    def generate(self, ask: AnyAsk, caller: Caller) -> AsyncGenerator[Event, None]:
        """Yields `Admitted`, then pieces until one has a finish reason, or a picture; a `Refusal` may come at any point and is the last event.

        Closing the generator cancels the request.
        """

    async def ready(self) -> bool:
        """Whether requests would be answered now."""

    def served(self) -> Served:
        """What is served now."""
