"""Where the time of a phase goes, on a CPU and on a GPU; nothing is counted twice and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.profiling import causes
from genopt.profiling.causes import PYTHON, Cell
from genopt.profiling.roofline import Ceilings, Work

CEILINGS = Ceilings(read_gb_s=10.0, copy_gb_s=8.0, matmul_gflop_s=100.0, formats={}, launch_us=10.0)
CELLS = {
    ("MLP", "aten::mm"): Cell(seconds=6e-3, events=10, launches=10),
    ("MLP", PYTHON): Cell(seconds=1e-3, events=10),
    ("attention", "aten::mm"): Cell(seconds=2e-3, events=10, launches=10),
    ("attention", "aten::cat"): Cell(seconds=5e-4, events=5, launches=5),
    ("framework", PYTHON): Cell(seconds=5e-4, events=0),
}
WHOLE = 10e-3
WORKS = st.builds(Work, bytes=st.floats(0, 1e12), operations=st.floats(0, 1e12))
PLACES = st.tuples(st.sampled_from(["MLP", "attention"]), st.sampled_from([PYTHON, "aten::mm", "aten::cat"]))
SOME_CELL = st.builds(Cell, seconds=st.floats(1e-6, 1.0), events=st.integers(0, 99), launches=st.integers(0, 99))
SOME_CELLS = st.dictionaries(PLACES, SOME_CELL, min_size=1)


def test_time_on_a_cpu_is_split_by_cause() -> None:
    times = causes.true_times(CELLS, WHOLE, device="cpu")
    found = causes.causes(times, CELLS, Work(bytes=5e7, operations=1e6), CEILINGS, device="cpu", tokenizer_s=2e-4)
    assert found == pytest.approx({
        causes.MEMORY: 5e-3, causes.KERNELS: 8e-3 - 20 * 1e-5 - 5e-3, causes.HOST: 1.5e-3, causes.MOVEMENT: 5e-4 - 5e-5,
        causes.LAUNCHES: 25 * 1e-5, causes.TOKENIZER: 2e-4,
    })  # fmt: skip
    assert list(found) == sorted(found, key=lambda cause: -found[cause])


def test_launches_on_a_gpu_take_of_the_time_in_which_no_kernel_runs() -> None:
    found = causes.causes({place: cell.seconds for place, cell in CELLS.items()}, CELLS, Work(operations=3e8), CEILINGS, device="cuda")
    assert found == pytest.approx({
        causes.COMPUTE: 3e-3, causes.KERNELS: 5e-3, causes.HOST: 1.5e-3 - 25e-5, causes.LAUNCHES: 25e-5, causes.MOVEMENT: 5e-4,
    })  # fmt: skip


@given(cells=SOME_CELLS, work=WORKS, true_s=st.floats(1e-6, 1.0), device=st.sampled_from(["cpu", "cuda"]), tokenizer_s=st.floats(0, 1))
def test_the_causes_sum_to_the_time(cells: dict[causes.Place, Cell], work: Work, true_s: float, device: str, tokenizer_s: float) -> None:
    times = causes.true_times(cells, true_s, device=device)
    found = causes.causes(times, cells, work, CEILINGS, device=device, tokenizer_s=tokenizer_s)
    assert sum(found.values()) == pytest.approx(true_s + tokenizer_s)
    assert all(seconds > 0 for seconds in found.values())
    assert found.keys() <= causes.BOUNDS.keys()


def test_operators_are_added_up_over_families_and_python_is_none() -> None:
    times = causes.true_times(CELLS, WHOLE, device="cpu")
    first, second = causes.top_operators(times, CELLS)
    assert (first.name, first.calls, first.ms, first.share) == ("aten::mm", 20, pytest.approx(8.0), pytest.approx(0.8))
    assert (second.name, second.calls) == ("aten::cat", 5)
    assert len(causes.top_operators(times, CELLS, count=1)) == 1


def test_families_come_with_the_slowest_first() -> None:
    assert causes.families(causes.true_times(CELLS, WHOLE, device="cpu")) == pytest.approx({"MLP": 7e-3, "attention": 2.5e-3, "framework": 5e-4})


def test_nothing_recorded_has_no_cause_but_the_tokenizer() -> None:
    assert causes.causes({}, {}, Work(bytes=1.0), CEILINGS, device="cpu", tokenizer_s=1e-3) == {causes.TOKENIZER: 1e-3}
