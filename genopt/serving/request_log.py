"""One line per request in Serve's log: who asked, who answered, how it ended. Never what was asked."""

from __future__ import annotations

import logging

from genopt.serving.guard import OPEN_PATHS, Finished

_LOGGER = logging.getLogger("ray.serve")


def log_finished(request: Finished) -> None:
    """Writes down how a request ended, as fields that a JSON log keeps apart; probes that were answered are left out."""
    if request.endpoint in OPEN_PATHS and request.status < 400:
        return
    fields = {f"genopt_{name}": value for name, value in request.model_dump(mode="json", exclude_none=True).items()}
    _LOGGER.info("%s %d", request.endpoint, request.status, extra=fields)
