"""The Pareto front holds exactly what nothing beats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.search.pareto import front

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
