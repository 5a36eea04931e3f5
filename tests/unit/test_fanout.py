"""How candidates are spread over benches in time, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from genopt.clock import Window
from genopt.distributed import fanout
from genopt.distributed.building import BuildFacts
from genopt.distributed.cluster import Node
from genopt.distributed.fanout import FanOut
from genopt.plan import Artifact, Plan
from genopt.tasks.base import Evaluation, failed

FACTS = BuildFacts(
    store="", original=Artifact(path="", digest="", bytes=0), calibration="", calibration_digest="", logs="", seed=0, threads=1, gpus=1.0,
    libraries={},
)  # fmt: skip


def plan(name: str) -> Plan:
    return Plan(name=name, engine="any")


def gains(one: Plan, _facts: BuildFacts) -> bool:
    return one.name.startswith("wide")


@dataclass
class Work:
    """What a bench does, and when."""

    plan: Plan
    bench: str
    begins: float
    ends: float
    beside_idle: bool
    """Whether it waits while another bench has nothing to do."""


class Simulation:
    """Benches that take up what is submitted to them one after the other, as Ray lets them, while time jumps from one end to the next.

    Args:
        patch: Puts it in the place of Ray and the clock.
        nodes: The node of each bench.
        seconds: What each candidate takes in truth.
    """

    def __init__(self, patch: pytest.MonkeyPatch, nodes: Sequence[str], seconds: Callable[[Plan], float]) -> None:
        self.now = 0.0
        self.slots: list[Any] = [
            (f"bench-{number}", Node(node_id=node, hostname=node, cpus=1.0, gpus=1.0, gpu=str(number))) for number, node in enumerate(nodes)
        ]  # fmt: skip
        self.seconds = seconds
        self.works: list[Work] = []
        self.taken: dict[str, int] = {}
        self.ended: list[str] = []
        self.look: Callable[[], None] = lambda: None
        """Called whenever time is about to go on."""
        self._open: dict[object, Work] = {}
        patch.setattr(fanout, "clock", SimpleNamespace(now=lambda: self.now))
        patch.setattr(fanout, "spreads", gains)
        patch.setattr(fanout, "submit_build", self._build)
        patch.setattr(fanout, "evaluate_on", self._evaluate)
        patch.setattr(fanout, "ray", SimpleNamespace(wait=self._wait, get=self._get, cancel=lambda *_arguments, **_options: None))

    def run(self, plans: Sequence[Plan], until: float, *, estimate: Callable[[Plan], float]) -> list[str]:
        """Names of those that did not fit."""
        fan_out = FanOut(
            self.slots, FACTS, estimate=estimate, promise=lambda one: 0.0, started=lambda one, seconds: None,
            finished=lambda found: self.ended.append(found.candidate.name), tick=lambda: None, recover=lambda slot: None, guard_s=0.0,
        )  # fmt: skip
        return [one.name for one in fan_out.run(plans, until, until)]

    def idle(self) -> set[str]:
        """Benches that nothing is known to be done on, or to be done next."""
        return {bench for bench, _ in self.slots} - {work.bench for work in self._open.values()}

    def _build(self, one: Plan, _facts: BuildFacts, _window: Window, _node: Node | None, *, taken: int) -> object:
        self.taken[one.name] = taken
        return object()

    def _evaluate(self, benches: Mapping[str, str], _node: Node, one: Plan, _built: object, _window: Window) -> object:
        free = {bench: max([self.now, *(work.ends for work in self.works if work.bench == bench)]) for bench in benches.values()}
        bench = min(free, key=lambda name: free[name])
        work = Work(one, bench, free[bench], free[bench] + self.seconds(one), beside_idle=free[bench] > self.now and bool(self.idle()))
        self.works.append(work)
        reference = object()
        self._open[reference] = work
        return reference

    def _wait(self, references: Sequence[object], *, num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        self.look()
        first = min(references, key=lambda reference: self._open[reference].ends)
        if self._open[first].ends > self.now + timeout:
            self.now += timeout
            return [], list(references)
        self.now = max(self.now, self._open[first].ends)
        return [first], [reference for reference in references if reference is not first][num_returns - 1 :]

    def _get(self, reference: object) -> dict[str, Any]:
        return Evaluation(candidate=failed(self._open.pop(reference).plan, "rejected", "any")).model_dump(mode="json")


def test_once_candidates_prove_quick_all_benches_take_up_what_did_not_seem_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Simulation(monkeypatch, ["one", "two", "three", "four"], lambda one: 10.0)
    left_out = found.run([plan(f"{number}") for number in range(20)], 100.0, estimate=lambda one: 10.0 if found.ended else 60.0)
    assert left_out == []
    assert found.now == 50.0, "four at a time, without a pause"


def test_what_did_not_fit_is_returned_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Simulation(monkeypatch, ["one"], lambda one: 10.0)
    slow = {"b": 90.0, "d": 101.0}
    assert found.run([plan(name) for name in "abcd"], 100.0, estimate=lambda one: slow.get(one.name, 20.0)) == ["b", "d"]
    assert found.ended == ["a", "c"]


def test_a_build_that_gains_has_all_gpus_of_its_node_where_nothing_else_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Simulation(monkeypatch, ["one", "one", "other", "other"], lambda one: 10.0)
    plans = [plan(name) for name in ("long", "wide", "longer")]
    assert found.run(plans, 100.0, estimate=lambda one: 50.0 if one.name == "wide" else 200.0) == ["long", "longer"]
    assert found.taken == {"wide": 2}


def test_a_build_that_gains_comes_after_others_that_fit_once_some_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Simulation(monkeypatch, ["one", "one"], lambda one: 10.0)
    plans = [plan(name) for name in ("a", "b", "c", "d", "e", "f", "wide")]
    assert found.run(plans, 100.0, estimate=lambda one: 10.0 if found.ended else 60.0) == []
    assert found.taken["wide"] == 2
    assert found.works[-1].plan.name == "wide"
    assert found.now == 40.0, "the others have shared both"


@given(
    some.integers(1, 5), some.lists(some.integers(1, 60), min_size=1, max_size=20), some.sampled_from([0.2, 1.0, 5.0]), some.integers(0, 5),
    some.integers(20, 200),
)  # fmt: skip
def test_no_bench_is_idle_while_something_waits_that_fits(benches: int, seconds: list[int], error: float, lessons: int, until: int) -> None:
    """However wrong expectations are, until so many have ended."""
    plans = [plan(f"{number}") for number in range(len(seconds))]

    def takes(one: Plan) -> float:
        return float(seconds[int(one.name)])

    with pytest.MonkeyPatch.context() as patch:
        found = Simulation(patch, [f"{number}" for number in range(benches)], takes)

        def estimate(one: Plan) -> float:
            return takes(one) * (error if len(found.ended) < lessons else 1.0)

        def look() -> None:
            submitted = {work.plan.name for work in found.works}
            fitting = [one for one in plans if one.name not in submitted and found.now + estimate(one) <= until]
            assert not (found.idle() and fitting)

        found.look = look
        left_out = found.run(plans, float(until), estimate=estimate)
    assert sorted([*left_out, *(work.plan.name for work in found.works)], key=int) == [one.name for one in plans]
    assert not any(work.beside_idle for work in found.works)
