"""Generates and keeps the answers of text variants, one at a time, so that stopping loses at most one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from genopt.compare.answers import ANSWER_LIMIT_S, AnswerProgress, Setup, kept_answers, log_of
from genopt.compare.prompts import load_prompts
from genopt.compare.variants import Variant
from genopt.engines.base import GenerationRequest, TextSession
from genopt.errors import DataError
from genopt.plan import JsonValue
from genopt.process import SessionProcess
from genopt.quality.comparison import ComparisonFolder, TextAnswer
from genopt.serving.exchange import ChatMessage
from genopt.serving.text import ModelText
from genopt.store.append_log import AppendLog, read_log
from genopt.tasks.base import session_options


class TextAnswers:
    """See `genopt.compare.answers.Answers`: greedy ones, one prompt at a time.

    Args:
        setup: With what they are made.

    Raises:
        DataError: The prompts cannot be used.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.prompts: Sequence[str] = load_prompts(setup.prompts)
        self.settings: dict[str, JsonValue] = {
            "max_tokens": setup.max_tokens, "temperature": 0.0, "prompts": str(setup.prompts or "built-in"),
        }  # fmt: skip

    def digest(self, variant: Variant) -> str:
        """See `Answers.digest`; threads do not count, as they only change the speed."""
        content = {
            "plan": variant.plan.identity(), "artifact": variant.artifact.digest, "model": self._setup.model_digest,
            "tokens": self._setup.max_tokens,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def of(self, variant: Variant, folder: ComparisonFolder, progress: AnswerProgress) -> list[TextAnswer]:
        """See `Answers.of`."""
        path = kept_answers(self._setup.run, variant, self.digest(variant), ".jsonl")
        known = {record["prompt"]: TextAnswer.model_validate(record["answer"]) for record in read_log(path)}
        missing = [prompt for prompt in self.prompts if prompt not in known]
        if missing:
            text = ModelText(Path(self._setup.model_folder))
            requests = [_request(prompt, text, self._setup.max_tokens) for prompt in missing]
            done = len(self.prompts) - len(missing)
            progress(variant.name, done=done, of=len(self.prompts))
            log = AppendLog(path)
            with self._session(variant) as session:
                for count, (prompt, request) in enumerate(zip(missing, requests, strict=True), start=done + 1):
                    known[prompt] = _answer(session, request, text)
                    log.append({"prompt": prompt, "answer": known[prompt].model_dump(mode="json")})
                    progress(variant.name, done=count, of=len(self.prompts))
        return [known[prompt] for prompt in self.prompts]

    def _session(self, variant: Variant) -> SessionProcess:
        options = session_options(variant.plan, self._setup.threads)
        threads = options["threads"]
        return SessionProcess(
            variant.plan.engine, Path(variant.artifact.path), options, log=log_of(self._setup.run, variant), timeout_s=ANSWER_LIMIT_S,
            threads=threads if isinstance(threads, int) else None, environment=self._setup.environment,
        )  # fmt: skip


def _request(prompt: str, text: ModelText, max_tokens: int) -> GenerationRequest:
    """The prompt as a chat turn; plain where the model was not taught to chat."""
    ids = text.chat_ids([ChatMessage(role="user", content=prompt)]) if text.chats else text.prompt_ids(prompt)
    if text.context is not None and len(ids) + max_tokens > text.context:
        raise DataError(
            f"The prompt that begins {prompt[:40]!r} has {len(ids)} tokens, and with {max_tokens} for the answer that passes the context "
            f"of {text.context}; shorten it or give a smaller --max-tokens."
        )
    return GenerationRequest(prompt_ids=ids, max_new_tokens=max_tokens, stop_token_ids=text.stop_token_ids)


def _answer(session: TextSession, request: GenerationRequest, text: ModelText) -> TextAnswer:
    """The white space around an answer means nothing to people, and might tell which engine wrote it."""
    found = session.generate([request])[0]
    decoded: str = text.tokenizer.decode(list(found.token_ids), skip_special_tokens=True)
    return TextAnswer(text=decoded.strip(), tokens=len(found.token_ids), cut=found.finish_reason == "length")
