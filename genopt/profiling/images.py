"""Profiles a text-to-image pipeline: which component takes an image's time, and what bounds a denoising step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field

from genopt.engines.diffusers_options import DiffusersOptions
from genopt.engines.diffusers_session import DiffusersSession
from genopt.engines.images import ImageRequest
from genopt.plan import Record
from genopt.profiling import wording
from genopt.profiling.ceiling_cache import CeilingCache
from genopt.profiling.ceilings import for_dtype, thread_count
from genopt.profiling.denoising import DENOISER, PIPELINE, TEXT_ENCODERS, VAE, Calls, marks, median_call_s, parts, timed, works
from genopt.profiling.phases import assess
from genopt.profiling.recording import Recording
from genopt.profiling.records import Bottleneck, Phase
from genopt.profiling.roofline import EXPLAINED
from genopt.profiling.trace import marked, profiler, read_cells
from genopt.search.footprint import OTHER

STEPS = 6
"""Steps that are run; the time of an image with all of its steps follows from them."""
STEP, TRACE = "denoising step", "denoising.json.gz"
MOST_SHARE = 0.5
"""A denoiser with less of the time than this is not where to begin."""
LEAST_SHARE = 1e-4
_ADVICE = {
    DENOISER: "Fewer steps save in proportion: a better scheduler, an end of guidance, a cache; then cheaper ones: compile, 8 bits.",
    VAE: "Compile the decoder or give a smaller one; steps cannot help here.",
    TEXT_ENCODERS: "Keep the embeddings of prompts that come again; store the encoder in fewer bits.",
    PIPELINE: "Python between the components: batches and fewer steps have less of it.",
}


class ImageProfile(Record):
    """Where the time of an image goes.

    Attributes:
        bottlenecks: Components, the largest first; shares sum to 1.
        advice: What to try first.
        family_order: Families of techniques, the most promising first.
        phases: A denoising step against the machine's limits, with families and operators.
        traces: Files for Perfetto or chrome://tracing, by phase.
        ceilings: What this machine was measured to reach.
        ceilings_origin: When that was measured, and why.
        mbu: Share of the read bandwidth that a step reaches.
        mfu: Share of the arithmetic rate that it reaches.
        image_ms: An image with all of its steps.
        component_ms: By component, of an image.
        step_ms: One call of the denoiser.
        steps: Steps of an image.
        weight_bytes: Weights that one step reads.
        device: Where it ran.
        dtype: Number format of the denoiser.
        threads: CPU threads.
        seconds: Wall time of the profile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bottlenecks: tuple[Bottleneck, ...] = Field(min_length=1)
    advice: str
    family_order: tuple[str, ...]
    phases: tuple[Phase, ...]
    traces: dict[str, str]
    ceilings: dict[str, float]
    ceilings_origin: str
    mbu: float
    mfu: float
    image_ms: float
    component_ms: dict[str, float]
    step_ms: float
    steps: int
    weight_bytes: int
    device: str
    dtype: str
    threads: int
    seconds: float


def profile_pipeline(
    folder: Path, *, prompt: str, threads: int, progress: Callable[[str], None], trace_folder: Path, cache: CeilingCache
) -> ImageProfile:  # fmt: skip
    """Profiles the pipeline in a folder.

    Args:
        folder: What diffusers can load.
        prompt: What is asked for.
        threads: CPU threads.
        progress: Told what happens.
        trace_folder: Where `denoising.json.gz` goes.
        cache: Has or measures what this machine reaches.

    Raises:
        ModelError: The pipeline cannot be loaded.
        OutOfMemoryError: The memory is too small for it.
    """
    started = time.monotonic()
    with thread_count(threads), torch.inference_mode():
        progress("loading the pipeline")
        session = DiffusersSession(folder, DiffusersOptions(threads=threads))
        session.generate([ImageRequest(prompt=prompt, steps=2)])  # some schedulers have no single one
        denoiser = session.denoiser
        device, dtype = next(denoiser.parameters()).device, next(denoiser.parameters()).dtype
        progress("timing the components")
        begun = time.monotonic()
        with timed(parts(session.pipeline, denoiser), device) as calls:
            session.generate([ImageRequest(prompt=prompt, steps=STEPS)])
        wall_s = time.monotonic() - begun
        progress("measuring what the machine reaches")
        machine = cache.get(device, threads=threads)
        ceilings = for_dtype(machine.ceilings, dtype, device)
        progress("profiling a denoising step")
        step = _step(denoiser, calls[DENOISER])
        step_s = median_call_s(calls[DENOISER])
        recording = _recorded(denoiser, step, device)
        cells = read_cells(recording.recorded, device, step_s if device.type == "cuda" else recording.wall_s)
        work = works(denoiser, step)
    recording.write(trace_folder / TRACE)
    phase = assess(STEP, step_s, cells, work, ceilings, device=device.type, tokenizer_s=None)
    seconds = _per_image(calls, wall_s, session.steps)
    image_s = sum(seconds.values())
    return ImageProfile(
        bottlenecks=_bottlenecks(seconds, phase, session.steps), advice=_advice(seconds, phase, session.steps),
        family_order=_order(seconds, phase), phases=(phase,), traces={STEP: str(trace_folder / TRACE)},
        ceilings=wording.ceilings_by_name(ceilings), ceilings_origin=machine.origin, mbu=phase.mbu, mfu=phase.mfu, image_ms=1e3 * image_s,
        component_ms={name: 1e3 * value for name, value in seconds.items()}, step_ms=1e3 * step_s, steps=session.steps,
        weight_bytes=round(sum(part.bytes for part in work.values())), device=device.type, dtype=str(dtype).removeprefix("torch."),
        threads=threads, seconds=time.monotonic() - started,
    )  # fmt: skip


