"""What this machine is, which a run records, and what stands in the way of a run here.

Imports no model library, changes nothing, and names no user, host or path but the store's.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement

from genopt.engines import compiler
from genopt.measure.limits import available_memory, total_memory, usable_cores
from genopt.models import nvml
from genopt.plan import Record
from genopt.version import OLDEST_PYTHON, __version__

PACKAGES = (
    "accelerate", "compressed-tensors", "diffusers", "gguf", "lm-eval", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "optimum",
    "optuna", "peft", "pyarrow", "ray", "safetensors", "tokenizers", "torch", "torchao", "transformers",
)  # fmt: skip
"""Distributions whose versions a run records."""
DECISIVE = (
    "compressed-tensors", "diffusers", "gguf", "lm-eval", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "peft", "safetensors",
    "torch", "torchao", "transformers",
)  # fmt: skip
"""Those whose version can change the bytes of an artifact, or what the original is compared by."""
FLAGS = frozenset({
    "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_int8", "amx_tile",
    "asimddp", "bf16", "i8mm", "sve", "sve2",
})  # fmt: skip
"""Instruction sets that decide which number formats are fast."""
UNKNOWN = "unknown"
"""What a driver does not tell of a GPU."""

DISTRIBUTION = "genopt-ray"
DISK_BYTES = 5e9
"""A small model, its exports and a run's records."""
MEMORY_BYTES = 4e9
"""Ray, a driver and two engines with a small model."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects, not a temporary file
SHARED_MEMORY_BYTES = 256e6
"""Room for the object store of an embedded Ray; containers get 64 MB unless told otherwise."""


class Problem(Record):
    """Something that a run would stumble over.

    Attributes:
        what: The fault.
        remedy: What to do about it.
    """

    what: str
    remedy: str


def hardware() -> dict[str, Any]:
    """Processor, memory and GPUs as this process may use them: affinity and control group limits count."""
    name, flags = _processor()
    return {
        "cpu": name, "cores": usable_cores(), "cores_physical": psutil.cpu_count(logical=False), "cores_logical": psutil.cpu_count(),
        "cpu_flags": flags, "memory_bytes": total_memory(), "memory_available_bytes": available_memory(), "gpus": _gpus(),
    }  # fmt: skip


def environment() -> dict[str, Any]:
    """The software: Python, operating system, genopt and the libraries that do the work."""
    return {
        "genopt": __version__, "python": platform.python_version(), "implementation": platform.python_implementation(),
        "platform": f"{platform.system()}-{platform.machine()}", "kernel": platform.release(), "libc": "-".join(platform.libc_ver()),
        "packages": _versions(PACKAGES),
    }  # fmt: skip


def device_of(variables: Mapping[str, str]) -> Literal["cpu", "gpu"]:
    """What a process computes on that has these environment variables, where it can choose."""
    return "cpu" if variables.get("CUDA_VISIBLE_DEVICES") == "" else "gpu"


def kernels() -> dict[str, Any]:
    """What decides which kernels compute, and so how they round: the processor's kind and the GPUs'."""
    facts = hardware()
    return {name: facts[name] for name in ("cpu", "cpu_flags", "gpus")}


def hardware_digest(facts: Mapping[str, Any]) -> str:
    """Digest of the hardware that speed depends on.

    Args:
        facts: What `hardware` said.
    """
    chosen = {name: facts[name] for name in ("cpu", "cpu_flags", "cores", "gpus")} | {"memory_gb": round(facts["memory_bytes"] / 1e9)}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def libraries() -> dict[str, str]:
    """Versions that are part of an artifact's identity."""
    return _versions(DECISIVE)


def check_machine(store: Path) -> list[Problem]:
    """Everything found wrong here; empty on a machine that can run genopt.

    Args:
        store: Folder of artifacts; need not exist yet.
    """
    return [*_python(), *_packages(), *_disk(store), *_memory(), *_shared_memory(), *_compiler()]


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> tuple[str, list[str]]:
    """Name and instruction sets of the first processor."""
    facts = _processor_facts()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return facts.get("model name") or platform.processor() or platform.machine(), sorted(flags & FLAGS)


def _processor_facts() -> Mapping[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs that this process may use, as their driver tells of them; none where it is missing."""
    with nvml.visible_devices() as (library, devices):
        driver = nvml.told(library, library.nvmlSystemGetDriverVersion) if devices else None
        return [_gpu(library, device) | {"driver": driver or UNKNOWN} for device in devices]


def _gpu(library: Any, device: Any) -> dict[str, Any]:
    name, capability, memory = (
        nvml.told(library, question, device)
        for question in (library.nvmlDeviceGetName, library.nvmlDeviceGetCudaComputeCapability, library.nvmlDeviceGetMemoryInfo)
    )
    return {
        "name": name or UNKNOWN, "compute_capability": ".".join(map(str, capability)) if capability else UNKNOWN,
        "memory_bytes": memory.total if memory else None,  # GPUs that share the host's memory have none of their own
    }  # fmt: skip


def _python() -> Iterator[Problem]:
    if sys.version_info < OLDEST_PYTHON:
        asked, found = ".".join(map(str, OLDEST_PYTHON)), ".".join(map(str, sys.version_info[:3]))
        yield Problem(what=f"Python is {found}, genopt needs {asked} or newer", remedy=f"Make a new environment with Python {asked} or newer.")


def _packages() -> Iterator[Problem]:
    """Distributions that are missing or outside the bounds that genopt was installed with."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Problem(what=f"{DISTRIBUTION} is not installed, so versions cannot be checked", remedy="Run `pip install -c constraints.txt -e .`.")
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Problem(what=f"{requirement.name} is not installed", remedy=f"Run `pip install '{wanted}'`.")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Problem(what=f"{requirement.name} is {version}, genopt needs {requirement.specifier}", remedy=f"Run `pip install '{wanted}'`.")


def _disk(store: Path) -> Iterator[Problem]:
    existing = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.exists())
    elsewhere = "point --store (GENOPT_STORE) elsewhere"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Problem(what=f"The store {store} cannot be written", remedy=f"Make {existing} a folder that this user may write to, or {elsewhere}.")
        return
    free = shutil.disk_usage(existing).free
    if free < DISK_BYTES:
        yield Problem(what=f"{free / 1e9:.1f} GB are free for the store {store}", remedy=f"Free {(DISK_BYTES - free) / 1e9:.1f} GB, or {elsewhere}.")


def _memory() -> Iterator[Problem]:
    free = available_memory()
    if free < MEMORY_BYTES:
        total = total_memory()
        yield Problem(
            what=f"{free / 1e9:.1f} of {total / 1e9:.1f} GB of memory are available",
            remedy=f"End other programs, or raise the container's limit, until {MEMORY_BYTES / 1e9:.0f} GB are.",
        )


def _shared_memory() -> Iterator[Problem]:
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < SHARED_MEMORY_BYTES:
        yield Problem(
            what=f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, so Ray would keep objects on disk",
            remedy="Start the container with `--shm-size=2g`, or mount a larger tmpfs there.",
        )


def _compiler() -> Iterator[Problem]:
    if found := compiler.lack():
        yield Problem(what=f"{found}, so models cannot be compiled", remedy="Install one, for example `apt-get install g++`, or set CXX to yours.")
