"""A deployment on an embedded Ray, for the benchmarks of serving: the fake engine by default, or an artifact of a run."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve

from genopt.plan import JsonValue, Plan, Record
from genopt.serving import deployment
from genopt.serving.deployment import Endpoint
from genopt.serving.manifest import Scaling, serve_config
from genopt.testing.plugin import write_plugin
from genopt.testing.ports import unused_port
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer

TEXT = "héllo wörld "
CONTEXT = 4096
SOURCE = Path(__file__).parents[2]


class Subject(Record):
    """What is served.

    Attributes:
        engine: Its catalogue name.
        artifact: What it opens.
        model_folder: The original model, for its tokenizer.
        options: Of the engine.
        threads: Of the engine.
        gpus: That a replica reserves.
    """

    engine: str
    artifact: Path
    model_folder: Path
    options: dict[str, JsonValue]
    threads: int | None
    gpus: float = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is served."""
    parser.add_argument("--engine", default="fake", help="catalogue name; the fake engine needs no model")
    parser.add_argument("--artifact", type=Path, help="folder that the engine opens")
    parser.add_argument("--model-folder", type=Path, help="the original model's folder")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="of the engine")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--gpus", type=float, default=0, help="that a replica reserves")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="time of a step of the fake engine")


@contextmanager
def subject(options: argparse.Namespace) -> Iterator[Subject]:
    """What the flags say; the fake engine and its tokenizer are written down first."""
    if options.engine != "fake":
        limited = {"threads": options.threads, **options.options} if options.threads else options.options
        yield Subject(
            engine=options.engine, artifact=options.artifact, model_folder=options.model_folder, options=limited, threads=options.threads,
            gpus=options.gpus,
        )  # fmt: skip
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_tokenizer(folder / "model", context=CONTEXT)
        write_plugin(folder / "plugin")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "plugin"), str(SOURCE)])
        yield Subject(engine="fake", artifact=folder, model_folder=folder / "model",
                      options={"text": TEXT, "delay_ms": options.delay_ms}, threads=1)  # fmt: skip


def expected(tokens: int) -> str:
    """What the fake engine answers."""
    return (TEXT.encode() * tokens)[:tokens].decode(errors="ignore")


@contextmanager
def served(
    what: Subject, scaling: Scaling, *, stream_interval_ms: float = 50.0, deployments: dict[str, dict[str, Any]] | None = None
) -> Iterator[Endpoint]:  # fmt: skip
    """Serves it on a Ray of its own until the block ends.

    Args:
        what: To serve.
        scaling: Limits and replicas.
        stream_interval_ms: Shortest time between two pieces of a stream.
        deployments: Further Serve options by deployment name.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    os.environ.setdefault("PYTHONPATH", str(SOURCE))
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")  # as where genopt starts Ray itself
    port = unused_port()
    with tempfile.TemporaryDirectory() as name:
        content = serve_config(
            application="genopt", model_id="m", variant=Plan(name="v", engine=what.engine, options=what.options), artifact=what.artifact,
            model_folder=what.model_folder, host="127.0.0.1", port=port, scaling=scaling, threads=what.threads, num_cpus=1, num_gpus=what.gpus,
            log_folder=Path(name) / "logs",
        )  # fmt: skip
        content["applications"][0]["args"]["stream_interval_ms"] = stream_interval_ms
        listed = {entry["name"]: entry for entry in content["applications"][0]["deployments"]}
        for deployed, extra in (deployments or {}).items():
            listed[deployed] = {**listed.get(deployed, {"name": deployed}), **extra}
        content["applications"][0]["deployments"] = list(listed.values())
        config = Path(name) / "serve.yaml"
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        ray.init(address="local", num_cpus=16, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            yield deployment.deploy(config, wait_s=300, progress=lambda text: None)
        finally:
            serve.shutdown()
            ray.shutdown()
