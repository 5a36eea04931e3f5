"""Deadlines hold whatever is done to the time of day."""

from __future__ import annotations

import time

import pytest

from genopt import clock
from genopt.clock import Moment, Window


def test_a_moment_is_the_same_on_its_own_machine_after_the_clock_jumped(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment.of(clock.now() + 60)
    real = time.time()
    for jump in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: real + jump)
        assert moment.here() == moment.ticks


def test_a_moment_of_another_machine_is_told_by_the_time_of_day() -> None:
    moment = Moment.of(clock.now() + 60).model_copy(update={"machine": "another", "ticks": 5.0})
    assert moment.here() - clock.now() == pytest.approx(60, abs=1)


def test_a_window_takes_in_what_can_be_done() -> None:
    window = Window.model_validate(Window.until(clock.now() + 60, 45).model_dump(mode="json"))
    assert window.latest_start.here() - clock.now() == pytest.approx(15, abs=1)
    assert window.deadline.here() - clock.now() == pytest.approx(60, abs=1)


def test_a_stage_is_stopped_by_how_long_it_works_and_not_by_how_long_it_waited() -> None:
    deadline = clock.now() + 60
    window = Window.until(deadline, longest_s=20)
    assert window.closes(deadline - 50) == pytest.approx(deadline - 30)
    assert window.closes(deadline - 5) == pytest.approx(deadline)
    assert Window.until(deadline).closes(deadline - 1000) == pytest.approx(deadline)


def test_time_goes_on() -> None:
    before = clock.now()
    time.sleep(0.01)
    assert 0.01 <= clock.now() - before < 5
