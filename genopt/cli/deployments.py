"""Verbs about what is served, and deployments as other verbs use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genopt.cli import options
from genopt.cli.interruption import wait_for_interruption
from genopt.cli.output import print_json, say
from genopt.errors import NoWinnerError, SpecError

if TYPE_CHECKING:
    from genopt.distributed.rollout import Endpoint
    from genopt.distributed.serve_file import Listener as Where
    from genopt.report.model import Report
    from genopt.serving.api import Api
    from genopt.serving.canary import Policy
    from genopt.store.run_folder import RunFolder


def deploy(
    run: options.RunPath,
    variant: Annotated[str | None, typer.Option(help="Another accepted candidate, `original` or `baseline`.  [default: the winner]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; public ones need --keys.  [default: 127.0.0.1]")] = None,
    port: options.Port = None,
    keys: Annotated[str | None, typer.Option(help="File of API keys, made by `genopt key add`.  [default: no keys]")] = None,
    canary: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Beside what is deployed, for this share of the callers at first, for example 10%.")
    ] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="The canary gets copies only; its answers are compared and not returned.")] = False,
    step_time: Annotated[str, typer.Option(help="Shortest time of a canary's step.")] = "5m",
    step_requests: Annotated[int, typer.Option(min=1, help="Fewest requests of a canary's step.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until the canary has passed its steps; exit 5 if it is rolled back.")] = False,
    address: options.Address = None,
    as_json: options.Json = False,
) -> None:
    """Serves a run's winner; on an embedded Ray until Ctrl-C, on a cluster until `genopt undeploy`."""
    from genopt.distributed.serve_file import Listener as Where
    from genopt.store.run_folder import RunFolder

    if canary is None and (shadow or follow):
        raise SpecError("--shadow and --follow speak of a canary; add --canary 10%.")
    policy = None if canary is None else _policy(canary, shadow, step_time, step_requests)
    folder = RunFolder.existing(run)
    if policy is not None:
        _begin_canary(folder, policy, variant, Where(host=host, port=port, keys=keys), address, follow, as_json)
        return
    with deployment(folder, variant, Where(host=host, port=port, keys=keys), address) as endpoint:
        if as_json:
            print_json(endpoint.model_dump(mode="json"))
        say_where(endpoint)
        if endpoint.embedded:
            serve_until_interrupted(endpoint)


def _policy(share: str, shadow: bool, step_time: str, step_requests: int) -> Policy:
    from genopt.serving.canary import Policy, steps_from
    from genopt.spec import duration_s

    try:
        first, step_s = float(share.removesuffix("%")), duration_s(step_time)
    except ValueError:
        first, step_s = 0.0, 0.0
    if not 0 < first <= 100:
        raise SpecError(f"--canary {share} with --step-time {step_time} cannot be read; write for example --canary 10% --step-time 5m.")
    return Policy(steps=steps_from(first), shadow=shadow, step_s=step_s, step_requests=step_requests)


def _begin_canary(folder: RunFolder, policy: Policy, variant: str | None, where: Where, address: str | None, follow: bool, as_json: bool) -> None:
    from genopt.distributed import canary, cluster

    try:
        found = canary.begin(folder, policy, variant=variant, listener=where, address=address, progress=say)
        doing = "is compared on copies" if policy.shadow else f"answers {found.share:g} % of the callers"
        say(f"{found.progress.variant} {doing} beside {found.progress.stable}; the rollout goes on without this command.")
        say(f"genopt status; genopt promote {folder.path}; genopt rollback {folder.path}")
        if follow:
            canary.follow(folder, progress=say)
        if as_json:
            print_json(found.model_dump(mode="json"))
    finally:
        cluster.disconnect()


def promote(run: options.RunPath, address: options.Address = None, as_json: options.Json = False) -> None:
    """Makes a run's canary what everybody gets, for good."""
    from genopt.distributed import canary, cluster
    from genopt.store.run_folder import RunFolder

    try:
        endpoint = canary.promote(RunFolder.existing(run), address=address, progress=say)
    finally:
        cluster.disconnect()
    if as_json:
        print_json(endpoint.model_dump(mode="json"))
    say_where(endpoint)


def rollback(run: options.RunPath, address: options.Address = None, as_json: options.Json = False) -> None:
    """Takes a run's canary away, or puts back what was served before it was promoted."""
    from genopt.distributed import canary, cluster
    from genopt.store.run_folder import RunFolder

    try:
        variant = canary.roll_back(RunFolder.existing(run), address=address, progress=say)
    finally:
        cluster.disconnect()
    if as_json:
        print_json({"variant": variant})
    say(f"{variant} answers everybody.")


def undeploy(
    run: Annotated[Path | None, typer.Argument(help="Run folder to record it in.", show_default=False)] = None,
    address: options.Address = None,
) -> None:
    """Takes a deployment on a cluster down."""
    from genopt.distributed import cluster, rollout
    from genopt.store.run_folder import RunFolder

    try:
        removed = rollout.undeploy(RunFolder.existing(run) if run is not None else None, address=address, progress=say)
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
    """Asks a deployment for something, prints the answer as it comes, and says how to ask again."""
    api = _api(endpoint)
    api.ask_once(endpoint.url, endpoint.model, endpoint.example, lambda text: print(text, end="", flush=True))
    say(f"try it   {api.curl_line(endpoint.url, endpoint.model, endpoint.example)}")


def say_where(endpoint: Endpoint) -> None:
    """Says where a deployment answers, and how to ask it."""
    say(f"{endpoint.variant} answers at {endpoint.url}/v1 as {endpoint.model!r}")
    say(_api(endpoint).curl_line(endpoint.url, endpoint.model, endpoint.example))


def _api(endpoint: Endpoint) -> Api:
    from genopt import catalog

    found: Api = catalog.load("apis", endpoint.modality)
    return found


def serve_until_interrupted(endpoint: Endpoint) -> None:
    """Waits for Ctrl-C."""
    try:
        say(f"Serving {endpoint.variant} at {endpoint.url}/v1 until Ctrl-C.")
        wait_for_interruption()
    except KeyboardInterrupt:
        say("Ending the deployment.")
