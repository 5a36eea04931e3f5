"""Profiles a causal language model: how long prefill and decode take, which modules take that time, and what bounds them.

Times come from runs without the profiler, which slows small operations down; the profiled runs only
say how the time divides.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ConfigDict, Field
from torch.profiler import profile

from genopt.errors import OutOfMemoryError
from genopt.plan import Record
from genopt.profiling import wording
from genopt.profiling.ceilings import measure_ceilings, measure_read, short_name, thread_count
from genopt.profiling.families import FRAMEWORK, state_bytes
from genopt.profiling.gains import Gain, gains, sentence
from genopt.profiling.generation import Generation, load
from genopt.profiling.roofline import Bound, Ceilings, Work, bound, corrected, family_order
from genopt.profiling.trace import family_times, marked, profiler
from genopt.search.footprint import Footprint

WARM_UP_TOKENS = 4
PREFILLS = 3
ATTEMPTS = 3
UNDISTURBED = 1.25
"""Steps whose median is this many times the fastest one's were disturbed by something else on the machine."""
PROFILED_STEPS = 6
"""Each is recorded on its own, and the least disturbed one counts."""
LEAST_SHARE = 0.01
"""Families below this share of the time are folded into one."""
TRACES = ("prefill.json.gz", "decode.json.gz")


class Bottleneck(Record):
    """A part of the decode step; the shape is the report's.

    Attributes:
        name: What takes the time.
        share: Its share of the step's time.
        bound: What limits it.
        detail: The measurement behind the claim.
        advice: What to do about it.
    """

    name: str
    share: float = Field(gt=0, le=1)
    bound: Bound
    detail: str
    advice: str


