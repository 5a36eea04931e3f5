"""Profiles a causal language model: how long prefill and decode take, which modules take that time, and what bounds them.

Times come from runs without the profiler, which slows small operations down; the profiled runs only
say how the time divides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ConfigDict, Field

from genopt.errors import DataError, OutOfMemoryError
from genopt.measure.limits import cpu_list, usable_cpus
from genopt.plan import Record
from genopt.profiling import wording
from genopt.profiling.ceiling_cache import CeilingCache
from genopt.profiling.ceilings import for_dtype, short_name, thread_count
from genopt.profiling.families import FRAMEWORK
from genopt.profiling.gains import Gain, gains, sentence
from genopt.profiling.generation import Generation, load
from genopt.profiling.graph_breaks import find_graph_breaks
from genopt.profiling.phases import assess, total
from genopt.profiling.recording import PROFILED_STEPS, WARM_UP_TOKENS, record_prefill, record_step, time_phases
from genopt.profiling.records import Bottleneck, Bound, GraphBreaks, Phase
from genopt.profiling.roofline import Ceilings, Work, bound, family_order
from genopt.profiling.tokenizing import time_tokenizer
from genopt.search.footprint import Footprint

LEAST_SHARE = 0.01
"""Families below this share of the time are folded into one."""
PREFILL, DECODE = "prefill", "decode step"
TRACES = {PREFILL: "prefill.json.gz", DECODE: "decode.json.gz"}
RESERVE_S = 5.0
"""Kept of the time limit for what follows the last measurement."""


class TextProfile(Record):
    """Where the time of a language model goes.

    Attributes:
        bottlenecks: Parts of a decode step, the largest first; shares sum to 1.
        advice: What to try first.
        family_order: Families of techniques, the most promising first.
        phases: Prefill and decode step against the machine's limits, with families and operators.
        graph_breaks: What `torch.compile` would make of the decode step.
        traces: Files for Perfetto or chrome://tracing, by phase.
        ceilings: What this machine was measured to reach.
        ceilings_origin: When that was measured, and why.
        ceilings_age_s: Seconds since; 0 where it was measured now.
        read_now_gb_s: Bandwidth of reading memory at this moment.
        mbu: Share of the read bandwidth that decoding reaches with one stream.
        mfu: Share of the arithmetic rate that prefill reaches.
        prefill_ms: From the call to the first token.
        decode_ms: Per further token.
        prefill_shares: Parts of the prefill's time.
        tokenizer_ms: Encoding the `prompt` and decoding one `token`; empty where the model has no fast tokenizer.
        weight_bytes: Weights that one token reads.
        state_bytes: KV cache, and other state, that one token reads at this context.
        state_bytes_per_token: By how much that grows per token of context.
        context_tokens: Length of the sequence in the middle of the decode steps.
        prompt_tokens: Length of the prompt.
        footprint: What one token reads and computes; predictions of candidates start from it.
        gains: What each family of remedies can bring at most, at each concurrency.
        decode_steps: Decode steps behind `decode_ms`.
        profiler_slowdown: How much slower the profiled step was; its own cost is taken out of the shares.
        device: Where it ran.
        dtype: The number format of the weights.
        threads: CPU threads.
        cpus: Processors that they may run on, such as `0-3,8`.
        seconds: Wall time of the profile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bottlenecks: tuple[Bottleneck, ...] = Field(min_length=1)
    advice: str
    family_order: tuple[str, ...]
    phases: tuple[Phase, ...]
    graph_breaks: GraphBreaks
    traces: dict[str, str]
    ceilings: dict[str, float]
    ceilings_origin: str
    ceilings_age_s: float
    read_now_gb_s: float
    mbu: float
    mfu: float
    prefill_ms: float
    decode_ms: float
    prefill_shares: dict[str, float]
    tokenizer_ms: dict[str, float]
    weight_bytes: int
    state_bytes: int
    state_bytes_per_token: float
    footprint: Footprint
    gains: tuple[Gain, ...]
    context_tokens: int
    prompt_tokens: int
    decode_steps: int
    profiler_slowdown: float
    device: str
    dtype: str
    threads: int
    cpus: str
    seconds: float


