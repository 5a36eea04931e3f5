"""From a finished run to an answering deployment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from genopt.distributed import cluster
from genopt.errors import DeploymentError
from genopt.plan import Record, plan_of
from genopt.report.accepted import accepted, files_of, original_of
from genopt.report.assemble import assemble
from genopt.report.model import Report
from genopt.report.write import write_reports
from genopt.serving import deployment
from genopt.serving.manifest import APPLICATION, autoscaling, serve_config
from genopt.spec import build, load
from genopt.store.artifacts import is_whole
from genopt.store.files import write_atomically
from genopt.store.run_folder import RunFolder
from genopt.store.shared import compiled_folder
from genopt.tasks.base import session_options


class Listener(Record):
    """Where a deployment listens, and to whom.

    Attributes:
        host: Address instead of the spec's.
        port: Port instead of the spec's.
        keys: File of API keys; None lets everybody in, which is refused on public addresses.
    """

    host: str | None = None
    port: int | None = None
    keys: str | None = None


def write_serve_config(
    folder: RunFolder, report: Report, *, variant: str | None = None, listener: Listener | None = None, name: str = "serve.yaml"
) -> Path:
    """Writes `serve.yaml` for a variant: the winner, or the baseline where there is none.

    Args:
        folder: The run's folder.
        report: What the run found.
        variant: Name of the candidate to serve instead.
        listener: Where to listen, where that is to differ from the spec.
        name: Name of the file.

    Raises:
        DeploymentError: There is no such candidate, or it was not accepted.
        StorageError: Its artifact lies in an object store that does not have it any more.
    """
    where = listener or Listener()
    spec, chosen = build(load(folder.path / "spec.yaml")), accepted(report, variant)
    shape = next(event["cluster"] for event in folder.events() if event["event"] == "run_started")
    threads = max(1, int(shape["cpus"]))
    options = session_options(plan_of(chosen), threads)
    artifact = files_of(report, chosen, spec.store)
    knee = {streams: metric.value for streams, metric in chosen.rates.items()}
    config = serve_config(
        application=APPLICATION, model_id=Path(report.model.id).name, variant=plan_of(chosen).model_copy(update={"options": options}),
        artifact=Path(artifact.path), digest=artifact.digest, model_folder=Path(report.model.path),
        host=where.host or spec.host, port=where.port or spec.port, threads=threads,
        scaling=autoscaling(knee, max_replicas=max(1, int(shape["gpus"]) or int(shape["nodes"]))),
        # So little that a canary, or the next version during an update, has room beside it on two processors.
        num_cpus=min(1.0, 0.4 * shape["cpus"]), num_gpus=min(1.0, shape["gpus"]), log_folder=folder.logs,
        keys=None if where.keys is None else Path(where.keys).expanduser(), modality=report.model.modality,
        trust_remote_code=spec.trust_remote_code, compiled_folder=compiled_folder(spec.store),
    )  # fmt: skip
    path = folder.path / name
    write_atomically(path, yaml.safe_dump(config, sort_keys=False))
    return path


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


def checked_config(folder: RunFolder, *, variant: str | None, listener: Listener | None, name: str = "serve.yaml") -> Path:
    """Writes the Serve config of a run's winner or another variant, whose bytes must still be there.

    Raises:
        DeploymentError: There is no winner and no other variant was named, it was not accepted, or its files are gone.
    """
    report = assemble(folder)
    if report.winner is None and variant is None:
        raise DeploymentError(f"{report.decision} Deploy it with `genopt deploy {folder.path} --variant baseline`.")
    for needed in (files_of(report, accepted(report, variant), build(load(folder.path / "spec.yaml")).store), original_of(report)):
        if not is_whole(needed):
            raise DeploymentError(f"{needed.path} is gone from the store; run the optimization again, or restore the store it was made with.")
    return write_serve_config(folder, report, variant=variant, listener=listener, name=name)


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
