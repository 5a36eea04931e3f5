"""Verbs about what is served, and deployments as other verbs use them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json, say
from genopt.errors import NoWinnerError

if TYPE_CHECKING:
    from genopt.distributed.rollout import Endpoint
    from genopt.distributed.rollout import Listener as Where
    from genopt.report.model import Report
    from genopt.store.run_folder import RunFolder

QUESTION = "What is machine learning?"


def deploy(
    run: options.RunPath,
    variant: Annotated[str | None, typer.Option(help="Another accepted candidate, `original` or `baseline`.  [default: the winner]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; public ones need --keys.  [default: 127.0.0.1]")] = None,
    port: options.Port = None,
    keys: Annotated[str | None, typer.Option(help="File of API keys, made by `genopt key add`.  [default: no keys]")] = None,
    address: options.Address = None,
    as_json: options.Json = False,
) -> None:
    """Serves a run's winner; on an embedded Ray until Ctrl-C, on a cluster until `genopt undeploy`."""
    from genopt.distributed.rollout import Listener as Where
    from genopt.store.run_folder import RunFolder

    folder = RunFolder.existing(run)
    with deployment(folder, variant, Where(host=host, port=port, keys=keys), address) as endpoint:
        if as_json:
            print_json(endpoint.model_dump(mode="json"))
        say_where(endpoint)
        if endpoint.embedded:
            serve_until_interrupted(endpoint)


def undeploy(
    run: Annotated[Path | None, typer.Argument(help="Run folder to record it in.", show_default=False)] = None,
    address: options.Address = None,
) -> None:
    """Takes a deployment on a cluster down."""
    from genopt.distributed import cluster, rollout
    from genopt.store.run_folder import RunFolder

    try:
        removed = rollout.undeploy(RunFolder.existing(run) if run is not None else None, address=address)
    finally:
        cluster.disconnect()
    say("The deployment has ended." if removed else "Nothing of genopt is deployed there.")


def status(
    run: Annotated[Path | None, typer.Argument(help="Run folder; without one, what is deployed on a cluster.", show_default=False)] = None,
    address: options.Address = None,
    as_json: options.Json = False,
) -> None:
    """Shows how a run stands, from any terminal: phase, budget, candidates, best so far, its driver and deployment."""
    if run is not None:
        _run_status(run, as_json)
        return
    from genopt.console.status import print_status
    from genopt.distributed import cluster, rollout

    try:
        found = rollout.status(address=address)
    finally:
        cluster.disconnect()
    if as_json:
        print_json(found)
    else:
        print_status(found)


def _run_status(run: Path, as_json: bool) -> None:
    from genopt.console.status import print_run_status
    from genopt.report.status import run_status
    from genopt.serving.client import is_ready
    from genopt.store.run_folder import RunFolder

    found = run_status(RunFolder.existing(run))
    if found.deployment is not None:
        found = found.model_copy(update={"answers": is_ready(found.deployment.url)})
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_run_status(found)


@contextmanager
def deployed_winner(folder: RunFolder, found: Report, address: str | None) -> Iterator[Endpoint]:
    """The deployment of a run's winner.

    Raises:
        NoWinnerError: There is none.
    """
    if found.winner is None:
        raise NoWinnerError(f"No winner: {found.decision} See {folder.path / 'report.html'} for what was tried.")
    with deployment(folder, None, None, address) as endpoint:
        yield endpoint


@contextmanager
def deployment(folder: RunFolder, variant: str | None, where: Where | None, address: str | None) -> Iterator[Endpoint]:
    """A deployment that ends with the block where Ray is embedded, and stays where it is not."""
    from genopt.distributed.rollout import deployed

    with deployed(folder, variant=variant, listener=where, address=address, progress=say) as endpoint:
        yield endpoint


def ask_once(endpoint: Endpoint) -> None:
    """Asks a deployment one question, prints the answer as it comes, and says how to ask again."""
    from genopt.serving.client import ask, curl_line

    say(f"question {QUESTION}")
    print("answer   ", end="", flush=True)
    ask(endpoint.url, QUESTION, model=endpoint.model, max_tokens=64, on_text=lambda text: print(text, end="", flush=True))
    print(flush=True)
    say(f"try it   {curl_line(endpoint.url, endpoint.model, QUESTION)}")


def say_where(endpoint: Endpoint) -> None:
    """Says where a deployment answers, and how to ask it."""
    from genopt.serving.client import curl_line

    say(f"{endpoint.variant} answers at {endpoint.url}/v1 as {endpoint.model!r}")
    say(curl_line(endpoint.url, endpoint.model, QUESTION))


def serve_until_interrupted(endpoint: Endpoint) -> None:
    """Waits for Ctrl-C."""
    say(f"Serving {endpoint.variant} at {endpoint.url}/v1 until Ctrl-C.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("Ending the deployment.")
