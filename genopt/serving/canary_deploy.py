"""Begins, ends and accepts canaries on the Ray that this process is connected to."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import yaml
from ray import serve
from ray.serve.schema import ApplicationStatus

from genopt.errors import DeploymentError
from genopt.serving import client
from genopt.serving.app import engine_deployment
from genopt.serving.canary import Policy, Progress
from genopt.serving.canary_app import CANARY, canary_application, find_rollout, status_of
from genopt.serving.deployment import Config, Endpoint, config_of, deploy, read_config, remove, require_keys_kept, wait_running
from genopt.serving.manifest import APPLICATION
from genopt.serving.rollout import RolloutArguments, RolloutStatus, read_progress
from genopt.serving.routing import POLL_S
from genopt.serving.running import running_content
from genopt.store.files import write_atomically

STATE = "rollout.json"
STABLE = "serve-stable.yaml"
"""Beside a canary's file: what is deployed beside it. It may be of another run, and its own file may say something else by now."""
PREVIOUS = "serve-previous.yaml"
"""What was deployed before the last promotion."""
MARK = "@"
"""Between a variant's name and what tells it from another variant of that name."""
_DIGITS = 8
_CALL_S = 30.0


def begin(
    config_path: Path, policy: Policy, *, kept: Path | None = None, wait_s: float, progress: Callable[[str], None]
) -> RolloutStatus:  # fmt: skip
    """Starts a canary beside what is deployed and waits until its engine answers; from then on the rollout needs nobody.

    Args:
        config_path: A `serve.yaml` of the canary: with the same application, address and model as what is deployed. Where the names of both
            variants are the same, the canary gets another one in it.
        policy: How the rollout advances.
        kept: Where that file is put once nothing speaks against the canary, so that one under way keeps its own; None leaves it.
        wait_s: Longest wait in seconds.
        progress: Told what is waited for.

    Raises:
        DeploymentError: Nothing is deployed beside which it could run, another canary is there, or this one could not be started.
    """
    config = read_config(config_path)
    require_keys_kept(config)  # it will take the place of what is deployed
    _require_same_model(config)
    content = running_content(config.name)
    stable = config_of(content, config.name)
    if stable.arguments.identity() == config.arguments.identity():
        raise DeploymentError(f"{stable.arguments.variant.name} is served already; name another with --variant.")
    former = status_of(find_rollout())
    if former is not None and former.progress.state != "rolled_back":
        raise DeploymentError(f"{former.progress.variant} is a canary already; end it with `genopt promote` or `genopt rollback` first.")
    config = _told_apart(config_path, config, stable.arguments.variant.name)
    arguments = RolloutArguments(
        rollout=secrets.token_hex(8), variant=config.arguments.variant.name, stable=stable.arguments.variant.name, policy=policy,
        state=str((config_path.parent / STATE).absolute()), serves=config.arguments.identity(),
    )  # fmt: skip
    write_atomically(config_path.parent / STABLE, yaml.safe_dump(content, sort_keys=False))
    if kept is not None:  # before anything starts: whoever promotes it needs the file, also where this process ends meanwhile
        os.replace(config_path, kept)
    target = canary_application(engine_deployment(config.arguments, config.overrides), arguments)
    serve.run_many([serve.RunTarget(target=target, name=CANARY, route_prefix=None)], wait_for_applications_running=False)

    rollout = find_rollout()

    def opened() -> bool:
        found = status_of(rollout)
        return found is not None and found.progress.rollout == arguments.rollout and found.opened

    try:
        wait_running(CANARY, arguments.variant, time.monotonic() + wait_s, progress=progress, answers=opened)
    except DeploymentError:
        remove(CANARY)
        raise
    found = status_of(rollout)
    if found is None:
        raise DeploymentError("The rollout does not answer; see `serve status`, and take it back with `genopt rollback`.")
    return found


