"""Stages of the text task that run in a process of their own: tokenize the texts, profile the original."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from pydantic import Field

from genopt import clock
from genopt.engines.base import WRITTEN_AFTER_TEXT
from genopt.errors import DataError, ModelError
from genopt.measure.prompts import Message, read_prompts
from genopt.models.text_prefix import begun, text_prefix
from genopt.models.tokenizer import TOKENIZER, load_tokenizer
from genopt.plan import Record
from genopt.quality.generation import NEW_TOKENS
from genopt.quality.held_out import HeldOut, held_out
from genopt.quality.task_items import holds_items
from genopt.quality.text_data import Documents, load_documents, overlap, split, unsplit
from genopt.store.files import write_atomically
from genopt.tasks.base import Prepared
from genopt.techniques.calibration import write_sequences

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

AIMED = 0.6
"""Share of its time that a profile plans with: beside others that keep the processors busy one step may take as long as ten before it."""
WINDOW = 512
"""Tokens per evaluated sequence."""
EVALUATION_TOKENS, OWN_EVALUATION_TOKENS = 65_536, 262_144
"""At most 128 windows of the default text, and 512 of a user's own; each scores one token less than it has."""
CALIBRATION_TOKENS = 65_536
QUESTION_CHARACTERS = 60_000
"""Questions with answers that are shorter together judge tasks only, and the likelihood is judged on the default text."""
PROMPTS, OWN_PROMPTS = 8, 256
"""How many prompts are cut from a text, and how many of a user's own are taken at most."""


