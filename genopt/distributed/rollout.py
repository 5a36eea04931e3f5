"""From a finished run to an answering deployment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from genopt.distributed import cluster
from genopt.distributed.serve_file import Listener, checked_config
from genopt.report.assemble import assemble
from genopt.report.write import write_reports
from genopt.serving import deployment
from genopt.serving.manifest import APPLICATION
from genopt.store.run_folder import RunFolder


class Endpoint(deployment.Endpoint):
    """A deployment that answers.

    Attributes:
        embedded: Whether it ends with this process, as Ray runs within.
        example: What the run asked the model for, to show how to ask; empty where any text will do.
    """

    embedded: bool
    example: str = ""


@contextmanager
def deployed(
    folder: RunFolder,
    *,
    variant: str | None = None,
    listener: Listener | None = None,
    address: str | None = None,
    progress: Callable[[str], None],
) -> Iterator[Endpoint]:
    """`deploy_run`, and at the end of the block leaves Ray; where it is embedded the deployment ends, and the run records it."""
    try:
        endpoint = deploy_run(folder, variant=variant, listener=listener, address=address, progress=progress)
        try:
            yield endpoint
        finally:
            if endpoint.embedded:
                deployment.undeploy(APPLICATION, end_serve=False)
                folder.append("undeployed")
                write_reports(folder)
    finally:
        cluster.disconnect()


def deploy_run(
    folder: RunFolder,
    *,
    variant: str | None = None,
    listener: Listener | None = None,
    address: str | None = None,
    wait_s: float = 600.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Endpoint:
    """Serves a run's winner, waits until it answers, and records it in the run.

    Args:
        folder: The run's folder.
        variant: Name of another accepted candidate, or of a reference.
        listener: Where to listen, where that is to differ from the spec.
        address: Ray cluster to join; None joins a local one or starts an embedded one, which ends with this process.
        wait_s: Longest wait in seconds.
        progress: Told what is waited for.

    Raises:
        DeploymentError: Nothing to deploy, or it did not become ready.
        ClusterError: The cluster does not answer.
    """
    config = checked_config(folder, variant=variant, listener=listener)
    connection = cluster.connect(address)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    found = deployment.deploy(config, wait_s=wait_s, progress=progress)
    endpoint = Endpoint(**found.model_dump(), embedded=connection.embedded, example=example_of(folder))
    folder.append("deployed", url=endpoint.url, application=APPLICATION, variant=endpoint.variant, needs_key=endpoint.needs_key)
    write_reports(folder)
    return endpoint


def example_of(folder: RunFolder) -> str:
    """See `Endpoint.example`."""
    return str(assemble(folder).evaluation.get("example", ""))


def undeploy(folder: RunFolder | None = None, *, address: str | None = None, progress: Callable[[str], None] = lambda _: None) -> bool:
    """Takes the deployment down.

    Args:
        folder: A run to record it in.
        address: Ray cluster to join.
        progress: Told what is waited for.

    Returns:
        Whether there was one.

    Raises:
        ClusterError: There is no cluster.
    """
    cluster.connect(address, embedded=False)
    removed = deployment.undeploy(APPLICATION, progress=progress)
    if folder is not None and removed:
        folder.append("undeployed")
        write_reports(folder)
    return removed


def status(*, address: str | None = None) -> dict[str, Any]:
    """What is deployed on a cluster; see `genopt.serving.deployment.status`.

    Raises:
        ClusterError: There is no cluster.
    """
    cluster.connect(address, embedded=False)
    return deployment.status()
