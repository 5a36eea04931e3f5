"""What the original says about the evaluation text and to held-out prompts: computed once, kept in the store for all runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from genopt.measure.machine import device_of
from genopt.plan import Plan
from genopt.process import SessionProcess
from genopt.quality.generation import NEW_TOKENS, TEMPERATURE, TOP_P, Continuations, continuations
from genopt.quality.reference import FILE, TOP
from genopt.store.artifacts import step_key
from genopt.store.shared import open_store
from genopt.tasks.base import BenchConfig
from genopt.tasks.text_data import TextSet

VERSION = 1
"""Rises when the stored files change their meaning."""
CONTINUATIONS = "continuations.json"

Windows = Sequence[Sequence[int]]
Make = Callable[[Path], tuple[str, ...]]


class TextReference:
    """The original's answers, by artifact of the store.

    An artifact is named by the model's digest, the text, the engine with its options, and the versions of the libraries
    that compute; so it is shared by all candidates, runs and nodes that agree in these.

    Args:
        config: The bench's.
        plan: How the original is run.
        data: The evaluation text and prompts.
    """

    def __init__(self, config: BenchConfig, plan: Plan, data: TextSet) -> None:
        self._config, self._plan, self._data = config, plan, data
        self._store = open_store(config.store)

    def windows(self, original: SessionProcess, first: int, last: int) -> Path:
        """The file with the original's distributions on some windows of the evaluation text.

        Args:
            original: The open original, used where the store has no such file.
            first: First window.
            last: The one behind the last window.
        """
        windows = self._data.windows[first:last]
        facts = self._facts("reference", windows, top=TOP)

        def make(folder: Path) -> tuple[str, ...]:
            original.record(windows, folder / FILE, {name: str(value) for name, value in facts.items()})
            return ("reference",)

        return self._artifact(facts, make) / FILE

    def continuations(self, original: SessionProcess) -> Continuations:
        """The original's continuations of the held-out prompts."""
        prompts, stop_ids, seed = self._data.held_out.ids, self._data.stop_ids, self._config.seed
        sampling = [NEW_TOKENS, TEMPERATURE, TOP_P]
        facts = self._facts("continuations", prompts, stop_ids=list(stop_ids), seed=seed, sampling=sampling)

        def make(folder: Path) -> tuple[str, ...]:
            found = continuations(original, prompts, stop_ids, seed)
            (folder / CONTINUATIONS).write_text(found.model_dump_json(), encoding="utf-8")
            return ("continuations",)

        return Continuations.model_validate_json((self._artifact(facts, make) / CONTINUATIONS).read_text(encoding="utf-8"))

    def _facts(self, kind: str, sequences: Windows, **more: object) -> dict[str, object]:
        config = self._config
        return {
            "kind": kind, "model": config.artifact.digest, "tokens": hashlib.sha256(json.dumps(sequences).encode()).hexdigest(),
            "evaluation": self._data.digest, "engine": self._plan.engine, "options": json.dumps(self._plan.options, sort_keys=True),
            "device": device_of(config.environment), "libraries": json.dumps(config.libraries, sort_keys=True),
            "fresh": config.run if config.reuse == "nothing" else "", **more,
        }  # fmt: skip

    def _artifact(self, facts: dict[str, object], make: Make) -> Path:
        key = step_key(self._config.artifact.digest, str(facts["kind"]), VERSION, facts, {})
        return Path(self._store.build(key, make).path)
