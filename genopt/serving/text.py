"""Text in and out of token ids: chat template, incremental detokenization, stop strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from genopt.errors import ModelError
from genopt.models.text_prefix import begun, text_prefix
from genopt.models.tokenizer import TOKENIZER, chat_template, load_tokenizer
from genopt.serving.chat_template import ChatTemplate
from genopt.serving.exchange import ChatMessage

_UNFINISHED = "\ufffd"
_WINDOW = 24
"""Most tokens that are decoded again with a new one, unless they are pieces of characters."""
_KEPT = 8
"""Fewest that are left where there are more."""
_ANCHOR = "a"
"""Any text before a token that is looked at by itself."""


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


class ModelText:
    """A model folder's tokenizer, chat template and limits.

    Args:
        folder: Has `tokenizer.json` and, where the model has them, `tokenizer_config.json`, `chat_template.jinja`,
            `generation_config.json` and `config.json`.

    Raises:
        ModelError: There is no `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / TOKENIZER).is_file():
            raise ModelError(f"{folder} has no tokenizer.json; give the folder of the original model.")
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        self._prefix = text_prefix(self.tokenizer)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary: int = max(vocabulary.values()) + 1
        self._longest_token = max(map(len, vocabulary))
        config = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
        self._special = {name: _token_text(config.get(name)) or "" for name in ("bos_token", "eos_token")}
        self.stop_token_ids = self._stop_token_ids(_read_json(folder / "generation_config.json"))
        self.context = self._context(_read_json(folder / "config.json"))
        self._chat = ChatTemplate(chat_template(folder), self._special)
        anchor: list[int] = self.tokenizer.encode(_ANCHOR, add_special_tokens=False).ids
        self._anchor, self._anchor_text = anchor, str(self.tokenizer.decode(anchor))

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
        return self._chat.is_there

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the model was taught to see it, ending where the answer begins.

        Raises:
            SpecError: The model has no chat template, or the template refuses the conversation.
        """
        return self._chat.render(messages)

    def chat_ids(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of a rendered conversation; the template writes the special tokens itself."""
        return tuple(self.tokenizer.encode(self.render_chat(messages), add_special_tokens=False).ids)

    def surely_longer(self, characters: int, tokens: int) -> bool:
        """Whether a text is longer than so many tokens whatever it says; spares tokenizing what is refused anyway."""
        return characters > tokens * self._longest_token

    def token_text(self, token: int) -> str:
        """The text of one token within a text, as decoders may take the space before the first one; U+FFFD stands for a part of a character."""
        text: str = self.tokenizer.decode([*self._anchor, token], skip_special_tokens=False)
        return text.removeprefix(self._anchor_text)

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a plain prompt behind the tokenizer's prefix, and without what it puts at the end: the answer goes on from there."""
        return tuple(begun(self.tokenizer.encode(prompt, add_special_tokens=False).ids, self._prefix))


class Detokenizer:
    """Turns token ids into text as they come, in whole characters.

    A character may span several tokens, and a decoder may treat the first token of a sequence
    differently, so a window of recent tokens is decoded each time and only what was not sent yet is
    returned. What a lossy decoder cannot read yet ends in U+FFFD and is held back. The window begins
    where a character did, as decoders that spell bytes (Llama 2's) read none of a run that begins within one.

    Args:
        tokenizer: Of the model that writes the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._whole: list[int] = []
        self._sent = 0

    def push(self, token: int) -> str:
        """Adds a token and returns the text that is certain by now; may be empty."""
        self._window.append(token)
        decoded = self._decoded()
        certain = decoded.rstrip(_UNFINISHED)
        fresh = certain[self._sent :]
        self._sent = max(self._sent, len(certain))
        if certain == decoded:
            self._whole.append(len(self._window))
            self._shorten()
        return fresh

    def _shorten(self) -> None:
        """Begins the window later, after tokens that spell whole characters."""
        start = max((place for place in self._whole if place <= len(self._window) - _KEPT), default=0)
        if start and len(self._window) > _WINDOW:
            self._window = self._window[start:]
            self._whole = [place - start for place in self._whole if place > start]
            self._sent = len(self._decoded())

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text


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
