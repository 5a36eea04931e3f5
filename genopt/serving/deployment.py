"""Deploys a `serve.yaml` on the Ray that this process is connected to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from genopt.errors import DeploymentError
from genopt.plan import Record
from genopt.serving import client
from genopt.serving.app import application as bind
from genopt.serving.binding import local_address, port_is_free, require_private
from genopt.serving.canary_app import CANARY, find_rollout, status_of
from genopt.serving.keys import read_keys
from genopt.serving.manifest import APPLICATION, DRAIN_S, ENGINE, INGRESS, ServeArguments

DELETED_S = 60.0

_POLL_S = 0.25
_QUIET_S, _SAID_EVERY_S = 2.0, 30.0
"""After how long a wait is spoken of, and how often then."""


class Endpoint(Record):
    """A deployment that answers.

    Attributes:
        url: Base URL without `/v1`.
        model: Name to ask for.
        variant: Name of the plan that answers.
        modality: What it makes; see `ServeArguments.modality`.
        needs_key: Whether callers show an API key.
    """

    url: str
    model: str
    variant: str
    modality: str = "text"
    needs_key: bool = False


class Config(Record):
    """The parts of `serve.yaml` that deploying needs; `entry` is the application as it stands there."""

    name: str
    route_prefix: str
    host: str
    port: int
    http_options: dict[str, Any]
    proxy_location: str
    arguments: ServeArguments
    overrides: dict[str, dict[str, Any]]
    entry: dict[str, Any]

    @property
    def url(self) -> str:
        """Where this machine reaches it, without `/v1`."""
        return f"http://{local_address(self.host)}:{self.port}{self.route_prefix.rstrip('/')}"


def deploy(config_path: Path, *, wait_s: float, progress: Callable[[str], None]) -> Endpoint:
    """Deploys or updates the application and waits until its own answer names the wanted variant.

    Args:
        config_path: A `serve.yaml` as `genopt.serving.manifest.serve_config` describes it.
        wait_s: Longest wait, in seconds.
        progress: Told what is waited for.

    Raises:
        SpecError: The keys cannot be read.
        DeploymentError: The file cannot be used, the address is public and there are no keys, the port is taken, or the application did not
            become ready.
    """
    config = read_config(config_path)
    require_private(config.host, config.arguments.keys)
    if config.arguments.keys is not None:
        read_keys(Path(config.arguments.keys))
    _require_port(config.host, config.port)
    require_keys_kept(config)
    endpoint = Endpoint(
        url=config.url, model=config.arguments.model_id, variant=config.arguments.variant.name, modality=config.arguments.modality,
        needs_key=config.arguments.keys is not None,
    )  # fmt: skip
    serve.start(proxy_location=config.proxy_location, http_options=config.http_options)
    target = serve.RunTarget(target=bind(config.arguments, config.overrides, config.entry), name=config.name, route_prefix=config.route_prefix)
    serve.run_many([target], wait_for_applications_running=False)
    wait_running(config.name, endpoint.variant, time.monotonic() + wait_s, progress=progress, answers=lambda: _answers(endpoint))
    return endpoint


def status() -> dict[str, Any]:
    """Applications by name with their status, message and deployments; a canary's with its rollout. Empty where Serve does not run."""
    found: dict[str, dict[str, Any]] = {
        name: {
            "status": application.status.value,
            "message": application.message,
            "deployments": {
                deployment: {"status": detail.status.value, "replicas": {str(state): count for state, count in detail.replica_states.items()}}
                for deployment, detail in application.deployments.items()
            },
        }
        for name, application in serve.status().applications.items()
    }
    rollout = status_of(find_rollout()) if CANARY in found else None
    if rollout is not None:
        found[CANARY]["rollout"] = rollout.model_dump(mode="json")
    return found


def undeploy(name: str = APPLICATION, *, end_serve: bool = True, progress: Callable[[str], None] = lambda _: None) -> bool:
    """Removes an application.

    Args:
        name: The application.
        end_serve: End Serve itself too when nothing else is left; not needed where Ray ends at once.
        progress: Told what is waited for.

    Returns:
        Whether there was such an application.
    """
    known = serve.status().applications
    if name not in known:
        return False
    remove(CANARY, name, patience_s=DRAIN_S if end_serve else DELETED_S, progress=progress)
    if end_serve and set(known) <= {CANARY, name}:
        serve.shutdown()
    return True


def remove(*names: str, patience_s: float = DELETED_S, progress: Callable[[str], None] = lambda _: None) -> None:
    """Removes applications and waits until they are gone; answers under way go on meanwhile, also after the patience ended.

    Args:
        names: Those that are not there are left out.
        patience_s: Longest wait in seconds.
        progress: Told what is waited for, where it takes a while.
    """
    for name in names:
        if name in serve.status().applications:
            serve.delete(name, _blocking=False)  # by itself it waits a minute and then raises, whatever is still under way
    now = time.monotonic()
    deadline, said_at = now + patience_s, now + _QUIET_S
    while set(names) & set(serve.status().applications) and now < deadline:
        if now > said_at:
            progress(f"waiting for answers that are under way, {deadline - now:.0f} s at most")
            said_at = now + _SAID_EVERY_S
        time.sleep(_POLL_S)
        now = time.monotonic()


