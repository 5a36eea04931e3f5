"""The text-to-image task with candidates that tiny random pipelines are done with in seconds: nothing is compiled, steps are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genopt.plan import JsonValue, Plan, Step
from genopt.quality.image_difference import Image
from genopt.tasks.base import Bench, BenchConfig
from genopt.tasks.image_bench import ImageBench
from genopt.tasks.text_to_image import TextToImage

STEPS = 12


def any_picture(_prompts: Sequence[str], images: Sequence[Image]) -> list[float]:
    """A scorer to whom everything is art; random weights paint nothing that one could tell good from bad."""
    return [1.0 for _ in images]


def _plan(name: str, *steps: str, **options: JsonValue) -> Plan:
    return Plan(
        name=name,
        steps=tuple(Step(technique=step) for step in steps),
        engine="diffusers",
        options={"num_inference_steps": STEPS, "spare_threads": 1, **options},
    )


class TinyImageTask(TextToImage):
    """See `genopt.tasks.base.Task`."""

    name = "tiny-image"
    profile_stage = "no such stage"
    """A profile that fails, as one may; a run goes on without it."""

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """Eager ones."""
        return _plan("original"), _plan("baseline", channels_last=True)

    @staticmethod
    def catalogue(given: Mapping[str, str], budget_s: float) -> list[Plan]:
        """The same images from 8 bits, other ones in half the steps, and what does not fit this pipeline."""
        return [
            _plan("int8", "diffusers_int8_weight_only"),
            _plan("half-the-steps", num_inference_steps=STEPS // 2, scheduler="dpmsolver++"),
            _plan("wrong-scheduler", scheduler="flow_euler"),
        ]

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench."""
        return ImageBench(config, TinyImageTask.references())
