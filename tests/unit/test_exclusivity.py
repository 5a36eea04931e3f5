"""What counts as a disturbance, and the counters that tell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.measure import gpu
from genopt.measure.exclusivity import Counters, NodeWatch, Unwatched, read_counters
from genopt.testing.fake_nvml import GB10, H100, FakeNvml, NVMLErrorNoPermission, NVMLErrorNotSupported

TIMES = st.floats(0, 1e4)


def watched(before: Counters, after: Counters) -> NodeWatch:
    script = [before, after]

    def read(ours: Iterable[int]) -> Counters:
        return script.pop(0)

    watch = NodeWatch(lambda: [], read)
    watch.begin()
    return watch


def counters(wall: float, *, busy: float = 0.0, ours: float = 0.0, stolen: float = 0.0, processors: int = 2) -> Counters:
    return Counters(wall=wall, busy=busy, ours=ours, stolen=stolen, total=processors * wall)


@pytest.mark.parametrize(
    ("after", "contended"),
    [
        (counters(1, busy=2, ours=2), False),
        (counters(1, busy=1.1, ours=1), False),  # a daemon
        (counters(1, busy=1.5, ours=1), True),
        (counters(0.1, busy=0.03), False),  # within the counters' resolution
        (counters(1, busy=1, ours=1, stolen=0.3), True),
        (counters(1, busy=2.5, ours=2, processors=16), False),  # most processors are idle
        (counters(1, busy=3, ours=2, processors=16), True),
        (counters(1, busy=10.5, ours=10, processors=16), True),  # most are busy
    ],
)
def test_others_and_the_hypervisor_disturb(after: Counters, contended: bool) -> None:
    assert watched(counters(0), after).end().contended is contended


@given(busy=TIMES, ours=TIMES, stolen=TIMES, wall=st.floats(1e-6, 1e4))
def test_shares_are_never_negative(busy: float, ours: float, stolen: float, wall: float) -> None:
    found = watched(counters(0), counters(wall, busy=busy, ours=ours, stolen=stolen)).end()
    assert found.other_cores >= 0
    assert 0 <= found.steal <= 1
    assert 0 <= found.idle <= 1


def test_a_child_counts_as_ours_and_a_stranger_does_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        before = read_counters([child.pid])
        while read_counters([child.pid]).ours - before.ours < 0.3:
            pass
        now = read_counters([child.pid])
    finally:
        child.kill()
        child.wait()
    assert now.ours - before.ours >= 0.3
    assert now.wall > before.wall
    assert now.busy - before.busy > 0
    assert read_counters([]).ours < now.ours


def test_ending_what_did_not_begin_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without begin"):
        NodeWatch(lambda: []).end()


def test_nothing_is_seen_where_nothing_is_watched() -> None:
    watch = Unwatched()
    watch.begin()
    assert not watch.end().contended


def test_without_a_gpu_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.states() == ()
    assert gpu.foreign_processes({os.getpid()}) == 0


def test_how_gpus_ran_is_said_in_words() -> None:
    cool = gpu.GpuState(name="H100", sm_mhz=1980, memory_mhz=2619, temperature_c=41, power_w=180.4, throttled=(), energy_j=1.0, used_bytes=0)
    hot = cool.model_copy(update={"sm_mhz": 1755, "temperature_c": 83, "power_w": 699.6, "throttled": ("thermal limit", "power cap")})
    assert gpu.described([cool, hot]) == "1755-1980 MHz, 41-83 °C, 180-700 W, throttled by power cap and thermal limit"
    assert gpu.described([cool]) == "1980 MHz, 41 °C, 180 W"
    assert gpu.described([]) == ""
    assert gpu.described([gpu.GpuState(), cool.model_copy(update={"power_w": None})]) == "1980 MHz, 41 °C"
    assert gpu.described([gpu.GpuState()]) == ""


def see(monkeypatch: pytest.MonkeyPatch, *gpus: Mapping[str, Any]) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpus))


@pytest.mark.parametrize("refusal", [NVMLErrorNotSupported(), NVMLErrorNoPermission()])
@pytest.mark.parametrize("question", [*H100])
def test_a_reading_that_a_gpu_refuses_is_absent_and_the_others_are_there(
    question: str, refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    see(monkeypatch, {**H100, question: refusal}, GB10)
    first, second = watched(counters(0), counters(1)).end().gpus
    whole = gpu.GpuState(
        name="NVIDIA H100 80GB HBM3", sm_mhz=1980, memory_mhz=1980, temperature_c=41, power_w=180.4, throttled=("power cap", "thermal limit"),
        energy_j=5.0, used_bytes=20 * 2**30,
    )  # fmt: skip
    absent = {
        "Name": {"name"}, "MemoryInfo": {"used_bytes"}, "ClockInfo": {"sm_mhz", "memory_mhz"}, "Temperature": {"temperature_c"},
        "PowerUsage": {"power_w"}, "CurrentClocksEventReasons": {"throttled"}, "TotalEnergyConsumption": {"energy_j"},
    }.get(question, set())  # fmt: skip
    assert first == whole.model_copy(update=dict.fromkeys(absent))
    assert second == gpu.GpuState(name="NVIDIA GB10")


def test_processes_are_counted_where_the_driver_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = SimpleNamespace(pid=os.getpid(), usedGpuMemory=10)
    see(monkeypatch, {**H100, "ComputeRunningProcesses": (ours,)}, GB10)
    assert gpu.foreign_processes([]) == 1
    assert gpu.used_by([os.getpid()]) == 10
    see(monkeypatch, GB10)
    assert gpu.foreign_processes([]) == 0
    assert gpu.used_by([os.getpid()]) is None
