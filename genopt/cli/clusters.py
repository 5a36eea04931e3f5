"""Verbs about clusters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json


def submit(
    verb: Annotated[list[str], typer.Argument(help="After `--`: a verb with its arguments, such as optimize MODEL.", show_default=False)],
    address: Annotated[str | None, typer.Option(help="The cluster's dashboard.  [default: RAY_API_SERVER_ADDRESS or this machine's]")] = None,
    working_dir: Annotated[Path | None, typer.Option(help="Folder to take along; needed for files that the verb names.")] = None,
) -> None:
    """Runs a verb as a Ray job, follows its log and ends with its exit code; Ctrl-C stops the job."""
    from genopt.distributed.jobs import submit_verb

    raise typer.Exit(submit_verb(verb, address=address, working_dir=working_dir, write=sys.stdout.write))


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
