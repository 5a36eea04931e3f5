"""Profiles a causal language model as users run it: eager, in the checkpoint's number format, through `generate`.

Times come from runs without the profiler, which slows small operations down; the profiled runs only
say how the time divides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from genopt.errors import ModelError, OutOfMemoryError
from genopt.plan import Record
from genopt.profiling import wording
from genopt.profiling.ceilings import measure_ceilings, synchronize, thread_count
from genopt.profiling.families import FRAMEWORK, Family, Layout, attention_operations, state_bytes
from genopt.profiling.roofline import Bound, Ceilings, Work, bound, corrected, family_order
from genopt.profiling.trace import family_times, marked, profiler

WARM_UP_TOKENS = 4
PREFILLS = 3
PROFILED_STEPS = 3
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
    prompt_tokens: int
    decode_steps: int
    profiler_slowdown: float
    device: str
    dtype: str
    threads: int
    seconds: float


def profile_text(
    folder: Path, *, threads: int, prompt_ids: Sequence[int], decode_steps: int, time_limit_s: float, progress: Callable[[str], None],
    trace_folder: Path,
) -> TextProfile:  # fmt: skip
    """Profiles the model in a folder.

    Args:
        folder: A model that transformers can load.
        threads: CPU threads.
        prompt_ids: Tokens of the prompt; shortened where the model's context is.
        decode_steps: Decode steps to time; fewer where the time limit asks for it.
        time_limit_s: Seconds that the profile should take; loading the model cannot be shortened.
        progress: Told what happens.
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
            run = _Run(_load(folder, device), device, prompt_ids, decode_steps)
            return _profile(run, threads, started, started + time_limit_s, progress, trace_folder)
    except torch.OutOfMemoryError:
        raise OutOfMemoryError("The model and its cache do not fit the GPU's memory; use a smaller model or a larger GPU.") from None


def _load(folder: Path, device: torch.device) -> Any:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{folder} cannot be loaded as a causal language model ({cause}); check the folder with transformers.") from None
    model.generation_config = GenerationConfig(pad_token_id=0)  # no end token: every step is timed
    return model.to(device).eval()


