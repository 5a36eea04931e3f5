"""The stage that lets a model do tasks: the user's own questions, and tasks of lm-evaluation-harness by name.

It costs minutes, so only the original and those who would win get this far. Scores are kept in the store, by what they
depend on, and are not computed twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from genopt import catalog, clock
from genopt.engines.base import TextSession
from genopt.measure.machine import device_of, kernels
from genopt.models.text_prefix import begun, text_prefix
from genopt.models.tokenizer import load_tokenizer
from genopt.plan import Artifact, Earlier, JsonValue, Record
from genopt.process import SessionProcess
from genopt.quality.task_items import TaskItems, read_items
from genopt.quality.task_scoring import mark
from genopt.store.artifacts import step_key
from genopt.store.shared import open_store
from genopt.tasks.text_data import TextSet
from genopt.version import __version__

VERSION = 3
"""Rises when the stored scores change their meaning."""
FILE = "scores.json"


class TaskScores(Record):
    """A model's scores on one task.

    Attributes:
        task: Name of the task, or of the user's file.
        metric: What is scored.
        scores: One per item.
        digest: Of the items, where they are the user's; with how many of them were shortened to the context.
        shortened: Items whose prompt was cut at its beginning.
        origin: Where they come from, if another run found them.
    """

    task: str
    metric: str
    scores: tuple[float, ...]
    digest: str = ""
    shortened: int = 0
    origin: Earlier | None = None


class TaskRequest(Record):
    """What the stage is asked.

    Attributes:
        model: Folder of the original, for its tokenizer.
        artifact: What is judged.
        engine: Catalogue name.
        options: The engine's.
        items: File with the user's questions, or None.
        tasks: Tasks of the harness.
        limit: Most items per task, or None for all.
        context: Tokens that the model can hold.
        data: The prepare stage's file.
        seed: Of what is drawn.
        store: Root of the artifact store.
        libraries: Versions of what computes, by name.
        run: The run that asks.
        fresh: Scores that another request with another value found do not count.
    """

    model: str
    artifact: Artifact
    engine: str
    options: dict[str, JsonValue]
    items: str | None
    tasks: tuple[str, ...]
    limit: int | None
    context: int
    data: str
    seed: int
    store: str
    libraries: dict[str, str]
    run: str
    fresh: str = ""


def score_tasks(payload: dict[str, Any], ends: float) -> dict[str, Any]:
    """Scores a model on all tasks: `{"tasks": [...]}`, the user's own first.

    Args:
        payload: A `TaskRequest`.
        ends: When the stage is killed, on `clock.now`.

    Raises:
        GenoptError: The questions, a task or its data cannot be used, or the engine refuses.
    """
    request = TaskRequest.model_validate(payload)
    scorer = _Scorer(request, ends)
    try:
        found = [scorer.own(read_items(Path(request.items)))] if request.items is not None else []
        found += [scorer.harness(name) for name in request.tasks]
    finally:
        scorer.close()
    return {"tasks": [item.model_dump(mode="json") for item in found]}


class _Scorer:
    """Opens the model when a score is missing.

    Args:
        request: What is asked.
        ends: When the stage is killed, on `clock.now`.
    """

    def __init__(self, request: TaskRequest, ends: float) -> None:
        self._request = request
        self._ends = ends
        self._store = open_store(request.store)
        self._stop_ids = TextSet.model_validate_json(Path(request.data).read_text(encoding="utf-8")).stop_ids
        self._session: TextSession | None = None

    @cached_property
    def _text(self) -> ModelTokens:
        return ModelTokens(Path(self._request.model))

    def _open(self) -> TextSession:
        if self._session is None:
            engine = catalog.load("engines", self._request.engine)
            engine.check(self._request.options)
            _say("opening the model")
            artifact, options = Path(self._request.artifact.path), self._request.options
            self._session = engine.open(artifact, options) if engine.environment is None else self._elsewhere(artifact, options)
        return self._session

    def _elsewhere(self, artifact: Path, options: dict[str, JsonValue]) -> TextSession:
        """The engine in the interpreter of its environment; the texts are made in ours."""
        left = self._ends - clock.now()
        threads = options.get("threads")
        return SessionProcess(
            self._request.engine, artifact, options, log=Path(self._request.data).parent / f"{self._request.engine}.tasks.log", timeout_s=left,
            lifetime_s=left, threads=threads if isinstance(threads, int) else None,
        ).open()  # fmt: skip

    def own(self, items: TaskItems) -> TaskScores:
        """Scores on the user's questions."""
        asked = items.items if self._request.limit is None else items.items[: self._request.limit]

        def score() -> TaskScores:
            found = mark(
                self._open(), asked, self._text, context=self._request.context, stop_ids=self._stop_ids, progress=_say
            )  # fmt: skip
            return TaskScores(task=Path(items.source).name, metric="accuracy", scores=found.scores, digest=items.digest, shortened=found.shortened)

        return self._kept({"items": items.digest, "count": len(asked)}, score)

    def harness(self, name: str) -> TaskScores:
        """Scores on a task of the harness."""
        from genopt.quality.lm_eval_tasks import is_file, require_harness, run_task

        require_harness()
        request = self._request
        path = Path(name).expanduser()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file(name) and path.is_file() else ""

        def score() -> TaskScores:
            _say(f"task {name}")
            found = run_task(
                name, self._open, self._text, context=request.context, stop_ids=self._stop_ids, limit=request.limit, seed=request.seed
            )  # fmt: skip
            return TaskScores(task=Path(name).stem if content else name, metric=found.metric, scores=found.scores, digest=content)

        if content:
            return score()  # its data may have changed since
        return self._kept({"task": name, "limit": request.limit, "seed": request.seed}, score)

    def _kept(self, task: dict[str, object], score: Callable[[], TaskScores]) -> TaskScores:
        """Scores that were found for the same bytes, by the same software, on a machine that rounds alike."""
        request, computes = self._request, kernels()
        facts = {
            **task, "engine": request.engine, "options": request.options, "libraries": request.libraries, "genopt": __version__,
            "kernels": json.dumps(computes, sort_keys=True), "device": device_of(os.environ),
            "stop": self._stop_ids, "fresh": request.fresh,
        }  # fmt: skip
        origin = Earlier(
            what="quality", run=request.run, measured=time.time(), environment={"cpu": computes["cpu"], "libraries": {**request.libraries}}
        )  # fmt: skip

        def make(folder: Path) -> tuple[str, ...]:
            found = score().model_copy(update={"origin": origin})
            (folder / FILE).write_text(found.model_dump_json(), encoding="utf-8")
            return ("scores",)

        kept = self._store.build(step_key(request.artifact.digest, "task_scores", VERSION, facts, {}), make)
        scores = TaskScores.model_validate_json((Path(kept.path) / FILE).read_text(encoding="utf-8"))
        own = scores.origin is not None and scores.origin.run == request.run
        return scores.model_copy(update={"origin": None}) if own else scores

    def close(self) -> None:
        """Releases the model."""
        if self._session is not None:
            self._session.close()


class ModelTokens:
    """A model folder's tokenizer and chat template; see `genopt.quality.task_scoring.Text`.

    Args:
        folder: The original model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = load_tokenizer(folder)
        self.prefix = text_prefix(self._tokenizer)

    def encode(self, text: str, special: bool) -> list[int]:
        """See `Text.encode`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return begun(ids, self.prefix) if special else ids

    def question(self, text: str) -> list[int]:
        """See `Text.question`."""
        if self._template is None:
            return self.encode(text, True)
        rendered = self._template.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        return self.encode(str(rendered), False)

    @cached_property
    def _template(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        from genopt.models.tokenizer import chat_template

        return PreTrainedTokenizerFast.from_pretrained(self._folder) if chat_template(self._folder) is not None else None

    def decode(self, ids: Sequence[int]) -> str:
        """See `Text.decode`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _say(message: str) -> None:
    print(message, flush=True)
