"""The engine replica of a text-to-image pipeline: one engine process and the requests that run on it."""

from __future__ import annotations

import base64
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from genopt.engines.images import ImageRequest
from genopt.errors import GenoptError, OutOfMemoryError, SpecError
from genopt.image_calls import ImageProcess
from genopt.serving.batching import EngineLoad
from genopt.serving.exchange import ENGINE_FAILED, ENGINE_LOST, Admitted, Event, ImageAsk, Picture, Refusal
from genopt.serving.image_batching import ImageBatcher
from genopt.serving.manifest import ServeArguments
from genopt.serving.metrics import EngineMetrics
from genopt.serving.tether import Tether


class ImageReplica:
    """Makes images. The engine is warm when the constructor returns.

    Args:
        arguments: What is served.

    Raises:
        GenoptError: The engine refused, failed, died or took too long.
    """

    def __init__(self, arguments: ServeArguments) -> None:
        self._variant, self._stall_s = arguments.variant.name, arguments.stall_s
        folder = Path(arguments.log_folder or tempfile.gettempdir())
        session = ImageProcess(
            arguments.variant.engine, Path(arguments.artifact), arguments.variant.options,
            log=folder / f"serve-{arguments.variant.name}-{os.getpid()}.log", timeout_s=arguments.call_limit_s, threads=arguments.threads,
            environment=arguments.variables(),
        )  # fmt: skip
        self._metrics = EngineMetrics(arguments.variant.name)
        self._batcher = ImageBatcher(
            session.open(), max_batch=arguments.max_batch, wait_s=arguments.batch_wait_ms / 1000, on_change=self._metrics.note
        )
        self._tether = Tether(session)

    async def ready(self) -> bool:
        """Answers, which is all that readiness asks: the constructor opened and warmed the engine."""
        return True

    async def load(self) -> EngineLoad:
        """What was done and is under way."""
        return self._batcher.load

    async def check_health(self) -> None:
        """Called by Serve; raising lets it replace this replica.

        Raises:
            GenoptError: The engine's process is dead or does not advance.
        """
        self._metrics.note(self._batcher.load)  # what is not told again is forgotten
        await self._batcher.check(self._stall_s)

    def __del__(self) -> None:
        # Serve calls this when it stops a replica; it also runs when the constructor failed before there was a batcher.
        if "_tether" in vars(self):
            self._tether.release()
            self._batcher.close()

    async def generate(self, ask: ImageAsk) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        if self._tether.engine_gone:
            yield ENGINE_LOST
            return
        seed = secrets.randbelow(2**31) if ask.seed is None else ask.seed
        request = ImageRequest(prompt=ask.prompt, seed=seed, width=ask.width, height=ask.height)
        yield Admitted(prompt_tokens=0, variant=self._variant)
        try:
            image = await self._batcher.generate(request)
        except SpecError as error:
            yield Refusal(status=400, message=error.message, param=str(error.details.get("param", "prompt")), code="invalid_value")
        except OutOfMemoryError as error:
            yield Refusal(status=413, message=error.message, param="size", code="too_large")
        except GenoptError:
            yield ENGINE_FAILED
        else:
            yield Picture(png=base64.b64encode(image.png).decode(), steps=len(image.timestamps_ns))
