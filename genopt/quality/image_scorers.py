"""What says how good an image is for its prompt: a CLIP folder, a classifier folder, or the user's own function."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import JsonValue

from genopt.errors import DataError
from genopt.quality.image_difference import Image

BATCH = 8


class ImageScorer(Protocol):
    """Scores images, larger is better and never negative."""

    name: str

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> list[float]:
        """One number per image; prompts and images belong together in order."""

    def require_usable(self, prompts: Iterable[str]) -> None:
        """Makes sure that its scores mean something for these prompts.

        Raises:
            DataError: They do not.
        """

    def facts(self, prompts: Iterable[str]) -> dict[str, JsonValue]:
        """What a verdict on images of these prompts says about their scores."""


def load_scorer(where: str) -> ImageScorer:
    """A scorer by what the user gave.

    Args:
        where: `module:callable`, called with prompts and images, or a folder with a CLIP model or an image classifier
            that transformers can load.

    Raises:
        DataError: It cannot be imported or loaded.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        return _from_folder(folder)
    module, separator, name = where.partition(":")
    if not separator:
        raise DataError(f"There is no scorer {where}; give a folder with a CLIP model or classifier, or a Python function as module:callable.")
    try:
        found = vars(importlib.import_module(module))[name]
    except ImportError as error:
        raise DataError(f"The scorer's module {module} cannot be imported ({error}); put it on PYTHONPATH.") from None
    except KeyError:
        raise DataError(f"The module {module} has no {name!r}; give a function of prompts and images as module:callable.") from None
    if not callable(found):
        raise DataError(f"{where} cannot be called; give a function of prompts and images.")
    return FunctionScorer(where, found)


class AnyPrompt:
    """A scorer that prompts of any kind suit."""

    def require_usable(self, prompts: Iterable[str]) -> None:
        """See `ImageScorer.require_usable`."""

    def facts(self, prompts: Iterable[str]) -> dict[str, JsonValue]:
        """See `ImageScorer.facts`."""
        return {}


class FunctionScorer(AnyPrompt):
    """The user's function.

    Args:
        name: As given.
        function: Takes prompts and images (uint8 arrays of height, width and RGB) and returns a number for each.
    """

    def __init__(self, name: str, function: Callable[[Sequence[str], Sequence[Image]], Sequence[float]]) -> None:
        self.name, self._function = name, function

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> list[float]:
        """See `ImageScorer.score`.

        Raises:
            DataError: It does not return one number per image.
        """
        found = list(self._function(prompts, images))
        if len(found) != len(images):
            raise DataError(f"The scorer {self.name} returned {len(found)} numbers for {len(images)} images; return one for each.")
        try:
            return [float(value) for value in found]
        except (TypeError, ValueError):
            raise DataError(f"The scorer {self.name} returned something other than numbers; return one number for each image.") from None


class ClipScorer(AnyPrompt):
    """Cosine similarity of image and prompt, times 100 and at least 0 (Hessel et al., "CLIPScore", 2021, in torchmetrics' scale).

    Args:
        folder: A CLIP model with its processor.
    """

    name = "clip_score"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoProcessor

        self._model = AutoModel.from_pretrained(folder).eval()
        self._processor = AutoProcessor.from_pretrained(folder)

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> list[float]:
        """See `ImageScorer.score`."""
        import torch

        found: list[float] = []
        for start in range(0, len(images), BATCH):
            inputs = self._processor(
                text=list(prompts[start : start + BATCH]), images=list(images[start : start + BATCH]), return_tensors="pt", padding=True,
                truncation=True,
            )  # fmt: skip
            with torch.inference_mode():
                output = self._model(**inputs)
            similarity = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
            found += (100 * similarity.clamp(min=0)).tolist()
        return found


class ClassWords:
    """The classes that a prompt names, by whole words.

    Args:
        labels: By class, all of its names with commas between, as ImageNet's are ("tench, Tinca tinca").
    """

    def __init__(self, labels: Mapping[int, str]) -> None:
        self._classes: dict[str, list[int]] = {}
        for index, label in labels.items():
            for name in filter(None, map(_plain, label.split(","))):
                self._classes.setdefault(name, []).append(index)
        # The longest come first, so that a tiger shark is no tiger.
        names = "|".join(re.escape(name) for name in sorted(self._classes, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)")

    def named(self, prompt: str) -> list[int]:
        """Their indices; none where it names no class."""
        found = self._pattern.findall(_plain(prompt))
        return sorted({index for name in found if name for index in self._classes[name]})


def _plain(text: str) -> str:
    """In lower case, with single spaces between words."""
    return " ".join(text.casefold().replace("_", " ").split())


class ClassifierScorer:
    """Probability of the class that the prompt names; of the most probable class where it names none.

    Args:
        folder: An image classifier with its processor.
    """

    name = "class_probability"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self._model = AutoModelForImageClassification.from_pretrained(folder).eval()
        self._processor = AutoImageProcessor.from_pretrained(folder)
        self._words = ClassWords(self._model.config.id2label)

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> list[float]:
        """See `ImageScorer.score`."""
        import torch

        found: list[float] = []
        for start in range(0, len(images), BATCH):
            with torch.inference_mode():
                logits = self._model(**self._processor(images=list(images[start : start + BATCH]), return_tensors="pt")).logits
            for prompt, row in zip(prompts[start : start + BATCH], logits.float().softmax(1), strict=True):
                named = self._words.named(prompt)
                found.append(float(row[named].max() if named else row.max()))
        return found

    def require_usable(self, prompts: Iterable[str]) -> None:
        """See `ImageScorer.require_usable`.

        Raises:
            DataError: Most prompts name no class, so that it could not tell right images from confident wrong ones.
        """
        asked = set(prompts)
        unnamed = self._unnamed(asked)
        if 2 * len(unnamed) > len(asked):
            raise DataError(
                f"{len(unnamed)} of {len(asked)} prompts, such as {unnamed[0]!r}, name no class of the classifier that scores images; "
                "give prompts that do with --eval-data, or another scorer, such as a CLIP model, with --scorer."
            )

    def facts(self, prompts: Iterable[str]) -> dict[str, JsonValue]:
        """See `ImageScorer.facts`: of how many prompts the most probable class counts, whichever it is."""
        return {"prompts_without_class": len(self._unnamed(set(prompts)))}

    def _unnamed(self, prompts: set[str]) -> list[str]:
        return sorted(prompt for prompt in prompts if not self._words.named(prompt))


def _from_folder(folder: Path) -> ImageScorer:
    """CLIP where the configuration says so, else a classifier."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder)
        return ClipScorer(folder) if config.model_type in ("clip", "siglip", "siglip2") else ClassifierScorer(folder)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"The scorer in {folder} cannot be loaded ({reason}); give a folder with a CLIP model or an image classifier.") from None
