"""Energy is read from counters or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.measure.energy import Energy, joules_per_token, read_energy, spent


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def package(folder: Path, name: str, microjoules: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "energy_uj").write_text(microjoules)
    (folder / name / "max_energy_range_uj").write_text("262143328850\n")


def test_packages_are_read_and_their_parts_left_out(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", "3000000\n")
    package(tmp_path, "intel-rapl:0:0", "1000000\n")
    package(tmp_path, "intel-rapl:1", "not a number")
    assert read_energy(tmp_path).joules == {"intel-rapl:0": 3.0}


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
