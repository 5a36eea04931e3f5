"""The `genopt` command: parses, calls one function, maps errors to exit codes."""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from itertools import pairwise
from typing import Annotated

import typer

from genopt.cli import clusters, deployments, load, people, runs
from genopt.cli.environments import environments
from genopt.cli.interruption import interruptible
from genopt.cli.keys import keys
from genopt.cli.manifests import manifests
from genopt.cli.output import document_alone, print_json, say, write_event
from genopt.cli.stores import stores
from genopt.errors import GenoptError

app = typer.Typer(
    name="genopt", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Makes generative models faster on a Ray cluster, proves that their quality holds, and serves the winner.\n\n"
    "Exit codes: 0 done with a winner; 1 failure; 2 usage; 3 no candidate passed, baseline kept; 4 the budget ended before a baseline; "
    "5 deployment refused or rolled back; 130 interrupted, report written.",
)  # fmt: skip

for _verb in (
    runs.quickstart, runs.optimize, runs.resume, runs.plan, runs.profile, runs.report, runs.export, people.compare, deployments.deploy,
    deployments.undeploy, deployments.promote, deployments.rollback, deployments.status, load.bench,
):  # fmt: skip
    app.command()(_verb)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(clusters.submit)
app.command("jobs")(clusters.list_jobs)
app.command()(clusters.stop)
app.command()(clusters.doctor)
app.add_typer(keys)
app.add_typer(environments)
app.add_typer(stores)
app.add_typer(manifests)


@app.callback()
def _globals(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure; works after any verb.")] = False) -> None:
    """Taken out by `main`, and declared here so that `--help` shows it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        arguments: Command line without the program's name; `sys.argv` unless given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:own]
    words = [word for place, word in enumerate(words) if place >= own or word != "--debug"]
    try:
        with interruptible(), document_alone() if "--json" in words[:own] else nullcontext():
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
        print_json({"error": content})
    if "--progress=json" in words or ("--progress", "json") in pairwise(words):
        from genopt.progress import JsonLines

        JsonLines(write_event).event("error", **content)
    else:
        say(f"genopt: {message}")
    return code
