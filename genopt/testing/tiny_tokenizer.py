"""A tokenizer for tests: token id i is the byte i, two special tokens follow, and then, if wanted, words that it writes but never reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BOS_ID = 256
EOS_ID = 257
LEAST = 258
"""Tokens of a vocabulary without such words."""


def byte_characters() -> list[str]:
    """The printable character that stands for each byte: GPT-2's `bytes_to_unicode`, which the ByteLevel parts use."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def write_tiny_tokenizer(folder: Path, *, context: int = 512, vocabulary: int = LEAST) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and `config.json`.

    Args:
        folder: Created if missing.
        context: Context length in tokens.
        vocabulary: Token ids that have a text: a model with random weights says any of its own.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    words = [*byte_characters(), "<s>", "</s>", *(f"w{number}" for number in range(LEAST, vocabulary))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    contents = {
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE},
        "generation_config.json": {"eos_token_id": EOS_ID, "bos_token_id": BOS_ID},
        "config.json": {"max_position_embeddings": context},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def surround_texts(folder: Path, *, before: Sequence[str] = ("<s>",), after: Sequence[str] = ()) -> None:
    """Has a model's tokenizer put special tokens around every text, as Llama's and Gemma's put one before it.

    Args:
        folder: The model's, with a `tokenizer.json`.
        before: Special tokens.
        after: Special tokens.
    """
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=None, special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