def require_keys_kept(config: Config) -> None:
    """Refuses to serve everybody where what is deployed asks for API keys: Serve goes on listening where it does, maybe in public.

    Raises:
        DeploymentError: It would.
    """
    if config.arguments.keys is None and config.name in serve.status().applications:
        with contextlib.suppress(httpx.HTTPError):
            if client.get(f"{config.url}/v1/models").status_code == 401:
                raise DeploymentError("What is deployed asks for API keys and this would not; give --keys, or end it first with `genopt undeploy`.")


def read_config(path: Path) -> Config:
    """Reads a `serve.yaml`.

    Raises:
        DeploymentError: It is none.
    """
    try:
        return config_of(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise DeploymentError(f"{path} cannot be read ({error.strerror}); give the serve.yaml of a finished run.") from None
    except yaml.YAMLError as error:
        raise _not_ours(str(path), error) from None


def config_of(content: Any, source: str) -> Config:
    """The parts of what a `serve.yaml` holds.

    Args:
        content: Of the file.
        source: Where it comes from, for the error.

    Raises:
        DeploymentError: It is none.
    """
    try:
        entry, http = content["applications"][0], content["http_options"]
        arguments = ServeArguments.model_validate(entry["args"])
        listed = {item["name"]: item for item in entry["deployments"]}
        return Config(
            name=entry["name"], route_prefix=entry["route_prefix"], host=http["host"], port=http["port"], http_options=http,
            proxy_location=content["proxy_location"], arguments=arguments,
            overrides=_with_environment(listed, arguments, entry.get("runtime_env", {})), entry=entry,
        )  # fmt: skip
    except (KeyError, IndexError, TypeError, ValidationError) as error:
        raise _not_ours(source, error) from None


def _not_ours(source: str, error: Exception) -> DeploymentError:
    return DeploymentError(f"{source} is not a serve.yaml of genopt ({str(error).splitlines()[0]}); write it again with `genopt report`.")


def _with_environment(
    overrides: Mapping[str, Mapping[str, Any]], arguments: ServeArguments, environment: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Adds the application's runtime environment to its deployments, as `serve deploy` does."""
    if not environment:
        return {name: dict(options) for name, options in overrides.items()}
    resources = {ENGINE: {"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus}, INGRESS: {"num_cpus": 0.1}}
    return {
        name: {**overrides.get(name, {}), "ray_actor_options": {**resources[name], "runtime_env": dict(environment)}} for name in (ENGINE, INGRESS)
    }


def _require_port(host: str, port: int) -> None:
    """The port must be free, unless it is our own Serve that listens there."""
    ours = bool(serve.status().proxies)
    if not port_is_free(host, port):
        if not ours:
            raise DeploymentError(f"Port {port} on {host} is taken; stop what listens there or choose another with --port.")
        return
    if ours:
        raise DeploymentError(f"Serve already runs on another port than {port}; use that port or end Serve first with `serve shutdown`.")


def wait_running(name: str, variant: str, deadline: float, *, progress: Callable[[str], None], answers: Callable[[], bool]) -> None:
    """Waits until an application runs and answers.

    Args:
        name: The application.
        variant: What it serves, for errors.
        deadline: On the clock of `time.monotonic`.
        progress: Told what is waited for.
        answers: Whether it does.

    Raises:
        DeploymentError: It could not be started, or not in time, or was taken away meanwhile.
    """
    said = ""
    while time.monotonic() < deadline:
        found = serve.status().applications.get(name)
        if found is None:
            raise DeploymentError(f"{variant} was taken away while it was being deployed; deploy it again.")
        if found.status.value != said:
            said = found.status.value
            progress(f"{name}: {said.lower().replace('_', ' ')}")
        if found.status == ApplicationStatus.DEPLOY_FAILED:
            raise DeploymentError(f"{variant} could not be deployed ({_cause(found)}); see the engine's log for the cause.")
        if found.status == ApplicationStatus.RUNNING and answers():
            return
        time.sleep(_POLL_S)
    raise DeploymentError(f"{variant} did not become ready in time; see `serve status` for what is missing, or wait longer.")


def _cause(found: ApplicationStatusOverview) -> str:
    lines = [line.strip() for deployment in found.deployments.values() for line in deployment.message.splitlines() if "Error" in line]
    return str(lines[-1])[:300] if lines else str(found.message)[:300]


def _answers(endpoint: Endpoint) -> bool:
    try:
        answer = client.get(f"{endpoint.url}/readyz")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.headers.get("X-Genopt-Variant") == endpoint.variant
