"""Proves that an environment works: a tiny model is converted and opened in it and makes something, or what has no engine is applied to one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genopt import catalog
from genopt.engines.base import GenerationRequest
from genopt.engines.images import ImageRequest
from genopt.environments.place import require_built
from genopt.errors import GenoptError, StageError
from genopt.plan import Record
from genopt.process import ImageProcess, SessionProcess, run_stage
from genopt.testing.tiny_originals import ORIGINALS

LIMIT_S = 300.0
THREADS = 2
CALIBRATION = (4, 512)
"""Sequences of calibration text for the tiny model, and tokens of each."""


class Checked(Record):
    """An engine that generated, or a technique that was applied.

    Attributes:
        name: Catalogue name.
        seconds: From the start of its process until an engine could generate, or a technique was done.
        made: What an engine generated, in words.
    """

    name: str
    seconds: float
    made: str = ""


def check(name: str) -> Iterator[Checked]:
    """Generates something small with every engine of an environment; of one without engines, tries its techniques.

    Args:
        name: The environment.

    Yields:
        Each as soon as it is done.

    Raises:
        InfeasibleError: It is not built.
        GenoptError: It does not work, with the reason; what libraries said last is in the details, as `log`.
    """
    require_built(name)
    engines = [engine for engine in catalog.names("engines") if catalog.load("engines", engine).environment == name]
    techniques = [technique for technique in catalog.names("techniques") if catalog.load("techniques", technique).environment == name]
    if not engines and not techniques:
        raise StageError(f"Nothing runs in the environment {name!r}, so there is nothing to check; remove it with: genopt env remove {name}.")
    with tempfile.TemporaryDirectory(prefix="genopt-check-") as scratch:
        originals = _Originals(Path(scratch, "originals"))
        for one in engines or techniques:
            log = Path(scratch, one, "log.txt")
            log.parent.mkdir()
            with _logged(log):
                found = _check(one, originals, log) if engines else _applied(one, originals, log)
            yield found


class _Originals:
    """Tiny models by the trait that originals of their kind carry, made when they are wanted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def given(self, trait: str, log: Path) -> Path:
        """The folder of one."""
        folder = self._folder / trait
        if not folder.is_dir():
            run_stage("tiny_original", {"trait": trait, "destination": str(folder)}, log=log, timeout_s=LIMIT_S, threads=THREADS)
        return folder

    def of(self, technique: str, log: Path) -> Path:
        """What a technique takes."""
        return self.given("diffusers" if "diffusers" in catalog.load("techniques", technique).requires else "hf", log)


@contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Adds the end of a log to a failure's details."""
    try:
        yield
    except GenoptError as error:
        raise type(error)(error.message, {**error.details, "log": log.read_text(errors="replace")[-4000:] if log.exists() else ""}) from None


def _applied(technique: str, originals: _Originals, log: Path) -> Checked:
    original, calibration = originals.of(technique, log), log.parent / "calibration.parquet"
    rows = [[(7 * row + 3 * place) % 256 for place in range(CALIBRATION[1])] for row in range(CALIBRATION[0])]
    pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int32()))}), calibration)
    began = time.monotonic()
    _transform(technique, original, log.parent / "artifact", str(calibration), log)
    return Checked(name=technique, seconds=time.monotonic() - began)


def _check(engine: str, originals: _Originals, log: Path) -> Checked:
    artifact = _artifact(engine, originals, log)
    if catalog.load("engines", engine).modality == "image":
        with ImageProcess(engine, artifact, {"threads": THREADS}, log=log, timeout_s=LIMIT_S, threads=THREADS) as painter:
            height, width, _ = painter.generate([ImageRequest(prompt="a", steps=2)])[0].pixels().shape
            return Checked(name=engine, seconds=painter.load_s, made=f"an image of {width}×{height} pixels")
    with SessionProcess(engine, artifact, {"threads": THREADS}, log=log, timeout_s=LIMIT_S, threads=THREADS) as session:
        (found,) = session.generate([GenerationRequest(prompt_ids=(1, 2, 3), max_new_tokens=1)])
        return Checked(name=engine, seconds=session.load_s, made=f"token {found.token_ids[0]}")


def _artifact(engine: str, originals: _Originals, log: Path) -> Path:
    """The tiny model as the engine takes it."""
    accepts = catalog.load("engines", engine).accepts
    given = next(iter(accepts & ORIGINALS.keys()), None)
    if given is not None:
        return originals.given(given, log)
    technique = next(_converters(accepts, frozenset(ORIGINALS)), None)
    if technique is None:
        raise StageError(f"No technique makes what the engine {engine!r} opens, so it cannot be checked; add one to the catalogue.")
    return _transform(technique, originals.of(technique, log), log.parent / "artifact", None, log)


def _transform(technique: str, original: Path, destination: Path, calibration: str | None, log: Path) -> Path:
    destination.mkdir(parents=True)
    loaded = catalog.load("techniques", technique)
    context = {"original": str(original), "calibration": calibration, "seed": 0, "threads": THREADS}
    payload = {"technique": technique, "source": str(original), "destination": str(destination), "params": {}, "context": context}
    run_stage("transform", payload, log=log, timeout_s=LIMIT_S, threads=THREADS, where=loaded.environment)
    return destination


def _converters(accepts: frozenset[str], originals: frozenset[str]) -> Iterator[str]:
    """Techniques that make an artifact with one of these traits from an original."""
    for name in catalog.names("techniques"):
        technique = catalog.load("techniques", name)
        if technique.adds & accepts and technique.requires <= originals:
            yield name
