"""Proves that an engine environment works: a tiny model is converted, opened and continued in it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from genopt import catalog
from genopt.engines.base import GenerationRequest
from genopt.environments.place import require_built
from genopt.errors import StageError
from genopt.plan import Record
from genopt.process import SessionProcess, run_stage

LIMIT_S = 300.0
THREADS = 2


class Checked(Record):
    """An engine that generated.

    Attributes:
        engine: Catalogue name.
        load_s: Seconds from the start of its process until it could generate.
        token: What it generated.
    """

    engine: str
    load_s: float
    token: int


def check(name: str, *, progress: Callable[[str], None]) -> list[Checked]:
    """Generates a token with every engine of an environment.

    Args:
        name: The environment.
        progress: Told what happens.

    Raises:
        InfeasibleError: It is not built.
        GenoptError: It does not work, with the reason; the log's last lines are in the details.
    """
    require_built(name)
    engines = [engine for engine in catalog.names("engines") if catalog.load("engines", engine).environment == name]
    if not engines:
        raise StageError(f"No engine runs in the environment {name!r}, so there is nothing to check; remove it with: genopt env remove {name}.")
    with tempfile.TemporaryDirectory(prefix="genopt-check-") as scratch:
        from genopt.testing.tiny_models import write_tiny_llama

        progress("making a tiny model")
        original = write_tiny_llama(Path(scratch, "original"))
        return [_check(engine, original, Path(scratch, engine), progress) for engine in engines]


def _check(engine: str, original: Path, scratch: Path, progress: Callable[[str], None]) -> Checked:
    log = scratch / "log.txt"
    try:
        artifact = _artifact(engine, original, scratch / "artifact", log, progress)
        progress(f"opening it with {engine}")
        with SessionProcess(engine, artifact, {"threads": THREADS}, log=log, timeout_s=LIMIT_S, threads=THREADS) as session:
            (found,) = session.generate([GenerationRequest(prompt_ids=(1, 2, 3), max_new_tokens=1)])
            return Checked(engine=engine, load_s=session.load_s, token=found.token_ids[0])
    except StageError as error:
        raise type(error)(error.message, {**error.details, "log": log.read_text(errors="replace")[-4000:] if log.exists() else ""}) from None


def _artifact(engine: str, original: Path, destination: Path, log: Path, progress: Callable[[str], None]) -> Path:
    """The tiny model as the engine takes it."""
    accepts = catalog.load("engines", engine).accepts
    if "hf" in accepts:
        return original
    technique = next(_converters(accepts), None)
    if technique is None:
        raise StageError(f"No technique makes what the engine {engine!r} opens, so it cannot be checked; add one to the catalogue.")
    progress(f"converting it with {technique}")
    destination.mkdir(parents=True)
    context = {"original": str(original), "calibration": None, "seed": 0, "threads": THREADS}
    payload = {"technique": technique, "source": str(original), "destination": str(destination), "params": {}, "context": context}
    run_stage("transform", payload, log=log, timeout_s=LIMIT_S, threads=THREADS, where=catalog.load("techniques", technique).environment)
    return destination


def _converters(accepts: frozenset[str]) -> Iterator[str]:
    """Techniques that make an artifact with one of these traits from a Hugging Face folder."""
    for name in catalog.names("techniques"):
        technique = catalog.load("techniques", name)
        if technique.adds & accepts and technique.requires <= {"hf"}:
            yield name
