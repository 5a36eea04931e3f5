"""Verbs about clusters and what runs on them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json, say

if TYPE_CHECKING:
    from genopt.distributed.jobs import Job, Jobs

Dashboard = Annotated[
    str | None, typer.Option("--address", help="The cluster's dashboard.  [default: RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265]")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `genopt jobs` shows it.", show_default=False)]


def submit(
    verb: Annotated[list[str], typer.Argument(help="After `--`: a verb with its arguments, such as optimize MODEL.", show_default=False)],
    address: Dashboard = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and end; follow it later with `genopt jobs JOB`.")] = False,
    working_dir: Annotated[Path | None, typer.Option(
        help="Folder to take along, without what its .rayignore and .gitignore list.  [default: the files that the verb names by relative paths]",
    )] = None,
    entrypoint_num_cpus: Annotated[float, typer.Option(min=0, help="Processors that the job's own process takes; it needs none.")] = 0.0,
    entrypoint_memory: Annotated[str | None, typer.Option(help="Memory that it takes, such as 4GB.")] = None,
    entrypoint_label: Annotated[list[str] | None, typer.Option(
        metavar="KEY=VALUE", help="Label of the node that it runs on; repeatable.  [default: the head]",
    )] = None,
) -> None:  # fmt: skip
    """Runs a verb as a Ray job, follows its log and ends with its exit code; Ctrl-C stops the job, which writes its report first.

    The model, data and the run's folder must be where the cluster's nodes find them: an id, a URI, or a folder that they share. Small files
    that the verb names by a relative path go along. Continue a job that was stopped with: genopt submit -- resume RUN
    """
    from genopt.distributed.jobs import Entrypoint, Jobs, require_verb

    require_verb(verb)
    memory = options.size_bytes(entrypoint_memory) or 0
    entrypoint = Entrypoint(num_cpus=entrypoint_num_cpus, memory=memory, labels=options.pairs(entrypoint_label))
    jobs = Jobs(address)
    job = jobs.submit(verb, working_dir=working_dir, entrypoint=entrypoint)
    if detach:
        say(f"It runs at {jobs.address}; follow it with `genopt jobs {job}`, end it with `genopt stop {job}`.")
        print(job, flush=True)
        return
    say(f"{job} runs at {jobs.address}")
    raise typer.Exit(_followed(jobs, job))


def list_jobs(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Follow this one's log and end with its exit code.", show_default=False)] = None,
    address: Dashboard = None,
    as_json: options.Json = False,
) -> None:
    """Lists a cluster's genopt jobs, or follows one; Ctrl-C leaves it running."""
    from genopt.distributed.jobs import Jobs

    jobs = Jobs(address)
    if job is not None:
        raise typer.Exit(jobs.follow(job, _write, say))
    found = jobs.listed()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    for one in found:
        say(_line(one))
    if not found:
        say(f"genopt has no job at {jobs.address}.")


def stop(job: JobId, address: Dashboard = None, as_json: options.Json = False) -> None:
    """Stops a job as Ctrl-C would: its run keeps its journal and writes its report."""
    from genopt.distributed.jobs import Jobs

    ended = Jobs(address).stop(job)
    if as_json:
        print_json(ended.model_dump(mode="json"))
    say(_line(ended))
    say(_outlook(ended))


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _followed(jobs: Jobs, job: str) -> int:
    try:
        return jobs.follow(job, _write, say)
    except KeyboardInterrupt:
        say(f"Stopping {job}; a run that it has begun writes its report first.")
        say(_outlook(jobs.stop(job)))
        return 130


def _outlook(job: Job) -> str:
    """What comes after a job that was told to stop."""
    if job.waits:
        from genopt.distributed.jobs import START_TIMEOUT

        return f"{job.id} had not started: it is stopped when it gets its place, and Ray gives it up {START_TIMEOUT}."
    return "Go on with: genopt submit -- resume RUN"


def _line(job: Job) -> str:
    from genopt.report.wording import duration

    took = f" for {duration((job.ended or time.time()) - job.started)}" if job.started else ""
    code = f", exit code {job.exit_code}" if job.exit_code is not None else ""
    return f"{job.id}  {job.status.lower()}{took}{code}  {job.command}"


def doctor(address: options.Address = None, store: options.Store = None, as_json: options.Json = False) -> None:
    """Checks every node of the cluster that a run would join, or this machine; exit code 1 where something would go wrong.

    Every node must have the same Python, Ray, genopt and libraries, memory, disk, a clock that agrees, and the same store; nodes must reach
    each other, strangers nothing; an engine environment is of use where every node has it. Each fault comes with its remedy.
    """
    from genopt.console.diagnosis import print_diagnosis
    from genopt.distributed.diagnosis import diagnose

    found = diagnose(address, store)
    if as_json:
        print_json(found.model_dump(mode="json"))
    print_diagnosis(found)
    if found.findings:
        raise typer.Exit(1)
