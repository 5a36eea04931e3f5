"""Energy is read from counters or absent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.measure.energy import Energy, gpu_energy, joules_per_token, read_energy, spent
from genopt.testing.fake_nvml import GB10, H100, FakeNvml


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def zone(folder: Path, name: str, what: str, microjoules: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "name").write_text(f"{what}\n")
    (folder / name / "energy_uj").write_text(microjoules)
    (folder / name / "max_energy_range_uj").write_text("262143328850\n")


def test_packages_are_read_and_what_would_count_them_twice_left_out(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "3000000\n")
    zone(tmp_path, "intel-rapl:0:0", "core", "1000000\n")
    zone(tmp_path, "intel-rapl:1", "package-1", "not a number")
    zone(tmp_path, "intel-rapl:2", "psys", "9000000\n")
    zone(tmp_path, "intel-rapl:3", "package-3", "4000000\n")
    (tmp_path / "intel-rapl:3" / "name").unlink()
    assert read_energy(tmp_path).joules == {"intel-rapl:0": 3.0}


def test_gpus_count_beside_packages_and_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([GB10, H100]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    zone(tmp_path, "intel-rapl:0", "package-0", "3000000\n")
    assert read_energy(tmp_path).joules == {"gpu1": 5.0, "intel-rapl:0": 3.0}
    assert gpu_energy().joules == {"gpu1": 5.0}


def test_without_counters_nothing_is_told_and_nothing_run(tmp_path: Path) -> None:
    assert read_energy(tmp_path).joules == {}

    def run() -> int:
        raise AssertionError("it ran")

    assert joules_per_token(run, lambda: read_energy(tmp_path)) is None


def test_a_counter_that_starts_again_is_followed() -> None:
    before, after = Energy(joules={"a": 90.0}, wraps={"a": 100.0}), Energy(joules={"a": 5.0}, wraps={"a": 100.0})
    assert spent(before, after) == pytest.approx(15.0)


@given(first=st.floats(0, 1e6), used=st.floats(0, 1e3), tokens=st.integers(0, 100))
def test_energy_per_token_is_what_was_spent_over_what_was_made(first: float, used: float, tokens: int) -> None:
    readings = [Energy(joules={"a": first}, wraps={}), Energy(joules={"a": first + used}, wraps={})]
    found = joules_per_token(lambda: tokens, lambda: readings.pop(0))
    assert found is None if tokens == 0 else found == pytest.approx(used / tokens, abs=1e-6)