class TextProfile(Record):
    """Where the time of a language model goes.

    Attributes:
        bottlenecks: Parts of a decode step, the largest first; shares sum to 1.
        advice: What to try first.
        family_order: Families of techniques, the most promising first.
        ceilings: What this machine was measured to reach.
        mbu: Share of the read bandwidth that decoding reaches with one stream.
        mfu: Share of the arithmetic rate that prefill reaches.
        prefill_ms: From the call to the first token.
        decode_ms: Per further token.
        prefill_shares: Parts of the prefill's time.
        weight_bytes: Weights that one token reads.
        state_bytes: KV cache that one token reads at this context.
        prompt_tokens: Length of the prompt.
        footprint: What one token reads and computes; predictions of candidates start from it.
        gains: What each family of remedies can bring at most, at each concurrency.
        decode_steps: Decode steps behind `decode_ms`.
        profiler_slowdown: How much slower the profiled steps were; their own cost is taken out of the shares.
        device: Where it ran.
        dtype: The number format of the weights.
        threads: CPU threads.
        seconds: Wall time of the profile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bottlenecks: tuple[Bottleneck, ...] = Field(min_length=1)
    advice: str
    family_order: tuple[str, ...]
    ceilings: dict[str, float]
    mbu: float
    mfu: float
    prefill_ms: float
    decode_ms: float
    prefill_shares: dict[str, float]
    weight_bytes: int
    state_bytes: int
    footprint: Footprint
    gains: tuple[Gain, ...]
    prompt_tokens: int
    decode_steps: int
    profiler_slowdown: float
    device: str
    dtype: str
    threads: int
    seconds: float


class _Timings(Record):
    """Times without the profiler, and what one step reads of the cache."""

    prefill_s: float
    decode_s: float
    steps: int
    cache_bytes: float


def profile_text(
    folder: Path, *, threads: int, prompt_ids: Sequence[int], decode_steps: int, time_limit_s: float, progress: Callable[[str], None],
    trace_folder: Path, streams: tuple[int, ...] = (1,),
) -> TextProfile:  # fmt: skip
    """Profiles the model in a folder.

    Args:
        folder: A model that transformers can load.
        threads: CPU threads.
        prompt_ids: Tokens of the prompt; cut where the model's context is too short.
        decode_steps: Decode steps to time; fewer where the time limit asks for it.
        time_limit_s: Seconds that the profile should take; loading the model cannot be shortened.
        progress: Told what happens.
        streams: Numbers of simultaneous streams for which remedies are weighed.
        trace_folder: Where `prefill.json.gz` and `decode.json.gz` go, for chrome://tracing or Perfetto.

    Raises:
        ModelError: The model cannot be loaded.
        OutOfMemoryError: The GPU's memory is too small for it.
    """
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with thread_count(threads), torch.inference_mode():
            progress(f"loading the model on {device.type}")
            generation = Generation(load(folder, device), device, prompt_ids, max(decode_steps + 1, WARM_UP_TOKENS + PROFILED_STEPS))
            progress("timing prefill and decode")
            read = measure_read(device)
            timings = _time(generation, decode_steps, started + time_limit_s)
            progress("measuring what the machine reaches")
            ceilings = measure_ceilings(device=device, dtype=generation.dtype)
            # What disturbs a measurement only lowers it, so the better of two moments is closer to the ceiling.
            ceilings = ceilings.model_copy(update={"read_gb_s": max(read, ceilings.read_gb_s)})
            progress("profiling prefill and decode")
            left_s = started + time_limit_s - time.monotonic()
            prefills = _record_prefills(generation, _fitting(0.1 * left_s, timings.prefill_s, 1, PREFILLS))
            steps = _record_steps(generation, _fitting(0.2 * left_s, timings.decode_s, 1, PROFILED_STEPS))
        prefill_shares, _ = _shares(generation, timings.prefill_s, prefills, trace_folder / TRACES[0])
        shares, slowdown = _shares(generation, timings.decode_s, steps, trace_folder / TRACES[1])
    except torch.OutOfMemoryError:
        raise OutOfMemoryError("The model and its cache do not fit the GPU's memory; use a smaller model or a larger GPU.") from None

    works = generation.decode_work(timings.cache_bytes, generation.tokens + timings.steps)
    step = wording.Step(seconds=timings.decode_s, work=_sum(works.values()), device=device.type)
    footprint = generation.footprint(timings.cache_bytes, generation.tokens + timings.steps)
    gained = gains(step.seconds, footprint, ceilings, streams)
    return TextProfile(
        bottlenecks=_bottlenecks(shares, works, step, ceilings), advice=_advice(step, ceilings, short_name(generation.dtype), gained, streams),
        family_order=family_order(step.seconds, step.work, ceilings, device=device.type), ceilings=_named(ceilings),
        mbu=step.work.bytes / step.seconds / 1e9 / ceilings.read_gb_s,
        mfu=_sum(generation.prefill_work().values()).operations / timings.prefill_s / 1e9 / ceilings.matmul_gflop_s,
        prefill_ms=1e3 * timings.prefill_s, decode_ms=1e3 * timings.decode_s,
        prefill_shares=dict(sorted(prefill_shares.items(), key=lambda item: -item[1])),
        weight_bytes=round(step.work.bytes - timings.cache_bytes), state_bytes=round(timings.cache_bytes), prompt_tokens=generation.tokens,
        decode_steps=timings.steps, profiler_slowdown=slowdown, device=device.type, dtype=str(generation.dtype).removeprefix("torch."),
        threads=threads, seconds=time.monotonic() - started, footprint=footprint, gains=gained,
    )  # fmt: skip


def _advice(step: wording.Step, ceilings: Ceilings, dtype: str, gained: tuple[Gain, ...], streams: tuple[int, ...]) -> str:
    parts = [wording.summary(step, ceilings), wording.emulated(dtype, ceilings), *(sentence(gained, count) for count in streams)]
    return " ".join(filter(None, parts))


def _time(generation: Generation, decode_steps: int, deadline: float) -> _Timings:
    """Times prefill and decode after a warm-up; again where something disturbed the steps and time is left."""
    warm_up, _ = generation.run(WARM_UP_TOKENS)
    left_s = deadline - time.monotonic()
    count = _fitting(0.2 * left_s, statistics.median(warm_up[1:]), 2, decode_steps)
    prefills: list[float] = []
    decode_s = math.inf
    for _ in range(ATTEMPTS):
        (prefill_s, *steps), cache = generation.run(1 + count)
        prefills.append(prefill_s)
        decode_s = min(decode_s, statistics.median(steps))
        if statistics.median(steps) < UNDISTURBED * min(steps) or deadline - time.monotonic() < 0.5 * left_s:
            break
    prefills += [generation.run(1)[0][0] for _ in range(_fitting(0.1 * left_s, min(prefills), 1, PREFILLS))]
    return _Timings(prefill_s=statistics.median(prefills), decode_s=decode_s, steps=count, cache_bytes=state_bytes(cache))


def _fitting(seconds: float, each_s: float, least: int, most: int) -> int:
    """How many of something fit into a time."""
    return max(least, min(most, int(seconds / max(each_s, 1e-6))))


def _shares(generation: Generation, true_s: float, recordings: Sequence[tuple[float, profile]], trace: Path) -> tuple[dict[str, float], float]:
    """Shares of the time by family, and the profiler's slowdown, from the least disturbed recording; writes it as a trace.

    Args:
        generation: The model.
        true_s: Seconds of the same without the profiler.
        recordings: Wall seconds and what was recorded.
        trace: File to write.
    """
    wall_s, recorded = min(recordings, key=lambda recording: recording[0])
    trace.parent.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(trace))
    cuda = generation.device.type == "cuda"
    seconds, events = family_times(recorded, generation.device, true_s if cuda else wall_s)
    if not cuda:  # kernels of a GPU take as long with the profiler as without
        seconds = corrected(seconds, events, true_s)
    total = sum(seconds.values())
    return {family: value / total for family, value in seconds.items() if value > 0}, wall_s / true_s


def _record_prefills(generation: Generation, count: int) -> list[tuple[float, profile]]:
    """Records some prefills, each on its own."""
    found = []
    with marked(generation.layout.marks):
        for _ in range(count):
            recorded = profiler(generation.device)
            recorded.start()
            times, _ = generation.run(1, lambda _, recorded=recorded: recorded.stop())  # type: ignore[misc]
            found.append((times[0], recorded))
    return found


def _record_steps(generation: Generation, count: int) -> list[tuple[float, profile]]:
    """Records some decode steps, each on its own."""
    found: list[profile] = []

    def switch(token: int) -> None:
        if found:
            found[-1].stop()
        if WARM_UP_TOKENS <= token < WARM_UP_TOKENS + count:
            found.append(profiler(generation.device))
            found[-1].start()

    with marked(generation.layout.marks):
        times, _ = generation.run(WARM_UP_TOKENS + count, switch)
    return list(zip(times[WARM_UP_TOKENS:], found, strict=True))


def _sum(works: Iterable[Work]) -> Work:
    every = list(works)
    return Work(bytes=sum(work.bytes for work in every), operations=sum(work.operations for work in every))


def _named(ceilings: Ceilings) -> dict[str, float]:
    formats = {f"matmul_{name}_gflop_s": rate for name, rate in ceilings.formats.items()}
    return {"read_gb_s": ceilings.read_gb_s, "matmul_gflop_s": ceilings.matmul_gflop_s, **formats}


def _bottlenecks(
    shares: Mapping[str, float], works: Mapping[str, Work], step: wording.Step, ceilings: Ceilings
) -> tuple[Bottleneck, ...]:  # fmt: skip
    """Parts of the step by size; those under a hundredth are one."""
    small = [family for family, share in shares.items() if share < LEAST_SHARE]
    parts = {family: (share, works.get(family, Work())) for family, share in shares.items() if family not in small}
    if small:
        parts[wording.REST] = (sum(shares[family] for family in small), _sum(works.get(family, Work()) for family in small))
    found = (_bottleneck(name, min(1.0, share), work, step, ceilings) for name, (share, work) in parts.items())
    return tuple(sorted(found, key=lambda part: -part.share))


def _bottleneck(name: str, share: float, work: Work, step: wording.Step, ceilings: Ceilings) -> Bottleneck:
    seconds = share * step.seconds
    limited: Bound = "overhead" if name == FRAMEWORK else bound(seconds, work, ceilings)
    return Bottleneck(
        name=name, share=share, bound=limited, detail=wording.detail(name, seconds, work, limited, step, ceilings),
        advice=wording.advice(name, seconds, work, limited, ceilings),
    )  # fmt: skip
