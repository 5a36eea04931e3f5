"""Runs Hugging Face folders in vLLM, which continues many requests at once faster than any other engine here, in environments of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genopt.engines.vllm_options import HUMMING_TOKENS, VllmOptions
from genopt.errors import InfeasibleError
from genopt.models import nvml
from genopt.models.capability import FLOAT8, require
from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.vllm_session import VllmSession


class VllmEngine:
    """See `genopt.engines.base.Engine`; on NVIDIA GPUs."""

    name = "vllm"
    modality = "text"
    accepts = frozenset({"hf", "compressed_tensors"})
    tunables = (
        Tunable(name="cache_type", choices=(None, "fp8"), words=("", "kv-fp8")),
        Tunable(
            name="kernels", choices=(None, "humming", "marlin"), words=("", "humming", "marlin"), when=(("compressed_tensors.scheme", "W4A16"),)
        ),
        Tunable(name="max_batched_tokens", choices=(None, 8192), words=("", "8k-steps"), when=(("kernels", None), ("kernels", "marlin"))),
        Tunable(name="lookahead", choices=(0, 4), words=("", "lookahead-4")),
    )
    environment: str | None = "vllm"
    layer_overhead_s = 1e-5

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        chosen = parse_settings(VllmOptions, options, "vllm")
        found = nvml.capability()  # torch would touch the GPU, and what did so cannot be forked
        if found is None:
            raise InfeasibleError("vLLM's kernels for NVIDIA need a GPU and there is none here; on CPUs use the engine vllm_cpu.")
        if chosen.quantization is not None and chosen.kernels is not None:
            raise InfeasibleError("Kernels are chosen for checkpoints that are compressed; leave kernels out where vLLM itself rounds to fp8.")
        if chosen.kernels == "humming" and (chosen.max_batched_tokens or 0) > HUMMING_TOKENS:
            raise InfeasibleError(f"Humming's kernels err in steps of more than {HUMMING_TOKENS} tokens; leave max_batched_tokens out.")
        if "fp8" in (chosen.quantization, chosen.cache_type):
            require(found, FLOAT8, "8-bit floats")

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        _prepare()

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> VllmSession:
        """See `Engine.open`."""
        return _opened(artifact, parse_settings(VllmOptions, options, "vllm"))


class VllmCpuEngine:
    """See `genopt.engines.base.Engine`; the same library, built for CPUs."""

    name = "vllm_cpu"
    modality = "text"
    accepts = frozenset({"hf", "compressed_tensors"})
    tunables: tuple[Tunable, ...] = ()
    environment: str | None = "vllm-cpu"
    layer_overhead_s = 3e-4

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        chosen = parse_settings(VllmOptions, options, "vllm_cpu")
        if "fp8" in (chosen.quantization, chosen.cache_type):
            raise InfeasibleError("vLLM has no 8-bit floats on CPUs; use the engine vllm on a GPU of compute capability 8.9 or later.")
        if chosen.kernels is not None:
            raise InfeasibleError("vLLM has no choice of kernels on CPUs; leave kernels out, or use the engine vllm on a GPU.")

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        _prepare()

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> VllmSession:
        """See `Engine.open`."""
        return _opened(artifact, parse_settings(VllmOptions, options, "vllm_cpu"))


def _prepare() -> None:
    from genopt.engines.vllm_loop import import_formats, import_vllm

    import_vllm()
    import_formats()


def _opened(artifact: Path, options: VllmOptions) -> VllmSession:
    from genopt.engines.vllm_session import VllmSession

    session = VllmSession(artifact, options)
    session.warm_up()
    return session
