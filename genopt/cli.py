"""The `genopt` command: parses, calls one function, maps errors to exit codes."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genopt.errors import GenoptError, InterruptedRunError, NoWinnerError
from genopt.key_commands import keys as keys_app

if TYPE_CHECKING:
    from genopt.distributed.rollout import Endpoint
    from genopt.distributed.rollout import Listener as Where
    from genopt.progress import Listener
    from genopt.quality.preference import HumanResult
    from genopt.report.model import Report
    from genopt.spec import RunSpec
    from genopt.store.run_folder import RunFolder

QUESTION = "What is machine learning?"
PROMPTS_HELP = "Your own prompts: .txt with one a line, .jsonl with `prompt` or chat `messages`, or .parquet with such a column."



class Progress(StrEnum):
    """How a run says on stderr what it does."""

    auto = "auto"
    lines = "lines"
    json = "json"


app = typer.Typer(
    name="genopt", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Makes generative models faster on a Ray cluster, proves that their quality holds, and serves the winner.\n\n"
    "Exit codes: 0 done with a winner; 1 failure; 2 usage; 3 no candidate passed, baseline kept; 4 the budget ended before a baseline; "
    "5 deployment refused; 130 interrupted, report written.",
)  # fmt: skip

Model = Annotated[str | None, typer.Argument(help="Hugging Face id, folder, .gguf file or built-in name (smollm2-135m).", show_default=False)]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Config = Annotated[Path | None, typer.Option(help="YAML file with a key per flag; flags on the command line win.")]
TaskName = Annotated[str | None, typer.Option(help="Task; inferred from the model unless given.")]
BudgetTime = Annotated[str | None, typer.Option(help="Wall-clock time from start to report, such as 10m.  [default: 60m]")]
Quality = Annotated[str | None, typer.Option(help="Share of the original's quality that must be held.  [default: 99%]")]
ObjectiveName = Annotated[str | None, typer.Option(help="latency, throughput, memory or balanced.  [default: latency]")]
Slo = Annotated[str | None, typer.Option(help="Latency limits, such as ttft_p99=300ms,tpot_p99=30ms.")]
EvalData = Annotated[str | None, typer.Option(help="Text (txt, jsonl, parquet) or questions (jsonl) to judge on.  [default: Python's help texts]")]
EvalTask = Annotated[list[str] | None, typer.Option(help="Task of lm-evaluation-harness for finalists: a name or a YAML file; repeatable.")]
EvalLimit = Annotated[int | None, typer.Option(help="Most items of each task.  [default: all]")]
CalibData = Annotated[str | None, typer.Option(help="Text to calibrate on; must differ from the evaluation text.")]
Include = Annotated[list[str] | None, typer.Option(help="Keep candidates whose name, engine or technique contains this; repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Drop candidates whose name, engine or technique contains this; repeatable.")]
Concurrency = Annotated[str | None, typer.Option(help="Streams at which throughput is measured, such as 1,8,32.  [default: 1,4]")]
Prompts = Annotated[str | None, typer.Option(help=f"{PROMPTS_HELP}  [default: pieces of the calibration text]")]
PromptTokens = Annotated[int | None, typer.Option(help="Tokens of a measured prompt (ISL), unless --prompts brings its own.  [default: 64]")]
OutputTokens = Annotated[int | None, typer.Option(help="New tokens of a measured request (OSL).  [default: 32]")]
ArrivalsOf = Annotated[str | None, typer.Option(
    "--arrivals", help="poisson:RATE or fixed:RATE also measures what callers wait, queueing included, where so many requests a second arrive, "
    "such as poisson:2.5.  [default: closed, which measures nothing beside --concurrency]",
)]  # fmt: skip
Precision = Annotated[str | None, typer.Option(help="Half-width of a speedup's interval at which it counts as decided.  [default: 2%]")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join.  [default: RAY_ADDRESS, else one on this machine, else an embedded one]")]
Store = Annotated[str | None, typer.Option(help="Folder of artifacts, shared by all nodes.  [default: $GENOPT_STORE or the user's cache]")]
Out = Annotated[str | None, typer.Option(help="Run folder to create.  [default: runs/MODEL-TIME]")]
Deploy = Annotated[bool | None, typer.Option("--deploy", help="Serve the winner at the end.")]
Port = Annotated[int | None, typer.Option(help="Port of the deployment.  [default: 8000]")]
MaxTrials = Annotated[int | None, typer.Option(help="Most candidates that the search may add.  [default: until the budget ends]")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.  [default: 0]")]
ProgressStyle = Annotated[Progress, typer.Option(
    "--progress", help="What stderr shows: a table on a terminal and lines elsewhere (auto), lines, or one JSON object per event (json): phase, "
    "budget, started, activity, finished, ended, error, each with `time` and `event`.",
)]  # fmt: skip
TrustRemoteCode = Annotated[bool | None, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]


app.add_typer(keys_app)


@app.callback()
def _globals(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure; works after any verb.")] = False) -> None:
    """Taken out by `main`, and declared here so that `--help` shows it."""


def _spec(model: str | None, config: Path | None, **flags: Any) -> RunSpec:
    """The spec of a file with the given flags laid over it."""
    from genopt.spec import build, load

    values = load(config) if config is not None else {}
    if model is not None:
        values["model"] = model
    values.update({name: value for name, value in flags.items() if value is not None and value != []})
    return build(values)


def _listed(values: str | None) -> list[str] | None:
    return values.split(",") if values is not None else None


@app.command()
def quickstart(
    budget: Annotated[str, typer.Option(help="Wall-clock time of the optimization.")] = "10m",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="End after the first answer instead of serving until Ctrl-C.")] = False,
    out: Out = None,
    store: Store = None,
    address: Address = None,
    port: Annotated[int, typer.Option(help="Port of the deployment.")] = 8000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    include: Include = None,
    max_trials: MaxTrials = None,
) -> None:
    """Fetches SmolLM2-135M-Instruct, optimizes it, serves the winner and asks it one question."""
    from genopt.distributed.preparation import default_folder

    folder = str(out or default_folder("", prefix="quickstart"))
    chosen = {"include": include, "max_trials": max_trials}
    spec = _spec("smollm2-135m", None, budget=budget, out=folder, store=store, address=address, port=port, seed=seed, deploy=True, **chosen)
    found, report = _optimize(spec, Progress.auto)
    with _deployed(found, report, address) as endpoint:
        _ask(endpoint)
        _say(f"report   {found.path.absolute() / 'report.html'}")
        if not no_wait:
            _serve_until_interrupted(endpoint)
    if no_wait:
        _say(f"The deployment has ended; serve it again with `genopt deploy {found.path}`.")


@app.command()
def optimize(
    model: Model = None,
    config: Config = None,
    task: TaskName = None,
    budget: BudgetTime = None,
    quality: Quality = None,
    objective: ObjectiveName = None,
    slo: Slo = None,
    eval_data: EvalData = None,
    eval_task: EvalTask = None,
    eval_limit: EvalLimit = None,
    calib_data: CalibData = None,
    include: Include = None,
    exclude: Exclude = None,
    prompts: Prompts = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    concurrency: Concurrency = None,
    arrivals: ArrivalsOf = None,
    precision: Precision = None,
    address: Address = None,
    store: Store = None,
    out: Out = None,
    deploy: Deploy = None,
    port: Port = None,
    max_trials: MaxTrials = None,
    seed: Seed = None,
    trust_remote_code: TrustRemoteCode = None,
    progress: ProgressStyle = Progress.auto,
    as_json: Json = False,
) -> None:
    """Optimizes a model within a wall-clock budget and writes a report; the main job."""
    spec = _spec(
        model, config, task=task, budget=budget, quality=quality, objective=objective, slo=slo, eval_data=eval_data,
        eval_tasks=eval_task, eval_limit=eval_limit, calib_data=calib_data,
        include=include, exclude=exclude, prompts=prompts, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
        concurrency=_listed(concurrency), arrivals=arrivals, precision=precision, address=address, store=store, out=out,
        deploy=deploy, port=port, max_trials=max_trials, seed=seed, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    _conclude(*_optimize(spec, progress), spec, as_json)


@app.command()
def resume(
    run: RunPath,
    budget: Annotated[str | None, typer.Option(help="New total budget, what was used before included.")] = None,
    progress: ProgressStyle = Progress.auto,
    as_json: Json = False,
) -> None:
    """Continues an interrupted run with the rest of its budget."""
    from genopt.distributed.run import resume_run
    from genopt.spec import build, load
    from genopt.store.run_folder import RunFolder

    folder = RunFolder.existing(run)
    spec = build(load(folder.path / "spec.yaml"))
    total = build({"model": spec.model, "budget": budget}).budget if budget is not None else None
    with _listener(progress) as listener:
        resume_run(folder, listener, total_s=total)
    _conclude(folder, _summarize(folder, progress), spec, as_json)


@app.command()
def plan(
    model: Model = None,
    config: Config = None,
    task: TaskName = None,
    include: Include = None,
    exclude: Exclude = None,
    store: Store = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Json = False,
) -> None:
    """Shows what a run would try, what it is expected to need, and what is ruled out; runs nothing."""
    from genopt.distributed.dry_run import dry_run

    spec = _spec(model, config, task=task, include=include, exclude=exclude, store=store, trust_remote_code=trust_remote_code)
    rows = dry_run(spec, _say)
    if as_json:
        _print_json([row.model_dump(mode="json") for row in rows])
        return
    from genopt.console import print_plan

    print_plan(rows)


@app.command()
def profile(
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the profiler's traces and log.  [default: none are kept]")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Streams for which remedies are weighed, such as 1,8,32.  [default: 1,4]")] = None,
    store: Store = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Json = False,
) -> None:
    """Measures where a model's time goes and how far it is from this machine's limits.

    The model runs as users run it: eager, in its own number format. For its phases you get the time, the share of the memory bandwidth
    (MBU) and of the arithmetic rate (MFU) that it reaches, what limits it, the parts of the model and the operators that take the time,
    the places where torch.compile would break the step's graph, and what each family of remedies can bring at most.

    The limits are this machine's own: reading and copying memory, matrix products per number format, starting an operation. They are
    kept in the store for a week, and measured again when a moment proves them too low.

    With --out FOLDER, open FOLDER/decode.json.gz in ui.perfetto.dev or chrome://tracing to see every operator of a decode step.
    """
    from genopt.distributed.dry_run import profile_model
    from genopt.profile_console import print_profile

    spec = _spec(model, None, concurrency=_listed(concurrency), store=store, trust_remote_code=trust_remote_code)
    found = profile_model(spec, out, _say)
    if as_json:
        _print_json(found)
    else:
        print_profile(found)


@app.command()
def report(
    run: RunPath,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Writes a run's reports again from its records."""
    from genopt.console import print_summary
    from genopt.report.write import write_reports
    from genopt.store.run_folder import RunFolder

    folder = RunFolder.existing(run)
    found = write_reports(folder)
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        print_summary(found)
    if show:
        typer.launch((folder.path / "report.html").absolute().as_uri())


