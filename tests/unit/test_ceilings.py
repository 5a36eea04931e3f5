"""What a machine reaches: measured once per kind of hardware, measured again where the kept figures cannot be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genopt.measure.exclusivity import Disturbance, Unwatched, Watch
from genopt.profiling import ceilings
from genopt.profiling.ceiling_cache import CeilingCache, Found
from genopt.profiling.roofline import DeviceCeilings

CPU = torch.device("cpu")
DAY = 86_400.0


def figures(read: float = 40.0, **changes: Any) -> DeviceCeilings:
    return DeviceCeilings(**{"read_gb_s": read, "copy_gb_s": 30.0, "formats": {"fp32": 90.0, "int8": 200.0}, "launch_us": 2.0, **changes})


class Busy:
    """A machine on which something else runs during the first few measurements."""

    def __init__(self, times: int) -> None:
        self._left = times

    def begin(self) -> None:
        pass

    def end(self) -> Disturbance:
        self._left -= 1
        return Disturbance(seconds=1.0, other_cores=1.0 if self._left >= 0 else 0.0, steal=0.0)


class Machine:
    """A machine whose figures and clock the test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now, self.reads, self.measured = 1e9, 38.0, [figures()]
        self.measurements = 0
        self.watch: Watch = Unwatched()

    def _measure(self, _device: torch.device) -> DeviceCeilings:
        self.measurements += 1
        return self.measured[min(self.measurements, len(self.measured)) - 1]

    def get(self, threads: int = 2) -> Found:
        cache = CeilingCache(self.folder, clock=lambda: self.now, measure=self._measure, read=lambda _: self.reads, watch=self.watch)
        return cache.get(CPU, threads=threads)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "ceilings")


def only_file(machine: Machine) -> Path:
    (path,) = machine.folder.iterdir()
    return path


def test_the_second_profile_measures_reading_alone(machine: Machine) -> None:
    first = machine.get()
    machine.now += 3 * 3600
    second = machine.get()
    assert machine.measurements == 1
    assert (first.age_s, second.age_s) == (0.0, 3 * 3600)
    assert first.origin == "measured now (for the first time on this kind of hardware)"
    assert second.origin == "measured 3 hours ago on this kind of hardware"
    assert first.ceilings == second.ceilings == figures()


def test_other_threads_are_another_kind_of_hardware(machine: Machine) -> None:
    machine.get(threads=1)
    machine.get(threads=2)
    assert machine.measurements == len(list(machine.folder.iterdir())) == 2


def test_old_figures_are_measured_again(machine: Machine) -> None:
    machine.get()
    machine.now += 7.5 * DAY
    assert machine.get().origin == "measured now (the kept figures were older than 7 days)"
    machine.now += 6 * DAY
    assert machine.get().age_s == 6 * DAY


def test_figures_from_the_future_are_not_trusted(machine: Machine) -> None:
    machine.get()
    machine.now -= 100 * DAY
    assert machine.get().age_s == 0.0
    assert machine.measurements == 2


def test_a_moment_that_reads_clearly_faster_proves_the_kept_figures_wrong(machine: Machine) -> None:
    machine.get()
    machine.reads = 60.0
    again = machine.get()
    assert machine.measurements == 2
    assert again.origin == "measured now (memory reads 1.50 times as fast as the kept figures said)"
    assert again.ceilings.read_gb_s == 60.0  # the better of two moments


@pytest.mark.parametrize("content", ["", "{", '{"version": 1}', "null", "\x00\xff" * 50])
def test_a_damaged_file_is_measured_again_and_replaced(machine: Machine, content: str) -> None:
    machine.get()
    only_file(machine).write_text(content, encoding="utf-8")
    assert machine.get().origin == "measured now (the kept figures were damaged)"
    assert machine.get().origin.endswith("on this kind of hardware")
    assert machine.measurements == 2


def test_figures_that_cannot_be_are_damage(machine: Machine) -> None:
    machine.get()
    path = only_file(machine)
    path.write_text(path.read_text(encoding="utf-8").replace("40.0", "-40.0"), encoding="utf-8")
    assert "damaged" in machine.get().origin


def test_a_store_that_takes_nothing_costs_no_profile(machine: Machine, tmp_path: Path) -> None:
    machine.folder = tmp_path / "file" / "ceilings"
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert machine.get().origin.endswith("and the store did not take them)")


def test_a_disturbed_measurement_is_repeated_and_the_better_figures_count(machine: Machine) -> None:
    machine.watch = Busy(1)
    machine.measured = [figures(40.0, launch_us=3.0, formats={"fp32": 95.0}), figures(38.5, launch_us=2.5, formats={"fp32": 80.0})]
    found = machine.get()
    assert machine.measurements == 2
    assert found.ceilings == figures(40.0, launch_us=2.5, formats={"fp32": 95.0})
    assert "other work" not in found.origin


def test_figures_of_a_busy_machine_say_so_and_are_kept_for_an_hour(machine: Machine) -> None:
    machine.watch = Busy(9)
    assert machine.get().origin.endswith(", while the machine also did other work")
    machine.now += 1800
    assert machine.get().origin == "measured 30 minutes ago on this kind of hardware, while the machine also did other work"
    machine.now += 3600
    assert machine.get().age_s == 0.0


def test_every_figure_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", 2**22)
    monkeypatch.setattr(ceilings, "MOST_BUFFER_BYTES", 2**22)
    monkeypatch.setattr(ceilings, "SIZES", {"cpu": (64, 128)})
    with ceilings.thread_count(1):
        found = ceilings.measure_ceilings(CPU)
    assert found.formats.keys() == {"bf16", "fp16", "fp32", "int8"}
    assert 0.05 < found.launch_us < 500
    assert min(found.formats.values()) > 0


def test_a_missing_cache_size_leaves_the_usual_buffer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", 2**20)
    monkeypatch.setattr(ceilings, "_LAST_LEVEL", tmp_path / "none")
    assert ceilings.measure_read(CPU) > 0


def test_a_format_that_is_emulated_may_use_fp32() -> None:
    slow = figures(formats={"fp32": 90.0, "bf16": 2.0})
    assert ceilings.for_dtype(slow, torch.bfloat16, CPU).matmul_gflop_s == 90.0
    assert ceilings.for_dtype(slow, torch.float32, CPU).matmul_gflop_s == 90.0


def test_an_unusual_format_is_measured_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZES", {"cpu": (64,)})
    found = ceilings.for_dtype(figures(), torch.float64, CPU)
    assert found.formats["float64"] > 0
