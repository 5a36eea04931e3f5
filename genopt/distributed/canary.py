"""Canaries of finished runs: beside what is deployed on a cluster, promoted, and taken back."""

from __future__ import annotations

from collections.abc import Callable

from genopt.distributed import cluster
from genopt.distributed.rollout import Endpoint, example_of
from genopt.distributed.serve_file import Listener, checked_config
from genopt.errors import DeploymentError
from genopt.report.write import write_reports
from genopt.serving import canary_deploy
from genopt.serving.canary import Policy
from genopt.serving.manifest import APPLICATION
from genopt.serving.rollout import RolloutStatus
from genopt.store.run_folder import RunFolder

CONFIG = "serve-canary.yaml"
NEXT = "serve-canary-next.yaml"
"""Until nothing speaks against it: a canary that is refused must leave the file of the one under way."""


def begin(
    folder: RunFolder,
    policy: Policy,
    *,
    variant: str | None = None,
    listener: Listener | None = None,
    address: str | None = None,
    wait_s: float = 600.0,
    progress: Callable[[str], None] = lambda _: None,
) -> RolloutStatus:
    """Starts a run's winner as a canary beside what a cluster serves; the rollout goes on when this process ends.

    Args:
        folder: The run's folder.
        policy: How the rollout advances.
        variant: Name of another accepted candidate, or of a reference.
        listener: Where the deployment listens, where that is not as the spec says.
        address: Ray cluster; None takes the one of this machine.
        wait_s: Longest wait in seconds.
        progress: Told what is waited for.

    Raises:
        DeploymentError: It was refused or could not be started.
        ClusterError: There is no cluster.
    """
    config = checked_config(folder, variant=variant, listener=listener, name=NEXT)
    try:
        cluster.connect(address, embedded=False)
        found = canary_deploy.begin(config, policy, kept=folder.path / CONFIG, wait_s=wait_s, progress=progress)
    finally:
        config.unlink(missing_ok=True)
    folder.append("canary_begun", variant=found.progress.variant, stable=found.progress.stable, rollout=found.progress.rollout)
    return found


def follow(folder: RunFolder, *, progress: Callable[[str], None]) -> None:
    """Waits until the canary has passed its last step.

    Raises:
        DeploymentError: It was rolled back; the run records why.
    """
    try:
        canary_deploy.follow(progress=progress)
    except DeploymentError as error:
        folder.append("canary_ended", reason=error.message)
        raise


def promote(folder: RunFolder, *, address: str | None = None, wait_s: float = 600.0, progress: Callable[[str], None] = lambda _: None) -> Endpoint:
    """Makes a run's canary the stable variant.

    Raises:
        DeploymentError: There is none, or it was rolled back.
        ClusterError: There is no cluster.
    """
    cluster.connect(address, embedded=False)
    found = canary_deploy.promote(folder.path / CONFIG, folder.path / "serve.yaml", wait_s=wait_s, progress=progress)
    folder.append("deployed", url=found.url, application=APPLICATION, variant=found.variant, needs_key=found.needs_key)
    write_reports(folder)
    return Endpoint(**found.model_dump(), embedded=False, example=example_of(folder))


def roll_back(folder: RunFolder, *, address: str | None = None, wait_s: float = 600.0, progress: Callable[[str], None] = lambda _: None) -> str:
    """Takes a run's canary away, and puts back what was served before where its promotion was begun.

    Returns:
        The variant that answers now.

    Raises:
        DeploymentError: There is nothing to take back, the canary is of another run, or what was served before could not be deployed.
        ClusterError: There is no cluster.
    """
    cluster.connect(address, embedded=False)
    variant = canary_deploy.roll_back(folder.path / "serve.yaml", "It was rolled back by hand.", wait_s=wait_s, progress=progress)
    folder.append("canary_ended", reason="It was rolled back by hand.", variant=variant)
    write_reports(folder)
    return variant
