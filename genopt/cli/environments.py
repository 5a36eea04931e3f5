"""The verb `env`: engine environments; each thing to do with them is a verb of its own below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json, say
from genopt.errors import GenoptError

Name = Annotated[str, typer.Argument(help="Name in `genopt env list`.", show_default=False)]
environments = typer.Typer(
    name="env", no_args_is_help=True, help="Lists, builds, adopts, checks and removes engine environments (below GENOPT_ENVS or in the user's cache)."
)


@environments.command("list")
def list_environments(as_json: options.Json = False) -> None:
    """Shows every engine environment, and whether it is built on this machine."""
    from genopt.environments import place
    from genopt.environments.declaration import declared

    rows = []
    for environment in declared():
        folder = place.folder_of(environment)
        note, state = place.note_of(folder), place.state_of(environment)
        built = {"python": note.python, "bytes": note.bytes, "seconds": note.seconds} if note is not None else {}
        rows.append({"name": environment.name, "state": state, "about": environment.about, "folder": str(folder), **built})
        more = f", {note.bytes / 1e9:.1f} GB in {folder}" if note is not None else f"; build it with: {place.build_command(environment.name)}"
        say(f"{environment.name:12} {state}{more}")
    if as_json:
        print_json(rows)


@environments.command("build")
def build_environment(
    name: Name,
    wheels: Annotated[Path | None, typer.Option(help="Folder with a wheel of everything it needs, used instead of a package index.")] = None,
    as_json: options.Json = False,
) -> None:
    """Builds an engine environment; minutes, the first time. A half-built one is built again."""
    from genopt.environments.build import build
    from genopt.environments.declaration import find

    note = build(find(name), wheels=wheels, progress=lambda text: say(f"  {text}"))
    say(f"✓ {name} is built: {note.bytes / 1e9:.1f} GB with Python {note.python}, in {note.seconds:.0f} s; try it: genopt env check {name}")
    if as_json:
        print_json(note.model_dump(mode="json"))


@environments.command("use")
def use_environment(
    name: Name,
    python: Annotated[str, typer.Argument(help="An interpreter that finds the engine, such as that of a container image.")],  # a Path drops "./"
    as_json: options.Json = False,
) -> None:  # fmt: skip
    """Takes an interpreter that you already have instead of building one; say so again after changing what is installed there."""
    from genopt.environments.build import adopt
    from genopt.environments.declaration import find

    note = adopt(find(name), python)
    say(f"✓ {name} is {note.installer} (Python {note.python}); try it: genopt env check {name}")
    if as_json:
        print_json(note.model_dump(mode="json"))


@environments.command("check")
def check_environment(name: Name, as_json: options.Json = False) -> None:
    """Makes a tiny model in an environment's format, opens it with its engine there and generates a token or an image.

    Says one line of each engine; what libraries say is shown where it fails.
    """
    from genopt.environment_check import check

    found = []
    try:
        for one in check(name):
            what = "opened a tiny model" if one.made else "changed a tiny model"
            say(f"✓ {one.name} {what} in {one.seconds:.1f} s" + (f" and generated {one.made}" if one.made else ""))
            found.append(one)
    except GenoptError as error:
        if log := error.details.get("log"):
            say(str(log).rstrip())
        raise
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])


@environments.command("remove")
def remove_environment(name: Name) -> None:
    """Deletes an engine environment, with what is left of earlier builds; what runs in it does not start again."""
    from genopt.environments.build import remove
    from genopt.environments.declaration import find

    for folder in remove(find(name)):
        say(f"✓ removed {folder}")
