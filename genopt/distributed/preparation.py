"""What must be true before a run measures anything: inputs that can be used, a model, a cluster, a folder of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from genopt import catalog
from genopt.distributed import cluster
from genopt.distributed.answering import answering_nodes
from genopt.distributed.candidates import first_candidates
from genopt.distributed.local_files import with_absolute_paths
from genopt.distributed.submitted import in_job
from genopt.distributed.terms import Terms, require_same, require_same_model, require_same_spec, terms_of
from genopt.errors import BudgetError, DeploymentError, InterruptedRunError, ModelError, RunFolderError, SpecError, StorageError
from genopt.models.given import GivenModel, digests_of, resolve_given
from genopt.models.resolve import ResolvedModel, resolve
from genopt.plan import Record
from genopt.progress import Listener
from genopt.report.assemble import assemble
from genopt.report.write import write_reports
from genopt.search.budget import Budget
from genopt.serving.binding import port_is_free
from genopt.spec import RunSpec, build, dump, load
from genopt.store.artifacts import default_root
from genopt.store.run_folder import RunFolder
from genopt.store.shared import is_shared, open_root
from genopt.tasks.base import Task

LEAST_BUDGET_S = 30.0
"""No run ends sooner: Ray, two engines and a compiler have to start."""
SPACE_PER_BYTE = 4.0
"""Free disk asked for per byte of the model: an fp32 export of a bf16 model takes twice its size, its variants as much again."""


class Preparation(Record):
    """A run that may begin; Ray is connected and the folder held by this process.

    Attributes:
        spec: The resolved spec.
        model: The model.
        task: Catalogue name of its task.
        given: Models that the user gave beside it, by kind.
        folder: The run's folder, held.
        store: This machine's folder of the store.
        location: The store as every machine finds it.
        nodes: Nodes that measure.
        libraries: Versions that decide the bytes of artifacts.
        environments: Engine environments that every one of them has, with digests of what they consist of.
        hardware: Digest of the measuring nodes' hardware; empty where they differ.
        cpu: What their processors are called.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    spec: RunSpec
    model: ResolvedModel
    task: str
    given: dict[str, GivenModel]
    folder: RunFolder
    store: Path
    location: str
    nodes: tuple[cluster.Node, ...]
    libraries: dict[str, str]
    environments: dict[str, str]
    hardware: str
    cpu: str


def default_folder(model: str, prefix: str | None = None) -> Path:
    """`runs/<model>-<time>` below the current folder, or below the store in a Ray job, whose current folder is temporary."""
    base = default_root() if in_job() else Path()
    name = prefix or "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in Path(model).name)[:60] or "run"
    return Path(base, "runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")


@contextmanager
def prepare_run(spec: RunSpec, budget: Budget, listener: Listener) -> Iterator[Preparation]:
    """Checks the inputs, finds the model, connects to Ray and makes the run's folder; leaves Ray at the end.

    Raises:
        GenoptError: Something is missing, with the remedy; nothing was written then.
    """
    spec = with_absolute_paths(spec)
    path = Path(spec.out).expanduser() if spec.out else default_folder(spec.model)
    _require_inputs(spec, path)
    listener.budget(budget.spent_s, budget.total_s)
    store = open_root(spec.store)
    phases: dict[str, float] = {}
    with _timed(phases, "resolve", listener, spec.model):
        model = resolve_model(spec, store, listener)
        task = require_task(spec, model)
        given = resolve_given(spec.given, listener.activity)
        first_candidates(spec, task, given)
    with _timed(phases, "connect", listener, "joining or starting Ray"):
        how = cluster.connect(spec.address)
    try:
        listener.activity(f"using {how.description}")
        nodes, facts = answering_nodes(listener)
        location = spec.store if spec.store is not None and is_shared(spec.store) else str(store)
        resolved = spec.model_copy(update={"task": task, "store": location, "out": None})
        folder = RunFolder.create(path, dump(resolved), {"hardware": facts["hardware"], "environment": facts["environment"]})
        with folder.hold():
            try:
                _begin(folder, budget, how, nodes, terms_of(resolved, facts["libraries"], digests_of(given), facts["kind"]))
                folder.append("model_resolved", model=model.model_dump(mode="json"))
                for name, seconds in phases.items():
                    folder.append("phase", name=name, seconds=seconds)
                yield Preparation(
                    spec=spec, model=model, task=task, given=given, folder=folder, store=store, location=location, nodes=nodes,
                    libraries=facts["libraries"], environments=_built(facts), hardware=facts["digest"], cpu=facts["hardware"]["cpu"],
                )  # fmt: skip
            except KeyboardInterrupt:  # between the folder's creation and the run that takes care of its own interruption
                raise interrupted(folder, budget, "there is no baseline yet") from None
    finally:
        cluster.disconnect()


