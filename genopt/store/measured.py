"""Whole candidates that runs measured, kept in the store under what their numbers depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genopt.errors import StorageError
from genopt.plan import Candidate, Earlier, Plan, Record, plan_of
from genopt.store.files import write_atomically

VERSION = 1
"""Rises when stored candidates change their meaning."""


class Measured(Record):
    """A candidate that a run measured.

    Attributes:
        candidate: As its report showed it.
        seconds: What building, measuring and judging it took.
        origin: Where and when.
    """

    candidate: Candidate
    seconds: float
    origin: Earlier

    def taken_over(self) -> Candidate:
        """The candidate as another run shows it."""
        return self.candidate.model_copy(update={"earlier": (*self.candidate.earlier, self.origin), "predicted": None})


class MeasuredCandidates:
    """The candidates that were measured under equal conditions: `measured/<digest of the conditions>/<identity>.json` below the root.

    Args:
        root: The store's folder.
        conditions: All that the numbers depend on, besides the candidate: model, data, libraries, hardware, workload, bar and seed.
    """

    def __init__(self, root: Path, conditions: Mapping[str, Any]) -> None:
        content = json.dumps({"version": VERSION, **conditions}, sort_keys=True)
        self._folder = root / "measured" / hashlib.sha256(content.encode()).hexdigest()

    def keep(self, found: Measured) -> None:
        """Keeps a candidate, in place of an older one of the same plan; a store that cannot be written keeps nothing."""
        with contextlib.suppress(StorageError):
            write_atomically(self._path(plan_of(found.candidate)), found.model_dump_json())

    def find(self, plan: Plan) -> Measured | None:
        """The last one of a plan, under the plan's name; None where there is none that can be read."""
        found = _read(self._path(plan))
        return found.model_copy(update={"candidate": found.candidate.model_copy(update={"name": plan.name})}) if found is not None else None

    def __iter__(self) -> Iterator[Measured]:
        """All that can be read, in the order in which they were measured."""
        found = filter(None, map(_read, self._folder.glob("*.json")))
        return iter(sorted(found, key=lambda one: one.origin.measured))

    def _path(self, plan: Plan) -> Path:
        return self._folder / f"{plan.identity()}.json"


def _read(path: Path) -> Measured | None:
    try:
        return Measured.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
