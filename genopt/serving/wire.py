"""OpenAI's wire format in our own models: requests, answers, stream chunks and errors."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from genopt.serving.exchange import Ask, ChatMessage, Refusal

_UNSUPPORTED = ("tools", "functions", "logit_bias", "logprobs", "top_logprobs", "echo", "suffix", "audio")
"""Fields whose silent omission would change what the caller believes to have got."""


class Wire(BaseModel):
    """Base of everything on the wire: clients may send more than we know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _joined_parts(value: object) -> object:
    """Turns a list of text parts into one string; leaves anything else to the field's own validation."""
    if isinstance(value, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value):
            raise ValueError("only parts of type 'text' are supported; send text")
        return "".join(part["text"] for part in value)
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else [] if value is None else value


class Message(Wire):
    """A message of a chat request; its content is a string or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_joined_parts)]


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool = False


class CompletionSettings(Wire):
    """What chat and text completions have in common."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=4)] = []
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=1, ge=1, le=4)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, value: object) -> object:
        if isinstance(value, dict):
            asked = [name for name in _UNSUPPORTED if value.get(name)]
            if asked:
                raise ValueError(f"{asked[0]!r} is not supported; leave it out")
            answer_format = value.get("response_format")
            if isinstance(answer_format, dict) and answer_format.get("type", "text") != "text":
                raise ValueError("'response_format' is not supported; leave it out")
        return value

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def usage_wanted(self) -> bool:
        """Whether a streamed answer ends in a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def token_limit(self) -> int | None:
        """Upper bound of new tokens, if the caller gave one."""
        return self.max_tokens

    def ask(self, index: int) -> Ask:
        """The continuation for one choice; choices of a seeded request get consecutive seeds."""
        return Ask(
            max_tokens=self.token_limit(),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(self.stop),
            seed=None if self.seed is None else self.seed + index,
            incremental=bool(self.stream),
        )


class ChatRequest(CompletionSettings):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    def token_limit(self) -> int | None:
        """`max_completion_tokens` replaces the older `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    def ask(self, index: int) -> Ask:
        """See `CompletionSettings.ask`."""
        messages = tuple(ChatMessage(role=message.role, content=message.content) for message in self.messages)
        return super().ask(index).model_copy(update={"messages": messages})


class TextRequest(CompletionSettings):
    """Body of `POST /v1/completions`: the prompt is a string, a list of one string, or token ids."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    def ask(self, index: int) -> Ask:
        """See `CompletionSettings.ask`."""
        if isinstance(self.prompt, str):
            prompt: dict[str, object] = {"prompt": self.prompt}
        elif isinstance(self.prompt[0], str):
            prompt = {"prompt": self.prompt[0]}
        else:
            prompt = {"prompt_ids": tuple(self.prompt)}
        return super().ask(index).model_copy(update=prompt)


Request = TypeVar("Request", bound=CompletionSettings)


def parse(kind: type[Request], body: bytes) -> Request | Refusal:
    """Validates a request body; a bad one becomes a refusal that names the field."""
    try:
        return kind.model_validate(json.loads(body))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return Refusal(status=400, message="The body is not JSON; send a JSON object.", code="invalid_json")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        reason = first["msg"].removeprefix("Value error, ")
        return Refusal(status=400, message=f"{where or 'request'}: {reason}.", param=where, code="invalid_value")


class Usage(Wire):
    """Token counts of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        """Counts with their sum."""
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class AnswerMessage(Wire):
    """A whole answer of the assistant."""

    role: Literal["assistant"] = "assistant"
    content: str


class Delta(Wire):
    """A part of an answer of the assistant."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(Wire):
    """One answer to a chat request."""

    index: int
    message: AnswerMessage
    finish_reason: str


class ChatDelta(Wire):
    """One part of a streamed answer to a chat request."""

    index: int
    delta: Delta
    finish_reason: str | None = None


class TextChoice(Wire):
    """One (part of an) answer to a text request."""

    index: int
    text: str
    finish_reason: str | None = None


Choice = ChatChoice | ChatDelta | TextChoice


class Completion(Wire):
    """An answer, or a chunk of a streamed one."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk", "text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None

    def payload(self) -> dict[str, Any]:
        """The JSON value, without the fields that do not apply; `finish_reason` is always there."""
        content = self.model_dump(mode="json", exclude_none=True)
        for choice in content["choices"]:
            choice.setdefault("finish_reason", None)
        return content


def error_body(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "rate_limit_error" if refusal.status == 429 else "invalid_request_error" if refusal.status < 500 else "server_error"
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def sse(payload: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


SSE_END = "data: [DONE]\n\n"