@contextmanager
def prepare_resumption(folder: RunFolder, listener: Listener, *, total_s: float | None) -> Iterator[tuple[Preparation, Budget]]:
    """As `prepare_run`, for a run folder that exists; the budget goes on where it stopped.

    Raises:
        RunFolderError: The run is finished, in use, or its spec, model, data or libraries changed.
        BudgetError: Too little of the budget is left.
    """
    spec, earlier = build(load(folder.path / "spec.yaml")), assemble(folder)
    require_same_spec(folder, spec)
    if not earlier.interrupted and total_s is None:
        raise RunFolderError(f"{folder.path} is finished; search on with a larger total budget, for example --budget {2 * spec.budget:.0f}s.")
    budget = Budget(total_s or earlier.budget.total_s, spent_s=earlier.budget.spent_s)
    if budget.left_s < LEAST_BUDGET_S:
        raise BudgetError(
            f"Only {budget.left_s:.0f} s of the run's budget are left, and measuring the baseline again takes longer; "
            f"give a larger total, for example --budget {budget.total_s + 600:.0f}s."
        )
    with folder.hold():
        store = open_root(spec.store)
        listener.phase("resolve", spec.model)
        model = resolve_model(spec, store, listener)
        require_same_model(folder, earlier.model.digest, model.digest)
        task = require_task(spec, model)
        given = resolve_given(spec.given, listener.activity)
        listener.phase("connect", "joining or starting Ray")
        how = cluster.connect(spec.address)
        try:
            nodes, facts = answering_nodes(listener)
            location = spec.store if spec.store is not None and is_shared(spec.store) else str(store)
            terms = terms_of(spec, facts["libraries"], digests_of(given), facts["kind"])
            require_same(folder, terms)
            _begin(folder, budget, how, nodes, terms)
            folder.append("model_resolved", model=model.model_dump(mode="json"))
            yield Preparation(
                spec=spec, model=model, task=task, given=given, folder=folder, store=store, location=location, nodes=nodes,
                libraries=facts["libraries"], environments=_built(facts), hardware=facts["digest"], cpu=facts["hardware"]["cpu"],
            ), budget  # fmt: skip
        finally:
            cluster.disconnect()


def _built(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: facts["engines"][name] for name, state in facts["environment"]["engine_environments"].items() if state == "built"}


def interrupted(folder: RunFolder, budget: Budget, found: str) -> InterruptedRunError:
    """Ends a run's journal, writes its report, and says how to go on.

    Args:
        folder: The run's folder.
        budget: The clock.
        found: What the report has, as a clause.
    """
    folder.append("run_finished", spent_s=budget.spent_s, interrupted=True, reason="interrupted with Ctrl-C")
    write_reports(folder)
    return InterruptedRunError(f"Interrupted: {found}; continue with `genopt resume {folder.path}`.", {"run": str(folder.path)})


def _begin(folder: RunFolder, budget: Budget, how: cluster.Connection, nodes: tuple[cluster.Node, ...], terms: Terms) -> None:
    """Records with what and where the run runs; host names stay out of the report."""
    shape = {"how": how.description, "nodes": len(nodes), "cpus": nodes[0].cpus, "gpus": nodes[0].gpus}
    folder.append("run_started", budget_s=budget.total_s, spent_s=budget.spent_s, cluster=shape, **terms.model_dump(mode="json"))


@contextmanager
def _timed(phases: dict[str, float], name: str, listener: Listener, detail: str) -> Iterator[None]:
    listener.phase(name, detail)
    started = time.monotonic()
    yield
    phases[name] = time.monotonic() - started


def _require_inputs(spec: RunSpec, path: Path) -> None:
    """Refuses at once what would fail late."""
    RunFolder.require_new(path)
    if spec.budget < LEAST_BUDGET_S:
        raise BudgetError(
            f"A budget of {spec.budget:g} s is below what a baseline needs (at least {LEAST_BUDGET_S:.0f} s, minutes for most models); "
            "give for example --budget 10m."
        )
    if spec.deploy and not port_is_free(spec.host, spec.port):
        raise DeploymentError(f"Port {spec.port} on {spec.host} is taken; stop what listens there or choose another with --port.")


def resolve_model(spec: RunSpec, store: Path, listener: Listener) -> ResolvedModel:
    """Finds the model and makes sure that the store has room for its candidates."""
    model = resolve(spec.model, cache=store / "models", progress=listener.activity, trust_remote_code=spec.trust_remote_code)
    free, needed = shutil.disk_usage(store).free, int(SPACE_PER_BYTE * model.bytes)
    if free < needed:
        raise StorageError(
            f"The store {store} has {free / 1e9:.1f} GB free and candidates of this model need about {needed / 1e9:.1f} GB; "
            "free some or point --store (GENOPT_STORE) to a larger disk."
        )
    return model


def require_task(spec: RunSpec, model: ResolvedModel) -> str:
    """The task's name; it exists, fits the model and can use the spec's inputs."""
    name = spec.task or model.task
    if name not in catalog.names("tasks"):
        raise ModelError(f"There is no task {name!r} for {model.architecture} models yet; genopt optimizes {', '.join(catalog.names('tasks'))}.")
    task: Task = catalog.load("tasks", name)
    if task.modality != model.modality:
        raise SpecError(f"The task {name!r} does not fit {spec.model}, which makes {model.modality}; leave --task out.")
    task.require_inputs(spec)
    return name
