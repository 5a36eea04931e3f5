"""Where engine environments are on this machine, and the interpreters in them.

Each is a folder named after its digest, so that a changed lock makes another one beside it, and what runs in the old one
goes on. A folder without its note is half-built and counts as absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from genopt import bootstrap
from genopt.environments.declaration import Environment, declared, find
from genopt.errors import InfeasibleError
from genopt.plan import Record

VARIABLE = "GENOPT_ENVS"
NOTE = "genopt-environment.json"
"""Written last: its presence says that the build ended well."""
State = Literal["built", "outdated", "absent"]


class BuildNote(Record):
    """What a build leaves in its folder.

    Attributes:
        name: The environment.
        digest: Of what was asked for; of what was found in an interpreter that somebody else made.
        python: Version of its interpreter.
        seconds: Time that building took.
        bytes: Size on disk.
        installer: `uv` or `pip`, or the interpreter that somebody else made.
    """

    name: str
    digest: str
    python: str
    seconds: float
    bytes: int
    installer: str


def root() -> Path:
    """Folder of all environments: `$GENOPT_ENVS`, or one below the user's cache."""
    named = os.environ.get(VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(named).expanduser().absolute() if named else cache / "genopt" / "envs"


def folder_of(environment: Environment) -> Path:
    """Where this environment is, or will be."""
    return root() / f"{environment.name}-{environment.digest()[:12]}"


def folders_of(environment: Environment) -> list[Path]:
    """Every folder that a build of this environment left, whatever the lock was then."""
    named = len(environment.name) + 13
    return sorted(path for path in root().glob(f"{environment.name}-*") if path.is_dir() and len(path.name) == named)


def interpreter(folder: Path) -> Path:
    """The Python of an environment's folder."""
    return folder / "bin" / "python"


def note_of(folder: Path) -> BuildNote | None:
    """What the build noted; None where it never ended, or the folder or its interpreter is gone."""
    try:
        note = BuildNote.model_validate(json.loads((folder / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    adopted = Path(note.installer)
    return note if interpreter(folder).exists() and (adopted.exists() or not adopted.is_absolute()) else None


def state_of(environment: Environment) -> State:
    """Whether it can be used, was built from another lock, or is not there."""
    if note_of(folder_of(environment)) is not None:
        return "built"
    return "outdated" if any(note_of(folder) is not None for folder in folders_of(environment)) else "absent"


def states() -> dict[str, str]:
    """State of every declared environment on this machine, by name."""
    return {environment.name: state_of(environment) for environment in declared()}


def identities() -> dict[str, str]:
    """Digests of what every environment that can be used here consists of, by name."""
    notes = {environment.name: note_of(folder_of(environment)) for environment in declared()}
    return {name: note.digest for name, note in notes.items() if note is not None}


def build_command(name: str) -> str:
    """What adds an environment, for people to copy."""
    return f"genopt env build {name}"


def require_built(name: str) -> Path:
    """The folder of an environment that can be used.

    Raises:
        InfeasibleError: It is not there, or was built from another lock.
        SpecError: No such environment is registered.
    """
    environment = find(name)
    state = state_of(environment)
    if state == "built":
        return folder_of(environment)
    how = "was built for other versions than genopt now asks for" if state == "outdated" else "is not built on this machine"
    raise InfeasibleError(f"The engine environment {name!r} {how}; build it with: {build_command(name)}.")


def require_all(names: Iterable[str | None]) -> None:
    """Refuses what needs an environment that cannot be used; None stands for ours.

    Raises:
        InfeasibleError: As `require_built`.
    """
    for name in names:
        if name is not None:
            require_built(name)


def worker_command(name: str) -> list[str]:
    """Starts `genopt.worker` in an environment; its arguments follow.

    Raises:
        InfeasibleError: As `require_built`.
    """
    return bootstrap.command(interpreter(require_built(name)), "genopt.worker")


def without_our_paths(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without those that would show an interpreter the libraries of another one."""
    return {name: value for name, value in variables.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
