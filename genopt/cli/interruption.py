"""Ctrl-C and SIGTERM: the first interrupts, the second waits for the report, the third gives up."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Never

from genopt.cli.output import say

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_AGAIN_S = 0.1
"""How long after it was lost an interruption comes again: what lost it has ended by then."""
_LOOK_S = 0.5


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a signal raises `KeyboardInterrupt` in the main thread, wherever it strikes.

    Python drops an exception that is raised where none can be: in a destructor, the callback of a weak reference, or one that C code calls.
    An interruption that strikes there would be lost, and with it the only one that interrupts; it comes again after a moment.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    hook = sys.unraisablehook
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    sys.unraisablehook = _not_for_interruptions(hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            if handler is not None:  # None: C code's, which Python cannot set again
                signal.signal(number, handler)


def wait_for_interruption() -> Never:
    """Waits until a signal raises `KeyboardInterrupt`.

    Raises:
        KeyboardInterrupt: It came.
    """
    while True:  # `signal.pause` would sleep through one that comes just before it
        time.sleep(_LOOK_S)


def _on_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, _on_second_signal)
    raise KeyboardInterrupt


def _on_second_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    say("Still ending and writing the report; once more to give up.")


def _not_for_interruptions(otherwise: Callable[[UnraisableHookArgs], object]) -> Callable[[UnraisableHookArgs], object]:
    """A hook for exceptions that cannot be raised: an interruption is sent again, the rest goes to another hook."""

    def hook(dropped: UnraisableHookArgs) -> object:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            return otherwise(dropped)
        signal.signal(signal.SIGINT, _on_signal)
        again = threading.Timer(_AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()
        return None

    return hook