class _Clock(LogitsProcessor):
    """Stamps every new token; the callback's own time counts for no step."""

    def __init__(self, device: torch.device, on_token: Callable[[int], None] | None) -> None:
        self._device, self._on_token = device, on_token
        self.before: list[float] = []
        self.after: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leaves the scores alone."""
        synchronize(self._device)
        self.before.append(time.perf_counter())
        if self._on_token is not None:
            self._on_token(len(self.before))
        self.after.append(time.perf_counter())
        return scores


class _Run:
    """A loaded model with its prompt."""

    def __init__(self, model: Any, device: torch.device, prompt_ids: Sequence[int], decode_steps: int) -> None:
        self.model, self.device = model, device
        self.config = model.config.get_text_config()
        longest = getattr(self.config, "max_position_embeddings", None) or 1 << 30
        self.steps = max(2, min(decode_steps, longest // 2))
        kept = max(1, longest - max(self.steps, PROFILED_STEPS + WARM_UP_TOKENS) - 2)
        self.ids = torch.tensor([list(prompt_ids)[:kept]], device=device)
        self.layout = Layout(model)

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return int(self.ids.shape[1])

    def generate(self, count: int, on_token: Callable[[int], None] | None = None) -> tuple[list[float], Any]:
        """Seconds to the first and to each further token, and the cache."""
        clock = _Clock(self.device, on_token)
        started = time.perf_counter()
        found = self.model.generate(
            self.ids, attention_mask=torch.ones_like(self.ids), max_new_tokens=count, do_sample=False, return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([clock]),
        )  # fmt: skip
        return [end - start for start, end in zip([started, *clock.after], clock.before, strict=False)], found.get("past_key_values")

    def prefill_work(self) -> Mapping[Family, Work]:
        """What the families do for the prompt."""
        operations = attention_operations(self.config, tokens=self.tokens, context=0)
        return self.layout.work(tokens=self.tokens, state_bytes=0.0, attention_operations=operations)

    def decode_work(self, cache_bytes: float, context: int) -> Mapping[Family, Work]:
        """What the families do for one token at a context."""
        operations = attention_operations(self.config, tokens=1, context=context)
        return self.layout.work(tokens=1, state_bytes=cache_bytes, attention_operations=operations)


def _profile(run: _Run, threads: int, started: float, deadline: float, progress: Callable[[str], None], trace_folder: Path) -> TextProfile:
    dtype = next(run.model.parameters()).dtype
    (first_s, *step_s), _ = run.generate(WARM_UP_TOKENS)
    progress("timing prefill and decode")
    share = max(0.0, deadline - time.monotonic())
    steps = _fitting(0.3 * share, statistics.median(step_s), 2, run.steps)
    (again_s, *step_s), cache = run.generate(steps + 1)
    prefills = [again_s, *(run.generate(1)[0][0] for _ in range(_fitting(0.15 * share, again_s, 1, PREFILLS)))]
    prefill_s, decode_s = statistics.median(prefills), statistics.median(step_s)
    progress("measuring what the machine reaches")
    ceilings = measure_ceilings(threads=threads, device=run.device, dtype=dtype)
    progress("profiling prefill and decode")
    prefill_shares, _ = _shares(run, prefill_s, 0, trace_folder / TRACES[0])
    profiled = _fitting(0.1 * share, decode_s, 1, min(PROFILED_STEPS, steps))
    shares, slowdown = _shares(run, decode_s, profiled, trace_folder / TRACES[1])

    cache_bytes, context = state_bytes(cache), run.tokens + steps
    works = run.decode_work(cache_bytes, context)
    total = _sum(works.values())
    step = wording.Step(seconds=decode_s, work=total, device=run.device.type)
    arithmetic = sum(work.operations for work in run.prefill_work().values())
    return TextProfile(
        bottlenecks=_bottlenecks(shares, works, step, ceilings), advice=wording.summary(step, ceilings),
        family_order=family_order(decode_s, total, ceilings, device=run.device.type),
        ceilings={
            "read_gb_s": ceilings.read_gb_s, "matmul_gflop_s": ceilings.matmul_gflop_s,
            **{f"matmul_{name}_gflop_s": rate for name, rate in ceilings.formats.items()},
        },
        mbu=total.bytes / decode_s / 1e9 / ceilings.read_gb_s, mfu=arithmetic / prefill_s / 1e9 / ceilings.matmul_gflop_s,
        prefill_ms=1e3 * prefill_s, decode_ms=1e3 * decode_s, prefill_shares=dict(sorted(prefill_shares.items(), key=lambda item: -item[1])),
        weight_bytes=round(total.bytes - cache_bytes), state_bytes=round(cache_bytes), prompt_tokens=run.tokens, decode_steps=len(step_s),
        profiler_slowdown=slowdown, device=run.device.type, dtype=str(dtype).removeprefix("torch."), threads=threads,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def _fitting(seconds: float, each_s: float, least: int, most: int) -> int:
    """How many of something fit into a time."""
    return max(least, min(most, int(seconds / max(each_s, 1e-6))))


def _shares(run: _Run, true_s: float, steps: int, trace: Path) -> tuple[dict[Family, float], float]:
    """Shares of the time by family, and the profiler's slowdown; writes the trace.

    Args:
        run: The model.
        true_s: Seconds of the prefill or of one step without the profiler.
        steps: Decode steps to record; 0 records the prefill.
        trace: File to write.
    """
    recorded = profiler(run.device)

    def switch(token: int) -> None:
        if token == WARM_UP_TOKENS:
            recorded.start()
        if token == WARM_UP_TOKENS + steps:
            recorded.stop()

    with marked(run.layout.marks):
        if steps:
            times, _ = run.generate(WARM_UP_TOKENS + steps, switch)
            wall_s = sum(times[WARM_UP_TOKENS:])
        else:
            recorded.start()
            wall_s = sum(run.generate(1, lambda _: recorded.stop())[0])
    trace.parent.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(trace))
    expected_s = true_s * max(1, steps)
    if run.device.type == "cuda":  # kernels take as long with the profiler as without
        seconds, _ = family_times(recorded, run.device, expected_s)
        total = sum(seconds.values())
        found: Mapping[str, float] = {name: value / total for name, value in seconds.items()}
    else:
        seconds, events = family_times(recorded, run.device, wall_s)
        found = {name: value / expected_s for name, value in corrected(seconds, events, expected_s).items()}
    return {name: value for name, value in found.items() if value > 0}, wall_s / expected_s  # type: ignore[misc]


def _sum(works: Any) -> Work:
    every = list(works)
    return Work(bytes=sum(work.bytes for work in every), operations=sum(work.operations for work in every))


def _bottlenecks(
    shares: Mapping[Family, float], works: Mapping[Family, Work], step: wording.Step, ceilings: Ceilings
) -> tuple[Bottleneck, ...]:  # fmt: skip
    """Parts of the step by size; those under a hundredth are one."""
    parts: dict[str, tuple[float, Work]] = {}
    for family, share in shares.items():
        name = family if share >= LEAST_SHARE else "everything else"
        before, work = parts.get(name, (0.0, Work()))
        parts[name] = (before + share, _sum([work, works.get(family, Work())]))
    return tuple(
        _bottleneck(name, min(1.0, share), work, step, ceilings) for name, (share, work) in sorted(parts.items(), key=lambda item: -item[1][0])
    )


def _bottleneck(name: str, share: float, work: Work, step: wording.Step, ceilings: Ceilings) -> Bottleneck:
    seconds = share * step.seconds
    limited: Bound = "overhead" if name == FRAMEWORK else bound(seconds, work, ceilings)
    return Bottleneck(
        name=name, share=share, bound=limited, detail=wording.detail(name, seconds, work, limited, step, ceilings),
        advice=wording.advice(name, seconds, work, limited, ceilings),
    )  # fmt: skip
