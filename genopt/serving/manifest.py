"""What a run writes into `serve.yaml`: a Serve config that `serve deploy` takes as it is. Does not import Ray."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from genopt.measure.knee import knee
from genopt.models import trust
from genopt.plan import Plan, Record

APPLICATION = "genopt"
"""Name under which Serve knows what is deployed."""
INGRESS = "Ingress"
ENGINE = "Engine"
LONGEST_STREAM_S = 600.0
DRAIN_S = LONGEST_STREAM_S + 30.0
"""How long a replica that is being replaced may finish what it has begun: longer than the longest answer."""
CUT_OFF_S = LONGEST_STREAM_S + 15.0
"""When Serve itself gives a request up. The API does so earlier, since what Serve cuts off gets no answer in OpenAI's shape."""


STALL_S = 60.0
CALL_LIMIT_S = LONGEST_STREAM_S + 2 * STALL_S
"""The API gives a request up before, which the engine notices at its next step: a call that passes its limit takes the engine from everybody."""


class ServeArguments(Record):
    """What the application is built from; `args` in `serve.yaml`.

    Attributes:
        model_id: Name under which clients ask for the model.
        modality: What it makes, which decides the API: a name of the catalogue's APIs.
        variant: The plan that is served; its engine and options are opened.
        artifact: Folder that the engine opens.
        digest: Of the artifact, where it is known.
        model_folder: The original model: tokenizer, chat template, stop tokens, context length.
        keys: File of API keys; None lets everybody in, which is refused on public addresses.
        log_folder: Where the engine's process writes its log; None takes the system's temporary folder.
        threads: CPU threads of the engine; None leaves the libraries' defaults.
        num_cpus: CPUs that a replica reserves.
        num_gpus: GPUs that a replica reserves; with 0 its engine sees none.
        max_batch: Most requests that the engine continues at once.
        batch_wait_ms: How long the first request of a batch waits for company, where the engine's batches cannot be joined.
        stream_interval_ms: Shortest time between two pieces of a stream; the first goes out at once. Each piece costs processor time in
            three processes, which an engine on the same processors then lacks.
        max_context: Upper bound of prompt and answer in tokens, where the model's own is to be lowered.
        call_limit_s: Limit of opening the engine and of one batch; longer than the longest answer by `stall_s` at least.
        stall_s: Longest accepted time without a token before a busy replica counts as stuck.
        trust_remote_code: Run Python code that comes with the model.
        compiled_folder: What TorchInductor compiled during the run; machines that lack the folder, or may not write it, compile anew.
    """

    model_id: str = Field(min_length=1)
    modality: str = "text"
    variant: Plan
    artifact: str
    digest: str | None = None
    model_folder: str
    keys: str | None = None
    log_folder: str | None = None
    threads: int | None = Field(default=None, gt=0)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    max_batch: int = Field(default=4, gt=0)
    batch_wait_ms: float = Field(default=5.0, ge=0)
    stream_interval_ms: float = Field(default=50.0, ge=0)
    max_context: int | None = Field(default=None, gt=1)
    call_limit_s: float = Field(default=CALL_LIMIT_S, gt=0)
    stall_s: float = Field(default=STALL_S, gt=0)
    trust_remote_code: bool = False
    compiled_folder: str | None = None

    def identity(self) -> str:
        """A digest over what answers: a name tells nothing, as the winner of a model that was trained further may be called as the one before."""
        content = [self.digest or self.artifact, self.model_folder, self.variant.engine, self.variant.options]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def accepted(self) -> int:
        """Most requests that a replica accepts, where its deployment's options say nothing else: the next batch is there when one ends."""
        return 2 * self.max_batch

    def variables(self) -> dict[str, str]:
        """Environment variables of the engine's process on this machine."""
        found = {**trust.variables(self.trust_remote_code), **({} if self.num_gpus else {"CUDA_VISIBLE_DEVICES": ""})}
        if self.compiled_folder is not None and os.access(self.compiled_folder, os.W_OK):
            found["TORCHINDUCTOR_CACHE_DIR"] = self.compiled_folder
        return found


