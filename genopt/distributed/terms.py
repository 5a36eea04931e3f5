"""What a run was started with: a resumption that would mix results of different terms is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genopt.errors import RunFolderError
from genopt.plan import Record
from genopt.spec import RunSpec
from genopt.store.files import file_sha256
from genopt.store.run_folder import RunFolder

ABSENT = "absent"
SHOWN = 60
"""Characters of a value that a message shows."""


class Terms(Record):
    """What must be the same in every session of a run, besides its model.

    Attributes:
        spec: The resolved spec.
        libraries: Versions that decide the bytes of artifacts.
        hardware: Processor and GPUs of the nodes that measure; see `genopt.distributed.answering.kind_of`.
        data: sha256 of the files with texts and prompts, by key of the spec (`ABSENT` where one is gone), and digests of models given beside the
            original, by kind.
    """

    spec: dict[str, Any]
    libraries: dict[str, str]
    hardware: dict[str, str]
    data: dict[str, str]


def terms_of(spec: RunSpec, libraries: Mapping[str, str], given: Mapping[str, str], hardware: Mapping[str, str]) -> Terms:
    """The terms of a session.

    Args:
        spec: The resolved spec.
        libraries: What the measuring node has.
        given: Digests of the models that were given beside the original, by kind.
        hardware: What kind of machine it is.
    """
    files = {"eval_data": spec.eval_data, "calib_data": spec.calib_data, "prompts": spec.prompts}
    known = {name: Path(path).expanduser() for name, path in files.items() if path is not None}
    data = {name: file_sha256(path) if path.is_file() else ABSENT for name, path in known.items()}
    data |= {f"given {kind}": digest for kind, digest in given.items()}
    return Terms(spec=spec.model_dump(mode="json"), libraries=dict(libraries), hardware=dict(hardware), data=data)


def require_same_spec(folder: RunFolder, spec: RunSpec) -> None:
    """Refuses a spec that was edited since the run began.

    Raises:
        RunFolderError: With what is different.
    """
    _refuse(folder, "spec.yaml has", _started(folder).get("spec"), spec.model_dump(mode="json"), "undo that")


def require_same(folder: RunFolder, terms: Terms) -> None:
    """Refuses libraries, hardware and data that changed since the run began.

    Raises:
        RunFolderError: With what is different.
    """
    earlier = _started(folder)
    _refuse(folder, "Libraries that decide the results have", earlier.get("libraries"), terms.libraries, "install the earlier ones")
    _refuse(folder, "The hardware that its numbers are of has", earlier.get("hardware"), terms.hardware, "continue it on such nodes")
    _refuse(folder, "Data files have", earlier.get("data"), terms.data, "put the earlier ones back")


def require_same_model(folder: RunFolder, earlier: str, digest: str) -> None:
    """Refuses a model whose files changed since the run began.

    Args:
        folder: The run's folder.
        earlier: Digest that the run began with; empty where it did not come that far.
        digest: What it is now.

    Raises:
        RunFolderError: With what is different.
    """
    if earlier:
        _refuse(folder, "The model has", {"digest": earlier}, {"digest": digest}, "put the earlier files back")


def _started(folder: RunFolder) -> Mapping[str, Any]:
    """What the first session recorded."""
    return next((event for event in folder.events() if event["event"] == "run_started"), {})


def _refuse(folder: RunFolder, what: str, earlier: Mapping[str, Any] | None, now: Mapping[str, Any], remedy: str) -> None:
    if earlier is None:
        raise RunFolderError(f"{folder.path} does not say what it was started with, so it cannot be continued; start a new run with another --out.")
    found = "; ".join(_differences(earlier, now))
    if found:
        raise RunFolderError(f"{what} changed since {folder.path} began ({found}); {remedy}, or start a new run with another --out.")


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in (*now, *(one for one in earlier if one not in now)):
        before, after = earlier.get(name, ABSENT), now.get(name, ABSENT)
        if before != after:
            yield f"{name}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
