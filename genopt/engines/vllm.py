"""Runs Hugging Face folders in vLLM, which continues many requests at once faster than any other engine here, in environments of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.models import nvml
from genopt.models.capability import FLOAT8, require
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.vllm_session import VllmSession


TOKENS, HUMMING_TOKENS = 2048, 512
"""Tokens of a step. Release 0.1.2 of Humming's kernels, which vLLM 0.22 asks for, shares operands of larger products between multiprocessors without
waiting for them (mended in 0.1.13, pull request 56 of inclusionAI/humming): results are wrong there, and once on an H200 one never came."""
DRAFT = "draft"
"""Where an artifact has a smaller model that guesses for it."""


class VllmOptions(Record):
    """Options of the engine.

    Attributes:
        threads: CPU threads; None takes one per core.
        max_context: Longest prompt with its answer, in tokens; None takes the model's.
        precision: Arithmetic; None takes the checkpoint's.
        quantization: Rounds the weights while it loads them, and activations as they come: `fp8` needs a GPU that multiplies them.
        cache_type: Number format of keys and values; None takes that of the arithmetic.
        max_streams: Most requests that are continued at once; more wait.
        max_batched_tokens: Most tokens of a step, prompts included: longer ones are read in pieces between the steps of others. None takes 2,048,
            and for Humming's kernels `HUMMING_TOKENS`.
        lookahead: Tokens of an answer that are guessed from what followed the same words before, in the prompt or the answer, and checked in one
            step (prompt lookup: Saxena, 2023); greedy answers stay what they are. 0 guesses none.
        draft_tokens: Likewise, guessed by the smaller model that the artifact brings (technique `attach_draft`).
        kernels: Which multiply by weights of a compressed checkpoint; None lets vLLM choose, which takes Machete for 4 bits on an H100 or H200.
            There `humming`, compiled for the matrices at hand while it opens, was faster with 1 to 128 streams, and `marlin` with up to 32.
        prefix_caching: Keep what was read of prompts for those that begin alike.
        graphs: Compile the model, and on GPUs replay its steps as graphs.
        cache_gib: Room for keys and values on CPUs, in GiB; GPUs give most of what is free.
        memory_share: Share of a GPU's free memory that weights, keys and values may take.
    """

    threads: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    precision: Literal["bfloat16", "float16", "float32"] | None = None
    quantization: Literal["fp8"] | None = None
    cache_type: Literal["fp8"] | None = None
    max_streams: int = Field(default=128, gt=0)
    max_batched_tokens: int | None = Field(default=None, ge=16)
    lookahead: int = Field(default=0, ge=0, le=16)
    draft_tokens: int = Field(default=0, ge=0, le=16)
    kernels: Literal["humming", "marlin"] | None = None
    prefix_caching: bool = False
    graphs: bool = True
    cache_gib: int = Field(default=1, gt=0)
    memory_share: float = Field(default=0.8, gt=0, le=1)


class VllmEngine:
    """See `genopt.engines.base.Engine`; on NVIDIA GPUs."""

    name = "vllm"
    modality = "text"
    accepts = frozenset({"hf", "compressed_tensors"})
    tunables = (
        Tunable(name="cache_type", choices=(None, "fp8"), words=("", "kv-fp8")),
        Tunable(name="max_batched_tokens", choices=(None, 8192), words=("", "8k-steps")),
        Tunable(name="lookahead", choices=(0, 4), words=("", "lookahead-4")),
        Tunable(name="kernels", choices=(None, "humming", "marlin"), words=("", "humming", "marlin"), requires=frozenset({"compressed_tensors"})),
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
        from genopt.engines.vllm_loop import import_vllm

        import_vllm()

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
        from genopt.engines.vllm_loop import import_vllm

        import_vllm()

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> VllmSession:
        """See `Engine.open`."""
        return _opened(artifact, parse_settings(VllmOptions, options, "vllm_cpu"))


def _opened(artifact: Path, options: VllmOptions) -> VllmSession:
    from genopt.engines.vllm_session import VllmSession

    session = VllmSession(artifact, options)
    session.warm_up()
    return session