def profile_text(
    folder: Path, *, threads: int, prompt_ids: Sequence[int], decode_steps: int, time_limit_s: float, progress: Callable[[str], None],
    trace_folder: Path, cache: CeilingCache, streams: tuple[int, ...] = (1,),
) -> TextProfile:  # fmt: skip
    """Profiles the model in a folder.

    Args:
        folder: A model that transformers can load.
        threads: CPU threads.
        prompt_ids: Tokens of the prompt; cut where the model's context is too short.
        decode_steps: Decode steps to time; fewer where the time limit asks for it.
        time_limit_s: Seconds that the profile should take; loading the model cannot be shortened.
        progress: Told what happens.
        trace_folder: Where `prefill.json.gz` and `decode.json.gz` go, for chrome://tracing or Perfetto.
        cache: Has or measures what this machine reaches.
        streams: Numbers of simultaneous streams for which remedies are weighed.

    Raises:
        DataError: The prompt is empty.
        ModelError: The model cannot be loaded.
        OutOfMemoryError: The GPU's memory is too small for it.
    """
    if not prompt_ids:
        raise DataError("The prompt has no tokens, so there is no prefill to profile; give a longer text with --calib-data.")
    started = time.monotonic()
    deadline = started + time_limit_s
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with thread_count(threads), torch.inference_mode():
            progress(f"loading the model on {device.type}")
            generation = Generation(load(folder, device), device, prompt_ids, max(decode_steps + 1, WARM_UP_TOKENS + PROFILED_STEPS))
            progress("timing prefill and decode")
            timings = time_phases(generation, decode_steps, deadline)
            progress("measuring what the machine reaches")
            machine = cache.get(device, threads=threads)
            ceilings = for_dtype(machine.ceilings, generation.dtype, device)
            progress("profiling prefill and decode")
            left_s = deadline - time.monotonic()
            prefill, step = record_prefill(generation, timings, left_s), record_step(generation, timings, left_s)
            tokenizer = time_tokenizer(folder, generation.prompt)
            progress("looking for graph breaks")
            breaks = find_graph_breaks(generation.model, device, left_s=deadline - RESERVE_S - time.monotonic())
    except torch.OutOfMemoryError:
        raise OutOfMemoryError("The model and its cache do not fit the GPU's memory; use a smaller model or a larger GPU.") from None

    traces = {name: str(trace_folder / file) for name, file in TRACES.items()}
    for recording, path in zip((prefill, step), traces.values(), strict=True):
        recording.write(Path(path))
    context = generation.tokens + timings.steps // 2
    works = generation.decode_work(timings.cache, context)
    phases = (
        assess(
            PREFILL, timings.prefill_s, prefill.cells(generation, timings.prefill_s), generation.prefill_work(timings.cache), ceilings,
            device=device.type, tokenizer_s=tokenizer.prompt_s,
        ),
        assess(
            DECODE, timings.decode_s, step.cells(generation, timings.decode_s), works, ceilings, device=device.type, tokenizer_s=tokenizer.token_s
        ),
    )  # fmt: skip
    whole = wording.Step(seconds=timings.decode_s, work=total(works.values()), device=device.type)
    footprint = generation.footprint(timings.cache, context)
    gained = gains(whole.seconds, footprint, ceilings, streams)
    tokenizer_ms = {"prompt": tokenizer.prompt_s, "token": tokenizer.token_s}
    state = timings.cache.at(context)
    return TextProfile(
        bottlenecks=_bottlenecks(phases[1], works, whole, ceilings), advice=_advice(whole, ceilings, short_name(generation.dtype), gained, streams),
        family_order=family_order(whole.seconds, whole.work, ceilings, device=device.type), phases=phases, graph_breaks=breaks, traces=traces,
        ceilings=wording.ceilings_by_name(ceilings), ceilings_origin=machine.origin, ceilings_age_s=machine.age_s,
        read_now_gb_s=machine.read_now_gb_s, mbu=phases[1].mbu, mfu=phases[0].mfu, prefill_ms=phases[0].ms, decode_ms=phases[1].ms,
        prefill_shares={family.name: family.time_share for family in phases[0].families if family.time_share > 0},
        tokenizer_ms={name: 1e3 * seconds for name, seconds in tokenizer_ms.items() if seconds is not None},
        weight_bytes=round(whole.work.bytes - state), state_bytes=round(state), state_bytes_per_token=timings.cache.bytes_per_token,
        context_tokens=context, prompt_tokens=generation.tokens, decode_steps=timings.steps,
        profiler_slowdown=step.wall_s / timings.decode_s, device=device.type, dtype=str(generation.dtype).removeprefix("torch."),
        threads=threads, cpus=cpu_list(usable_cpus()), seconds=time.monotonic() - started, footprint=footprint, gains=gained,
    )  # fmt: skip


def _advice(step: wording.Step, ceilings: Ceilings, dtype: str, gained: tuple[Gain, ...], streams: tuple[int, ...]) -> str:
    parts = [wording.summary(step, ceilings), wording.emulated(dtype, ceilings), *(sentence(gained, count) for count in streams)]
    return " ".join(filter(None, parts))


def _bottlenecks(step: Phase, works: Mapping[str, Work], whole: wording.Step, ceilings: Ceilings) -> tuple[Bottleneck, ...]:
    """Parts of the step by size; those under a hundredth are one."""
    shares = {family.name: family.time_share for family in step.families if family.time_share > 0}
    small = [family for family, share in shares.items() if share < LEAST_SHARE]
    parts = {family: (share, works.get(family, Work())) for family, share in shares.items() if family not in small}
    if small:
        parts[wording.REST] = (sum(shares[family] for family in small), total(works.get(family, Work()) for family in small))
    found = (_bottleneck(name, min(1.0, share), work, whole, ceilings) for name, (share, work) in parts.items())
    return tuple(sorted(found, key=lambda part: -part.share))


def _bottleneck(name: str, share: float, work: Work, whole: wording.Step, ceilings: Ceilings) -> Bottleneck:
    seconds = share * whole.seconds
    limited: Bound = "overhead" if name == FRAMEWORK else bound(seconds, work, ceilings)
    return Bottleneck(
        name=name, share=share, bound=limited, detail=wording.detail(name, seconds, work, limited, whole, ceilings),
        advice=wording.advice(name, seconds, work, limited, ceilings),
    )  # fmt: skip
