"""The Serve config of what a run found, which needs neither Serve nor Ray to be written."""

from __future__ import annotations

from pathlib import Path

import yaml

from genopt.errors import DeploymentError
from genopt.plan import Record, plan_of
from genopt.report.accepted import accepted, files_of, original_of
from genopt.report.assemble import assemble
from genopt.report.model import Report
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
