"""What candidates say about the evaluation text: scored once, kept in the store, and found again by later runs.

Scoring is the part of a candidate's evaluation that comes out the same each time, for the same bytes, engine, library
versions and text. What is kept are the scores, not the verdict: every run judges them anew, with its own bar and seed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from genopt.errors import StorageError
from genopt.measure.machine import device_of, kernels
from genopt.plan import Artifact, Earlier, Plan, Quality
from genopt.process import SessionProcess
from genopt.quality import evidence
from genopt.quality.reference import NOTHING, Compared
from genopt.store.artifacts import step_key
from genopt.store.shared import open_store
from genopt.tasks.base import BenchConfig

VERSION = 1
"""Rises when the stored scores change their meaning."""
INDIFFERENT = ("threads", "spare_threads")
"""Options that change how fast an engine computes, and what it computes by rounding alone."""


@dataclass
class Case:
    """A candidate before the judge.

    Attributes:
        session: Its open session.
        plan: Its plan.
        artifact: Its artifact.
        found: What it said so far, beside the original.
        quality: The last verdict.
        pace: Seconds per window of the last look.
        earlier: The runs that parts of `found` come from.
        is_reproducible: Whether what was kept of it still holds; None before that was looked at.
    """

    session: SessionProcess
    plan: Plan
    artifact: Artifact
    found: Compared = NOTHING
    quality: Quality | None = None
    pace: float = 0.0
    earlier: list[Earlier] = field(default_factory=list)
    is_reproducible: bool | None = None

    @property
    def folder(self) -> Path:
        """Of the artifact."""
        return Path(self.artifact.path)


class TextEvidence:
    """Scores windows of text with candidates, or finds that this was done.

    Args:
        config: The bench's.
    """

    def __init__(self, config: BenchConfig) -> None:
        self._config = config
        self._store = open_store(config.store)

    def compared(self, case: Case, windows: Sequence[Sequence[int]], reference: Path) -> Compared:
        """What a candidate says about some windows, beside the original.

        What is found of it is believed after its first window was scored again and came out alike.

        Args:
            case: The candidate; told where the answer comes from.
            windows: The windows.
            reference: File of the store with what the original says about them.

        Raises:
            GenoptError: The candidate's process failed, or the reference cannot be read.
        """
        key = self._key(case, reference)
        kept = self._kept(key) if self._config.reuse != "nothing" and case.is_reproducible is not False else None
        if kept is not None:
            compared, origin = kept
            if case.is_reproducible is None:
                case.is_reproducible = evidence.agrees(compared, case.session.distributions(windows[0], 1).log_probs)
            if case.is_reproducible:
                if origin.run != self._config.run and origin not in case.earlier:
                    case.earlier.append(origin)
                return compared
        found = case.session.compare(windows, reference)
        origin = Earlier(what="quality", run=self._config.run, measured=time.time(), environment=self._environment)
        with contextlib.suppress(StorageError):  # a store that cannot be written costs a later run the time, and this one nothing
            self._keep(key, found, origin)
        return found

    def _kept(self, key: str) -> tuple[Compared, Earlier] | None:
        try:
            artifact = self._store.find(key)
            return evidence.read(Path(artifact.path) / evidence.FILE) if artifact is not None else None
        except StorageError:
            return None

    def _keep(self, key: str, found: Compared, origin: Earlier) -> None:
        def make(folder: Path) -> tuple[str, ...]:
            evidence.write(found, folder / evidence.FILE, origin)
            return ("evidence",)

        self._store.build(key, make)

    def _key(self, case: Case, reference: Path) -> str:
        """The reference's digest stands for the model, the text, and how the original was run."""
        facts = {
            "reference": reference.parent.name, "engine": case.plan.engine,
            "options": {name: value for name, value in case.plan.options.items() if name not in INDIFFERENT},
            "libraries": self._config.libraries, "kernels": json.dumps(self._kernels, sort_keys=True),
            "device": device_of(self._config.environment),
        }  # fmt: skip
        return step_key(case.artifact.digest, "evidence", VERSION, facts, {})

    @cached_property
    def _kernels(self) -> dict[str, JsonValue]:
        return kernels()

    @property
    def _environment(self) -> dict[str, JsonValue]:
        """What readers of a report are told."""
        return {"cpu": self._kernels["cpu"], "threads": self._config.threads, "libraries": dict(self._config.libraries)}
