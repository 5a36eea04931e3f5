"""Verbs about clusters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json, say


def submit(
    verb: Annotated[list[str], typer.Argument(help="After `--`: a verb with its arguments, such as optimize MODEL.", show_default=False)],
    address: Annotated[str | None, typer.Option(help="The cluster's dashboard.  [default: RAY_API_SERVER_ADDRESS or this machine's]")] = None,
    working_dir: Annotated[Path | None, typer.Option(help="Folder to take along; needed for files that the verb names.")] = None,
) -> None:
    """Runs a verb as a Ray job, follows its log and ends with its exit code; Ctrl-C stops the job."""
    from genopt.distributed.jobs import submit_verb

    raise typer.Exit(submit_verb(verb, address=address, working_dir=working_dir, write=sys.stdout.write))


def doctor(address: options.Address = None, store: options.Store = None, as_json: options.Json = False) -> None:
    """Checks this machine, or every node of a cluster; exit code 1 where something would go wrong."""
    from genopt.distributed.diagnosis import diagnose

    problems = diagnose(address, store)
    if as_json:
        print_json([problem.model_dump(mode="json") for problem in problems])
    for problem in problems:
        say(f"✗ {problem.what}: {problem.remedy}")
    if problems:
        raise typer.Exit(1)
    say("✓ nothing to mend")
