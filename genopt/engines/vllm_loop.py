"""vLLM's asynchronous engine, whose model runs in a process of its own, and the event loop in which it answers."""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from genopt.engines.vllm_failure import LOGGING, logged_causes, refusal
from genopt.engines.vllm_options import DRAFT, HUMMING_TOKENS, TOKENS, VllmOptions
from genopt.engines.vllm_reader import EXTENSION
from genopt.errors import InfeasibleError
from genopt.models import nvml
from genopt.models.trust import trusted

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

KERNELS: Mapping[str | None, Mapping[str, str]] = {None: {}, "humming": {"quantization": "humming"}, "marlin": {"linear_backend": "marlin"}}
"""How vLLM is asked for the kernels that multiply by compressed weights."""
FITTED = -1
"""What vLLM takes as "the model's context, or as much of it as one request has room for"; it refuses a length that does not fit, and many do not:
16 GiB of keys and values come to the 131,072 tokens of an 8B Llama 3.1."""
LOOKED_UP = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
"""Tokens of the text's end that are looked for further up."""
SERIAL = "HUMMING_DISABLE_PARALLEL_BUILD"
"""Variable that keeps Humming, which vLLM imports for all compressed checkpoints, from building in the background what few of them need."""
ENDING_S = 1.0
"""Within this time after an error it shows whether vLLM's process ended with it: calls fail a moment before."""


class EngineLoop:
    """An engine that is asked from one thread and answers in another.

    Args:
        engine: vLLM's; all that it does from now on it does in the loop.
    """

    def __init__(self, engine: AsyncLLM) -> None:
        self.engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._closing = threading.Event()
        self._processes = multiprocessing.active_children()
        self._thread.start()
        threading.Thread(target=self._watch, name="vllm-process", daemon=True).start()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts work in the loop; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for work in the loop; its error counts only where vLLM's process lives on."""
        try:
            return self.begin(work).result()
        except Exception:
            self.end_with_process()
            raise

    def ask_worker(self, method: str, *arguments: Any) -> Any:
        """The result of a method of `genopt.engines.vllm_reader.TextReader`."""
        (found,) = self.run(self.engine.collective_rpc(method, args=arguments))
        return found

    def _watch(self) -> None:
        self.end_with_process(None)

    def end_with_process(self, timeout_s: float | None = ENDING_S) -> None:
        """Ends this process where vLLM's ends in time: whoever watches over a session must see that it can answer no more.

        What the kernel killed for lack of memory is vLLM's process alone, so this one goes the same way, which tells it from others.

        Args:
            timeout_s: Returns after as long; None waits until it ends.
        """
        gone = connection.wait([process.sentinel for process in self._processes], timeout_s)
        if not gone or self._closing.is_set():
            return
        killed = any(_exit_code(process) == -signal.SIGKILL for process in self._processes if process.sentinel in gone)
        print(f"vLLM's process {'was killed' if killed else 'ended'}.", file=sys.stderr, flush=True)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)

    def close(self) -> None:
        """Ends vLLM's process and the thread."""
        self._closing.set()
        self.run(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        self.engine.shutdown()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _exit_code(process: multiprocessing.process.BaseProcess) -> int | None:
    """How a process ended; vLLM waits for it too, and where the kernel told vLLM first, it takes a moment until that is known here."""
    deadline = time.monotonic() + ENDING_S
    while process.exitcode is None and time.monotonic() < deadline:
        process.join(ENDING_S)
        time.sleep(0.01)
    return process.exitcode


def import_vllm() -> None:
    """Imports what opening needs, with the settings that vLLM reads then or later.

    No reports to its makers, its account in our log, and one process beside this one instead of two.
    """
    settings = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_CONFIG_PATH": str(LOGGING)}
    os.environ.update(settings)
    # transformers imports torchao where it is, which touches the GPU while it is imported; what touched it cannot be forked. None hides it.
    sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]
    for module in ("vllm.v1.engine.async_llm", "vllm.v1.engine.core"):  # the latter runs in vLLM's own process
        importlib.import_module(module)


def import_formats() -> None:
    """Imports what vLLM imports to open a checkpoint in any compressed format: all of them, which takes seconds where there is a GPU."""
    os.environ[SERIAL] = "1"
    from vllm.model_executor.layers.quantization import get_quantization_config

    get_quantization_config("compressed-tensors")


