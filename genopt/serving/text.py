"""Text in and out of token ids: chat template, incremental detokenization, stop strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from genopt.errors import ModelError, SpecError
from genopt.models.text_prefix import begun, text_prefix
from genopt.serving.exchange import ChatMessage

_UNFINISHED = "\ufffd"
_WINDOW = 24
_KEPT = 8


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _token_text(value: object) -> str | None:
    """Tokenizer configs write a special token as a string or as an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    stored = config.get("chat_template")
    if isinstance(stored, list):
        stored = {entry["name"]: entry["template"] for entry in stored}.get("default")
    return stored if isinstance(stored, str) else None


class ModelText:
    """A model folder's tokenizer, chat template and limits.

    Args:
        folder: Has `tokenizer.json` and, where the model has them, `tokenizer_config.json`, `chat_template.jinja`,
            `generation_config.json` and `config.json`.

    Raises:
        ModelError: There is no `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{folder} has no tokenizer.json; give the folder of the original model.")
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._prefix = text_prefix(self.tokenizer)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary: int = max(vocabulary.values()) + 1
        self._longest_token = max(map(len, vocabulary))
        config = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
        self._special = {name: _token_text(config.get(name)) or "" for name in ("bos_token", "eos_token")}
        self.stop_token_ids = self._stop_token_ids(_read_json(folder / "generation_config.json"))
        self.context = self._context(_read_json(folder / "config.json"))
        source = _template_source(folder, config)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._template = None if source is None else environment.from_string(source)

    def _stop_token_ids(self, generation: Mapping[str, Any]) -> tuple[int, ...]:
        listed = generation.get("eos_token_id")
        found = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
        if self._special["eos_token"]:
            found.add(self.tokenizer.token_to_id(self._special["eos_token"]))
        return tuple(sorted(found - {None}))

    @staticmethod
    def _context(config: Mapping[str, Any]) -> int | None:
        sizes = {**config, **config.get("text_config", {})}
        found = sizes.get("max_position_embeddings", sizes.get("n_positions"))
        return found if isinstance(found, int) else None

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return self._template is not None

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the model was taught to see it, ending where the answer begins.

        Raises:
            SpecError: The model has no chat template, or the template refuses the conversation.
        """
        if self._template is None:
            raise SpecError("This model has no chat template; use /v1/completions.", {"param": "messages"})
        plain = [message.model_dump() for message in messages]
        try:
            return self._template.render(messages=plain, add_generation_prompt=True, **self._special)
        except TemplateError as error:
            raise SpecError(f"The model's chat template refuses these messages ({error}); change their order.", {"param": "messages"}) from None

    def chat_ids(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of a rendered conversation; the template writes the special tokens itself."""
        return tuple(self.tokenizer.encode(self.render_chat(messages), add_special_tokens=False).ids)

    def surely_longer(self, characters: int, tokens: int) -> bool:
        """Whether a text is longer than so many tokens whatever it says; spares tokenizing what is refused anyway."""
        return characters > tokens * self._longest_token

    def token_text(self, token: int) -> str:
        """The text of one token; U+FFFD stands for a part of a character."""
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a plain prompt behind the tokenizer's prefix, and without what it puts at the end: the answer goes on from there."""
        return tuple(begun(self.tokenizer.encode(prompt, add_special_tokens=False).ids, self._prefix))


class Detokenizer:
    """Turns token ids into text as they come, in whole characters.

    A character may span several tokens, and a decoder may treat the first token of a sequence
    differently, so a window of recent tokens is decoded each time and only what was not sent yet is
    returned. What a lossy decoder cannot read yet ends in U+FFFD and is held back.

    Args:
        tokenizer: Of the model that writes the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._sent = 0

    def push(self, token: int) -> str:
        """Adds a token and returns the text that is certain by now; may be empty."""
        self._window.append(token)
        decoded: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        certain = decoded.rstrip(_UNFINISHED)
        fresh = certain[self._sent :]
        self._sent = max(self._sent, len(certain))
        if len(self._window) > _WINDOW and certain == decoded:
            self._window = self._window[-_KEPT:]
            self._sent = len(self._tokenizer.decode(self._window, skip_special_tokens=True))
        return fresh


class StopScanner:
    """Finds stop strings in text that comes in pieces, and never lets a part of one through.

    Args:
        stops: Strings that end the text.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Adds text and returns what surely comes before any stop string; sets `stopped` when one is complete."""
        self._held += text
        found = [position for position in (self._held.find(stop) for stop in self._stops) if position >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        split = len(self._held) - keep
        certain, self._held = self._held[:split], self._held[split:]
        return certain

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text with which the stop string could begin."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if stop.startswith(self._held[-size:])), 0)

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held
