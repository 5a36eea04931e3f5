"""One run, from a spec to a written report.

The driver holds only metadata: it resolves the model, connects to Ray, lets stages measure, and writes
what it learns into the journal at once, so that at any moment there is a valid answer. Ctrl-C and the
deadline both end with a report of the best so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from genopt import catalog, clock
from genopt.distributed import measuring, sensitivity, stages
from genopt.distributed.benches import Benches, budget_error
from genopt.distributed.earlier import EarlierRuns, measure_finalists
from genopt.distributed.fanout import TICK_S, FanOut
from genopt.distributed.finalists import confirm, items_of
from genopt.distributed.first_node import FirstNode
from genopt.distributed.observers import JournalListener, RayMetrics
from genopt.distributed.outcome import Outcome
from genopt.distributed.parts import Slot
from genopt.distributed.predictions import Predictions
from genopt.distributed.preparation import Preparation, prepare_resumption, prepare_run
from genopt.distributed.references import measure_references
from genopt.distributed.search_phase import SearchPhase
from genopt.distributed.serve_file import write_serve_config
from genopt.distributed.sharing import share
from genopt.distributed.stage_inputs import StageInputs
from genopt.errors import BudgetError, GenoptError, InterruptedRunError, StageError, StageTimeoutError
from genopt.models.given import digests_of
from genopt.plan import Artifact, Candidate, Plan, plan_of
from genopt.progress import Broadcast, Listener
from genopt.report.write import write_reports
from genopt.search import precision
from genopt.search.budget import Budget
from genopt.search.estimate import expected_s
from genopt.search.predict import runtime_of
from genopt.spec import RunSpec
from genopt.store.run_folder import RunFolder
from genopt.store.shared import open_store
from genopt.tasks.base import Evaluation, Prepared, References, Task, failed, fits
from genopt.tasks.text_finalists import TaskScores

PROFILE_LIMIT_S = 120.0
"""The profile is stopped after this many seconds; that of a small model needs a tenth of them on a quiet machine."""
BUSY_S = 300.0
"""How long a node may be somebody else's before the references are measured without it: another run's candidate may take minutes."""


def start_run(spec: RunSpec, listener: Listener) -> RunFolder:
    """Runs a spec from start to written report.

    Args:
        spec: What to do.
        listener: Told what happens.

    Returns:
        The run's folder; its report may name no winner.

    Raises:
        InterruptedRunError: Ctrl-C; the report was written where a run folder existed.
        BudgetError: The budget ended before the baseline was measured.
        GenoptError: Anything else that made the run impossible, with the remedy.
    """
    budget = Budget(spec.budget)
    try:
        with prepare_run(spec, budget, listener) as prepared:
            return _Run(prepared, budget, listener).go()
    except KeyboardInterrupt:
        raise InterruptedRunError("Interrupted before there was a run folder; nothing was written.") from None


def resume_run(folder: RunFolder, listener: Listener, *, total_s: float | None = None) -> RunFolder:
    """Continues an interrupted run with what is left of its budget; finished candidates are kept.

    Args:
        folder: The run's folder.
        listener: Told what happens.
        total_s: A new total budget in seconds, earlier sessions included.

    Raises:
        GenoptError: As `start_run`.
    """
    try:
        with prepare_resumption(folder, listener, total_s=total_s) as (prepared, budget):
            return _Run(prepared, budget, listener).go()
    except KeyboardInterrupt:
        raise InterruptedRunError("Interrupted before the run went on; its folder is as it was.") from None


class _Run:
    """The stages of one session of a run, in order.

    Args:
        prepared: Spec, model, folder and nodes; Ray is connected.
        budget: The clock.
        listener: Told what happens.
    """

    def __init__(self, prepared: Preparation, budget: Budget, listener: Listener) -> None:
        self._spec, self._model, self._folder = prepared.spec, prepared.model, prepared.folder
        self._nodes, self._store, self._location = prepared.nodes, prepared.store, prepared.location
        self._task: Task = catalog.load("tasks", prepared.task)
        self._inputs = StageInputs(prepared)
        self._given = digests_of(prepared.given)
        self._folders = [Path(prepared.model.path), *(Path(one.path) for one in prepared.given.values())]
        self._first_candidates = self._task.catalogue(self._given, prepared.spec.budget)
        self._hardware, self._cpu = prepared.hardware, prepared.cpu
        self._earlier: EarlierRuns | None = None
        self._metrics = RayMetrics(prepared.folder.path.name)
        self._budget, self._listener = budget, Broadcast(listener, JournalListener(prepared.folder), self._metrics)
        self._outcome = Outcome(prepared.folder)
        self._predictions = Predictions(self._task, self._expected_s)
        self._benches = Benches(
            lambda node: measuring.start_bench(node, self._task.name, self._inputs.bench(node, self._prepared, self._shared), self._deadline()),
            self._references_on,
        )  # fmt: skip
        self._references_s = 0.0
        self._first = FirstNode(self._nodes[0], self._folder.logs, self._tick, self._inputs.variables)
        self._search = SearchPhase(
            self._spec, self._task, self._first_candidates, budget, self._outcome, self._predictions, self._benches,
            environments=prepared.environments.keys(), gpus=self._nodes[0].gpus > 0, expected_s=self._expected_s, started=self._started,
            finished=self._ended, tick=self._tick,
        )  # fmt: skip

    def go(self) -> RunFolder:
        """Does all that the budget allows and writes the report, whatever happens."""
        self._outcome.replay()
        try:
            reason = self._stages()
        except KeyboardInterrupt:
            self._finish("interrupted with Ctrl-C", interrupted=True)
            found = "the report has what was found" if self._outcome.references else "there is no baseline yet"
            message = f"Interrupted: {found}; continue with `genopt resume {self._folder.path}`."
            raise InterruptedRunError(message, {"run": str(self._folder.path)}) from None
        except GenoptError as error:
            self._finish(str(error), interrupted=not isinstance(error, BudgetError))
            raise
        except Exception as error:
            self._finish(f"{type(error).__name__}: {error}", interrupted=True)
            raise
        try:
            self._finish(reason, interrupted=False)
        except KeyboardInterrupt:  # the run is done, and what is left takes a moment
            self._finish(reason, interrupted=False)
        return self._folder

    def _stages(self) -> str:
        with self._phase("prepare", "reading the evaluation and calibration data"):
            prepared = self._prepare()
        with self._phase("profile", "where the original's time goes"):
            order = self._profile(prepared)
        with self._phase("baseline", "measuring the original and the baseline"):
            references = self._measure_references(prepared)
        facts = self._inputs.build(self._benches.slots[0][1], prepared, self._shared)
        self._earlier = self._earlier_runs(prepared)
        fan_out = FanOut(
            self._benches.slots, facts, estimate=self._expected_s, promise=self._predictions.promise, started=self._started, finished=self._ended,
            tick=self._tick, recover=self._benches.recover, guard_s=self._budget.guard_s,
        )  # fmt: skip
        self._take_over(fan_out)
        with self._phase("candidates", "one per technique and engine"):
            until = clock.now() + self._budget.until_share("profile", "compress", "measure", "report")  # all but the search's
            late = fan_out.run(self._catalogue(order), until, self._deadline())
        found = self._sensitivity(prepared)
        with self._phase("search", "Ray Tune proposes further candidates"):
            self._search.go(facts, references.baseline, found)
        known = self._outcome.identities()  # the search may have tried what was put off, under its own name
        if left := [plan for plan in late if plan.identity() not in known]:
            with self._phase("candidates", "those that were put off"):
                for plan in fan_out.run(left, self._deadline(), self._deadline()):
                    self._skip(plan)
        self._measure_again(fan_out)
        self._confirm(prepared)
        return self._search.end

    @contextmanager
    def _phase(self, name: str, detail: str) -> Iterator[None]:
        self._listener.phase(name, detail)
        started = time.monotonic()
        try:
            yield
        finally:
            self._folder.append("phase", name=name, seconds=time.monotonic() - started)

    def _deadline(self) -> float:
        """When stages must have ended, on `clock.now`."""
        return clock.now() + self._budget.left_s

    def _tick(self) -> None:
        """Shows time and what the benches do."""
        self._listener.budget(self._budget.spent_s, self._budget.total_s)
        self._listener.activity(self._benches.states(TICK_S))

    def _prepare(self) -> Prepared:
        return Prepared.model_validate(self._first.run(self._task.prepare_stage, self._inputs.preparation(), self._deadline(), stages.BUILD_CPUS))

    def _profile(self, prepared: Prepared) -> list[str]:
        """Profiles the original and returns the order of remedies that follows; a profile that fails costs only itself."""
        earlier = next((event["profile"] for event in self._folder.events() if event["event"] == "profile"), None)
        if earlier is None:
            payload = self._inputs.profile(prepared, self._first.threads)
            # A long download may have used up the profile's share; it may then take a little of what is left.
            deadline = clock.now() + min(PROFILE_LIMIT_S, max(self._budget.until_share("profile"), self._budget.left_s / 6))
            try:
                earlier = self._first.run(self._task.profile_stage, payload, deadline, stages.node_cpus(self._first.node), self._first.gpus)
            except StageError as error:
                self._listener.activity(f"no profile: {error}")
                self._folder.append("profile_failed", reason=str(error))
                return []
            self._folder.append("profile", profile=earlier)
        self._predictions.learn_profile(earlier)
        self._listener.activity(str(earlier.get("advice", "")))
        return list(earlier.get("family_order", []))

    def _measure_references(self, prepared: Prepared) -> References:
        """Starts a bench on every node; the references of the first that could measure them are those of the report."""
        self._prepared, started = prepared, time.monotonic()
        self._shared = share(open_store(self._location), Path(prepared.data).parent, *self._folders)
        try:
            found = self._benches.open(self._nodes)
        except StageError as error:
            if isinstance(error, StageTimeoutError) or self._budget.left_s <= 1:
                raise budget_error(self._budget.total_s) from None
            raise
        self._outcome.set_references(found)
        self._references_s = time.monotonic() - started
        for candidate in (found.original, found.baseline):
            self._listener.finished(candidate)
        for candidate in (found.original, found.baseline, *self._outcome.candidates):
            self._predictions.learn(candidate)
        return found

    def _references_on(self, slots: Sequence[Slot]) -> list[References | GenoptError]:
        """Has benches measure the references, all at once."""
        patience_s = min(BUSY_S, self._budget.left_s / 4)
        return measure_references(slots, self._deadline(), patience_s=patience_s, tick=self._tick, say=self._listener.activity)

    def _catalogue(self, order: list[str]) -> list[Plan]:
        """First candidates that are wanted and did not end before, in the order that the profile suggests."""
        done = self._outcome.identities()
        traits = self._inputs.original().traits
        # The report says how to add the environments of others.
        wanted = [plan for plan in self._first_candidates if self._search.wants(plan) and plan.identity() not in done]
        plans = [plan for plan in wanted if fits(plan, traits)]
        ranks = {family: rank for rank, family in enumerate(order)}
        return sorted(plans, key=lambda plan: min((ranks.get(family, len(ranks)) for family in self._task.families(plan)), default=len(ranks)))

    def _earlier_runs(self, prepared: Prepared) -> EarlierRuns | None:
        """What runs under the same conditions measured; None on nodes of several kinds, between which nothing can be compared."""
        if not self._hardware:
            return None
        part = self._benches.slots[0][1]
        threads = max(1, int(part.cpus))
        conditions = {
            "model": self._model.digest, "task": self._task.name, "data": prepared.digest, "libraries": self._inputs.computing,
            "hardware": self._hardware, "gpus": part.gpus, "threads": threads, "references": [plan.identity() for plan in self._task.references()],
        }  # fmt: skip
        environment = {"cpu": self._cpu, "threads": threads, "libraries": self._inputs.computing}
        return EarlierRuns(self._store, self._folder.path, self._spec, conditions, environment, self._given.values())

    def _take_over(self, fan_out: FanOut) -> None:
        """Takes over what the spec allows of earlier runs, and measures again who would win by that."""
        if self._earlier is None or self._spec.reuse == "nothing":
            return
        if self._spec.reuse == "everything":
            found = self._earlier.take_over(self._outcome.identities())
            for one in found:
                self._ended(one)
            if found:
                self._listener.activity(f"{len(found)} candidates are taken over from earlier runs")
            self._measure_again(fan_out)
        elif known := self._earlier.count(self._catalogue([])):
            self._listener.activity(f"earlier runs measured {known} of the candidates alike; --reuse everything would take their numbers over")

    def _measure_again(self, fan_out: FanOut) -> None:
        """No number of another run makes a winner."""
        if self._spec.reuse != "everything":
            return
        with self._phase("finalists", "measuring again what earlier runs found best"):
            measure_finalists(self._spec, self._outcome, lambda plan: not fan_out.run([plan], self._deadline(), self._deadline()))

    def _sensitivity(self, prepared: Prepared) -> precision.Sensitivity | None:
        """Which parts of the model bear fewer bits; None where that is of no use, or the budget is too short for it."""
        useful = precision.tells_families(self._task.space(), self._search.wants) and self._search.trials_left() != 0
        if not self._task.sensitivity_stage or not useful:
            return None
        payload = self._inputs.sensitivity(prepared)
        return sensitivity.of_run(
            self._folder, self._budget, self._task.sensitivity_stage, payload, self._nodes, self._phase, self._tick, self._inputs.variables
        )  # fmt: skip

    def _confirm(self, prepared: Prepared) -> None:
        """Lets those who would win do tasks, where the spec names some."""
        if not self._task.tasks_stage or self._outcome.references is None:
            return
        own = items_of(self._spec)
        if own is None and not self._spec.eval_tasks:
            return

        def score(plan: Plan, artifact: Artifact) -> list[TaskScores]:
            request = self._inputs.tasks(plan, artifact, prepared, own, self._first.threads)
            payload, cpus = request.model_dump(mode="json"), stages.node_cpus(self._first.node)
            found = self._first.run(self._task.tasks_stage, payload, self._deadline(), cpus, self._first.gpus)
            return [TaskScores.model_validate(item) for item in found["tasks"]]

        with self._phase("finalists", "tasks for those who would win"):
            original, _ = self._task.references()
            confirm(
                self._spec, self._outcome, lambda: score(original, self._inputs.original()), score,
                record=self._revised, left_s=lambda: self._budget.left_s,
            )  # fmt: skip

    def _revised(self, candidate: Candidate) -> None:
        self._outcome.revise(candidate)
        self._listener.finished(candidate)

    def _expected_s(self, plan: Plan) -> float:
        references = self._outcome.references
        known = (references.original, references.baseline) if references else ()
        load_s = {runtime_of(plan_of(one)): one.metrics["load_s"].value for one in known}
        return expected_s(plan, self._outcome.seconds, load_s, self._references_s)

    def _started(self, plan: Plan, seconds: float) -> None:
        predicted = self._predictions.record(plan)
        if predicted is not None:
            self._folder.append("candidate_predicted", name=plan.name, predicted=predicted.model_dump(mode="json"))
        self._listener.started(plan.name, seconds)

    def _ended(self, found: Evaluation) -> None:
        found = found.model_copy(
            update={"candidate": found.candidate.model_copy(update={"predicted": self._predictions.made.get(found.candidate.name)})}
        )
        self._outcome.add(found)
        if self._earlier is not None:
            self._earlier.keep(found)
        self._metrics.measured(found)
        self._predictions.learn(found.candidate)
        self._listener.finished(found.candidate)

    def _skip(self, plan: Plan) -> None:
        reason = f"it needs about {self._expected_s(plan):.0f} s and the budget left {self._budget.left_s:.0f} s; give a larger --budget"
        self._ended(Evaluation(candidate=failed(plan, "skipped", reason)))

    def _finish(self, reason: str, *, interrupted: bool) -> None:
        """Ends all processes of the run and writes the report."""
        self._benches.close()
        self._listener.phase("report", "")
        started = time.monotonic()
        self._outcome.flush()
        self._folder.append("phase", name="report", seconds=time.monotonic() - started)
        self._folder.append("run_finished", spent_s=self._budget.spent_s, interrupted=interrupted, reason=reason)
        report = write_reports(self._folder)
        if report.candidates:
            write_serve_config(self._folder, report)
        self._listener.budget(self._budget.spent_s, self._budget.total_s)
