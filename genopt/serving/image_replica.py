"""The engine replica of a text-to-image pipeline: one engine process and the requests that run on it."""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path

from genopt.engines.images import ImageRequest
from genopt.errors import GenoptError, OutOfMemoryError, SpecError
from genopt.process import ImageProcess
from genopt.serving.exchange import ENGINE_FAILED, ENGINE_LOST, Admitted, Event, ImageAsk, Picture, Refusal
from genopt.serving.image_batching import ImageBatcher
from genopt.serving.manifest import ServeArguments
from genopt.serving.metrics import EngineMetrics
from genopt.serving.served_engine import ServedEngine, log_of


class ImageReplica(ServedEngine):
    """Makes images. The engine is warm when the constructor returns.

    Args:
        arguments: What is served.

    Raises:
        GenoptError: The engine refused, failed, died or took too long.
    """

    def __init__(self, arguments: ServeArguments) -> None:
        self._variant = arguments.variant.name
        session = ImageProcess(
            arguments.variant.engine, Path(arguments.artifact), arguments.variant.options,
            log=log_of(arguments), timeout_s=arguments.call_limit_s, threads=arguments.threads,
            environment=arguments.variables(),
        )  # fmt: skip
        metrics = EngineMetrics(arguments.variant.name)
        self._batcher = ImageBatcher(session.open(), max_batch=arguments.max_batch, wait_s=arguments.batch_wait_ms / 1000, on_change=metrics.note)
        super().__init__(arguments, session, self._batcher, metrics)

    async def generate(self, ask: ImageAsk) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        if self.engine_gone:
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