class TextSet(Record):
    """The tokenized texts of a run.

    Attributes:
        windows: Evaluation sequences for the likelihood gate, in a seeded order, each behind the tokenizer's prefix.
        prompts: Prompts for speed: the user's own, or pieces of the calibration text behind the prefix, all of the same length.
        stop_ids: End-of-sequence tokens.
        calibration: Parquet file with calibration sequences (column `ids`).
        source: Where the evaluation text comes from.
        digest: Digest of the evaluation text.
        calibration_source: Where the calibration text comes from.
        calibration_digest: Digest of the calibration text.
        held_out: Prompts for the checks of what a candidate writes.
    """

    windows: tuple[tuple[int, ...], ...] = Field(min_length=1)
    prompts: tuple[tuple[int, ...], ...] = Field(min_length=1)
    stop_ids: tuple[int, ...]
    calibration: str
    source: str
    digest: str
    calibration_source: str
    calibration_digest: str
    held_out: HeldOut


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """End-of-sequence ids from generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.exists():
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            if value is not None:
                return tuple(value) if isinstance(value, list) else (int(value),)
    return ()


def prepare(payload: dict[str, Any], _ends: float) -> dict[str, Any]:
    """Tokenizes evaluation, calibration and prompt texts; writes `text_set.json` and `calibration.parquet`.

    Args:
        payload: `model` (folder), `eval_data`, `calib_data`, `prompts` (paths or None), `eval_tasks` (names), `seed`,
            `prompt_tokens`, `output_tokens`, `max_context`, `destination` (folder).

    Raises:
        DataError: The texts are too short, the prompts too long, or either cannot be used.
        ModelError: The model's tokenizer cannot be read.
    """
    from genopt.quality.lm_eval_tasks import require_task
    from genopt.quality.text_data import evaluation_windows, windows

    folder, destination = Path(payload["model"]), Path(payload["destination"])
    if not (folder / TOKENIZER).is_file():
        raise ModelError(f"{folder} has no tokenizer.json; save the model's fast tokenizer beside the weights.")
    tokenizer = load_tokenizer(folder)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    evaluation, calibration = _texts(_path(payload["eval_data"]), _path(payload["calib_data"]), payload["seed"])
    for name in payload.get("eval_tasks", ()):
        require_task(name)
    window = min(WINDOW, int(payload["max_context"]) - WRITTEN_AFTER_TEXT)
    limit = EVALUATION_TOKENS if payload["eval_data"] is None else OWN_EVALUATION_TOKENS
    prefix = text_prefix(tokenizer)
    evaluated = evaluation_windows(evaluation, encode, window, limit, prefix)
    calibrated = windows(calibration, encode, window, CALIBRATION_TOKENS, prefix)
    room, length = int(payload["max_context"]) - int(payload["output_tokens"]), int(payload["prompt_tokens"])
    if payload["prompts"] is not None:
        prompts = _own_prompts(Path(payload["prompts"]).expanduser(), folder, tokenizer, room, payload["seed"])
    elif length > room:
        raise DataError(f"Prompts of {length} tokens leave no room for the answer in the model's context; --prompt-tokens may be {room} here.")
    else:
        prompts = [piece for piece in windows(calibration, encode, length, PROMPTS * length, prefix) if len(piece) == length]
    if not evaluated or not prompts:
        raise DataError("The evaluation or calibration text is too short for one window; give a longer text with --eval-data or --calib-data.")
    destination.mkdir(parents=True, exist_ok=True)
    table = destination / "calibration.parquet"
    write_sequences(table, calibrated, prefix)
    text_set = TextSet(
        windows=tuple(map(tuple, evaluated)), prompts=tuple(map(tuple, prompts)), stop_ids=stop_token_ids(folder),
        calibration=str(table), source=evaluation.source, digest=evaluation.digest, calibration_source=calibration.source,
        calibration_digest=calibration.digest, held_out=held_out(folder, evaluated, max(2, int(payload["max_context"]) - NEW_TOKENS)),
    )  # fmt: skip
    write_atomically(destination / "text_set.json", text_set.model_dump_json())
    digest = hashlib.sha256(text_set.model_dump_json(exclude={"calibration"}).encode()).hexdigest()
    found = Prepared(
        data=str(destination / "text_set.json"), calibration=str(table), calibration_digest=_begun_digest(calibration, prefix), digest=digest
    )
    return found.model_dump(mode="json")


def _begun_digest(calibration: Documents, prefix: tuple[int, ...]) -> str:
    """What tells calibration sequences apart: what was calibrated on a text without the prefix is not what it would be with it."""
    return hashlib.sha256(f"{calibration.digest}:{prefix}".encode()).hexdigest() if prefix else calibration.digest


def _texts(eval_data: Path | None, calib_data: Path | None, seed: int) -> tuple[Documents, Documents]:
    """Evaluation and calibration text.

    Questions with answers are text, too, where they are long enough; nothing of them ever calibrates. Where the user
    gives both, all of the evaluation text evaluates; of the default text it is always the same part, whatever calibrates.

    Raises:
        DataError: A file cannot be used, or both share passages.
    """
    questions = load_documents(eval_data) if eval_data is not None and holds_items(eval_data) else None
    own = eval_data if questions is None else None
    texts = load_documents(own)
    if calib_data is None:
        evaluation, calibration = split(texts, seed)
    else:
        evaluation, calibration = split(texts, seed)[0] if own is None else unsplit(texts, seed), load_documents(calib_data)
        overlap(evaluation, calibration)
    if questions is not None:
        overlap(questions, calibration)
        if sum(map(len, questions.texts)) >= QUESTION_CHARACTERS:
            return questions, calibration
    return evaluation, calibration


def _own_prompts(path: Path, folder: Path, tokenizer: Tokenizer, room: int, seed: int) -> list[list[int]]:
    """The user's prompts as token ids, in a seeded order: conversations with the model's chat template, texts as completions are asked.

    Raises:
        DataError: The file cannot be used, or a prompt leaves no room for its answer.
        ModelError: There are conversations, and the model has no chat template or one that refuses them.
    """
    listed = read_prompts(path)
    chosen = np.random.default_rng(seed).permutation(len(listed))[:OWN_PROMPTS].tolist()
    prefix = text_prefix(tokenizer)
    found: list[list[int]] = []
    for place in chosen:
        prompt = listed[place]
        ids = begun(tokenizer.encode(prompt, add_special_tokens=False).ids, prefix) if isinstance(prompt, str) else _chat_ids(folder, prompt)
        if not 0 < len(ids) <= room:
            raise DataError(f"Prompt {place + 1} of {path} has {len(ids)} tokens, and with its answer only 1 to {room} fit; shorten or remove it.")
        found.append(ids)
    return found


def _chat_ids(folder: Path, messages: Sequence[Message]) -> list[int]:
    try:
        template = _template(folder)
        conversation = [message.model_dump() for message in messages]
        ids: Any = template.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    except (ValueError, TemplateError) as error:
        raise ModelError(f"The model's chat template cannot be used ({str(error).splitlines()[0]}); give the prompts as `prompt`.") from None
    return [int(token) for token in ids]


@cache
def _template(folder: Path) -> PreTrainedTokenizerFast:
    """What renders conversations; serving renders them with the same template."""
    from transformers import PreTrainedTokenizerFast

    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return found


def _path(value: str | None) -> Path | None:
    return Path(value).expanduser() if value is not None else None


def profile(payload: dict[str, Any], ends: float) -> dict[str, Any]:
    """Profiles the original; see `genopt.profiling.text.profile_text`.

    Args:
        payload: `model` (folder), `data` (the prepare stage's file), `threads`, `concurrency`, `trace_folder`, `ceilings` (folder of their
            cache).
        ends: When the stage is killed, on `clock.now`; it ends before.
    """
    from genopt.profiling.ceiling_cache import CeilingCache
    from genopt.profiling.text import profile_text

    prompt = TextSet.model_validate_json(Path(payload["data"]).read_text(encoding="utf-8")).prompts[0]
    found = profile_text(
        Path(payload["model"]), threads=payload["threads"], prompt_ids=prompt, decode_steps=16,
        time_limit_s=AIMED * (ends - clock.now()), progress=_print, trace_folder=Path(payload["trace_folder"]), streams=tuple(payload["concurrency"]),
        cache=CeilingCache(Path(payload["ceilings"])),
    )  # fmt: skip
    content: dict[str, Any] = found.model_dump(mode="json")
    return content


def _print(message: str) -> None:
    print(message, flush=True)
