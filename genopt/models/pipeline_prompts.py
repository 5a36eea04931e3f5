"""What a pipeline can be asked for: texts that its tokenizers read whole, or the names of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from genopt.errors import ModelError
from genopt.models.pipeline import OF_CLASSES
from genopt.models.pipeline_loading import class_name, class_names, components

LONGEST_PROMPT = 1_000_000
"""Tokenizers without a limit give a larger number than this."""
_SHOWN = 3


class Prompts(Protocol):
    """What prompts of a pipeline are."""

    def objection(self, prompt: str) -> str:
        """Why a prompt cannot be used, in a sentence; an empty text where it can."""

    @property
    def examples(self) -> tuple[str, ...]:
        """Prompts that the pipeline brings with it; none where any text is one."""


class Tokenizers:
    """Texts, as long as a pipeline's tokenizers read them.

    Args:
        tokenizers: Those of the components.
    """

    examples: tuple[str, ...] = ()

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        limits = [one.model_max_length for one in tokenizers]
        known = bool(limits) and max(limits) < LONGEST_PROMPT
        self._limit: int = max(limits) if known else 0
        # The most patient one counts: pipelines with several give the others the beginning.
        self._patient = next((one for one in tokenizers if one.model_max_length == self._limit), None) if known else None

    def objection(self, prompt: str) -> str:
        """See `Prompts.objection`."""
        if self._patient is None:
            return ""
        tokens = len(self._patient(prompt, truncation=False, verbose=False).input_ids)
        return f"The prompt has {tokens} tokens and this pipeline reads {self._limit}; shorten it." if tokens > self._limit else ""


class ClassNames:
    """The classes of a pipeline that makes images of classes (DiT).

    Args:
        names: By class, all of its names with commas between; see `diffusers.DiTPipeline`.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        listed = [[name.strip() for name in each.split(",")] for each in names.values()]
        self._names = {name for each in listed for name in each}
        self.examples = tuple(dict.fromkeys(each[0] for each in listed))
        """The first name of each class."""

    def objection(self, prompt: str) -> str:
        """See `Prompts.objection`."""
        if prompt in self._names:
            return ""
        shown = ", ".join(repr(name) for name in self.examples[:_SHOWN])
        return f"This pipeline makes images of {len(self.examples)} classes, and {prompt[:40]!r} is none of them; ask for one such as {shown}."


def prompts_of(folder: Path) -> Prompts:
    """What the pipeline in a folder can be asked for.

    Raises:
        ModelError: A tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    if class_name(folder) == OF_CLASSES:
        return ClassNames(class_names(folder))
    parts = [name for name in components(folder) if name.startswith("tokenizer")]
    try:
        return Tokenizers([AutoTokenizer.from_pretrained(folder / name, local_files_only=True) for name in parts])
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0].rstrip(".")
        raise ModelError(f"A tokenizer of {folder} cannot be loaded ({cause}); fetch the whole pipeline again.") from None
