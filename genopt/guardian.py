"""Stands between a run and the process that works for it, so that nothing outlives either.

The work may hang in native code, ignore signals, or start processes that leave its process group. So it runs in a
child of a small process that does nothing but wait: when the work ends, when the parent is gone, or when it is asked to
(SIGTERM), it kills all that is left. As a subreaper (PR_SET_CHILD_SUBREAPER) it inherits processes whose own parents
have ended, so that none gets away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import time
from pathlib import Path
from typing import NoReturn

PARENT = "GENOPT_PARENT"
"""Environment variable with the process id of the parent: it may be gone before its child can look."""
SWEEP_S = 3.0
"""Longest time for killing what is left; only processes that the kernel itself holds can take it."""
_LOOK_S = 0.005
"""Pause between two looks for what is left. Looks are counted, not time: a machine that was paused must not end the sweep."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def guard() -> None:
    """Forks: returns in the process that works, and never in the one that waits for it.

    Call it while the process has one thread.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    if os.getppid() != parent:
        os._exit(1)
    known = os.getpid()
    guardian = os.fork()
    if guardian:
        _stand_in(guardian)
    os.setpgid(0, 0)  # so that who kills the group of the child that the parent knows cannot stop the sweep
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    worker = os.fork()
    if worker == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:
            os._exit(1)
        return
    with contextlib.suppress(_AskedError):
        signal.signal(signal.SIGTERM, _asked)
        _close_pipes()
        _await_any(parent, known, worker)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_like(_sweep(worker))


def _stand_in(guardian: int) -> NoReturn:
    """Is the child that the parent knows, passes its wish on, and ends as the guardian does.

    A Ray worker that is ended kills its own children at once, and would leave the guardian no time.
    """

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(guardian, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    _close_pipes()
    _, status = os.waitpid(guardian, 0)
    _end_like(status)


class _AskedError(Exception):
    """The parent wants an end."""


def _asked(number: int, frame: object) -> None:
    raise _AskedError


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _close_pipes() -> None:
    """The parent must see the end of the worker's output when the worker ends, and the worker that of its input."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _await_any(*pids: int) -> None:
    """Until one of some processes has ended."""
    poll = select.poll()
    for pid in pids:
        try:
            poll.register(os.pidfd_open(pid), select.POLLIN)
        except ProcessLookupError:
            return
    poll.poll()


def _sweep(worker: int) -> int:
    """Kills everything below this process; returns how the worker ended, as `os.waitpid` says it."""
    ended = signal.SIGKILL.value
    with contextlib.suppress(ChildProcessError):
        pid, status = os.waitpid(worker, os.WNOHANG)
        ended = status if pid == worker else ended
        for _ in range(round(SWEEP_S / _LOOK_S)):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(_LOOK_S)
    return ended


def _end_like(status: int) -> NoReturn:
    """Ends as the worker did, so that the parent sees how."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL cannot be reset, and needs not be
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
