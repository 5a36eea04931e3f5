"""Asks a served model. Does not import Ray."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator

import httpx

from genopt.errors import DeploymentError

_CONNECT_S = 5.0


def get(url: str, timeout_s: float = 10.0) -> httpx.Response:
    """Asks a deployment on this machine, past any proxy that the environment names: that one reaches other machines.

    Raises:
        httpx.HTTPError: It does not answer.
    """
    return httpx.get(url, timeout=timeout_s, trust_env=False)


def is_ready(url: str) -> bool:
    """Whether a deployment answers that it is ready.

    Args:
        url: Base URL without `/v1`.
    """
    try:
        return get(f"{url}/readyz", _CONNECT_S).status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, question: str, *, model: str, max_tokens: int = 128, on_text: Callable[[str], None]) -> str:
    """Asks one question, greedily, and returns the whole answer.

    Args:
        url: Base URL without `/v1`.
        question: Content of the user's message.
        model: Name to ask for.
        max_tokens: Upper bound of new tokens.
        on_text: Called with each piece of text as it comes.

    Raises:
        DeploymentError: Nothing answers there, or the answer is an error.
    """
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": max_tokens, "temperature": 0, "stream": True}
    parts: list[str] = []
    try:
        with (
            httpx.Client(timeout=httpx.Timeout(None, connect=_CONNECT_S), trust_env=False) as http,
            http.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise DeploymentError(f"{url} answered {response.status_code}: {_message(response)}")
            for text in _texts(response.iter_lines()):
                parts.append(text)
                on_text(text)
    except httpx.HTTPError as error:
        raise DeploymentError(f"{url} does not answer ({type(error).__name__}); deploy the run first with `genopt deploy`.") from None
    return "".join(parts)


def curl_line(url: str, model: str, question: str) -> str:
    """A line for a shell that asks the question."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}, ensure_ascii=False)
    return f"curl -s {shlex.quote(url + '/v1/chat/completions')} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "the answer is not one of genopt; check the address."


def _texts(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        payload = line.removeprefix("data: ")
        if payload == line or payload == "[DONE]":
            continue
        chunk = json.loads(payload)
        if "error" in chunk:
            raise DeploymentError(f"The answer ended early: {chunk['error']['message']}")
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield text
