"""Models that are installed with genopt itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genopt.errors import ModelError
from genopt.plan import Record
from genopt.store.artifacts import folder_digest

ASSETS = Path(__file__).with_name("assets")


class PackagedModel(Record):
    """A model folder among the package's data.

    Attributes:
        name: Of the folder below `ASSETS`.
        digest: Digest over its files.
        note: What reports must say about the weights.
    """

    name: str
    digest: str
    note: str

    def folder(self, *, cache: Path, progress: Callable[[str], None]) -> Path:
        """See `genopt.models.builtin.BuiltIn.folder`; nothing is written.

        Raises:
            ModelError: Files are missing or were changed.
        """
        folder = ASSETS / self.name
        if not folder.is_dir() or folder_digest(folder)[0] != self.digest:
            raise ModelError(f"The files of the model in {folder} are missing or were changed; install genopt-ray again.")
        return folder