def _let_humming_build() -> None:
    """Has Humming build in the background what its kernels need, as it does when it is imported, also where it was kept from that then."""
    os.environ.pop(SERIAL, None)
    if "humming" in sys.modules:
        from humming.ops.utils import build_humming_launcher_in_bg
        from humming.utils.nvrtc import build_nvrtc_compile_binary_in_bg

        build_humming_launcher_in_bg()
        build_nvrtc_compile_binary_in_bg()


def open_loop(folder: Path, options: VllmOptions) -> EngineLoop:
    """Starts vLLM.

    Args:
        folder: Artifact with the trait `hf`.
        options: Runtime options.

    Raises:
        InfeasibleError: vLLM does not know the architecture or the options' combination.
        OutOfMemoryError: Weights, keys and values do not fit.
        StageError: It failed otherwise.
    """
    _require_possible(folder, options)
    import_vllm()
    if torch.cuda.is_available():
        # Its process is forked, and imports nothing again: this one has a single thread and has not touched the GPU, so that it can be.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    else:
        # vLLM 0.32 cannot load there what it compiled ahead of time, and compiles anew; TorchInductor's own cache it can: a 135M model opens for the
        # second time in 22 seconds instead of 51.
        os.environ.update({"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_USE_AOT_COMPILE": "0", "VLLM_CPU_KVCACHE_SPACE": str(options.cache_gib)})
    if options.kernels == "humming":
        _let_humming_build()
    else:
        os.environ[SERIAL] = "1"
    if options.threads is not None:
        torch.set_num_threads(options.threads)  # vLLM's process takes as many
    with logged_causes() as causes:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = _arguments(AsyncEngineArgs, folder, options)
        try:
            return EngineLoop(AsyncLLM.from_engine_args(arguments))
        except Exception as error:
            raise refusal(causes.first(), error) from error


def _require_possible(folder: Path, options: VllmOptions) -> None:
    """Refuses what is known to fail before the seconds are spent that importing vLLM takes."""
    if options.kernels is not None:
        compressed = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
        if compressed is None:
            raise InfeasibleError("Kernels are chosen for compressed checkpoints, which this is not; leave kernels out.")
        if options.kernels == "humming" and any(group.get("input_activations") for group in compressed["config_groups"].values()):
            raise InfeasibleError("vLLM has Humming's kernels for rounded weights alone, and activations are rounded here too; leave kernels out.")
    if options.draft_tokens and options.lookahead:
        raise InfeasibleError("vLLM guesses in one way at a time; give lookahead or draft_tokens.")
    if options.draft_tokens and not (folder / DRAFT).is_dir():
        raise InfeasibleError(f"{folder} brings no smaller model that could guess; attach one with the technique attach_draft.")


def _arguments(kind: type[AsyncEngineArgs], folder: Path, options: VllmOptions) -> AsyncEngineArgs:
    named: dict[str, Any] = {"max_model_len": options.max_context or FITTED, "quantization": options.quantization}
    if options.cache_type is not None:
        named["kv_cache_dtype"] = options.cache_type
    named |= KERNELS[options.kernels]
    if options.lookahead:
        named["speculative_config"] = {"method": "ngram", "num_speculative_tokens": options.lookahead, **LOOKED_UP}
    if options.draft_tokens:
        named["speculative_config"] = {"method": "draft_model", "model": str(folder / DRAFT), "num_speculative_tokens": options.draft_tokens}
    if torch.cuda.is_available() and (memory := nvml.memory()) is not None:  # else vLLM takes a share of its own
        # Others hold memory of the same GPU, such as the references that a candidate is compared with.
        named["gpu_memory_utilization"] = options.memory_share * memory.free / memory.total
    tokens = options.max_batched_tokens or (HUMMING_TOKENS if options.kernels == "humming" else TOKENS)
    return kind(
        model=str(folder), skip_tokenizer_init=True, dtype=options.precision or "auto", max_num_seqs=options.max_streams,
        max_num_batched_tokens=tokens, enable_chunked_prefill=True, enable_prefix_caching=options.prefix_caching,
        enforce_eager=not options.graphs, trust_remote_code=trusted(), disable_log_stats=True, worker_extension_cls=EXTENSION, **named,
    )  # fmt: skip
