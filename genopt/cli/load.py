"""The verb that load-tests an endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from genopt.cli import options
from genopt.cli.options import PROMPTS_HELP, listed
from genopt.cli.output import print_json, say
from genopt.errors import InterruptedRunError


def bench(
    url: Annotated[str, typer.Argument(help="Base URL of an OpenAI-compatible endpoint, with or without /v1.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Model to ask for.  [default: the first that the endpoint lists]")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Closed loop: requests kept under way, a level each.  [default: 1,8,32]")] = None,
    rate: Annotated[str | None, typer.Option(help="Open loop instead: requests a second that arrive at random (Poisson), such as 1,2.")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests per level.  [default: 64; without end where --duration is given]")] = None,
    duration: Annotated[str | None, typer.Option(help="Time per level after which no more requests are sent, such as 30s.")] = None,
    prompts: Annotated[str | None, typer.Option(help=f"{PROMPTS_HELP}  [default: made ones]")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="About how long a made prompt is, as the server counts it.  [default: 64]")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens per request.  [default: 64]")] = None,
    stream: Annotated[bool, typer.Option(help="Ask for answers token by token; whole ones have no TTFT, TPOT or ITL.")] = True,
    slo: Annotated[str | None, typer.Option(help="Limits on each request, such as ttft=300ms,tpot=30ms,e2el=5s; gives the goodput.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Time after which a request is given up.  [default: 120s]")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds the key, such as OPENAI_API_KEY.  [default: no key]")] = None,
    seed: options.Seed = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; must not exist.")] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG or PNG file to write: throughput against waiting times; must not exist.")] = None,
    as_json: options.Json = False,
) -> None:
    """Load-tests an OpenAI-compatible endpoint: TTFT, TPOT, ITL, throughput and goodput under limits.

    TPOT = (E2EL - TTFT)/(n - 1) for n tokens. Run it in no process of the server, and best on another machine.
    """
    from genopt.console.load import LoadLine, print_load_test
    from genopt.measure import load_spec
    from genopt.measure.load_plot import load_plot, refuse_other_kinds
    from genopt.measure.load_result import refuse_existing, write_new
    from genopt.measure.load_test import load_test

    spec = load_spec.build({
        "url": url, "model": model, "concurrency": listed(concurrency), "rate": listed(rate), "requests": requests, "duration": duration,
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
        print_json(document)
    if out is not None:
        write_new(out, json.dumps(document, indent=2).encode() + b"\n")
    if plot is not None:
        write_new(plot, load_plot(found, plot.suffix))
    if found.interrupted:
        say(f"genopt: Interrupted after {len(found.levels)} of {len(spec.concurrency) + len(spec.rate)} levels; what they gave stands above.")
        raise typer.Exit(InterruptedRunError.exit_code)
