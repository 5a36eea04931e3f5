"""Tests of Ctrl-C: it interrupts wherever it strikes."""

from __future__ import annotations

import signal
import sys
import threading
import weakref

import pytest

from genopt.cli.interruption import interruptible, wait_for_interruption

LONGEST_S = 20.0


class _Quiet:
    pass


class _StruckWhileItEnds:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def empty_and_wait(held: list[object]) -> None:
    """Lets go of what is held, where the interruption is dropped, and then waits for it to come again."""
    held.clear()
    threading.Event().wait(LONGEST_S)


def test_a_signal_interrupts_what_waits_for_it() -> None:
    with interruptible():
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM)).start()
        with pytest.raises(KeyboardInterrupt):
            wait_for_interruption()


def test_an_interruption_that_strikes_in_a_destructor_is_not_lost() -> None:
    with interruptible(), pytest.raises(KeyboardInterrupt):
        empty_and_wait([_StruckWhileItEnds()])


def test_an_interruption_that_strikes_in_a_callback_is_not_lost() -> None:
    with interruptible():
        watched: list[object] = [_Quiet()]
        kept = weakref.ref(watched[0], lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            empty_and_wait(watched)
        assert kept() is None


def test_other_exceptions_of_destructors_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("told")

    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_value))
    with interruptible():
        failing = Failing()
        del failing
    assert [str(one) for one in told] == ["told"]


def test_the_second_signal_waits_and_the_third_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert "once more to give up" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
