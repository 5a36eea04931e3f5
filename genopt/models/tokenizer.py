"""A model folder's tokenizer and chat template, as the model is asked with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, without the truncation and padding that its file may tell of.

    Those are left from the training, and cut or fill up every text. transformers sets them anew in each call, so that none of its users sees them.

    Args:
        folder: Has a `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def chat_template(folder: Path) -> str | None:
    """The source of a model folder's default chat template."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    stored = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(stored, list):
        stored = {entry["name"]: entry["template"] for entry in stored}.get("default")
    return stored if isinstance(stored, str) else None
