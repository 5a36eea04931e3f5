"""Joins the Ray cluster that is meant, or starts an embedded one, and says what it offers."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]

from genopt.distributed.submitted import cluster_of_job, in_job
from genopt.errors import ClusterError
from genopt.plan import Record

QUIET = {
    "RAY_worker_niceness": "0",  # Ray's workers run at nice 15 by default, and measurements would lose to any other process
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray ends workers that were idle for a second, and starting the next one costs every stage two.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Between the processes of a deployment a piece of a stream is an object of Ray's otherwise, which costs several times as much.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}


NAMESPACE = "genopt"
CONNECT_S = 5.0
HOST_LABEL = "genopt/host"
"""Label that says which machine a node is on, where host names do not: pods that share one, or nodes of a test that stand for several."""
ROLE_LABEL = "genopt/role"
"""Label that says what a node is for."""
MEASURE, COMPRESS = "measure", "compress"
"""Its values: what only compresses never measures, since its provider may reclaim it. Nodes without the label do both."""
_VERSIONS = re.compile(r"Version mismatch.*?Ray: (\S+)\s+Python: (\S+).*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL)
"""What Ray says where the cluster's versions are not those of this process."""
TOKEN_REMEDY = "put the cluster's token into ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH"  # noqa: S105 - a sentence


class Connection(Record):
    """How this process is connected; an embedded Ray ends with it."""

    embedded: bool
    description: str


class Node(Record):
    """One node that can run stages, or a part of it that measures with one of its GPUs.

    Attributes:
        node_id: Ray's name for it.
        hostname: Tells machines apart.
        cpus: Processors.
        gpus: GPUs.
        measures: What does not builds only.
        parts: Ids of all GPUs of the node where this is a part of one.
        gpu: Id of this part's.
    """

    node_id: str
    hostname: str
    cpus: float
    gpus: float
    measures: bool = True
    parts: tuple[str, ...] = ()
    gpu: str = ""


def _running_local_cluster() -> str | None:
    """Address of the cluster that `ray start --head` left on this machine, if it is alive.

    A Ray that another program embeds is not joined: it would end with that program.
    """
    from ray._private import services

    started = services.find_bootstrap_address(None)
    return started if started in services.find_gcs_addresses() else None


def _target(address: str | None) -> str | None:
    """The cluster that is meant; None where there is none to join."""
    asked = address or cluster_of_job() or os.environ.get("RAY_ADDRESS")
    return None if asked == "local" else asked or _running_local_cluster()


def joins(address: str | None) -> bool:
    """Whether `connect` would join a cluster rather than start an embedded Ray."""
    return ray.is_initialized() or _target(address) is not None


def connect(address: str | None, *, namespace: str = NAMESPACE, embedded: bool = True) -> Connection:
    """Connects this process to Ray and says how.

    Args:
        address: Cluster to join; None joins the one that this process is a job of, `RAY_ADDRESS` or a cluster on this machine, else starts
            an embedded one.
        namespace: Ray namespace.
        embedded: Start an embedded Ray where none runs.

    Raises:
        ClusterError: The cluster does not answer.
    """
    if ray.is_initialized():
        return Connection(embedded=False, description="the Ray that this process is connected to")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    target = _target(address)
    if target is None and not embedded:
        raise ClusterError("No Ray cluster runs on this machine; start one with `ray start --head`, or give --address.")
    if target is not None:
        present_token()
    if target is not None and target != "auto":
        _require_listener(target)
        _require_token(target)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if target is None:
            with _private_token():
                ray.init(
                    address="local", include_dashboard=False, namespace=namespace, logging_level=logging.ERROR, log_to_driver=False,
                    object_store_memory=200 * 2**20,
                )  # fmt: skip
            return Connection(embedded=True, description="an embedded Ray on this machine")
        ray.init(address=target, namespace=namespace, logging_level=logging.ERROR, log_to_driver=False, runtime_env=_job_environment())
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if mismatch := _VERSIONS.search(str(error)):
            there, here = (f"Ray {ray_version} on Python {python}" for ray_version, python in (mismatch.group(1, 2), mismatch.group(3, 4)))
            raise ClusterError(f"The cluster at {target} runs {there}, and this process {here}; use the same on both, such as one image.") from None
        raise _no_answer(str(target), str(error).strip() or type(error).__name__) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which ends the process at once and leaves no report
    return Connection(embedded=False, description=f"the Ray cluster at {target}")


