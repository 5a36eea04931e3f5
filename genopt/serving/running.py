"""What an application that runs was deployed from, whatever has become of its file since."""

from __future__ import annotations

import json
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from genopt.errors import DeploymentError

_CALL_S = 30.0


def running_content(name: str) -> dict[str, Any]:
    """What a `serve.yaml` would hold that deploys the application once more as it is.

    Serve itself keeps this for applications of `serve deploy`; the others are told it when they are deployed.

    Args:
        name: The application.

    Raises:
        DeploymentError: There is no such application, it is none of genopt, or it does not answer.
    """
    try:
        entry: dict[str, Any] | None = serve.get_app_handle(name).entry.remote().result(timeout_s=_CALL_S)
    except (TimeoutError, RayError, RayServeException):
        raise DeploymentError(f"{name} does not say what it serves; deploy it again without --canary first.") from None
    details = _get_global_client().get_serve_details()  # `serve.status` does not tell what files said
    if entry is None:
        entry = {"route_prefix": "/", "deployments": [], **(details["applications"][name]["deployed_app_config"] or {})}
    content = {"proxy_location": details["proxy_location"], "http_options": details["http_options"], "applications": [entry]}
    plain: dict[str, Any] = json.loads(json.dumps(content))  # without Serve's enumerations, which no file can hold
    return plain
