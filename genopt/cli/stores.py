"""Verbs about what a store holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json, say

if TYPE_CHECKING:
    from genopt.store.inventory import Stored

stores = typer.Typer(name="store", no_args_is_help=True, help="Shows, checks and empties a store of artifacts: a folder, s3:// or gs://.")


@stores.command("ls")
def list_artifacts(store: options.Store = None, as_json: options.Json = False) -> None:
    """Lists a store's artifacts, the latest first."""
    from genopt.store.inventory import Inventory

    _show(Inventory(store).artifacts(), as_json)


@stores.command()
def verify(
    store: options.Store = None,
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is damaged, so that it is built again when it is needed.")] = False,
    as_json: options.Json = False,
) -> None:
    """Reads every artifact and compares its bytes with its name; exit code 1 where one is damaged and stays."""
    from genopt.store.inventory import Inventory

    inventory = Inventory(store)
    found = inventory.verify()
    damaged = [one for one in found if one.problem]
    if repair:
        inventory.remove({one.digest for one in damaged})
    _show(found, as_json)
    if damaged:
        say(f"{len(damaged)} of {len(found)} artifacts are damaged{' and were removed' if repair else '; remove them with --repair'}.")
        if not repair:
            raise typer.Exit(1)


@stores.command()
def gc(
    store: options.Store = None,
    older_than: Annotated[str | None, typer.Option(help="Remove artifacts that were written longer ago, such as 72h.")] = None,
    keep: Annotated[str | None, typer.Option(help="Remove the oldest artifacts beyond this size, such as 20GB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: options.Json = False,
) -> None:
    """Removes artifacts that are old, too many or lead nowhere, and what crashed builds left; do not run it beside a run on the same store."""
    from genopt.report.wording import size
    from genopt.store.inventory import Inventory

    inventory = Inventory(store)
    going = inventory.superfluous(older_than_s=_seconds(older_than), keep_bytes=options.size_bytes(keep))
    freed = sum(one.bytes for one in going)
    if not dry_run:
        inventory.remove({one.digest for one in going})
        freed += inventory.sweep()
    _show(going, as_json)
    say(f"{size(freed)} {'would be' if dry_run else 'were'} freed.")


def _seconds(text: str | None) -> float | None:
    from genopt.errors import SpecError
    from genopt.spec import duration_s

    if text is None:
        return None
    try:
        return duration_s(text)
    except ValueError as error:
        raise SpecError(f"Bad value for --older-than: {error}.") from None


def _show(found: list[Stored], as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from genopt.report.wording import duration, size

    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for heading in ("artifact", "size", "age", "steps", "what"):
        table.add_column(heading, overflow="fold")
    for one in found:
        what = one.problem or ", ".join(one.traits) or "–"
        cells = (one.digest[:16], size(one.bytes), duration(max(0.0, time.time() - one.changed)), str(one.steps), what)
        table.add_row(*map(Text, cells), style="red" if one.problem else None)
    Console().print(table)
