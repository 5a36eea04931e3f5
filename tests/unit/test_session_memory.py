"""Memory of a session: all its processes, its device, its cache; and the processors that it is kept to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from genopt.engines.base import Memory
from genopt.measure import affinity, gpu
from genopt.measure.affinity import cpus_for
from genopt.measure.limits import cpu_list, usable_cpus
from genopt.measure.process_tree import TreeMemory, TreePeak, below
from genopt.models.kv_cache import cache_size
from genopt.process import SessionProcess
from genopt.tasks.session_memory import memory_metrics
from genopt.testing.plugin import write_plugin

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(60_000_000); print('ready', flush=True); input()"], stdin=sys.stdin)
child.wait()
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A small process whose child holds 60 MB."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def test_memory_of_all_processes_below_one_is_added_up(parent: subprocess.Popen[str]) -> None:
    tree = TreeMemory(os.getpid())
    whole = tree.look()
    assert whole.processes >= 2
    assert whole.bytes > 60_000_000
    child = TreeMemory(parent.pid).look()
    assert child.processes == 1
    assert 60_000_000 < child.bytes < whole.bytes


def test_a_peak_stays_when_the_processes_have_ended(parent: subprocess.Popen[str]) -> None:
    tree = TreeMemory(parent.pid)
    with tree.watched():
        before = tree.look()
    parent.kill()
    parent.wait()
    after = tree.look()
    assert after == before
    assert below(parent.pid) == ()


def write_process(proc: Path, pid: int, status: str, children: str = "") -> None:
    task = proc / str(pid) / "task" / str(pid)
    task.mkdir(parents=True)
    (proc / str(pid) / "status").write_text(status, encoding="ascii")
    (task / "children").write_text(children, encoding="ascii")


def test_counters_that_are_missing_or_odd_count_nothing(tmp_path: Path) -> None:
    write_process(tmp_path, 1, "Name: guardian\nVmRSS: 5 kB\nVmHWM: 9 kB\n", "2 3 4 5 ")
    write_process(tmp_path, 2, "Name: a\nVmRSS: 100 kB\nVmHWM: 400 kB\n", "6 ")
    write_process(tmp_path, 3, "Name: a kernel thread without memory\n")
    write_process(tmp_path, 4, "VmRSS: many kB\nVmHWM:\n")
    write_process(tmp_path, 6, "VmRSS: 350 kB\nVmHWM: 350 kB\n")
    assert TreeMemory(1, tmp_path).look() == TreePeak(bytes=450 * 1024, processes=5)  # the fifth has ended between two looks
    (tmp_path / "6" / "status").write_text("VmRSS: 10 kB\nVmHWM: 350 kB\n", encoding="ascii")
    assert TreeMemory(1, tmp_path).look().bytes == 400 * 1024  # the kernel keeps the peak of each


def test_a_kernel_that_does_not_tell_children_has_no_tree(tmp_path: Path) -> None:
    (tmp_path / "1" / "task" / "1").mkdir(parents=True)
    assert TreeMemory(1, tmp_path).look() == TreePeak()


class Session:
    """A session with given figures."""

    def __init__(self, memory: Memory, tree: TreePeak, device: int | None) -> None:
        self._memory, self._tree, self._device = memory, tree, device

    def memory(self) -> Memory:
        return self._memory

    def tree_peak(self) -> TreePeak:
        return self._tree

    def device_bytes(self) -> int | None:
        return self._device


def test_on_a_cpu_the_peak_is_that_of_the_tree() -> None:
    memory = Memory(rss_bytes=700, peak_rss_bytes=900, kv_cache_bytes=5120, kv_bytes_per_token=10.0)
    found = memory_metrics(Session(memory, TreePeak(bytes=1500, processes=3), None), context=96)
    assert found["peak_memory_bytes"] == found["peak_rss_bytes"]
    assert found["peak_memory_bytes"].value == 1500
    assert found["peak_memory_bytes"].conditions["processes"] == 3
    assert found["peak_memory_bytes"].conditions["engine_process_bytes"] == 900
    assert found["kv_cache_bytes"].value == 960
    assert found["kv_cache_bytes"].conditions["bytes_per_token"] == 10.0
    assert found["kv_cache_bytes"].conditions["context_tokens"] == 96
    assert "device_memory_bytes" not in found


def test_on_a_gpu_allocator_and_driver_are_told_apart() -> None:
    memory = Memory(rss_bytes=700, peak_rss_bytes=900, device_peak_bytes=4000)
    found = memory_metrics(Session(memory, TreePeak(bytes=800, processes=1), 5000), context=96)
    assert found["peak_memory_bytes"].value == 4000
    assert found["device_memory_bytes"].value == 5000
    assert found["peak_rss_bytes"].value == 900  # what the kernel kept of the one process
    assert "kv_cache_bytes" not in found


def test_of_reserved_room_only_what_requests_filled_counts() -> None:
    on_gpu = Memory(
        rss_bytes=700, peak_rss_bytes=900, device_peak_bytes=40_000, kv_cache_bytes=600, kv_bytes_per_token=2.0, kv_reserved_bytes=30_000
    )  # fmt: skip
    found = memory_metrics(Session(on_gpu, TreePeak(bytes=800, processes=1), 50_000), context=96)
    assert found["peak_memory_bytes"].value == 10_600
    assert found["peak_memory_bytes"].conditions["reserved_bytes"] == 30_000
    assert (found["peak_rss_bytes"].value, found["device_memory_bytes"].value) == (900, 50_000), "what others cannot have is told as it is"
    assert found["kv_cache_bytes"].conditions["room_bytes"] == 30_000
    on_cpu = on_gpu.model_copy(update={"device_peak_bytes": 0})
    found = memory_metrics(Session(on_cpu, TreePeak(bytes=31_000, processes=3), None), context=96)
    assert (found["peak_memory_bytes"].value, found["peak_rss_bytes"].value) == (1_600, 31_000)
    assert found["peak_memory_bytes"].conditions["processes"] == 3


def test_a_gpu_without_a_driver_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.used_by((os.getpid(),)) is None


def llama() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, max_position_embeddings=64, **sizes)).eval()


PER_TOKEN = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, their size, bytes


@pytest.mark.parametrize("rows", [1, 3])
def test_a_growing_cache_has_bytes_per_token(rows: int) -> None:
    with torch.inference_mode():
        cache = llama()(input_ids=torch.ones((rows, 7), dtype=torch.long), use_cache=True).past_key_values
    size = cache_size(cache)
    assert size.bytes_per_token == PER_TOKEN
    assert size.bytes == rows * 7 * PER_TOKEN
    assert (size.at(5), size.at(7)) == (5 * PER_TOKEN, 7 * PER_TOKEN)


def test_a_static_cache_has_room_for_more_than_it_holds() -> None:
    model = llama()
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    with torch.inference_mode():
        model(input_ids=torch.ones((1, 7), dtype=torch.long), past_key_values=cache, use_cache=True)
    assert cache_size(cache).bytes_per_token == PER_TOKEN
    assert cache_size(cache).bytes == 32 * PER_TOKEN


def test_the_state_of_recurrent_layers_counts_and_does_not_grow() -> None:
    config = transformers.MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2, state_size=8)
    model = transformers.MambaForCausalLM(config).eval()
    with torch.inference_mode():
        output = model(input_ids=torch.ones((1, 7), dtype=torch.long), use_cache=True)
    size = cache_size(output.cache_params)
    assert size.bytes_per_token == 0
    assert size.at(1) == size.at(1000) == size.bytes >= 2 * 64 * 8 * 4


def test_no_cache_takes_nothing() -> None:
    assert cache_size(None).bytes == cache_size(object()).at(9) == 0


def test_processors_are_written_as_linux_writes_them() -> None:
    assert [cpu_list(cpus) for cpus in ((), (3,), (0, 1), (0, 1, 2, 3, 8, 10, 11))] == ["", "3", "0-1", "0-3,8,10-11"]


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with four cores of two processors each: 0 and 4, 1 and 5, and so on."""
    monkeypatch.setattr(affinity, "usable_cpus", lambda: tuple(range(8)))
    monkeypatch.setattr(affinity, "usable_cores", lambda: 8)
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n", encoding="ascii")
    return tmp_path


