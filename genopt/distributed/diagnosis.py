"""`genopt doctor`: what would go wrong on this machine or on the nodes of a cluster."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray._private.worker import get_dashboard_url
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genopt.distributed import agreement, cluster, probe
from genopt.distributed.agreement import Clock, Finding
from genopt.distributed.probe import NodeFacts, NodeProbe, Note, Target
from genopt.errors import GenoptError
from genopt.plan import Record
from genopt.store.shared import is_shared, open_root

ANSWER_S = 60.0
"""For all nodes together to answer one question: starting a worker takes seconds, a bucket that does not answer pyarrow's retries."""
EXCHANGES = 3
"""Readings of each clock; the one with the shortest round trip tells most."""
HERE = "this machine"


class Examined(Record):
    """A node that was looked at.

    Attributes:
        name: Its host's name, or what its label says.
        address: Empty on a machine without a cluster.
        facts: None where it did not answer.
        clock: None on a machine without a cluster, and where it did not answer.
    """

    name: str
    address: str = ""
    facts: NodeFacts | None = None
    clock: Clock | None = None


class Diagnosis(Record):
    """What was found.

    Attributes:
        cluster: Address of the cluster; empty for this machine alone.
        dashboard: Where it listens, as `HOST:PORT`; empty where there is none.
        token: Whether all nodes ask for a token; None for this machine alone.
        store: The store.
        nodes: Every node.
        findings: What to mend; empty where a run can begin.
    """

    cluster: str = ""
    dashboard: str = ""
    token: bool | None = None
    store: str
    nodes: tuple[Examined, ...]
    findings: tuple[Finding, ...]


def diagnose(address: str | None, store: str | None) -> Diagnosis:
    """Looks at every node of the cluster that a run would join, or at this machine where it would start its own Ray.

    Args:
        address: As in `cluster.connect`.
        store: Folder of artifacts, or a bucket.

    Raises:
        ClusterError: The cluster does not answer, refuses the token, or runs another Ray.
    """
    location = store or os.environ.get("GENOPT_STORE") or ""
    findings = []
    try:
        root = open_root(store)
        location = location if is_shared(store) else str(root)
    except GenoptError as error:
        findings.append(Finding(nodes=(HERE,), what="the store cannot be used", remedy=str(error)))
    if not cluster.joins(address):
        facts = probe.facts(location)
        findings += [Finding(nodes=(HERE,), what=item.what, remedy=item.remedy) for item in facts.problems]
        findings += agreement.environments({HERE: facts})
        return Diagnosis(store=location, nodes=(Examined(name=HERE, facts=facts),), findings=tuple(agreement.merged(findings)))
    cluster.connect(address, embedded=False)
    try:
        found = _Examination(location).diagnosis()
    finally:
        cluster.disconnect()
    return found.model_copy(update={"findings": tuple(agreement.merged([*findings, *found.findings]))})


