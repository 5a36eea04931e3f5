"""The verb `key`: makes, lists and revokes the API keys of served models; each is a verb of its own below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genopt.cli import options
from genopt.cli.output import print_json, say

DEFAULT_KEYS = Path("~/.config/genopt/keys.json")
Keys = Annotated[Path, typer.Option("--file", help="File of API keys.")]
keys = typer.Typer(name="key", no_args_is_help=True, help="Makes, lists and revokes API keys of served models.")


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whom it is for; shown in lists, not to servers.", show_default=False)],
    file: Keys = DEFAULT_KEYS,
    requests_per_minute: Annotated[float | None, typer.Option(help="Most requests, on average.  [default: no limit]")] = None,
    concurrent: Annotated[int | None, typer.Option(help="Most requests under way.  [default: no limit]")] = None,
    as_json: options.Json = False,
) -> None:
    """Makes a key and prints it, once: only its hash is stored."""
    from genopt.serving.keys import add_key as add

    made, secret = add(file.expanduser(), name, requests_per_minute=requests_per_minute, concurrent=concurrent)
    say(f"{made.name} may ask with this key; it is shown only now:")
    if as_json:
        print_json({**made.model_dump(mode="json", exclude={"sha256"}), "key": secret})
    else:
        print(secret, flush=True)
    say(f"Serve with it: genopt deploy RUN --keys {file}")


@keys.command("list")
def list_keys(file: Keys = DEFAULT_KEYS, as_json: options.Json = False) -> None:
    """Shows the keys of a file, revoked ones included."""
    from genopt.serving.keys import read_keys

    found = read_keys(file.expanduser())
    if as_json:
        print_json([key.model_dump(mode="json", exclude={"sha256"}) for key in found])
        return
    for key in found:
        limits = [f"{key.requests_per_minute:g} requests a minute"] * (key.requests_per_minute is not None)
        limits += [f"{key.concurrent} under way"] * (key.concurrent is not None)
        state = f"revoked {key.revoked}" if key.revoked else "valid"
        print(f"{key.id}  {key.name}  {state}  {', '.join(limits) or 'no limits'}", flush=True)


@keys.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Name or id of the key.", show_default=False)], file: Keys = DEFAULT_KEYS, as_json: options.Json = False
) -> None:
    """Makes a key invalid; running servers notice within seconds."""
    from genopt.serving.keys import revoke_key as revoke

    found = revoke(file.expanduser(), name)
    if as_json:
        print_json(found.model_dump(mode="json", exclude={"sha256"}))
    say(f"The key of {found.name} is revoked.")