def _step(denoiser: Any, calls: Calls) -> Callable[[], object]:
    """One call of the denoiser as the pipeline made it last."""
    arguments, named = calls.last or ((), {})
    return lambda: denoiser(*arguments, **named)


def _recorded(denoiser: Any, step: Callable[[], object], device: torch.device) -> Recording:
    with marked([(denoiser, OTHER), *marks(denoiser)]):
        step()
        recorded = profiler(device)
        recorded.start()
        started = time.monotonic()
        step()
        wall_s = time.monotonic() - started
        recorded.stop()
    return Recording(wall_s, recorded)


def _per_image(calls: dict[str, Calls], wall_s: float, steps: int) -> dict[str, float]:
    """Seconds by component of an image with all of its steps, the largest first."""
    scale = steps / STEPS
    others = max(0.0, wall_s - sum(sum(found.seconds) for found in calls.values()))
    found = {name: sum(each.seconds) * (scale if name == DENOISER else 1.0) for name, each in calls.items()} | {PIPELINE: others * scale}
    return dict(sorted(((name, value) for name, value in found.items() if value > 0), key=lambda item: -item[1]))


def _bottlenecks(seconds: dict[str, float], step: Phase, steps: int) -> tuple[Bottleneck, ...]:
    whole = sum(seconds.values())
    found = []
    for name, value in seconds.items():
        if value / whole < LEAST_SHARE:
            continue
        detail = f"{1e3 * value:.3g} of {1e3 * whole:.3g} ms per image"
        if name == DENOISER:
            detail += f", in {steps} steps of {step.ms:.3g} ms; {step.detail}"
        bound = step.bound if name == DENOISER else "overhead" if name == PIPELINE else "compute"
        found.append(Bottleneck(name=name, share=min(1.0, value / whole), bound=bound, detail=detail, advice=_ADVICE[name]))
    return tuple(found)


def _advice(seconds: dict[str, float], step: Phase, steps: int) -> str:
    whole = sum(seconds.values())
    name, largest = next(iter(seconds.items()))
    first = f"{largest / whole:.0%} of an image's {1e3 * whole:.3g} ms goes into the {name}"
    if name != DENOISER:
        return f"{first}. {_ADVICE[name]}"
    reached = f"each of its {steps} steps takes {step.ms:.3g} ms at {step.mfu:.0%} of the machine's arithmetic and {step.mbu:.0%} of its bandwidth"
    rest = "compiling a step comes before fewer bits" if max(step.mfu, step.mbu) < EXPLAINED else "a step is near what the machine can do"
    return f"{first}: {reached}. Fewer steps come first; of what makes a step cheaper, {rest}."


def _order(seconds: dict[str, float], step: Phase) -> tuple[str, ...]:
    """Families of techniques, the most promising first."""
    if seconds.get(DENOISER, 0.0) < MOST_SHARE * sum(seconds.values()):
        return ("compile", "steps", "quantization", "cache", "pruning")
    cheaper = ("compile", "quantization") if max(step.mfu, step.mbu) < EXPLAINED else ("quantization", "compile")
    return ("steps", "cache", *cheaper, "pruning")
