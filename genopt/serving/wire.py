"""OpenAI's requests in our own models; validation says which field is at fault."""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from starlette.requests import Request as HttpRequest

from genopt.engines.base import MAX_TOP_LOGPROBS
from genopt.serving.exchange import Ask, ChatMessage, Refusal

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_PROMPTS = 8
_NEUTRAL: list[Any] = [None, False, 0, "", [], {}]
_ONE, _ALL = 1, -1
"""What else asks for nothing: of factors and counts, and of how many tokens are considered."""


def _only_neutral(value: object) -> object:
    if value:
        raise ValueError("is not supported; leave it out")
    return value


def _only_one(value: object) -> object:
    return value if value == _ONE and value is not True else _only_neutral(value)


def _only_all(value: object) -> object:
    return value if value == _ALL else _only_neutral(value)


def _only_text(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if value is not None and value.get("type", "text") != "text":
        raise ValueError("only type 'text' is supported; leave it out")
    return value


def _whole(value: object) -> object:
    """JSON has one kind of number: 6.0 is 6."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
FIRST_FAULT = Field(fail_fast=True)
"""Of long lists only the first fault is looked for: all of them would take a gigabyte and seconds, in which nobody else is served."""
Unsupported = Annotated[Any, AfterValidator(_only_neutral), WithJsonSchema({"enum": _NEUTRAL})]
"""A field whose silent omission would change what the caller believes to have got; values that ask for nothing pass."""
UnsupportedFactor = Annotated[Any, AfterValidator(_only_one), WithJsonSchema({"enum": [*_NEUTRAL, _ONE]})]
UnsupportedLimit = Annotated[Any, AfterValidator(_only_all), WithJsonSchema({"enum": [*_NEUTRAL, _ALL]})]
PlainFormat = Annotated[
    dict[str, Any] | None, AfterValidator(_only_text),
    WithJsonSchema({"anyOf": [{"type": "object", "properties": {"type": {"const": "text"}}}, {"type": "null"}]}),
]  # fmt: skip


class Wire(BaseModel):
    """Base of everything that clients send: strict about types, and they may send more than we know."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class TextPart(Wire):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Wire):
    """A message of a chat request; its content is a string or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], FIRST_FAULT]

    def plain(self) -> ChatMessage:
        """The message as chat templates know it: one text, and `developer` under its older name."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool | None = None


def _only_with(field: str, kind: str, other: str) -> dict[str, Any]:
    """JSON schema: a field of a type needs another one to be true."""
    return {
        "if": {"properties": {field: {"type": kind}}, "required": [field]},
        "then": {"properties": {other: {"const": True}}, "required": [other]},
    }


_STREAM_RULE = _only_with("stream_options", "object", "stream")
_LOGPROBS_RULE = _only_with("top_logprobs", "integer", "logprobs")
StopString = Annotated[str, Field(min_length=1)]


class CompletionSettings(Wire):
    """What chat and text completions have in common."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_STREAM_RULE]})

    model: str
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, WHOLE] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = None
    logit_bias: Unsupported = None
    frequency_penalty: Unsupported = None
    presence_penalty: Unsupported = None
    repetition_penalty: UnsupportedFactor = None
    top_k: UnsupportedLimit = None
    min_p: Unsupported = None

    @model_validator(mode="after")
    def _stream_options_belong_to_streams(self) -> CompletionSettings:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' only goes with 'stream'; leave it out or set 'stream' to true")
        return self

    @property
    def repeats(self) -> int:
        """How many answers to one prompt are asked for."""
        return self.n or 1

    @property
    def usage_wanted(self) -> bool:
        """Whether a streamed answer ends in a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def token_limit(self) -> int | None:
        """Upper bound of new tokens, if the caller gave one."""
        return self.max_tokens

    @abstractmethod
    def scored(self) -> int | None:
        """How many most probable tokens to report per position; None reports no log-probabilities."""

    @abstractmethod
    def prompts(self) -> list[dict[str, object]]:
        """What to continue, as fields of `Ask`."""

    def asks(self) -> list[Ask]:
        """The continuation for each choice, `repeats` per prompt; the choices of a seeded request get consecutive seeds."""
        return [self._ask(index).model_copy(update=prompt) for prompt in self.prompts() for index in range(self.repeats)]

    def _ask(self, index: int) -> Ask:
        return Ask(
            max_tokens=self.token_limit(),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=None if self.seed is None else self.seed + index,
            top_logprobs=self.scored(),
            incremental=bool(self.stream),
        )


class ChatRequest(CompletionSettings):
    """Body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_STREAM_RULE, _LOGPROBS_RULE]})

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = None
    response_format: PlainFormat = None
    tools: Unsupported = None
    functions: Unsupported = None
    audio: Unsupported = None

    @model_validator(mode="after")
    def _top_logprobs_belong_to_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' only goes with 'logprobs'; leave it out or set 'logprobs' to true")
        return self

    def token_limit(self) -> int | None:
        """`max_completion_tokens` replaces the older `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    def scored(self) -> int | None:
        """See `CompletionSettings.scored`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def prompts(self) -> list[dict[str, object]]:
        """See `CompletionSettings.prompts`."""
        return [{"messages": tuple(message.plain() for message in self.messages)}]


TokenIds = Annotated[list[Annotated[int, Field(ge=0), WHOLE]], Field(min_length=1, fail_fast=True)]
SEVERAL = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)


class TextRequest(CompletionSettings):
    """Body of `POST /v1/completions`: the prompt is a text or token ids, or a list of such."""

    prompt: str | TokenIds | Annotated[list[str], SEVERAL] | Annotated[list[TokenIds], SEVERAL]
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    best_of: UnsupportedFactor = None
    echo: Unsupported = None
    suffix: Unsupported = None

    def scored(self) -> int | None:
        """See `CompletionSettings.scored`."""
        return self.logprobs

    def prompts(self) -> list[dict[str, object]]:
        """See `CompletionSettings.prompts`."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        listed: list[Any] = [self.prompt] if one else list(self.prompt)
        return [{"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)} for prompt in listed]


Request = TypeVar("Request", bound=Wire)
_NOT_JSON = Refusal(status=415, message="The body has to be JSON; send the header 'Content-Type: application/json'.", code="unsupported_media_type")


async def parse_request(kind: type[Request], request: HttpRequest) -> Request | Refusal:
    """The validated body of a request; one that is not JSON is refused.

    Browsers send other types across sites without asking first, so that a page could use a server on its reader's machine.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return _NOT_JSON
    return parse(kind, await request.body())


def parse(kind: type[Request], body: bytes) -> Request | Refusal:
    """Validates a request body; a bad one becomes a refusal that names the field."""
    try:
        # By itself `json` decodes bytes so that halves of surrogate pairs pass, and takes other encodings, which JSON does not have.
        content = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
        if rb"\ud" in body.lower():
            json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair is no text that could be answered or tokenized
    except UnicodeEncodeError:
        return Refusal(status=400, message="A string holds half of a surrogate pair; send Unicode text.", code="invalid_value")
    except (ValueError, RecursionError):
        return Refusal(status=400, message="The body is not JSON in UTF-8; send a JSON object.", code="invalid_json")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        same = [entry for entry in found if entry["loc"][:1] == found[0]["loc"][:1]]
        # Of a field's alternatives the one that came furthest, and rather what is wrong with a value than that it is of another type.
        first = max(same, key=lambda entry: (len(entry["loc"]), not entry["type"].endswith("_type")))
        where = ".".join(str(part) for part in first["loc"] if part in kind.model_fields or isinstance(part, int) or part in _NESTED) or None
        reason = first["msg"].removeprefix("Value error, ")
        return Refusal(status=400, message=f"{where or 'request'}: {reason}.", param=where, code="invalid_value")


_NESTED = frozenset({"role", "content", "type", "text", "include_usage"})
"""Names inside of fields; what else stands in a location are the names of alternatives, which mean nothing to callers."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
