"""The verb that lets people compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json, say
from genopt.errors import InterruptedRunError

if TYPE_CHECKING:
    from genopt.quality.preference import HumanResult
    from genopt.store.run_folder import RunFolder


def compare(
    run: options.RunPath,
    a: Annotated[str | None, typer.Argument(help="First candidate.  [default: the original]", show_default=False)] = None,
    b: Annotated[str | None, typer.Argument(help="Second candidate.  [default: the winner]", show_default=False)] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes one that is free.", min=0, max=65535)] = 8350,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in the network vote.")] = "127.0.0.1",
    raters: Annotated[int, typer.Option(help="How many people vote, each with a link of their own.", min=1, max=1000)] = 1,
    prompts: Annotated[Path | None, typer.Option(help="Prompts: .txt, or .jsonl or .parquet with `prompt`.  [default: built-in]")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of an answer.", min=1)] = 256,
    results: Annotated[bool, typer.Option("--results", help="Show what people said so far, and serve nothing.")] = False,
    as_json: options.Json = False,
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
    from genopt.console.comparison import AnswerLine

    try:
        with AnswerLine() as line, comparing(
            folder, a=a, b=b, prompts=prompts, max_tokens=max_tokens, host=host, port=port, raters=raters, progress=line
        ) as (server, page):  # fmt: skip
            line.end()
            if as_json:
                print_json(page.model_dump(mode="json"))
            for link in page.links:
                say(f"{link.rater}  {link.url}")
            say(f"Each link is one person's. Taking votes on {page.questions} prompts until Ctrl-C; votes are kept in {page.folder}.")
            try:
                server.wait()
            except KeyboardInterrupt:
                say("Ending; start again to go on.")
    except KeyboardInterrupt:
        raise InterruptedRunError("Stopped; the answers so far are kept, so start again to go on.") from None
    return page.comparison


def _show_votes(folder: RunFolder, wanted: Callable[[HumanResult], bool], as_json: bool) -> None:
    from genopt.console.comparison import print_preference
    from genopt.report.assemble import assemble

    found = [result for result in assemble(folder).human if wanted(result)]
    if as_json:
        print_json([result.model_dump(mode="json") for result in found])
        return
    for result in found:
        print_preference(result)
    if not found:
        say("Nobody has voted yet.")
