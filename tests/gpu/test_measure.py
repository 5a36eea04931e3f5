"""What is read of a real GPU: its state, its energy, who else computes on it, and what a session's profile says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from genopt.engines.base import GenerationRequest
from genopt.measure import gpu
from genopt.measure.energy import joules_per_token
from genopt.measure.exclusivity import NodeWatch
from genopt.measure.text_speed import TextWorkload, compare
from genopt.plan import JsonValue
from genopt.process import SessionProcess
from genopt.profiling.ceiling_cache import CeilingCache
from genopt.profiling.text import profile_text
from genopt.testing.contracts import check_engine
from genopt.testing.tiny_models import CONTEXT, VOCABULARY, write_tiny_llama

pytestmark = pytest.mark.gpu

STRANGER = """
import os, sys, torch
one = torch.ones(4096, 4096, device="cuda")
print(os.getpid(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def stranger() -> Iterator[int]:
    """Process id of one that computes on the GPU and is no child of ours, since its parent ended at once."""
    leave = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen([sys.executable, "-c", leave, STRANGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        yield int(parent.stdout.readline())


def test_the_state_of_every_gpu_is_read() -> None:
    torch.ones(1, device="cuda")
    states = gpu.states()
    assert len(states) == torch.cuda.device_count()
    for state in states:
        print(state)
        assert state.name == torch.cuda.get_device_name()
        assert (state.sm_mhz or 0) > 100
        assert 0 < (state.temperature_c or 0) < 110
        assert 10 < (state.power_w or 0) < 1500
        assert (state.used_bytes or 0) > 0


def test_energy_is_counted_and_grows_with_work() -> None:
    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def work(seconds: float) -> int:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            one @ one
            torch.cuda.synchronize()
        return 1

    short, long = joules_per_token(lambda: work(0.5)), joules_per_token(lambda: work(1.5))
    print("joules", short, long)
    assert short is not None
    assert long is not None
    assert 20 < short < long < 3000


def test_a_stranger_on_the_gpu_is_noticed(stranger: int) -> None:
    torch.ones(1, device="cuda")
    seen = gpu.foreign_processes([os.getpid()])
    print("foreign", seen, "known", gpu.foreign_processes([os.getpid(), stranger]))
    assert seen == 1
    assert gpu.foreign_processes([os.getpid(), stranger]) == 0
    watch = NodeWatch(lambda: [os.getpid()])
    watch.begin()
    assert watch.end().contended


@pytest.mark.parametrize("compiled", [False, True])
def test_the_torch_engine_keeps_its_contract_on_a_gpu(model: Path, compiled: bool) -> None:
    """In a process of its own, as in runs."""
    check_engine("torch", model, {"compile": compiled, "cache_tokens": 128}, vocabulary=VOCABULARY, context=CONTEXT, apart=True)


def test_two_sessions_are_timed_against_each_other_on_a_gpu(model: Path, tmp_path: Path) -> None:
    def opened(name: str, **options: JsonValue) -> SessionProcess:
        return SessionProcess("torch", model, options, log=tmp_path / f"{name}.log", timeout_s=300)

    with opened("one", compile=True, cache_tokens=128) as one, opened("other", compile=False) as other:
        asked = GenerationRequest(prompt_ids=tuple(range(1, 20)), max_new_tokens=16)
        assert len(one.generate([asked])[0].token_ids) == 16
        workload = TextWorkload(prompts=(tuple(range(1, 33)),), output_tokens=16, concurrency=(1, 4))
        found = compare(one, other, workload, seed=0, half_width=0.05, max_rounds=8, time_cap_s=10)
        print("compiled over eager", found.ratio)
        assert found.ratio.value > 1.5
        assert one.memory().device_peak_bytes > 0


def test_a_profile_of_a_gpu_adds_up(model: Path, tmp_path: Path) -> None:
    found = profile_text(
        model, threads=4, prompt_ids=list(range(1, 65)), decode_steps=16, time_limit_s=120, progress=print, trace_folder=tmp_path, streams=(1, 32),
        cache=CeilingCache(tmp_path / "ceilings"),
    )  # fmt: skip
    print(found.ceilings, found.ceilings_origin, found.mbu, found.mfu, found.decode_ms, found.advice, found.graph_breaks)
    for phase in found.phases:
        print(phase.detail, phase.operators)
        assert phase.operators
        assert sum(phase.causes_ms.values()) == pytest.approx(phase.ms + found.tokenizer_ms[{"prefill": "prompt"}.get(phase.name, "token")])
    assert found.device == "cuda"
    assert sum(part.share for part in found.bottlenecks) == pytest.approx(1.0)
    assert found.ceilings["read_gb_s"] > 500
    assert found.ceilings["matmul_bf16_gflop_s"] > 50_000
    assert found.ceilings["matmul_int8_gop_s"] > 50_000
    assert 1 < found.ceilings["launch_us"] < 100
    assert 0 < found.mbu < 1
    assert 0 < found.mfu < 1
    assert (tmp_path / "decode.json.gz").stat().st_size > 0
