"""The transform contract: one artifact folder in, another out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from genopt.errors import DataError
from genopt.plan import JsonValue, Record
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable


class TransformContext(Record):
    """What a transform may use besides its parameters.

    Attributes:
        original: Folder of the original model (teacher, tokenizer).
        calibration: Parquet file with a column `ids` (list<int32>) of token sequences, or for images `prompt`
            (string), disjoint from what is evaluated on; None for data-free transforms.
        seed: Seed for everything random.
        threads: CPU threads to use.
        time_limit_s: Time after which the result is worthless; time-boxed transforms end well before.
        given: Folders of the models that the user gave beside the original, by digest.
        checkpoints: Folder of this step alone, which may not exist yet. It outlives a stage that is killed, so that one that takes long can go on
            there from what it wrote; it is removed when the step is done. None where nothing is kept.
    """

    original: str
    calibration: str | None
    seed: int
    threads: int
    time_limit_s: float
    given: dict[str, str] = {}
    checkpoints: str | None = None

    @property
    def checkpoint_folder(self) -> Path | None:
        """`checkpoints` as a path."""
        return None if self.checkpoints is None else Path(self.checkpoints)

    def given_folder(self, digest: str) -> Path:
        """The folder of a given model.

        Raises:
            DataError: It is not among those that were given.
        """
        if digest not in self.given:
            raise DataError(f"The given model {digest[:12]} is not at hand; give its folder again.")
        return Path(self.given[digest])


Progress = Callable[[str], None]
GpuUse = Literal["unused", "used", "spread", "needed"]
"""What a GPU is to a transform: nothing; faster work, which is done without one all the same; likewise, and the faster the more of them it
sees; or what neither it nor its result can do without."""


class Transform(Protocol):
    """An entry of the catalogue's techniques. Class attributes are readable without running anything; what most have need not be said."""

    name: str
    version: int
    phase: int
    """Order of application: 10 structure, 20 sparsity, 30 recovery training, 40 quantization, 50 conversion."""
    requires: frozenset[str]
    """Traits the source must carry."""
    excludes: frozenset[str] = frozenset()
    """Traits the source must not carry."""
    adds: frozenset[str] = frozenset()
    """Traits of the result, besides the source's."""
    removes: frozenset[str] = frozenset()
    """Traits of the source that the result no longer has."""
    needs_calibration: bool = False
    gpu: GpuUse = "unused"
    tunables: tuple[Tunable, ...] = ()
    """Parameters that a search may change, and to what."""
    environment: str | None = None
    """Catalogue name of the environment that it runs in; None is ours. `check` runs in ours all the same."""

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """Validates the parameters against the model's config.

        Raises:
            InfeasibleError: This model or machine cannot take it, with the reason.
            SpecError: Unknown parameter or bad value.
        """

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """What one unit of work takes after this step; predictions are made from it, nothing is run."""

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """Writes the result into the empty folder `destination`; the source is never changed."""