def test_fewer_threads_get_a_core_each_while_there_are_any(eight: Path) -> None:
    assert [cpus_for(threads, eight) for threads in (1, 4, 6)] == [(0,), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5)]
    assert cpus_for(8, eight) == cpus_for(99, eight) == cpus_for(None, eight) == tuple(range(8))


def test_an_unknown_topology_counts_every_processor_as_a_core(eight: Path) -> None:
    assert cpus_for(3, eight / "none") == (0, 1, 2)


def test_a_share_of_the_time_leaves_the_choice_to_the_scheduler(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "usable_cores", lambda: 2)
    assert cpus_for(2, eight) == tuple(range(8))


def test_a_session_runs_on_the_processors_it_was_given_and_its_tree_is_known(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    write_plugin(plugins)
    environment = {"PYTHONPATH": os.pathsep.join([str(plugins), str(Path(__file__).parents[2])])}
    cpu = usable_cpus()[-1]
    options: dict[str, Any] = {"text": "abc"}
    process = SessionProcess(
        "fake", tmp_path, options, log=tmp_path / "log", timeout_s=30.0, environment=environment, threads=1, cpus=(cpu,)
    )  # fmt: skip
    with process as session:
        # What works is what has no children: the others only stand guard.
        workers = [pid for pid in below(session.pid) if not set(below(pid)) - {pid}]
        assert workers
        assert all(os.sched_getaffinity(pid) == {cpu} for pid in workers)
        peak = session.tree_peak()
        assert peak.processes >= 1
        assert 5_000_000 < peak.bytes < 2_000_000_000
