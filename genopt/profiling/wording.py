"""Says in words what a profile's numbers mean and what to do about them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from genopt.plan import Record
from genopt.profiling.families import FRAMEWORK
from genopt.profiling.records import Bound
from genopt.profiling.roofline import Ceilings, Work, compute_s, family_order, limit_s, memory_s
from genopt.search.footprint import ATTENTION, HEAD, NORMALISATION

EMULATED = 4.0
"""A format whose products are this many times slower than fp32's is emulated."""
REST = "everything else"
"""Name of the families that are too small to stand alone."""

_BOUNDS = ("memory", "compute", "overhead")
_WEIGHTS = {
    "memory": "Store these weights in fewer bits: a halving saves about {half:.2g} ms per token.",
    "compute": "Multiply in 8 bits (weights and activations), or prune.",
    "overhead": "It takes {times:.1f} times as long as its limit: an engine with faster kernels, or a compiled step, comes before fewer bits.",
}
_SMALL = "Many small operations: compile the decode step, or use an engine that fuses them."
_ADVICE: dict[str, dict[str, str]] = {
    ATTENTION: {
        "memory": "Store the KV cache in fewer bits, or shorten the context.",
        "compute": "Use an engine with a fused attention kernel.",
        "overhead": "Rotary embedding, cache update and one token's attention are small: compile the step, or use an engine that fuses them.",
    },
    HEAD: {**_WEIGHTS, "memory": "Quantize the output head too, where quality allows: a halving saves about {half:.2g} ms per token."},
    NORMALISATION: dict.fromkeys(_BOUNDS, _SMALL),
    FRAMEWORK: dict.fromkeys(_BOUNDS, "Run the step without Python between its layers: compile it, or use another engine."),
    REST: dict.fromkeys(_BOUNDS, "Nothing to gain here until the larger parts have shrunk."),
}
_FRAMEWORK = {
    "cpu": "masks, residual additions, cache bookkeeping and Python between the layers",
    "cuda": "the GPU waits for the host to launch its work",
}
_FIRST = {
    "compile": "compiled decode steps and another engine come before fewer bits",
    "engine": "another engine and compiled decode steps come before fewer bits",
}


class Step(Record):
    """One decode step in numbers.

    Attributes:
        seconds: Its time.
        work: What it does.
        device: `cpu` or `cuda`.
    """

    seconds: float
    work: Work
    device: str


def detail(name: str, seconds: float, work: Work, bound: Bound, step: Step, ceilings: Ceilings) -> str:
    """The measurement behind a bottleneck."""
    start = f"{1e3 * seconds:.2f} of {1e3 * step.seconds:.1f} ms per token"
    limit = limit_s(work, ceilings)
    if name == FRAMEWORK:
        return f"{start}: {_FRAMEWORK[step.device]}"
    if limit < 0.01 * seconds:
        return f"{start}, and next to nothing to read or compute"
    if bound == "compute":
        rate = work.operations / seconds / 1e9
        amounts = f"{short(work.operations / 1e9)} GFLOP at {short(rate)} of {short(ceilings.matmul_gflop_s)} GFLOP/s"
    else:
        rate = work.bytes / seconds / 1e9
        amounts = f"{short(work.bytes / 1e6)} MB at {short(rate)} of {short(ceilings.read_gb_s)} GB/s"
    return f"{start}; {amounts}; its limit is {1e3 * limit:.2f} ms"


def phase_detail(name: str, seconds: float, work: Work, causes: Mapping[str, float], ceilings: Ceilings) -> str:
    """What a phase reads and computes, how near it comes to the machine's limits, and what takes its time."""
    reached = work.bytes / seconds / 1e9, work.operations / seconds / 1e9
    whole = sum(causes.values())
    shares = ", ".join(f"{cause} {value / whole:.0%}" for cause, value in causes.items() if value >= 0.005 * whole)
    return (
        f"{name}: {1e3 * seconds:.3g} ms; {short(work.bytes / 1e6)} MB at {short(reached[0])} of {short(ceilings.read_gb_s)} GB/s "
        f"({reached[0] / ceilings.read_gb_s:.0%}), {short(work.operations / 1e9)} GFLOP at {short(reached[1])} of "
        f"{short(ceilings.matmul_gflop_s)} GFLOP/s ({reached[1] / ceilings.matmul_gflop_s:.0%}). Its time goes to: {shares}."
    )


def ceilings_by_name(ceilings: Ceilings) -> dict[str, float]:
    """The ceilings as reports list them, with the unit in the name."""
    formats = {f"matmul_{name}_{'gop_s' if name.startswith('int') else 'gflop_s'}": rate for name, rate in ceilings.formats.items()}
    copy = {"copy_gb_s": ceilings.copy_gb_s, "launch_us": ceilings.launch_us}
    return {"read_gb_s": ceilings.read_gb_s, **copy, "matmul_gflop_s": ceilings.matmul_gflop_s, **formats}


def short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def advice(name: str, seconds: float, work: Work, bound: Bound, ceilings: Ceilings) -> str:
    """What to do about a bottleneck."""
    limit = limit_s(work, ceilings)
    text = _ADVICE.get(name, _WEIGHTS)[bound]
    return text.format(half=1e3 * memory_s(work, ceilings) / 2, times=seconds / limit if limit > 0 else 1.0)


def emulated(dtype: str, ceilings: Ceilings) -> str:
    """What to know where the processor has no instructions for the model's number format; empty where it has.

    Args:
        dtype: Short name of the format, as in `Ceilings.formats`.
        ceilings: What the machine reaches.
    """
    rate, wide = ceilings.formats.get(dtype), ceilings.formats.get("fp32")
    if rate is None or wide is None or rate * EMULATED > wide:
        return ""
    return (
        f"This processor has no instructions for {dtype} products ({short(rate)} GFLOP/s, in fp32 {short(wide)}): what computes in fp32 or in "
        "8 bits will be faster, however many bytes it reads."
    )


def summary(step: Step, ceilings: Ceilings) -> str:
    """What to try first, in one sentence."""
    order = family_order(step.seconds, step.work, ceilings, device=step.device)
    reads, computes = memory_s(step.work, ceilings), compute_s(step.work, ceilings)
    if order[0] in _FIRST:
        what, least = ("memory bandwidth", reads) if reads >= computes else ("arithmetic rate", computes)
        times = f"{1e3 * step.seconds:.1f} ms per token, where {1e3 * least:.1f} ms are the limit"
        return f"Decoding reaches {least / step.seconds:.0%} of the {what} ({times}): overhead dominates, so {_FIRST[order[0]]}."
    if order[1] == "pruning":
        return f"Decoding reaches {computes / step.seconds:.0%} of the arithmetic rate, so 8-bit products and fewer weights come first."
    gain = step.seconds / max(step.seconds - reads / 2, computes, 1e-9)
    return (
        f"Decoding reaches {reads / step.seconds:.0%} of the memory bandwidth: reading weights dominates, so fewer bits come first "
        f"(half the bytes could decode up to {gain:.1f} times as fast)."
    )
