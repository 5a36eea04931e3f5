"""The Pareto front holds exactly what nothing beats."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.search.pareto import front, hypervolume

POINTS = st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(*[st.integers(0, 4).map(float)] * 3), max_size=12)


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


@given(points=POINTS)
def test_nothing_on_the_front_is_beaten_and_everything_off_it_is_beaten_by_the_front(points: dict[str, tuple[float, ...]]) -> None:
    names = front(points)
    for name, point in points.items():
        beaten = any(beats(points[other], point) for other in names)
        assert beaten == (name not in names)


@given(points=POINTS)
def test_the_order_is_the_given_one(points: dict[str, tuple[float, ...]]) -> None:
    names = front(points)
    assert names == [name for name in points if name in names]


@given(points=POINTS)
def test_the_front_of_the_front_is_itself(points: dict[str, tuple[float, ...]]) -> None:
    names = front(points)
    assert front({name: points[name] for name in names}) == names


def test_equal_points_stay_together() -> None:
    assert front({"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (1.0, 1.0)}) == ["a", "b"]


def test_nothing_has_an_empty_front() -> None:
    assert front({}) == []


def test_points_of_different_length_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        front({"a": (1.0, 2.0), "b": (1.0,)})


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([], 0.0), ([(1, 1, 1)], 1.0), ([(2, 3, 4)], 24.0), ([(2, 1, 1), (1, 2, 1)], 3.0), ([(2, 1, 1), (1, 2, 1), (1, 1, 2)], 4.0),
        ([(3, 3, 3), (1, 1, 1), (3, 3, 3)], 27.0), ([(-1, 5, 5)], 0.0),
    ],
)  # fmt: skip
def test_hypervolumes_are_those_of_the_union_of_boxes(points: list[tuple[float, ...]], volume: float) -> None:
    assert hypervolume(points, (0, 0, 0)) == pytest.approx(volume)


@given(st.lists(st.tuples(*[st.integers(min_value=0, max_value=4)] * 3), max_size=6))
def test_hypervolume_counts_unit_cubes(points: list[tuple[int, int, int]]) -> None:
    cubes = {cube for point in points for cube in itertools.product(*map(range, point))}
    assert hypervolume(points, (0, 0, 0)) == pytest.approx(len(cubes))