def present_token() -> None:
    """Lets clients show this user's Ray token, where there is one.

    Since 2.59 `ray start --head` asks for the token in `~/.ray/auth_token` as soon as that exists (an embedded Ray
    creates it), while clients show it only with `RAY_AUTH_MODE=token`. A cluster that asks for none ignores it.
    """
    known = ("RAY_AUTH_TOKEN" in os.environ, "RAY_AUTH_TOKEN_PATH" in os.environ, Path("~/.ray/auth_token").expanduser().is_file())
    if "RAY_AUTH_MODE" not in os.environ and any(known):
        os.environ["RAY_AUTH_MODE"] = "token"
    reread_authentication()


def reread_authentication() -> None:
    """Makes Ray ask for tokens, and show one, as the environment says now.

    It read the environment when it was imported, and an embedded Ray of this process has left its own token behind since: a cluster
    without tokens could then not ask this process about its actors, and would end them.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _private_token() -> Iterator[None]:
    """A token that an embedded Ray shares with its own processes alone.

    Left alone, Ray would write one into the user's home, and from then on `ray start --head` would ask every client for it.
    """
    if "RAY_AUTH_MODE" in os.environ or "RAY_AUTH_TOKEN" in os.environ:
        reread_authentication()
        yield
        return
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    reread_authentication()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]


def _require_listener(target: str) -> None:
    """Fails in seconds where nothing listens: Ray itself tries for minutes."""
    host, _, port = target.rpartition(":")
    if "://" in target or not host or not port.isdigit():
        raise ClusterError(f"{target!r} is not the address of a Ray cluster; give HOST:PORT of its head, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise _no_answer(target, error.strerror or str(error) or type(error).__name__) from None


def _no_answer(target: str, cause: str) -> ClusterError:
    what = cause.strip().splitlines()[0][:160].rstrip(".")
    return ClusterError(f"No Ray cluster answers at {target} ({what}); check --address, or leave it out to run on this machine.")


def _require_token(target: str) -> None:
    """Fails at once where the token is wrong: `ray.init` tries for long, and then says that nothing answers."""
    try:
        GcsClient(address=target)
    except ray.exceptions.AuthenticationError:
        raise ClusterError(f"The Ray cluster at {target} refused the token; {TOKEN_REMEDY}.") from None
    except ray.exceptions.RayError as error:
        raise _no_answer(target, str(error)) from None


def _job_environment() -> dict[str, dict[str, str]]:
    """Lets the cluster's workers import the genopt that this process runs, where it is a checkout on the same machine.

    A Ray job has an environment of its own, which its workers get as it is: Ray refuses two that differ.
    """
    if in_job():
        return {}
    source = Path(__file__).resolve().parents[2]
    paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}


def nodes() -> list[Node]:
    """The alive nodes that have processors, the largest first.

    Raises:
        ClusterError: There is none.
    """
    found = [
        Node(node_id=item["NodeID"], hostname=item["Labels"].get(HOST_LABEL, item["NodeManagerHostname"]), cpus=item["Resources"].get("CPU", 0.0),
             gpus=item["Resources"].get("GPU", 0.0), measures=item["Labels"].get(ROLE_LABEL) != COMPRESS)
        for item in ray.nodes() if item["Alive"] and item["Resources"].get("CPU", 0.0) > 0
    ]  # fmt: skip
    if not found:
        raise ClusterError("The Ray cluster has no node with processors; start one with `ray start --head --num-cpus N`.")
    return sorted(found, key=lambda node: (-node.gpus, -node.cpus, node.node_id))


def measuring_nodes(without: Collection[Node] = ()) -> tuple[Node, ...]:
    """The largest node that may measure and all like it on other hosts: ratios are comparable only between equal machines.

    Two nodes of one host would disturb each other's timing, so that only one of them measures.

    Args:
        without: Nodes that turned out to be gone, which may have been larger than others or stood for their host; none is left where all are.

    Raises:
        ClusterError: There is no such node.
    """
    found = [node for node in nodes() if node.measures]
    if not found:
        raise ClusterError(f"Every node of the Ray cluster is labelled {ROLE_LABEL}={COMPRESS}, so none may measure; start one without that label.")
    left = [node for node in found if node not in without]
    hosts: dict[str, Node] = {}
    for node in left:
        if (node.cpus, node.gpus) == (left[0].cpus, left[0].gpus):
            hosts.setdefault(node.hostname, node)
    return tuple(hosts.values())


def disconnect() -> None:
    """Leaves the cluster; an embedded one ends with it."""
    ray.shutdown()
