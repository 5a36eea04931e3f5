"""What must be the same on all nodes of a cluster, or open between them, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from packaging.version import InvalidVersion, Version

from genopt.distributed.probe import NodeFacts, Note, Target
from genopt.environments.place import build_command
from genopt.measure.machine import DECISIVE
from genopt.plan import Record
from genopt.serving.binding import is_loopback

MUST_AGREE = ("python", "ray", "genopt", *DECISIVE)
MOST_SKEW_S = 1.0
"""Deadlines cross machines as times of day; a stage may pass its own by three seconds."""


class Finding(Record):
    """Something that a run on the cluster would stumble over.

    Attributes:
        nodes: Where; empty where it is about the cluster.
        what: The fault.
        remedy: What to do about it.
    """

    nodes: tuple[str, ...] = ()
    what: str
    remedy: str


class Clock(Record):
    """How a node's clock stands to the driver's.

    Attributes:
        ahead_s: By how much it is ahead, as well as the round trip allows to tell.
        uncertainty_s: Half of the round trip.
    """

    ahead_s: float
    uncertainty_s: float


def versions(driver: Mapping[str, str], nodes: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    """Libraries that a node has in another version than the driver, whose builds for other devices count as equal."""
    for name in MUST_AGREE:
        for node, facts in nodes.items():
            here, there = driver.get(name, "none"), facts.versions.get(name, "none")
            if _public(here) == _public(there):
                continue
            remedy = "Install the same on all nodes: one image, one checkout, or `pip install -c constraints.txt`, then restart Ray there."
            yield Finding(nodes=(node,), what=f"{name} is {there}, and {here} where the run starts", remedy=remedy)


def devices(counted: Mapping[str, float], nodes: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    """GPUs that Ray and the driver of the devices do not agree on."""
    for node, facts in nodes.items():
        found = len(facts.hardware["gpus"])
        if int(counted[node]) > found:
            remedy = (
                "Install NVIDIA's driver (in containers: its runtime), or start Ray there with the right --num-gpus and without "
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1, which hides GPUs."
            )
            yield Finding(nodes=(node,), what=f"Ray counts {counted[node]:g} GPU(s) and its tasks see {found}", remedy=remedy)


def environments(nodes: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    """Engine environments that some nodes have and others lack, that were built from another lock, or that differ."""
    names = sorted({name for facts in nodes.values() for name in facts.environments})
    for name in names:
        states = {node: facts.environments.get(name, "absent") for node, facts in nodes.items()}
        outdated = tuple(node for node, state in states.items() if state == "outdated")
        absent = tuple(node for node, state in states.items() if state == "absent")
        if outdated:
            what = f"the engine environment {name!r} was built for other versions than genopt now asks for"
            yield Finding(nodes=outdated, what=what, remedy=f"Run `{build_command(name)}` there.")
        if absent and len(absent) < len(nodes):
            what = f"the engine environment {name!r}, which other nodes have, is not built, so runs do without it"
            yield Finding(nodes=absent, what=what, remedy=f"Run `{build_command(name)}` there.")
        digests = {node: facts.engines[name] for node, facts in nodes.items() if name in facts.engines}
        others = tuple(node for node, digest in digests.items() if digest != next(iter(digests.values())))
        if others:
            what = f"the engine environment {name!r} holds other versions than on {next(iter(digests))}, so runs do without it"
            yield Finding(nodes=others, what=what, remedy=f"Run `genopt env remove {name}` and `{build_command(name)}` on all of them.")


def clocks(found: Mapping[str, Clock]) -> Iterator[Finding]:
    """Clocks that are wrong beyond doubt."""
    for node, clock in found.items():
        if abs(clock.ahead_s) - clock.uncertainty_s > MOST_SKEW_S:
            what = f"the clock is {abs(clock.ahead_s):.1f} s {'ahead of' if clock.ahead_s > 0 else 'behind'} the one where the run starts"
            yield Finding(nodes=(node,), what=what, remedy="Let all nodes keep time, for example with chrony or systemd-timesyncd.")


def storage(location: str, written: Mapping[str, Note], read: Mapping[str, Mapping[str, Note]]) -> Iterator[Finding]:
    """Nodes that cannot use the store, or that see something else there than others.

    Args:
        location: The store.
        written: What each node wrote, by node.
        read: What each node found of what the others wrote, by reader and writer.
    """
    broken = {node: note.error for node, note in written.items() if note.error}
    for node, error in broken.items():
        yield Finding(nodes=(node,), what="the store cannot be used", remedy=error)
    for reader, notes in read.items():
        if reader in broken:
            continue
        failed = next((note.error for note in notes.values() if note.error), "")
        unseen = [writer for writer, note in notes.items() if writer not in broken and note.sha256 != written[writer].sha256]
        if failed:
            yield Finding(nodes=(reader,), what="the store cannot be read", remedy=failed)
        elif unseen:
            what = f"what {' and '.join(unseen)} wrote to the store {location} is not there"
            yield Finding(nodes=(reader,), what=what, remedy="Mount one folder there on every node, or use a bucket: --store s3://BUCKET/PREFIX.")


def ports(blocked: Mapping[str, Sequence[tuple[str, Target]]]) -> Iterator[Finding]:
    """Connections between nodes that fail.

    Args:
        blocked: Whom each node does not reach, with the address.
    """
    for node, targets in blocked.items():
        if targets:
            whom = " and ".join(f"{name} at {host}:{port}" for name, (host, port) in targets)
            remedy = "Open Ray's ports between the nodes: all of them, or those that `ray start` fixes with --node-manager-port and its like."
            yield Finding(nodes=(node,), what=f"it does not reach {whom}", remedy=remedy)


def access(token: bool, addresses: Sequence[str], dashboard: str) -> Iterator[Finding]:
    """Whether strangers could run code: Ray does whatever those who reach it ask.

    Args:
        token: Whether every node asks for a token.
        addresses: Of the nodes.
        dashboard: Address of the dashboard as `HOST:PORT`; empty where there is none.
    """
    if token:
        return
    remedy = "Make a token with `ray get-auth-token --generate`, copy it to all nodes, and start Ray everywhere with RAY_AUTH_MODE=token."
    if dashboard and not is_loopback(dashboard.rpartition(":")[0]):
        yield Finding(what=f"the dashboard at {dashboard} is open to whoever reaches it, and runs what they send", remedy=remedy)
    elif any(not is_loopback(address) for address in addresses):
        yield Finding(what="Ray asks for no token, so whoever reaches its ports can run code on every node", remedy=remedy)


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """The same fault of several nodes as one."""
    found: dict[tuple[str, str], Finding] = {}
    for one in findings:
        known = found.get((one.what, one.remedy))
        found[one.what, one.remedy] = one if known is None else known.model_copy(update={"nodes": (*known.nodes, *one.nodes)})
    return list(found.values())


def _public(version: str) -> str:
    """A version without the part that names a build, such as that for a device; genopt's names its source and stays."""
    try:
        parsed = Version(version)
    except InvalidVersion:
        return version
    return parsed.public if parsed.local is None or parsed.local.startswith(("cpu", "cu", "rocm")) else version
