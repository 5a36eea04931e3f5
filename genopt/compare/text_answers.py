"""Generates and keeps the answers of text variants, one at a time, so that stopping loses at most one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from genopt.compare.variants import Variant
from genopt.engines.base import GenerationRequest, TextSession
from genopt.errors import DataError
from genopt.plan import Record
from genopt.process import SessionProcess
from genopt.quality.comparison import FOLDER, TextAnswer
from genopt.serving.exchange import ChatMessage
from genopt.serving.text import ModelText
from genopt.store.append_log import AppendLog, read_log
from genopt.tasks.base import session_options

ANSWER_LIMIT_S = 900.0
"""Longest wait for an engine to open or to answer once."""


class TextSettings(Record):
    """How answers are made: greedily, one prompt at a time.

    Attributes:
        model_folder: The original model: tokenizer, chat template, stop tokens.
        model_digest: Digest of that folder.
        max_tokens: Most new tokens of an answer.
        threads: CPU threads of the engine.
        environment: Variables of the engine's process.
    """

    model_folder: str
    model_digest: str
    max_tokens: int
    threads: int
    environment: dict[str, str] = {}


class AnswerProgress(Protocol):
    """Told how far the answers are."""

    def __call__(self, variant: str, *, done: int, of: int) -> None:
        """`done` of `of` answers of a variant are there; the first call comes before its engine is opened."""


def text_answers(run: Path, variant: Variant, prompts: Sequence[str], settings: TextSettings, progress: AnswerProgress) -> list[TextAnswer]:
    """One answer per prompt; what was generated earlier with the same settings is taken from the run folder.

    Args:
        run: The run folder.
        variant: What answers.
        prompts: What is asked, each once.
        settings: How.
        progress: Told how far it is.

    Raises:
        DataError: A prompt does not fit into the model's context.
        GenoptError: The engine refused, failed, died or took too long.
    """
    path = run / FOLDER / "answers" / f"{_slug(variant.name)}-{answers_digest(variant, settings)[:12]}.jsonl"
    known = {record["prompt"]: TextAnswer.model_validate(record["answer"]) for record in read_log(path)}
    missing = [prompt for prompt in prompts if prompt not in known]
    if not missing:
        return [known[prompt] for prompt in prompts]
    text = ModelText(Path(settings.model_folder))
    requests = [_request(prompt, text, settings) for prompt in missing]
    done = len(prompts) - len(missing)
    progress(variant.name, done=done, of=len(prompts))
    log = AppendLog(path)
    with _session(run, variant, settings) as session:
        for count, (prompt, request) in enumerate(zip(missing, requests, strict=True), start=done + 1):
            known[prompt] = _answer(session, request, text)
            log.append({"prompt": prompt, "answer": known[prompt].model_dump(mode="json")})
            progress(variant.name, done=count, of=len(prompts))
    return [known[prompt] for prompt in prompts]


def answers_digest(variant: Variant, settings: TextSettings) -> str:
    """A digest over what decides an answer but the prompt; threads do not count, as they only change the speed."""
    content = {"plan": variant.plan.identity(), "artifact": variant.artifact.digest, "model": settings.model_digest, "tokens": settings.max_tokens}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60]


def _request(prompt: str, text: ModelText, settings: TextSettings) -> GenerationRequest:
    """The prompt as a chat turn; plain where the model was not taught to chat."""
    ids = text.chat_ids([ChatMessage(role="user", content=prompt)]) if text.chats else text.prompt_ids(prompt)
    if text.context is not None and len(ids) + settings.max_tokens > text.context:
        raise DataError(
            f"The prompt that begins {prompt[:40]!r} has {len(ids)} tokens, and with {settings.max_tokens} for the answer that passes the context "
            f"of {text.context}; shorten it or give a smaller --max-tokens."
        )
    return GenerationRequest(prompt_ids=ids, max_new_tokens=settings.max_tokens, stop_token_ids=text.stop_token_ids)


def _session(run: Path, variant: Variant, settings: TextSettings) -> SessionProcess:
    options = session_options(variant.plan, settings.threads)
    threads = options["threads"]
    return SessionProcess(
        variant.plan.engine, Path(variant.artifact.path), options, log=run / "logs" / f"{_slug(variant.name)}.compare.log",
        timeout_s=ANSWER_LIMIT_S, threads=threads if isinstance(threads, int) else None, environment=settings.environment,
    )  # fmt: skip


def _answer(session: TextSession, request: GenerationRequest, text: ModelText) -> TextAnswer:
    """The white space around an answer means nothing to people, and might tell which engine wrote it."""
    found = session.generate([request])[0]
    decoded: str = text.tokenizer.decode(list(found.token_ids), skip_special_tokens=True)
    return TextAnswer(text=decoded.strip(), tokens=len(found.token_ids), cut=found.finish_reason == "length")
