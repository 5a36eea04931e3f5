"""What every engine that makes images must keep to; see `genopt.testing.contracts`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from genopt import catalog
from genopt.engines.images import ImageRequest, ImageSession
from genopt.errors import SpecError
from genopt.plan import JsonValue
from genopt.process import ImageProcess
from genopt.testing.contracts import check_declarations

STEPS = 4
TOO_LONG = "a photo of a digit " * 100


def check_image_engine(name: str, artifact: Path, options: dict[str, JsonValue]) -> None:
    """Opens a pipeline and checks that the session makes images, repeats, batches, cancels and refuses as promised.

    Args:
        name: Catalogue name.
        artifact: What it opens.
        options: Its options.
    """
    engine = catalog.load("engines", name)
    assert engine.modality == "image"
    check_declarations(engine, name, options)
    with tempfile.TemporaryDirectory(prefix="genopt-contract-") as scratch:
        elsewhere = ImageProcess(name, artifact, options, log=Path(scratch, "log.txt"), timeout_s=300)
        here = engine.environment is None
        if here:
            engine.prepare()
        _check_session(engine.open(artifact, options) if here else elsewhere.open(), at_once=here)


def _check_session(session: ImageSession, *, at_once: bool) -> None:
    try:
        _check_images(session)
        _check_cancelling(session, at_once)
        _check_refusals(session)
        memory = session.memory()
        assert 0 < memory.rss_bytes <= memory.peak_rss_bytes
    finally:
        session.close()


def _asked(seed: int = 1, **changes: object) -> ImageRequest:
    return ImageRequest.model_validate({"prompt": "a photo of a digit", "seed": seed, "steps": STEPS, **changes})


def _check_images(session: ImageSession) -> None:
    (found,) = session.generate([_asked()])
    assert found.finish_reason == "done"
    assert len(found.timestamps_ns) == STEPS
    assert found.started_ns < found.timestamps_ns[0]
    assert list(found.timestamps_ns) == sorted(found.timestamps_ns)
    assert found.timestamps_ns[-1] <= found.finished_ns
    assert session.generate([_asked()])[0].png == found.png, "the same seed gives the same bytes"
    assert session.generate([_asked(2)])[0].png != found.png, "another seed gives another image"
    height, width, channels = found.pixels().shape
    assert channels == 3
    first, second = session.generate([_asked(1), _asked(2)])
    assert first.pixels().shape == second.pixels().shape == (height, width, 3)
    assert session.generate([_asked(width=width, height=height)])[0].png == found.png
    try:
        wide = session.generate([_asked(width=width + 8, height=height)])[0]
    except SpecError as error:  # a pipeline may have one size only
        if error.details != {"param": "size"}:
            raise
    else:
        assert wide.pixels().shape == (height, width + 8, 3)
    assert session.generate([]) == []


def _check_cancelling(session: ImageSession, at_once: bool) -> None:
    """Where a session is in another process, word of it takes its time, and some steps more."""
    seen: list[tuple[int, int]] = []
    asked_steps = STEPS if at_once else 25 * STEPS

    def on_step(index: int, step: int, steps: int) -> bool:
        assert steps == asked_steps
        seen.append((index, step))
        return not (index == 0 and step >= 2)

    first, second = session.generate([_asked(1, steps=asked_steps), _asked(2, steps=asked_steps)], on_step)
    assert (first.finish_reason, first.png) == ("cancelled", b"")
    assert second.finish_reason == "done"
    assert [step for index, step in seen if index == 1] == list(range(1, asked_steps + 1))
    left = [step for index, step in seen if index == 0]
    assert left == [1, 2] if at_once else len(left) < asked_steps, "who has left is not told any more"
    (alone,) = session.generate([_asked(steps=asked_steps)], lambda *_: False)
    assert alone.finish_reason == "cancelled"
    assert len(alone.timestamps_ns) <= (1 if at_once else asked_steps - 1), "where nobody waits, nothing goes on"


def _check_refusals(session: ImageSession) -> None:
    for refused in ({"steps": 0}, {"width": 12}, {"height": 0}, {"guidance": -1.0}, {"prompt": TOO_LONG}):
        with pytest.raises(SpecError):
            session.generate([_asked(**refused)])
    with pytest.raises(SpecError, match="one batch"):
        session.generate([_asked(), _asked(width=64)])
    assert session.generate([_asked()])[0].finish_reason == "done", "a refusal breaks nothing"
