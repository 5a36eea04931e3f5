"""API keys."""

from __future__ import annotations

from genopt.serving.exchange import Refusal
from genopt.serving.guard import Lease


class OpenGate:
    """A gate without keys, for servers that only this machine reaches."""

    def admit(self, secret: str | None) -> Lease | Refusal:
        """See `Gate.admit`."""
        return _Anyone()


class _Anyone:
    key: str | None = None

    def end(self) -> None:
        pass