class _Examination:
    """Asks all nodes of the cluster that this process is connected to.

    Args:
        location: The store.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._nodes: dict[str, dict[str, Any]] = dict(sorted(_named([item for item in ray.nodes() if item["Alive"]])))
        actor = ray.remote(num_cpus=0, max_restarts=0)(NodeProbe)  # so that it works beside a run and on nodes without processors
        self._probes: dict[str, ActorHandle[Any]] = {
            name: actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(item["NodeID"], soft=False)).remote(location)
            for name, item in self._nodes.items()
        }  # fmt: skip
        self._findings: list[Finding] = []

    def diagnosis(self) -> Diagnosis:
        """Everything about the cluster."""
        facts = {name: NodeFacts.model_validate(answer) for name, answer in self._answers(lambda _, actor: actor.facts.remote()).items()}
        driver = probe.facts(self._location).versions
        clocks = self._clocks()
        dashboard = str(get_dashboard_url() or "")
        token = bool(facts) and all(one.token for one in facts.values())
        works = {name: one for name, one in facts.items() if self._counted(name, "CPU") > 0}
        for name, one in facts.items():
            self._findings += [Finding(nodes=(name,), what=item.what, remedy=item.remedy) for item in one.problems]
        self._findings += [
            *agreement.versions(driver, facts),
            *agreement.devices({name: self._counted(name, "GPU") for name in facts}, facts),
            *agreement.environments(works),
            *agreement.clocks(clocks),
            *agreement.ports(self._blocked()),
            *agreement.access(token, [str(item["NodeManagerAddress"]) for item in self._nodes.values()], dashboard),
        ]
        self._exchange()
        examined = [
            Examined(name=name, address=str(item["NodeManagerAddress"]), facts=facts.get(name), clock=clocks.get(name))
            for name, item in self._nodes.items()
        ]  # fmt: skip
        return Diagnosis(
            cluster=ray.get_runtime_context().gcs_address, dashboard=dashboard, token=token, store=self._location, nodes=tuple(examined),
            findings=tuple(self._findings),
        )  # fmt: skip

    def _counted(self, name: str, resource: str) -> float:
        return float(self._nodes[name]["Resources"].get(resource, 0.0))

    def _answers(self, ask: Callable[[str, ActorHandle[Any]], ray.ObjectRef[Any]]) -> dict[str, Any]:
        """Answers of the nodes, all at once; one that gives none is noted and asked nothing more."""
        asked = {name: ask(name, actor) for name, actor in self._probes.items()}
        answers, until = {}, time.monotonic() + ANSWER_S
        for name, reference in asked.items():
            try:
                answers[name] = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
            except RayError as error:
                self._give_up(name, error)
        return answers

    def _give_up(self, name: str, error: RayError) -> None:
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1][:160]
        remedy = "See `ray status` and the logs below /tmp/ray/session_latest/logs there, then restart Ray on it."
        self._findings.append(Finding(nodes=(name,), what=f"it does not answer ({cause})", remedy=remedy))
        del self._probes[name]

    def _clocks(self) -> dict[str, Clock]:
        """Every clock against this process's, as NTP does it: the node's reading belongs to the middle of the round trip."""
        found: dict[str, Clock] = {}
        for name, actor in list(self._probes.items()):
            for _ in range(EXCHANGES):
                sent = time.time()
                try:
                    there = float(ray.get(actor.now.remote(), timeout=ANSWER_S))
                except RayError as error:
                    self._give_up(name, error)
                    break
                half = (time.time() - sent) / 2
                if name not in found or half < found[name].uncertainty_s:
                    found[name] = Clock(ahead_s=there - (sent + half), uncertainty_s=half)
        return found

    def _blocked(self) -> dict[str, list[tuple[str, Target]]]:
        """Whom each node cannot reach."""
        targets = {
            (str(item["NodeManagerAddress"]), int(port)): name
            for name, item in self._nodes.items() for port in (item["NodeManagerPort"], item["ObjectManagerPort"])
        }  # fmt: skip
        answers = self._answers(lambda _, actor: actor.unreachable.remote(list(targets)))
        return {name: [(targets[tuple(target)], tuple(target)) for target in answer] for name, answer in answers.items()}

    def _exchange(self) -> None:
        """Every node and this process write to the store and read what all wrote."""
        session = uuid.uuid4().hex
        names = {name: f"{session}-{place}" for place, name in enumerate((HERE, *self._probes))}
        answers = self._answers(lambda name, actor: actor.write.remote(names[name]))
        written = {HERE: probe.write_note(self._location, names[HERE]), **_notes(answers)}
        order = [name for name in names if name in written]
        paths = [names[name] for name in order]
        read = {HERE: probe.read_notes(self._location, paths)}
        read |= {name: dict(_notes(answer)) for name, answer in self._answers(lambda _, actor: actor.read.remote(paths)).items()}
        by_writer = {reader: {name: found[names[name]] for name in order} for reader, found in read.items()}
        self._findings += agreement.storage(self._location, written, by_writer)
        with contextlib.suppress(GenoptError):
            probe.remove_notes(self._location, paths)


def _notes(answers: Mapping[str, Any]) -> dict[str, Note]:
    return {name: Note.model_validate(answer) for name, answer in answers.items()}


def _named(items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Nodes by the name of their machine; those that share one get a part of their own name, too."""
    hosts = [str(item["Labels"].get(cluster.HOST_LABEL, item["NodeManagerHostname"])) for item in items]
    for host, item in zip(hosts, items, strict=True):
        yield (host if hosts.count(host) == 1 else f"{host} ({item['NodeID'][:6]})"), dict(item)
