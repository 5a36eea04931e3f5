"""Two variants' answers to the same prompts, and the folder that holds them with what people said about them.

Layout below a run: `compare/<comparison>/comparison.json` (written once, complete), `votes.jsonl` (append-only,
fsynced), `raters.json` (the links, readable by their owner alone) and `images/`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from genopt.errors import RunFolderError, StorageError
from genopt.plan import JsonValue, Record
from genopt.quality.votes import Ballots, Side, count_ballots
from genopt.store.append_log import read_log
from genopt.store.files import storage_error, write_atomically

FOLDER = "compare"
"""Below the run folder."""
_IMAGE = r"^[0-9a-f]{64}\.png$"


class TextAnswer(Record):
    """A text.

    Attributes:
        text: As it is shown; may be empty.
        tokens: How many the model wrote.
        cut: The model had not ended by itself when the limit of tokens came.
    """

    kind: Literal["text"] = "text"
    text: str
    tokens: int = 0
    cut: bool = False


class ImageAnswer(Record):
    """A picture; `file` is its name in the comparison's `images` folder."""

    kind: Literal["image"] = "image"
    file: str = Field(pattern=_IMAGE)


Answer = Annotated[TextAnswer | ImageAnswer, Field(discriminator="kind")]


class Question(Record):
    """One prompt with both answers.

    Attributes:
        id: Unique within the comparison.
        prompt: What was asked.
        a: Answer of the first variant.
        b: Answer of the second.
    """

    id: str
    prompt: str
    a: Answer
    b: Answer

    def answer(self, side: Side) -> TextAnswer | ImageAnswer:
        """The answer of one variant."""
        return self.a if side == "a" else self.b


class Comparison(Record):
    """What raters are asked.

    Attributes:
        a: Name of the first variant, the one that the other is measured by.
        b: Name of the second variant.
        settings: How the answers were made.
        questions: At least one.
    """

    schema_version: Literal[1] = 1
    a: str
    b: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    questions: tuple[Question, ...] = Field(min_length=1)

    def name(self, side: Side) -> str:
        """The name of one variant."""
        return self.a if side == "a" else self.b


class ComparisonFolder:
    """Reads and writes one comparison.

    Args:
        path: The folder; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def votes(self) -> Path:
        """The log of votes."""
        return self.path / "votes.jsonl"

    def exists(self) -> bool:
        """Whether all answers are there."""
        return (self.path / "comparison.json").is_file()

    def write(self, comparison: Comparison) -> None:
        """Makes the comparison, once its answers are complete.

        Raises:
            StorageError: The folder cannot be written.
        """
        write_atomically(self.path / "comparison.json", comparison.model_dump_json(indent=1) + "\n")

    def read(self) -> Comparison:
        """What raters are asked.

        Raises:
            StorageError: It is missing or damaged.
        """
        path = self.path / "comparison.json"
        try:
            return Comparison.model_validate_json(path.read_bytes())
        except OSError as error:
            raise storage_error(path, error) from None
        except ValidationError as error:
            raise StorageError(f"{path} is damaged ({error.errors()[0]['msg']}); delete its folder and compare again.") from None

    def ballots(self) -> Ballots:
        """The votes that count so far.

        Raises:
            StorageError: The log is damaged.
        """
        return count_ballots(read_log(self.votes))

    def add_image(self, png: bytes) -> ImageAnswer:
        """Keeps a picture.

        Args:
            png: A PNG file's bytes.

        Raises:
            StorageError: It is no PNG file, or the folder cannot be written.
        """
        if not png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise StorageError("A picture to compare is not a PNG file; save it as PNG.")
        file = f"{hashlib.sha256(png).hexdigest()}.png"
        if not (self.path / "images" / file).exists():
            write_atomically(self.path / "images" / file, png)
        return ImageAnswer(file=file)

    def image(self, answer: ImageAnswer) -> Path:
        """The file of a picture."""
        return self.path / "images" / answer.file


def comparison_folder(run: Path, a: str, b: str, digest: str) -> ComparisonFolder:
    """Where a run keeps the comparison of two variants.

    Args:
        run: The run folder.
        a: Name of the first variant.
        b: Name of the second.
        digest: Of all that the answers depend on; another digest is another comparison.
    """
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", f"{a}-vs-{b}").strip("-.")[:80]
    return ComparisonFolder(run / FOLDER / f"{slug}-{digest[:12]}")


def comparisons(run: Path) -> list[ComparisonFolder]:
    """All complete comparisons of a run, by name."""
    found = (ComparisonFolder(path.parent) for path in sorted((run / FOLDER).glob("*/comparison.json")))
    return list(found)


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """Makes this process the one that generates answers and takes votes for a run.

    Raises:
        RunFolderError: Another process does.
        StorageError: The folder cannot be written.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        stream = (folder / ".lock").open("w")
    except OSError as error:
        raise storage_error(folder, error) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(f"Another process takes votes in {folder}; use its links, or end it first.") from None
        yield
