"""Verbs that make runs and show what they found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genopt.cli import options
from genopt.cli.deployments import ask_once, deployed_winner, say_where, serve_until_interrupted
from genopt.cli.options import Progress, given_of, listed, reuse_of, spec_of
from genopt.cli.output import print_json, say, shown, write_event
from genopt.errors import NoWinnerError

if TYPE_CHECKING:
    from genopt.report.model import Report
    from genopt.spec import RunSpec
    from genopt.store.run_folder import RunFolder

SERVING_S, SERVING_SHARE = 40.0, 0.1
"""What of a quickstart's time is kept for starting the command and for deploying and asking the winner, at most."""


def quickstart(
    model: Annotated[str, typer.Option(help="A model that comes without a hub.")] = "smollm2-135m",
    budget: Annotated[str, typer.Option(help="Wall-clock time until the winner has answered.")] = "10m",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="End after the first answer instead of serving until Ctrl-C.")] = False,
    out: options.Out = None,
    store: options.Store = None,
    address: options.Address = None,
    port: Annotated[int, typer.Option(help="Port of the deployment.")] = 8000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    include: options.Include = None,
    max_trials: options.MaxTrials = None,
    fresh: options.Fresh = False,
) -> None:
    """Fetches SmolLM2-135M-Instruct, or what --model names, optimizes it, serves the winner and asks it once."""
    from genopt.distributed.preparation import default_folder

    folder = str(out or default_folder("", prefix="quickstart"))
    chosen = {"include": include, "max_trials": max_trials, "reuse": reuse_of(fresh, None)}
    spec = spec_of(model, None, budget=budget, out=folder, store=store, address=address, port=port, seed=seed, deploy=True, **chosen)
    spec = spec.model_copy(update={"budget": spec.budget - min(SERVING_S, SERVING_SHARE * spec.budget)})
    found, report = _optimize(spec, Progress.auto)
    with deployed_winner(found, report, address) as endpoint:
        ask_once(endpoint)
        say(f"report   {found.path.absolute() / 'report.html'}")
        if not no_wait:
            serve_until_interrupted(endpoint)
    if no_wait:
        say(f"The deployment has ended; serve it again with `genopt deploy {found.path}`.")


def optimize(
    model: options.Model = None,
    config: options.Config = None,
    task: options.TaskName = None,
    budget: options.BudgetTime = None,
    quality: options.Quality = None,
    objective: options.ObjectiveName = None,
    slo: options.Slo = None,
    eval_data: options.EvalData = None,
    eval_task: options.EvalTask = None,
    eval_limit: options.EvalLimit = None,
    calib_data: options.CalibData = None,
    scorer: options.Scorer = None,
    given: options.Given = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    prompts: options.Prompts = None,
    prompt_tokens: options.PromptTokens = None,
    output_tokens: options.OutputTokens = None,
    concurrency: options.Concurrency = None,
    arrivals: options.ArrivalsOf = None,
    precision: options.Precision = None,
    address: options.Address = None,
    store: options.Store = None,
    out: options.Out = None,
    deploy: options.Deploy = None,
    port: options.Port = None,
    max_trials: options.MaxTrials = None,
    seed: options.Seed = None,
    trust_remote_code: options.TrustRemoteCode = None,
    reuse: options.ReuseOf = None,
    fresh: options.Fresh = False,
    progress: options.ProgressStyle = Progress.auto,
    as_json: options.Json = False,
) -> None:
    """Optimizes a model within a wall-clock budget and writes a report; the main job."""
    spec = spec_of(
        model, config, task=task, budget=budget, quality=quality, objective=objective, slo=slo, eval_data=eval_data,
        eval_tasks=eval_task, eval_limit=eval_limit, calib_data=calib_data, scorer=scorer, given=given_of(given),
        include=include, exclude=exclude, prompts=prompts, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
        concurrency=listed(concurrency), arrivals=arrivals, precision=precision, address=address, store=store, out=out,
        deploy=deploy, port=port, max_trials=max_trials, seed=seed, trust_remote_code=trust_remote_code, reuse=reuse_of(fresh, reuse),
    )  # fmt: skip
    _conclude(*_optimize(spec, progress), spec, as_json)


def resume(
    run: options.RunPath,
    budget: Annotated[str | None, typer.Option(help="New total budget, what was used before included.")] = None,
    progress: options.ProgressStyle = Progress.auto,
    as_json: options.Json = False,
) -> None:
    """Continues an interrupted run with the rest of its budget."""
    from genopt.distributed.run import resume_run
    from genopt.spec import build, load
    from genopt.store.run_folder import RunFolder

    folder = RunFolder.existing(run)
    spec = build(load(folder.path / "spec.yaml"))
    total = build({"model": spec.model, "budget": budget}).budget if budget is not None else None
    with shown(progress) as listener:
        resume_run(folder, listener, total_s=total)
    _conclude(folder, _summarize(folder, progress), spec, as_json)


