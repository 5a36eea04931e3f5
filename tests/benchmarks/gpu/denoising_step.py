"""A denoising step of random pipelines of real shapes: as users run it, and with all that leaves the number of steps alone.

    python tests/benchmarks/gpu/denoising_step.py [--shapes sdxl,flux-half] [--ways eager,compiled,...] [--peak 989]

Each way is the engine with other options in a process of its own, on a pipeline that a technique changed first where the way names one. One image
of 1024 x 1024 pixels at a time (SDXL with classifier-free guidance, so two at once in its denoiser); the time of a step is what --steps more
steps make of an image's time, as the median of --images images; ways after `eager` are told against it. The last figure is how many operations
an eager step has, as PyTorch counts them, over the time of this way's step, as a share of --peak (bf16 without sparsity, TFLOP/s, by default this
GPU's where `limits.py` knows it). Of ways that do the same operations in bf16 it is the share of the peak that they reach, and of those that do
them in 8 bits or leave some out, only another way to write their time. With --profile, a file per way says which kernels an image's time goes to.

On one H200 each (2026-11-28, torch 2.11, other work on other GPUs of the host): SDXL eager 68.1 ms (20 % of 989), channels-last 106.5,
fused projections 83.5, regional with channels-last 78.9, the whole UNet by "max-autotune" with channels-last 46.5 (1.46x), opened in
1,101 s. Half of FLUX.1 eager 88.1 ms (42 %), regional 65.5 (1.35x), opened in 40 s, whole by "max-autotune" 64.1 (1.37x), opened in 322 s.
The engine compiles without "max-autotune" since. So on one H200 with 16 processors (2026-11-28, other work on the other GPU): SDXL eager
119.2 ms (11 %, waiting for the processor), the whole UNet compiled 55.8 ms (25 %, 2.14x), opened in 167 s; half of FLUX.1 eager 86.9 (43 %),
compiled 68.2 (54 %, 1.27x), opened in 87 s. 8 bits and the cache did not fit into the time there was.
Later that day, likewise: SDXL eager 95.3 ms, compiled and replayed as CUDA graphs 33.6 (41 %, 2.84x), opened in 109 s; in float8 its output was no
number. Half of FLUX.1 eager 83.7, compiled 66.2 (56 %), with graphs 63.2, float8 with activations 53.5 (1.57x eager, 1.24x compiled), opened in
116 s, with graphs no faster, First-Block Cache at 0.1 over compiled blocks 62.9, where random weights let it skip little.
Where FLUX's step goes (a day later, four pipelines open at once, kernels by PyTorch's profiler, the decoder's 4 ms left out): compiled 60 ms, of
which products 39 and attention 12, which PyTorch gives to cuDNN by itself; float8 44 ms (1.36x), of which products 21 (1.9x), attention 11 and
finding scales and rounding 8. One scale per tensor instead of per token makes products 21 and scales 10. By the clock of the wall the step takes
53, with CUDA graphs too, so it is not the host but the GPU's power: while steps follow one another, nvidia-smi names the power cap as what slows the
clock, from 1,980 to between 1,650 and 1,965 MHz, where the profiler's pauses leave it higher. With q, k and v as one product the step takes 55.1 to
57.7 ms where it took 58.1 to 62.9 and bf16 64.8 to 72.0 (three turns, tests on the same GPU); that is an experiment, as rounded projections cannot be
fused here. Without any rounding of activations 1.5x would be left: attention in 8 bits, which none of these libraries has, would have to bring more.
On another H200 (2026-11-30, beside other work on the host's other GPU): SDXL eager 67.5 ms, with CUDA graphs 35.6 (38 %, 1.90x), opened in 125 s;
half of FLUX.1 eager 85.4, compiled 62.7 (59 %, 1.36x), opened in 58 s. With 8-bit integers neither was open after three to six minutes, while
torchao's recipe had Inductor tune every kernel by coordinate descent, which genopt asks for no more. Why float8 of SDXL gave no numbers: it reads
zeros for an empty prompt, and torchao divided by their scale. Tiny pipelines with such prompts make the original's images in both formats since
(tests/gpu/test_pipelines.py).
On a third host that day, likewise: SDXL eager 58.0 ms, with CUDA graphs 36.3 (38 %, 1.60x), opened in 99 s, and with products in float8 besides 51.2
(1.13x), opened in 194 s; with int8 it was not open after three. Half of FLUX.1 eager 83.9, compiled 63.4 (58 %, 1.32x), opened in 57 s, with products
in int8 84.7 (0.99x), opened in 169 s. Why int8 and SDXL's float8 cost more than they bring was not looked into.
Where SDXL's step goes (a fourth host, alone on it, --profile): eager it took 57.3 ms by the clock, in which the GPU worked for 44: an image of 8
steps and its decoder had 355 ms of kernels, 114 in products, 82 in elementwise ones, 59 in norms, 37 in convolutions, 36 in attention (cuDNN's) and
23 in changes of layout. So products, convolutions and attention need about 23 ms of each step, decoder and all; the compiled step's 34 to 36 have at
most a third left to lose in bf16, and how many times that is as fast as eager is up to the processor, which eager steps wait for.
On a fifth host (two turns, one GPU of two, the other at work): eager 66.0 and 83.3 ms; with CUDA graphs 36.4 (38 %, 1.81x), opened in 113 s; products
in int8, compiled without graphs, 72.7 (1.15x), opened in 328 s, of which a look once a minute saw half spent on tracing what torchao does to each
activation and half in Inductor. An image's kernels (8 steps and a small decoder) took 264 ms compiled: 111 in products, 51 in norms, of which the
decoder's 21, 36 in convolutions, 35 in attention, so that the GPU worked for about 30 of a step's 36.4 ms. In the rest it waited for the host, which
asked it for the timestep after each step and could not prepare the next one until it had the answer, or ran at a lower clock than under the profiler,
as with FLUX; how much of which was not told apart. In int8 the kernels took 416 ms: 140 in products, which PyTorch runs with kernels made for Ampere
(cutlass_80), more than bf16's own took, and 128 in finding scales and rounding.
Since then the host is a step ahead and blocks that repeat are compiled once. On a sixth host (2026-12-01, alone on its GPU): SDXL eager 60.0 ms, with
CUDA graphs 30.5 (45 %, 1.97x), opened in 82 s; an image's kernels took 266 ms as before, decoder and all, so that the GPU waits no more. With
products in float8 33.7 (1.78x), opened in 195 s: products take 89 ms where they took 113, and 71 go to finding scales and rounding, with what is
fused into that, which saves 32 elsewhere. Half of FLUX.1 eager 84.0, compiled 62.2 (59 %, 1.35x), opened in 64 s, with graphs 62.5, and in float8
48.4 (1.73x eager, 1.28x compiled), opened in 105 s: products 174 ms of an image's 408 where they took 330 of 521, attention 99, scales and rounding
76. Two of the kernels that find scales and round, those for what attention and MLP put side by side, take 42 ms, where reading these rows twice and
writing them once at the memory's bandwidth would take 11; were they there, the step would be 1.39 times as fast as compiled. For 1.5 attention would
have to be in 8 bits, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import results
from artifacts import applied
from limits import limits

from genopt.engines.images import ImageRequest
from genopt.plan import JsonValue
from genopt.testing.random_pipelines import PIPELINE_SHAPES
from genopt.testing.tiny_pipelines import write_tiny_sdxl

SHAPES = {**PIPELINE_SHAPES, "tiny": write_tiny_sdxl}
FEW = 2
"""Steps of the shorter image."""
PIXELS: Mapping[str, int | None] = {"tiny": None}
SHARE = "eager's operations / bf16 peak"
KERNELS = 60
"""Rows of a profile."""
WAYS: Mapping[str, tuple[str, dict[str, JsonValue]]] = {
    "eager": ("", {}),
    "channels-last": ("", {"channels_last": True}),
    "fused": ("", {"fuse_projections": True}),
    "regional": ("", {"compile": "regional", "channels_last": True}),
    "compiled": ("", {"compile": "denoiser", "channels_last": True}),
    "compiled-graphs": ("", {"compile": "denoiser", "channels_last": True, "graphs": True}),
    "compiled-cudnn": ("", {"compile": "denoiser", "channels_last": True, "attention": "cudnn"}),
    "int8-compiled": ("diffusers_int8_dynamic", {"compile": "denoiser", "channels_last": True}),
    "int8-graphs": ("diffusers_int8_dynamic", {"compile": "denoiser", "channels_last": True, "graphs": True}),
    "float8-compiled": ("diffusers_float8_dynamic", {"compile": "denoiser", "channels_last": True}),
    "float8-cudnn": ("diffusers_float8_dynamic", {"compile": "denoiser", "channels_last": True, "attention": "cudnn"}),
    "float8-graphs": ("diffusers_float8_dynamic", {"compile": "denoiser", "channels_last": True, "graphs": True}),
    "cached-compiled": ("", {"compile": "regional", "cache": "first_block", "cache_threshold": 0.1}),
}
"""By name: a technique, and options of the engine."""


def timed(folder: Path, way: str, *, steps: int, images: int, pixels: int | None, profile: Path | None) -> dict[str, float]:
    """Opens a pipeline one way and times the steps of some images; writes the kernels of another one where it is told to."""
    from torch.utils.flop_counter import FlopCounterMode

    from genopt.engines.diffusers_engine import DiffusersEngine

    began = time.monotonic()
    options = {**WAYS[way][1], "num_inference_steps": steps}
    DiffusersEngine.check(options)
    session = DiffusersEngine.open(folder, options)
    opened = time.monotonic() - began

    def image_ms(count: int) -> float:
        (found,) = session.generate([ImageRequest(prompt="a photo of a digit", width=pixels, height=pixels, steps=count)])
        return (found.finished_ns - found.started_ns) / 1e6

    image_ms(steps)
    took = [(image_ms(steps + FEW) - image_ms(FEW)) / steps for _ in range(images)]
    operations = 0.0
    if way == "eager":
        with FlopCounterMode(display=False) as counter:
            image_ms(steps)
        operations = sum(counter.get_flop_counts().get(type(session.denoiser).__name__, {}).values()) / steps
    if profile is not None:
        profile.parent.mkdir(parents=True, exist_ok=True)
        profile.write_text(kernels(lambda: image_ms(steps)), encoding="utf-8")
    return {"open_s": opened, "step_ms": median(took), "tflop": operations / 1e12}


def kernels(work: Callable[[], object]) -> str:
    """A table of what took the time of some work, the longest first: kernels where there is a GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        work()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return found.key_averages().table(sort_by=key, row_limit=KERNELS, max_name_column_width=90)


