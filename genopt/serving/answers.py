"""OpenAI's answers as plain dictionaries: whole ones, stream chunks and errors.

They are `TypedDict`s and not models, because a stream builds one for every few tokens; the API's description
is made from the same types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from genopt.serving.exchange import Refusal, ScoredToken

ChatKind = Literal["chat.completion", "chat.completion.chunk"]


class Usage(TypedDict):
    """Token counts of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogProb(TypedDict):
    """A token that was possible, with its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogProb(TopLogProb):
    """A token of the answer."""

    top_logprobs: list[TopLogProb]


class ChatLogProbs(TypedDict):
    """Log-probabilities of a chat answer."""

    content: list[TokenLogProb]
    refusal: None


class TextLogProbs(TypedDict):
    """Log-probabilities of a text completion, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(TypedDict):
    """A whole answer of the assistant."""

    role: Literal["assistant"]
    content: str


class Delta(TypedDict):
    """A part of an answer of the assistant."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChoice(TypedDict):
    """One answer to a chat request."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogProbs | None
    finish_reason: str


class ChatDelta(TypedDict):
    """One part of a streamed answer to a chat request."""

    index: int
    delta: Delta
    logprobs: ChatLogProbs | None
    finish_reason: str | None


class TextChoice(TypedDict):
    """One (part of an) answer to a text request."""

    index: int
    text: str
    logprobs: TextLogProbs | None
    finish_reason: str | None


class Head(TypedDict):
    """What all chunks of an answer have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Head):
    """A whole answer to a chat request."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class TextCompletion(Head):
    """A whole answer to a text request."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class ErrorDetail(TypedDict):
    """What went wrong; `param` names the field at fault."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Error(TypedDict):
    """OpenAI's error object."""

    error: ErrorDetail


class Model(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["genopt"]


class ModelList(TypedDict):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


def usage(prompt: int, completion: int) -> Usage:
    """Counts with their sum."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def error_body(refusal: Refusal) -> Error:
    """The error object of a refusal."""
    kind: Literal["invalid_request_error", "rate_limit_error", "server_error"] = "server_error"
    if refusal.status < 500:
        kind = "rate_limit_error" if refusal.status == 429 else "invalid_request_error"
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def chat_logprobs(tokens: Sequence[ScoredToken]) -> ChatLogProbs:
    """Log-probabilities as chat answers give them."""
    content: list[TokenLogProb] = [
        {**_entry(token.text, token.log_prob), "top_logprobs": [_entry(text, value) for text, value in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[ScoredToken], offset: int = 0) -> TextLogProbs:
    """Log-probabilities as text completions give them.

    Args:
        tokens: The tokens of this part.
        offset: Characters of the answer before this part.
    """
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens], "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens], "text_offset": offsets,
    }  # fmt: skip


def _entry(text: str, value: float) -> TopLogProb:
    """A token whose text is not whole characters has bytes that only its neighbours complete."""
    return {"token": text, "logprob": value, "bytes": None if "\ufffd" in text else list(text.encode())}


_BREAKS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})
"""JSON may hold them as they are, but clients such as httpx, and so OpenAI's, take them for ends of lines."""


def sse(payload: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(payload, ensure_ascii=False).translate(_BREAKS)}\n\n"


SSE_END = "data: [DONE]\n\n"
SSE_COMMENT = ": keep-alive\n\n"
"""Clients ignore comments; proxies on the way see that the connection lives."""