def follow(*, progress: Callable[[str], None], limit_s: float = float("inf")) -> Progress:
    """Waits until a rollout has passed its last step; one that does not answer for a while is waited for, too.

    Raises:
        DeploymentError: It was rolled back, or is gone.
    """
    deadline, said, rollout = time.monotonic() + limit_s, "", find_rollout()
    while time.monotonic() < deadline:
        rollout = rollout or find_rollout()
        found = status_of(rollout)
        if found is None:
            if CANARY not in serve.status().applications:
                raise DeploymentError("There is no canary any more; see `genopt status`.")
            time.sleep(POLL_S)
            continue
        if found.progress.state == "rolled_back":
            raise DeploymentError(f"{found.progress.variant} was rolled back. {found.progress.reason}")
        if found.progress.state != "running":
            return found.progress
        now = f"{found.progress.variant} answers {found.share:g} % of the requests"
        if now != said:
            said = now
            progress(now)
        time.sleep(POLL_S)
    raise DeploymentError("The rollout is still under way; see `genopt status`.")


def promote(config_path: Path, current_path: Path, *, wait_s: float, progress: Callable[[str], None]) -> Endpoint:
    """Makes the canary the stable variant. It answers everybody while the application is updated, and goes afterwards.

    Args:
        config_path: The canary's `serve.yaml`.
        current_path: The run's `serve.yaml`; becomes the canary's. What was deployed before is kept beside it.
        wait_s: Longest wait in seconds.
        progress: Told what is waited for.

    Raises:
        DeploymentError: There is no canary, it was rolled back, or the update failed; then the canary goes on answering.
    """
    rollout, config = find_rollout(), read_config(config_path)
    if rollout is None:
        raise DeploymentError("There is no canary to promote; begin one with `genopt deploy RUN --canary 10%`.")
    status = status_of(rollout)
    if status is not None and status.progress.variant != config.arguments.variant.name:
        raise DeploymentError(f"The canary is {status.progress.variant} and not {config.arguments.variant.name}; name the run that it is of.")
    if status is not None and status.serves not in ("", config.arguments.identity()):
        raise DeploymentError(f"The canary is another {status.progress.variant} than that of this run; name the run that it is of.")
    require_keys_kept(config)
    found: Progress = rollout.promote.remote().result(timeout_s=_CALL_S)
    if found.state == "rolled_back":
        raise DeploymentError(f"{found.variant} was rolled back and cannot be promoted. {found.reason}")
    time.sleep(2 * POLL_S)  # by then every router has its new route
    _keep_stable(config_path.parent / STABLE, config)
    endpoint = deploy(config_path, wait_s=wait_s, progress=progress)
    with contextlib.suppress(FileNotFoundError):  # where a promotion that was interrupted is done again, it has been moved
        os.replace(config_path.parent / STABLE, current_path.parent / PREVIOUS)
    os.replace(config_path, current_path)
    rollout.release.remote().result(timeout_s=_CALL_S)
    time.sleep(2 * POLL_S)
    remove(CANARY)
    return endpoint


def roll_back(current_path: Path, reason: str, *, wait_s: float, progress: Callable[[str], None]) -> str:
    """Takes a canary away, and where its promotion was begun or there is none, puts back what was served before.

    Args:
        current_path: The run's `serve.yaml`; becomes that of what is put back, unless that is of another run.
        reason: Why the canary goes.
        wait_s: Longest wait in seconds.
        progress: Told what is waited for.

    Returns:
        The variant that answers now.

    Raises:
        DeploymentError: There is neither, the canary is of another run, or what was served before could not be deployed; then the canary stays.
    """
    rollout = find_rollout()
    if rollout is not None:
        status = status_of(rollout)
        _require_of(current_path.parent, status)
        if status is not None and _is_promoted(status):
            _put_back(_before_promotion(current_path.parent), current_path, wait_s=wait_s, progress=progress)
        found: Progress = rollout.roll_back.remote(reason).result(timeout_s=_CALL_S)
        time.sleep(2 * POLL_S)
        remove(CANARY)
        return _served(found.stable)
    previous = current_path.parent / PREVIOUS
    if not previous.exists():
        raise DeploymentError("There is no canary, and nothing was served before; deploy another variant with `genopt deploy RUN --variant NAME`.")
    return _put_back(previous, current_path, wait_s=wait_s, progress=progress)