def plan(
    model: options.Model = None,
    config: options.Config = None,
    task: options.TaskName = None,
    given: options.Given = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    store: options.Store = None,
    trust_remote_code: options.TrustRemoteCode = None,
    as_json: options.Json = False,
) -> None:
    """Shows what a run would try, what it is expected to need, and what is ruled out; runs nothing."""
    from genopt.distributed.dry_run import dry_run

    spec = spec_of(
        model, config, task=task, given=given_of(given), include=include, exclude=exclude, store=store, trust_remote_code=trust_remote_code
    )  # fmt: skip
    rows = dry_run(spec, say)
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    from genopt.console.run import print_plan

    print_plan(rows)


def profile(
    model: options.Model = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the profiler's traces and log.  [default: none are kept]")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Streams for which remedies are weighed, such as 1,8,32.  [default: 1,4]")] = None,
    store: options.Store = None,
    trust_remote_code: options.TrustRemoteCode = None,
    as_json: options.Json = False,
) -> None:
    """Measures where a model's time goes and how far it is from this machine's limits.

    The model runs as users run it: eager, in its own number format. For its phases you get the time, the share of the memory bandwidth
    (MBU) and of the arithmetic rate (MFU) that it reaches, what limits it, the parts of the model and the operators that take the time,
    the places where torch.compile would break the step's graph, and what each family of remedies can bring at most.

    The limits are this machine's own: reading and copying memory, matrix products per number format, starting an operation. They are
    kept in the store for a week, and measured again when a moment proves them too low.

    With --out FOLDER, open FOLDER/decode.json.gz in ui.perfetto.dev or chrome://tracing to see every operator of a decode step.
    """
    from genopt.console.profile import print_profile
    from genopt.distributed.dry_run import profile_model

    spec = spec_of(model, None, concurrency=listed(concurrency), store=store, trust_remote_code=trust_remote_code)
    found = profile_model(spec, out, say)
    if as_json:
        print_json(found)
    else:
        print_profile(found)


def report(
    run: options.RunPath,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: options.Json = False,
) -> None:
    """Writes a run's reports again from its records."""
    from genopt.console.run import print_summary
    from genopt.report.write import write_reports
    from genopt.store.run_folder import RunFolder

    folder = RunFolder.existing(run)
    found = write_reports(folder)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_summary(found)
    if show:
        typer.launch((folder.path / "report.html").absolute().as_uri())


def export(
    run: options.RunPath,
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option(help="Program that must take it: transformers, vllm, llama.cpp, ollama, onnxruntime-genai or openvino.  [default: any]"),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Another accepted candidate, `original` or `baseline`.  [default: the winner]")] = None,
    as_json: options.Json = False,
) -> None:
    """Copies a run's winner out of the store, with what other programs need to run it and a note of where it comes from."""
    from genopt.report.export import export as write
    from genopt.store.run_folder import RunFolder

    found = write(RunFolder.existing(run), out, to=to, variant=variant)
    say(f"✓ {found.variant} ({found.bytes / 1e6:,.0f} MB) is in {found.folder}, for {' or '.join(found.formats)}; GENOPT.md says how to run it")
    if as_json:
        print_json(found.model_dump(mode="json"))


def _optimize(spec: RunSpec, progress: Progress) -> tuple[RunFolder, Report]:
    """Runs a spec and says how it ended."""
    from genopt.distributed.run import start_run

    with shown(progress) as listener:
        folder = start_run(spec, listener)
    return folder, _summarize(folder, progress)


def _summarize(folder: RunFolder, progress: Progress) -> Report:
    from genopt.console.run import print_summary
    from genopt.progress import JsonLines
    from genopt.report.assemble import assemble

    found = assemble(folder)
    if progress is Progress.json:
        JsonLines(write_event).event("ended", winner=found.winner, decision=found.decision, run=found.run)
    else:
        print_summary(found)
    return found


def _conclude(folder: RunFolder, found: Report, spec: RunSpec, as_json: bool) -> None:
    """Deploys where that was asked for, prints the report, and fails without a winner."""
    if spec.deploy and found.winner is not None:
        with deployed_winner(folder, found, spec.address) as endpoint:
            say_where(endpoint)
            if as_json:
                print_json(_report(folder))
            if endpoint.embedded:
                serve_until_interrupted(endpoint)
        return
    if as_json:
        print_json(found.model_dump(mode="json"))
    if found.winner is None:
        say(f"genopt: {found.decision}")
        raise typer.Exit(NoWinnerError.exit_code)


def _report(folder: RunFolder) -> Any:
    return json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
