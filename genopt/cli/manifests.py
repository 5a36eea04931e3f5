"""The verb `cluster`: files that describe clusters to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genopt.cli import options
from genopt.cli.output import say

manifests = typer.Typer(name="cluster", no_args_is_help=True, help="Writes files that describe clusters: KubeRay, cluster launcher, Compose.")


@manifests.command()
def render(
    kind: Annotated[str, typer.Argument(help="kuberay, aws, gcp or compose.", show_default=False)],
    values: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="A value, such as image=REGISTRY/genopt:gpu; repeatable. A key that is none lists those there are.",
    )] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("cluster"),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:  # fmt: skip
    """Fills a kind's templates from a few values. All ask for a token, and none opens a port to the outside."""
    from genopt.errors import SpecError
    from genopt.manifests.render import missing, render, values_of
    from genopt.store.files import write_atomically

    chosen = values_of(kind, options.pairs(values))
    files = render(chosen)
    there = [out / name for name in files if (out / name).exists()]
    if there and not force:
        raise SpecError(f"{there[0]} is there already; replace it with --force, or write elsewhere with --out.")
    for name, text in files.items():
        write_atomically(out / name, text)
        say(f"✓ {out / name}")
    if open_values := missing(chosen):
        say(f"Still to be given: {', '.join(f'--set {key}=…' for key in open_values)}")
