"""The sleep task with a space of a hundred points, whose speed and quality add up from their choices as those of real formats do."""

from __future__ import annotations

from collections.abc import Mapping

from genopt import clock
from genopt.plan import Artifact, Plan
from genopt.search.space import Owner, Point, Space, Tunable
from genopt.tasks.base import Bench, BenchConfig, Evaluation, Progress
from genopt.testing.sleep_task import SleepBench, SleepOptions, SleepTask

LOSS: Mapping[str, float] = {"a": 0.001, "b": 0.002, "c": 0.004, "d": 0.02, "e": 0.05, "f": 0.1}
"""What each family loses of the quality at 4 bits, where each saves a tenth of the time."""
SPARED = 1.5
"""Times as long without a thread."""


def outcome(plan: Plan) -> SleepOptions:
    """Speed and quality of a point."""
    low = [family for family in LOSS if plan.options.get(family) == 4]
    slower = SPARED if plan.options.get("spare") else 1.0
    return SleepOptions(speed=1 / ((1 - 0.1 * len(low)) * slower), quality=1 - sum(LOSS[family] for family in low))


class WideBench(SleepBench):
    """See `genopt.tasks.base.Bench`."""

    def evaluate(self, plan: Plan, artifact: Artifact, deadline: float, progress: Progress) -> Evaluation:
        """See `Bench.evaluate`."""
        started = clock.now()
        return Evaluation(candidate=self._candidate(plan, artifact, outcome(plan)), seconds=clock.now() - started)


class WideTask(SleepTask):
    """See `genopt.tasks.base.Task`."""

    name = "wide"

    @staticmethod
    def space() -> Space:
        """Six families at 8 or 4 bits, with all threads or one fewer."""
        families = (Tunable(name=family, choices=(8, 4), words=("", f"{family}4")) for family in LOSS)
        tunables = (*families, Tunable(name="spare", choices=(0, 1), words=("all", "spare")))
        return Space(engines=(Owner(name="fake", word="", tunables=tunables, accepts=frozenset({"hf"})),), techniques=())

    @staticmethod
    def seeds() -> list[Point]:
        """All at 8 bits, all at 4, and one of each half."""
        space = WideTask.space()
        low = {f"fake.{family}": 4 for family in LOSS}
        return [space.complete(point) for point in ({}, low, {"fake.a": 4, "fake.f": 4}, {"fake.spare": 1, "fake.b": 4})]

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench."""
        return WideBench(config)