class Scaling(Record):
    """How many requests a replica takes and how many replicas there are.

    Attributes:
        target_ongoing_requests: Load per replica that autoscaling aims at.
        max_ongoing_requests: Most requests that one replica accepts.
        max_queued_requests: Most requests that wait per proxy before callers are turned away with 429.
        min_replicas: Replicas that always run.
        max_replicas: Most replicas.
    """

    target_ongoing_requests: int = Field(gt=0)
    max_ongoing_requests: int = Field(gt=0)
    max_queued_requests: int = Field(gt=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(gt=0)


def autoscaling(throughput: Mapping[int, float], *, max_replicas: int = 1) -> Scaling:
    """Turns measured throughput per concurrency into limits.

    The target is the knee (`genopt.measure.knee`). A replica accepts as many again, so that the next batch is
    already there when one ends, and a new replica is asked for before callers are turned away. Three times that may
    queue per proxy: at the knee a full queue is then a few batches of waiting, after which a quick
    429 serves a caller better than a late answer.

    Args:
        throughput: Tokens per second by number of concurrent streams; measured points only.
        max_replicas: Upper bound of replicas; 1 where there is one device.

    Returns:
        The limits. Without a measurement the target is 1, the only concurrency that needs none.
    """
    target = knee(throughput)
    accepted = 2 * target
    return Scaling(
        target_ongoing_requests=target, max_ongoing_requests=accepted, max_queued_requests=3 * accepted,
        min_replicas=1, max_replicas=max_replicas,
    )  # fmt: skip


def serve_config(
    *,
    application: str,
    model_id: str,
    variant: Plan,
    artifact: Path,
    digest: str | None = None,
    model_folder: Path,
    host: str,
    port: int,
    scaling: Scaling,
    threads: int | None,
    num_cpus: float,
    num_gpus: float,
    keys: Path | None = None,
    log_folder: Path | None = None,
    pythonpath: str | None = None,
    modality: str = "text",
    trust_remote_code: bool = False,
    compiled_folder: Path | None = None,
) -> dict[str, Any]:
    """A Serve config (Ray's `ServeDeploySchema`) with one application.

    Limits and replica counts stand under `deployments` and not in `args`: Serve applies a change there
    without restarting replicas, while any change in `args` restarts all of them.

    Args:
        application: Name of the Serve application.
        model_id: Name under which clients ask for the model.
        variant: The plan that is served.
        artifact: Folder that the engine opens.
        digest: See `ServeArguments`.
        model_folder: The original model's folder.
        host: Address to listen on.
        port: Port to listen on.
        scaling: Limits, for example from `autoscaling`.
        threads: CPU threads of the engine, or None for the libraries' defaults.
        num_cpus: CPUs that a replica reserves.
        num_gpus: GPUs that a replica reserves.
        keys: File of API keys.
        log_folder: Where the engine's process writes its log.
        pythonpath: Set for replicas where genopt runs from a checkout and is not installed.
        modality: See `ServeArguments`.
        trust_remote_code: See `ServeArguments`.
        compiled_folder: See `ServeArguments`.
    """
    arguments = ServeArguments(
        model_id=model_id, modality=modality, variant=variant, artifact=str(artifact.absolute()), digest=digest,
        model_folder=str(model_folder.absolute()), log_folder=None if log_folder is None else str(log_folder.absolute()),
        threads=threads, num_cpus=num_cpus, num_gpus=num_gpus, max_batch=scaling.target_ongoing_requests,
        keys=None if keys is None else str(keys.absolute()),
        trust_remote_code=trust_remote_code, compiled_folder=None if compiled_folder is None else str(compiled_folder.absolute()),
    )  # fmt: skip
    entry: dict[str, Any] = {
        "name": application,
        "route_prefix": "/",
        "import_path": "genopt.serving.app:build",
        "args": arguments.model_dump(mode="json"),
        "deployments": [
            {
                "name": ENGINE,
                "max_ongoing_requests": scaling.max_ongoing_requests,
                "max_queued_requests": scaling.max_queued_requests,
                "autoscaling_config": {
                    "target_ongoing_requests": scaling.target_ongoing_requests,
                    "min_replicas": scaling.min_replicas,
                    "max_replicas": scaling.max_replicas,
                },
            }
        ],
    }
    if pythonpath is not None:
        entry["runtime_env"] = {"env_vars": {"PYTHONPATH": pythonpath}}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port, "request_timeout_s": CUT_OFF_S},
        "applications": [entry],
    }