def _require_of(folder: Path, status: RolloutStatus | None) -> None:
    """The canary must be of the run in this folder, as far as it says of which it is; the id tells it also where the folder was moved."""
    if status is None or not status.state or Path(status.state).parent.resolve() == folder.resolve():
        return
    kept = read_progress(folder / STATE)
    if kept is None or kept.rollout != status.progress.rollout:
        raise DeploymentError(f"The canary is {status.progress.variant} of {Path(status.state).parent}; name the run that it is of.")


def _is_promoted(status: RolloutStatus) -> bool:
    """Whether the application was pointed at the canary already: a promotion that was interrupted or failed leaves it so, done or half done."""
    if status.progress.state not in ("promoted", "replaced") or not status.serves:
        return False
    application = serve.status().applications.get(APPLICATION)
    if application is None or application.status != ApplicationStatus.RUNNING:
        return True
    try:
        return config_of(running_content(APPLICATION), APPLICATION).arguments.identity() == status.serves
    except DeploymentError:
        return True


def _before_promotion(folder: Path) -> Path:
    """What was served before a promotion that was begun: it is moved when that has succeeded."""
    return folder / STABLE if (folder / STABLE).exists() else folder / PREVIOUS


def _put_back(former: Path, current_path: Path, *, wait_s: float, progress: Callable[[str], None]) -> str:
    """Deploys what was served before; its file becomes the run's own, unless it is of another run, which has a `serve.yaml` of its own."""
    endpoint = deploy(former, wait_s=wait_s, progress=progress)
    if current_path.exists() and read_config(former).arguments.log_folder != read_config(current_path).arguments.log_folder:
        former.unlink()
    else:
        os.replace(former, current_path)
    return endpoint.variant


def _keep_stable(path: Path, canary: Config) -> None:
    """Writes what is served now, which another deployment may have put there since the canary began; what a promotion left half done is not it."""
    with contextlib.suppress(DeploymentError):  # it cannot say what it serves: then what was served at the beginning stands
        content = running_content(canary.name)
        if config_of(content, canary.name).arguments.identity() != canary.arguments.identity():
            write_atomically(path, yaml.safe_dump(content, sort_keys=False))


def _served(otherwise: str) -> str:
    """The variant that answers by now; the one beside which a canary began where that cannot be told."""
    try:
        return config_of(running_content(APPLICATION), APPLICATION).arguments.variant.name
    except DeploymentError:
        return otherwise


def _told_apart(path: Path, config: Config, stable: str) -> Config:
    """Gives the canary a name of its own: metrics, logs, journals and `X-Genopt-Variant` know variants by their names alone.

    It ends in a part of the digest of what answers, so that the name stays true when the canary is promoted, and is the same each time.
    """
    name = config.arguments.variant.name
    if name not in (stable, stable.rpartition(MARK)[0]):
        return config
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["applications"][0]["args"]["variant"]["name"] = f"{name}{MARK}{config.arguments.identity()[:_DIGITS]}"
    write_atomically(path, yaml.safe_dump(content, sort_keys=False))
    return read_config(path)


def _require_same_model(config: Config) -> None:
    try:
        answer = client.get(f"{config.url}/readyz")
    except httpx.HTTPError:
        raise DeploymentError(f"Nothing answers at {config.url} beside which a canary could run; deploy without --canary first.") from None
    if answer.status_code != 200 or answer.json().get("model") != config.arguments.model_id:
        raise DeploymentError(f"{config.url} does not serve {config.arguments.model_id}; a canary runs beside a variant of the same model.")
