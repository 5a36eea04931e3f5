"""What an API of one modality brings; everything around it (`genopt.serving.ingress`) is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from genopt.serving.answer import Patience
from genopt.serving.answers import error_body
from genopt.serving.exchange import Backend, Refusal

SHOWN = 64
"""Characters of a caller's own words that are said back."""


@dataclass(frozen=True)
class Front:
    """What routes need.

    Attributes:
        backend: Does what is asked for.
        patience: How long the API waits.
        at_once: Most parts of one request, its choices or images, that are under way.
    """

    backend: Backend
    patience: Patience
    at_once: int

    @staticmethod
    def refused(refusal: Refusal) -> Response:
        """An error in OpenAI's shape."""
        retry = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
        return JSONResponse(error_body(refusal), status_code=refusal.status, headers=retry)

    def unknown(self, name: str) -> Refusal:
        """The refusal of a model that is not served."""
        model, shown = self.backend.served().model, name if len(name) <= SHOWN else f"{name[:SHOWN]}…"
        return Refusal(status=404, message=f"The model {shown!r} is not served here; ask for {model!r}.", param="model", code="model_not_found")


class Api(Protocol):
    """An entry of the catalogue's APIs, by the modality of what is served."""

    @staticmethod
    def add_routes(app: FastAPI, front: Front) -> None:
        """Adds the paths of the API."""

    @staticmethod
    def describe(model: str) -> dict[str, Any]:
        """The API's description (OpenAPI 3.1).

        Args:
            model: The only name that requests may ask for.
        """

    @staticmethod
    def curl_line(url: str, model: str, example: str) -> str:
        """A line for a shell that asks for something.

        Args:
            url: Base URL without `/v1`.
            model: Name to ask for.
            example: What to ask for; an empty text leaves the choice to the API.
        """

    @staticmethod
    def ask_once(url: str, model: str, example: str, on_text: Callable[[str], None]) -> None:
        """Asks for something once.

        Args:
            url: Base URL without `/v1`.
            model: Name to ask for.
            example: As for `curl_line`.
            on_text: Called with what is asked and answered, piece by piece as it comes.

        Raises:
            DeploymentError: Nothing answers there, or the answer is an error.
        """

    @staticmethod
    def replica() -> Callable[..., Any]:
        """The class of the engine replica, made of `ServeArguments`; importing it may need Ray."""
