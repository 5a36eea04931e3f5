"""Models that the user gives beside the one that is optimized: a folder for each kind that the task takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from genopt.errors import DataError, SpecError
from genopt.plan import Plan, Record
from genopt.store.artifacts import folder_digest
from genopt.store.files import read_error


class GivenModel(Record):
    """A folder on the driver's machine.

    Attributes:
        path: Its absolute path.
        digest: Digest over its files, by which plans name it.
    """

    path: str
    digest: str


class GivenParams(Record):
    """Parameters of a technique that needs one.

    Attributes:
        given: Digest of its folder, so that another one gives another artifact.
    """

    given: str = Field(pattern="^[0-9a-f]{64}$")


def require_given(given: Mapping[str, str], kinds: Mapping[str, str]) -> None:
    """Refuses what cannot be used, before anything is hashed.

    Args:
        given: Folders by kind.
        kinds: What the task takes, by kind.

    Raises:
        SpecError: The task takes no such kind.
        DataError: There is no such folder, or no safetensors in it.
    """
    for kind, folder in given.items():
        if kind not in kinds:
            known = "; ".join(f"{name}=FOLDER, {what}" for name, what in kinds.items())
            raise SpecError(f"This task takes no {kind!r} beside the model; " + (f"it takes {known}." if known else "leave --given out."))
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise DataError(f"There is no folder {folder}; give {kinds[kind]} with --given {kind}=FOLDER.")
        if not any(path.glob("*.safetensors")):
            raise DataError(f"{folder} holds no .safetensors file, and others are not read; save {kinds[kind]} as safetensors.")


def resolve_given(given: Mapping[str, str], progress: Callable[[str], None]) -> dict[str, GivenModel]:
    """The given folders with their digests, by kind.

    Args:
        given: Folders by kind.
        progress: Told what happens.

    Raises:
        ModelError: One cannot be read.
    """
    found = {}
    for kind, folder in given.items():
        path = Path(folder).expanduser().absolute()
        progress(f"hashing {path.name}")
        try:
            found[kind] = GivenModel(path=str(path), digest=folder_digest(path)[0])
        except OSError as error:
            raise read_error(path, error) from None
    return found


def named_by(plan: Plan) -> frozenset[str]:
    """Digests of the given models that a plan's steps are made with."""
    return frozenset(str(step.params["given"]) for step in plan.steps if "given" in step.params)


def digests_of(given: Mapping[str, GivenModel]) -> dict[str, str]:
    """Digests by kind, as tasks take them for their candidates."""
    return {kind: model.digest for kind, model in given.items()}