@app.command()
def compare(
    run: RunPath,
    a: Annotated[str | None, typer.Argument(help="First candidate.  [default: the original]", show_default=False)] = None,
    b: Annotated[str | None, typer.Argument(help="Second candidate.  [default: the winner]", show_default=False)] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes one that is free.", min=0, max=65535)] = 8350,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in the network vote.")] = "127.0.0.1",
    raters: Annotated[int, typer.Option(help="How many people vote, each with a link of their own.", min=1, max=1000)] = 1,
    prompts: Annotated[Path | None, typer.Option(help="Prompts: a .txt with one a line, or a .jsonl with `prompt`.  [default: built-in]")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of an answer.", min=1)] = 256,
    results: Annotated[bool, typer.Option("--results", help="Show what people said so far, and serve nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Lets people choose blindly between two candidates' answers; the result stands in the report.

    The answers are generated first and kept in the run folder, so that a candidate's speed cannot be seen. Votes are durable;
    starting again with the same candidates and prompts goes on where people stopped.
    """
    from genopt.store.run_folder import RunFolder

    folder = RunFolder.existing(run)
    if results:
        _show_votes(folder, lambda result: a in (None, result.a) and b in (None, result.b), as_json)
        return
    name = _take_votes(folder, a, b, host=host, port=port, raters=raters, prompts=prompts, max_tokens=max_tokens, as_json=as_json)
    _show_votes(folder, lambda result: result.comparison == name, as_json=False)


def _take_votes(
    folder: RunFolder, a: str | None, b: str | None, *, host: str, port: int, raters: int, prompts: Path | None, max_tokens: int, as_json: bool
) -> str:
    """Serves the page until Ctrl-C; returns the comparison's name."""
    from genopt.compare.voting import comparing
    from genopt.compare_console import AnswerLine

    try:
        with AnswerLine() as line, comparing(
            folder, a=a, b=b, prompts=prompts, max_tokens=max_tokens, host=host, port=port, raters=raters, progress=line
        ) as (server, page):  # fmt: skip
            line.end()
            if as_json:
                _print_json(page.model_dump(mode="json"))
            for link in page.links:
                _say(f"{link.rater}  {link.url}")
            _say(f"Each link is one person's. Taking votes on {page.questions} prompts until Ctrl-C; votes are kept in {page.folder}.")
            try:
                server.wait()
            except KeyboardInterrupt:
                _say("Ending; start again to go on.")
    except KeyboardInterrupt:
        raise InterruptedRunError("Stopped; the answers so far are kept, so start again to go on.") from None
    return page.comparison


def _show_votes(folder: RunFolder, wanted: Callable[[HumanResult], bool], as_json: bool) -> None:
    from genopt.compare_console import print_preference
    from genopt.report.assemble import assemble

    found = [result for result in assemble(folder).human if wanted(result)]
    if as_json:
        _print_json([result.model_dump(mode="json") for result in found])
        return
    for result in found:
        print_preference(result)
    if not found:
        _say("Nobody has voted yet.")


@app.command()
def deploy(
    run: RunPath,
    variant: Annotated[str | None, typer.Option(help="Another accepted candidate, `original` or `baseline`.  [default: the winner]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; public ones need --keys.  [default: 127.0.0.1]")] = None,
    port: Port = None,
    keys: Annotated[str | None, typer.Option(help="File of API keys, made by `genopt key add`.  [default: no keys]")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Serves a run's winner; on an embedded Ray until Ctrl-C, on a cluster until `genopt undeploy`."""
    from genopt.distributed.rollout import Listener as Where
    from genopt.store.run_folder import RunFolder

    folder = RunFolder.existing(run)
    with _deployment(folder, variant, Where(host=host, port=port, keys=keys), address) as endpoint:
        if as_json:
            _print_json(endpoint.model_dump(mode="json"))
        _say_where(endpoint)
        if endpoint.embedded:
            _serve_until_interrupted(endpoint)


@app.command()
def undeploy(
    run: Annotated[Path | None, typer.Argument(help="Run folder to record it in.", show_default=False)] = None,
    address: Address = None,
) -> None:
    """Takes a deployment on a cluster down."""
    from genopt.distributed import cluster, rollout
    from genopt.store.run_folder import RunFolder

    try:
        removed = rollout.undeploy(RunFolder.existing(run) if run is not None else None, address=address)
    finally:
        cluster.disconnect()
    _say("The deployment has ended." if removed else "Nothing of genopt is deployed there.")


@app.command()
def status(
    run: Annotated[Path | None, typer.Argument(help="Run folder; without one, what is deployed on a cluster.", show_default=False)] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Shows how a run stands, from any terminal: phase, budget, candidates, best so far, its driver and deployment."""
    if run is not None:
        _run_status(run, as_json)
        return
    from genopt.console import print_status
    from genopt.distributed import cluster, rollout

    try:
        found = rollout.status(address=address)
    finally:
        cluster.disconnect()
    if as_json:
        _print_json(found)
    else:
        print_status(found)


def _run_status(run: Path, as_json: bool) -> None:
    from genopt.console import print_run_status
    from genopt.report.status import run_status
    from genopt.serving.client import is_ready
    from genopt.store.run_folder import RunFolder

    found = run_status(RunFolder.existing(run))
    if found.deployment is not None:
        found = found.model_copy(update={"answers": is_ready(found.deployment.url)})
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        print_run_status(found)


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="Base URL of an OpenAI-compatible endpoint, with or without /v1.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Model to ask for.  [default: the first that the endpoint lists]")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Closed loop: requests kept under way, a level each.  [default: 1,8,32]")] = None,
    rate: Annotated[str | None, typer.Option(help="Open loop instead: requests a second that arrive at random (Poisson), such as 1,2.")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests per level.  [default: 64; without end where --duration is given]")] = None,
    duration: Annotated[str | None, typer.Option(help="Time per level after which no more requests are sent, such as 30s.")] = None,
    prompts: Annotated[str | None, typer.Option(help=f"{PROMPTS_HELP}  [default: made ones]")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="About how long a made prompt is.  [default: 64]")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens per request.  [default: 64]")] = None,
    stream: Annotated[bool, typer.Option(help="Ask for answers token by token; whole ones have no TTFT, TPOT or ITL.")] = True,
    slo: Annotated[str | None, typer.Option(help="Limits on each request, such as ttft=300ms,tpot=30ms,e2el=5s; gives the goodput.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Time after which a request is given up.  [default: 120s]")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds the key, such as OPENAI_API_KEY.  [default: no key]")] = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; must not exist.")] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG or PNG file to write: throughput against waiting times; must not exist.")] = None,
    as_json: Json = False,
) -> None:
    """Load-tests an OpenAI-compatible endpoint: TTFT, TPOT, ITL, throughput and goodput under limits.

    TPOT = (E2EL - TTFT)/(n - 1) for n tokens. Run it in no process of the server, and best on another machine.
    """
    from genopt.load_console import LoadLine, print_load_test
    from genopt.measure import load_spec
    from genopt.measure.load_plot import load_plot, refuse_other_kinds
    from genopt.measure.load_result import refuse_existing, write_new
    from genopt.measure.load_test import load_test

    spec = load_spec.build({
        "url": url, "model": model, "concurrency": _listed(concurrency), "rate": _listed(rate), "requests": requests, "duration": duration,
        "stream": stream, "prompts": prompts, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, "slo": slo, "timeout": timeout,
        "api_key_env": api_key_env, "seed": seed,
    })  # fmt: skip
    refuse_existing(out, plot)
    refuse_other_kinds(plot)
    with LoadLine() as line:
        found = load_test(spec, line)
    print_load_test(found)
    document = found.model_dump(mode="json")
    if as_json:
        _print_json(document)
    if out is not None:
        write_new(out, json.dumps(document, indent=2).encode() + b"\n")
    if plot is not None:
        write_new(plot, load_plot(found, plot.suffix))
    if found.interrupted:
        _say(f"genopt: Interrupted after {len(found.levels)} of {len(spec.concurrency) + len(spec.rate)} levels; what they gave stands above.")
        raise typer.Exit(InterruptedRunError.exit_code)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def submit(
    verb: Annotated[list[str], typer.Argument(help="After `--`: a verb with its arguments, such as optimize MODEL.", show_default=False)],
    address: Annotated[str | None, typer.Option(help="The cluster's dashboard.  [default: RAY_API_SERVER_ADDRESS or this machine's]")] = None,
    working_dir: Annotated[Path | None, typer.Option(help="Folder to take along; needed for files that the verb names.")] = None,
) -> None:
    """Runs a verb as a Ray job, follows its log and ends with its exit code; Ctrl-C stops the job."""
    from genopt.distributed.jobs import submit_verb

    raise typer.Exit(submit_verb(verb, address=address, working_dir=working_dir, write=sys.stdout.write))


@app.command()
def doctor(address: Address = None, store: Store = None, as_json: Json = False) -> None:
    """Checks this machine, or every node of a cluster; exit code 1 where something would go wrong."""
    from genopt.distributed.diagnosis import diagnose

    problems = diagnose(address, store)
    if as_json:
        _print_json([problem.model_dump(mode="json") for problem in problems])
    for problem in problems:
        _say(f"✗ {problem.what}: {problem.remedy}")
    if problems:
        raise typer.Exit(1)
    _say("✓ nothing to mend")


def _optimize(spec: RunSpec, progress: Progress) -> tuple[RunFolder, Report]:
    """Runs a spec and says how it ended."""
    from genopt.distributed.run import start_run

    with _listener(progress) as listener:
        folder = start_run(spec, listener)
    return folder, _summarize(folder, progress)


@contextmanager
def _listener(progress: Progress) -> Iterator[Listener]:
    from genopt.console import LiveTable, plain
    from genopt.progress import JsonLines

    if progress is Progress.json:
        yield JsonLines(_write_event)
        return
    with LiveTable(plain() if progress is Progress.lines else None) as table:
        yield table


def _write_event(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


def _summarize(folder: RunFolder, progress: Progress) -> Report:
    from genopt.console import print_summary
    from genopt.progress import JsonLines
    from genopt.report.assemble import assemble

    found = assemble(folder)
    if progress is Progress.json:
        JsonLines(_write_event).event("ended", winner=found.winner, decision=found.decision, run=found.run)
    else:
        print_summary(found)
    return found


def _conclude(folder: RunFolder, found: Report, spec: RunSpec, as_json: bool) -> None:
    """Deploys where that was asked for, prints the report, and fails without a winner."""
    if spec.deploy and found.winner is not None:
        with _deployed(folder, found, spec.address) as endpoint:
            _say_where(endpoint)
            if as_json:
                _print_json(_report(folder))
            if endpoint.embedded:
                _serve_until_interrupted(endpoint)
        return
    if as_json:
        _print_json(found.model_dump(mode="json"))
    if found.winner is None:
        _say(f"genopt: {found.decision}")
        raise typer.Exit(NoWinnerError.exit_code)


def _report(folder: RunFolder) -> Any:
    return json.loads((folder.path / "report.json").read_text(encoding="utf-8"))


@contextmanager
def _deployed(folder: RunFolder, found: Report, address: str | None) -> Iterator[Endpoint]:
    if found.winner is None:
        raise NoWinnerError(f"No winner: {found.decision} See {folder.path / 'report.html'} for what was tried.")
    with _deployment(folder, None, None, address) as endpoint:
        yield endpoint


@contextmanager
def _deployment(folder: RunFolder, variant: str | None, where: Where | None, address: str | None) -> Iterator[Endpoint]:
    """A deployment that ends with the block where Ray is embedded, and stays where it is not."""
    from genopt.distributed.rollout import deployed

    with deployed(folder, variant=variant, listener=where, address=address, progress=_say) as endpoint:
        yield endpoint


def _ask(endpoint: Endpoint) -> None:
    from genopt.serving.client import ask, curl_line

    _say(f"question {QUESTION}")
    print("answer   ", end="", flush=True)
    ask(endpoint.url, QUESTION, model=endpoint.model, max_tokens=64, on_text=lambda text: print(text, end="", flush=True))
    print(flush=True)
    _say(f"try it   {curl_line(endpoint.url, endpoint.model, QUESTION)}")


def _say_where(endpoint: Endpoint) -> None:
    from genopt.serving.client import curl_line

    _say(f"{endpoint.variant} answers at {endpoint.url}/v1 as {endpoint.model!r}")
    _say(curl_line(endpoint.url, endpoint.model, QUESTION))


def _serve_until_interrupted(endpoint: Endpoint) -> None:
    _say(f"Serving {endpoint.variant} at {endpoint.url}/v1 until Ctrl-C.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        _say("Ending the deployment.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2), flush=True)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """The first signal interrupts, the second waits for the report, the third gives up."""
    signal.signal(number, _on_second_signal)
    raise KeyboardInterrupt


def _on_second_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    _say("Still ending and writing the report; once more to give up.")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        arguments: Command line without the program's name; `sys.argv` unless given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:own]
    words = [word for place, word in enumerate(words) if place >= own or word != "--debug"]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    try:
        app(args=words, prog_name="genopt")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except GenoptError as error:
        return _failure(error, error.exit_code, words[:own], debug)
    except Exception as error:  # noqa: BLE001 - the last resort: one sentence instead of a traceback
        return _failure(error, 1, words[:own], debug)
    return 0


def _failure(error: Exception, code: int, words: list[str], debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    message = str(error) if isinstance(error, GenoptError) else f"{type(error).__name__}: {error}; run with --debug for the traceback."
    content = {"message": message, "type": type(error).__name__, "exit_code": code}
    if "--json" in words:
        _print_json({"error": content})
    if "--progress=json" in words or ("--progress", "json") in pairwise(words):
        from genopt.progress import JsonLines

        JsonLines(_write_event).event("error", **content)
    else:
        _say(f"genopt: {message}")
    return code
