"""Requests of one shape are made together; nobody waits for, or fails with, another one's fault."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Sequence

import pytest

from genopt.engines.base import Memory
from genopt.engines.images import GeneratedImage, ImageRequest, OnStep
from genopt.errors import OutOfMemoryError, SpecError, StageCrashedError
from genopt.serving.image_batching import ImageBatcher


class Session:
    """Makes an image in three steps; refuses the prompt `bad`, dies of `worse`, has no room for `large` beside another one, and is killed for
    `greedy`. `gate` holds the first batch back."""

    def __init__(self) -> None:
        self.alive = True
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.ended: list[str] = []

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep | None = None) -> list[GeneratedImage]:
        self.batches.append([request.prompt for request in requests])
        self.gate.wait(10)
        if any(request.prompt == "bad" for request in requests):
            raise SpecError("The prompt is bad; send another.", {"param": "prompt"})
        if any(request.prompt == "worse" for request in requests):
            raise StageCrashedError("The engine's process ended.")
        if any(request.prompt == "greedy" for request in requests):
            self.alive = False
            raise OutOfMemoryError("The engine's process was killed; free memory (log: serve.log).")
        if len(requests) > 1 and any(request.prompt == "large" for request in requests):
            raise OutOfMemoryError("2 images at once do not fit into the memory; ask for fewer or smaller ones.")
        wanted = [all(on_step is None or on_step(index, step, 3) for step in (1, 2, 3)) for index in range(len(requests))]
        self.ended += [request.prompt for request, kept in zip(requests, wanted, strict=True) if kept]
        return [
            GeneratedImage.model_validate({"png": base64.b64encode(b"x"), "started_ns": 0, "timestamps_ns": (1, 2, 3), "finished_ns": 4})
            for _ in requests
        ]

    def memory(self) -> Memory:
        return Memory(rss_bytes=1, peak_rss_bytes=1)

    def close(self) -> None:
        self.gate.set()


def asked(prompt: str, width: int | None = None) -> ImageRequest:
    return ImageRequest(prompt=prompt, width=width)


async def after_first(session: Session, batcher: ImageBatcher, *requests: ImageRequest) -> list[GeneratedImage | BaseException]:
    """Asks for one image, and for all others while it is being made."""
    first = asyncio.create_task(batcher.generate(asked("first")))
    while not session.batches:
        await asyncio.sleep(0)
    others = [asyncio.create_task(batcher.generate(request)) for request in requests]
    await asyncio.sleep(0)
    session.gate.set()
    await first
    return await asyncio.gather(*others, return_exceptions=True)


def test_equal_shapes_share_a_batch_and_others_follow() -> None:
    session = Session()

    async def run() -> None:
        batcher = ImageBatcher(session, max_batch=4, wait_s=0, on_change=lambda load: None)
        await after_first(session, batcher, asked("a"), asked("wide", 64), asked("b"))
        assert session.batches == [["first"], ["a", "b"], ["wide"]]
        assert batcher.load.batch_sizes == {1: 2, 2: 1}
        batcher.close()

    asyncio.run(run())


def test_one_bad_request_does_not_fail_its_company() -> None:
    session = Session()

    async def run() -> None:
        batcher = ImageBatcher(session, max_batch=4, wait_s=0, on_change=lambda load: None)
        good, bad = await after_first(session, batcher, asked("good"), asked("bad"))
        assert isinstance(good, GeneratedImage)
        assert isinstance(bad, SpecError)
        batcher.close()

    asyncio.run(run())


def test_images_that_do_not_fit_together_are_made_one_after_the_other() -> None:
    session = Session()

    async def run() -> None:
        batcher = ImageBatcher(session, max_batch=4, wait_s=0, on_change=lambda load: None)
        found = await after_first(session, batcher, asked("large"), asked("small"))
        assert all(isinstance(one, GeneratedImage) for one in found)
        assert session.batches == [["first"], ["large", "small"], ["large"], ["small"]]
        batcher.close()

    asyncio.run(run())


@pytest.mark.parametrize("others", [(), ("a",)])
def test_an_engine_that_was_killed_has_failed_and_no_request_was_too_large(others: tuple[str, ...]) -> None:
    session = Session()

    async def run() -> None:
        batcher = ImageBatcher(session, max_batch=4, wait_s=0, on_change=lambda load: None)
        found = await after_first(session, batcher, asked("greedy"), *map(asked, others))
        assert all(isinstance(one, StageCrashedError) and "log" not in one.message for one in found)
        batcher.close()

    asyncio.run(run())


def test_a_failure_of_the_engine_reaches_all_and_the_next_batch_goes_on() -> None:
    session = Session()

    async def run() -> None:
        batcher = ImageBatcher(session, max_batch=4, wait_s=0, on_change=lambda load: None)
        found = await after_first(session, batcher, asked("worse"), asked("a"))
        assert all(isinstance(one, StageCrashedError) for one in found)
        assert isinstance(await batcher.generate(asked("again")), GeneratedImage)
        batcher.close()

    asyncio.run(run())


def test_whoever_leaves_is_not_made_any_more() -> None:
    session = Session()

    async def run() -> None:
        batcher = ImageBatcher(session, max_batch=1, wait_s=0, on_change=lambda load: None)
        first = asyncio.create_task(batcher.generate(asked("left while it ran")))
        while not session.batches:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(batcher.generate(asked("left while it waited")))
        await asyncio.sleep(0)
        for task in (first, waiting):
            task.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        session.gate.set()
        await batcher.generate(asked("stayed"))
        assert session.batches == [["left while it ran"], ["stayed"]]
        assert session.ended == ["stayed"]
        batcher.close()

    asyncio.run(run())


def test_a_step_that_does_not_come_is_a_stuck_engine() -> None:
    session = Session()

    async def run() -> None:
        batcher = ImageBatcher(session, max_batch=1, wait_s=0, on_change=lambda load: None)
        task = asyncio.create_task(batcher.generate(asked("a")))
        while not session.batches:
            await asyncio.sleep(0)
        with pytest.raises(Exception, match="made no step"):
            await batcher.check(-1.0)
        session.gate.set()
        await task
        await batcher.check(-1.0)
        batcher.close()

    asyncio.run(run())