def provide(shape: str, folder: Path) -> None:
    """Writes a pipeline unless it is there; in another process, as one that has used a GPU holds a part of it to its end."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        subprocess.run([sys.executable, __file__, "--write", shape, str(partial)], check=True)
        partial.rename(folder)


def built(shape: str, way: str, folder: Path, scratch: Path) -> Path:
    """What a way opens."""
    technique = WAYS[way][0]
    if not technique:
        return folder
    target = scratch / f"{shape}-{technique}"
    return target if target.exists() else applied(folder, technique, {}, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="sdxl,flux-half", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--peak", type=float, help="of bf16 products, in TFLOP/s; by default what this GPU's name says")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="folder for what PyTorch's profiler says of one more image")
    parser.add_argument("--scratch", type=Path, help="where pipelines are written; a temporary folder by default")
    results.add_argument(parser)
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "WAY"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("SHAPE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        shape, folder = asked.write
        SHAPES[shape](Path(folder))
        return 0
    with tempfile.TemporaryDirectory(prefix="genopt-gpu-") as temporary:
        scratch: Path = asked.scratch or Path(temporary)
        if asked.one:
            shape, way = asked.one
            artifact = built(shape, way, scratch / shape, scratch)
            profile = asked.profile / f"{shape}-{way}.txt" if asked.profile else None
            print(json.dumps(timed(artifact, way, steps=asked.steps, images=asked.images, pixels=PIXELS.get(shape, 1024), profile=profile)))
            return 0
        print(f"| shape | way | opened in s | step ms | against eager | {SHARE} |\n| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
        for shape in asked.shapes.split(","):
            provide(shape, scratch / shape)
            compare(shape, asked, scratch)
    return 0


def compare(shape: str, asked: argparse.Namespace, scratch: Path) -> None:
    """A line per way; one that fails costs only its own, and `eager` what is told against it, too."""
    eager: Mapping[str, float] | None = None
    peak: float | None = asked.peak
    if peak is None:
        peak = known.bf16 if (known := limits()) else None
    parameters = {"steps": asked.steps, "images": asked.images, "pixels": PIXELS.get(shape, 1024), "peak_tflop_s": peak}
    for way in asked.ways.split(","):
        same = ["--steps", str(asked.steps), "--images", str(asked.images), "--scratch", str(scratch)]
        same += ["--profile", str(asked.profile)] if asked.profile else []
        command = [sys.executable, __file__, *same, "--one", shape, way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {shape} | {way} | failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]} | | | |", flush=True)
            continue
        one = json.loads(done.stdout.splitlines()[-1])
        if way == "eager":
            eager = one
        figures = {"opened s": one["open_s"], "step ms": one["step_ms"]}
        faster = share = "–"
        if eager is not None:
            faster = f"{eager['step_ms'] / one['step_ms']:.2f}x"
        if eager is not None and peak is not None:
            figures[SHARE] = eager["tflop"] / one["step_ms"] * 1e3 / peak
            share = f"{figures[SHARE]:.0%}"
        print(f"| {shape} | {way} | {one['open_s']:.1f} | {one['step_ms']:.1f} | {faster} | {share} |", flush=True)
        results.save(asked.save, "denoising_step", shape, way, figures, parameters)


if __name__ == "__main__":
    raise SystemExit(main())
