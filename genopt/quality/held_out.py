"""Prompts that no technique has seen, rendered once, and whether an artifact would read them as the original does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from genopt.errors import ModelError
from genopt.models.tokenizer import chat_template, load_tokenizer
from genopt.plan import Record

QUESTIONS = (
    "What is the capital of France? Answer with one word.",
    "Name three primary colors.",
    "Write one sentence about the sea.",
    "What is seven plus five? Answer with a number.",
    "Explain in one sentence why the sky is blue.",
    "How do you say 'good morning' in Spanish?",
    "List the ingredients of pancakes.",
    "Write a Python function that returns the larger of two numbers.",
)
"""Asked of models with a chat template; some have short answers, so that a model shows whether it can end."""
PROMPT_TOKENS = 32
"""Length of the beginnings of evaluation text that other models continue."""
FIRST_IDS = 8
"""Ids of the first prompt that are recorded."""


class HeldOut(Record):
    """Held-out prompts.

    Attributes:
        ids: Token ids of each, as every engine gets them.
        texts: Rendered conversations behind them; empty where the prompts are beginnings of the evaluation text.
        template: Digest of the chat template, or an empty text.
    """

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...] = ()
    template: str = ""

    @property
    def first_ids(self) -> tuple[int, ...]:
        """The beginning of the first prompt: special tokens and template show there."""
        return self.ids[0][:FIRST_IDS] if self.ids else ()


def held_out(folder: Path, evaluation: Sequence[Sequence[int]], room: int) -> HeldOut:
    """Questions in the model's chat template, or beginnings of evaluation text for a model without one.

    Args:
        folder: The original model.
        evaluation: Token ids of the evaluation text.
        room: Most tokens that a prompt may have.

    Raises:
        ModelError: The chat template refuses a plain question.
    """
    source = chat_template(folder)
    if source is not None:
        texts = _rendered(folder)
        ids = _encoded(folder, texts)
        if max(map(len, ids)) <= room:
            return HeldOut(ids=ids, texts=texts, template=_digest(source))
    length = min(PROMPT_TOKENS, room)
    return HeldOut(ids=tuple(tuple(piece[:length]) for piece in evaluation[: len(QUESTIONS)]))


def difference(prompts: HeldOut, folder: Path) -> str | None:
    """How an artifact would read the prompts other than the original does, as a phrase; None where it would not.

    An artifact without a tokenizer or template of its own is served with the original's.

    Args:
        prompts: As the original reads them.
        folder: The artifact.
    """
    source = chat_template(folder)
    if prompts.template and source is not None and _digest(source) != prompts.template:
        return "its chat template is not the original's"
    if prompts.texts and (folder / "tokenizer.json").is_file():
        for theirs, ours in zip(prompts.ids, _encoded(folder, prompts.texts), strict=True):
            if theirs != ours:
                return f"its tokenizer reads a conversation as {list(ours[:FIRST_IDS])}, the original's as {list(theirs[:FIRST_IDS])}"
    return None


def _rendered(folder: Path) -> tuple[str, ...]:
    from jinja2 import TemplateError
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    try:
        return tuple(
            str(tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True))
            for question in QUESTIONS
        )
    except (ValueError, TemplateError) as error:
        raise ModelError(f"The model's chat template refuses a plain question ({str(error).splitlines()[0]}); mend its chat_template.") from None


def _encoded(folder: Path, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    tokenizer = load_tokenizer(folder)
    return tuple(tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)


def _digest(source: str) -> str:
    return hashlib.sha256(source.strip().encode()).hexdigest()
