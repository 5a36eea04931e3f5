"""A lock that one holder has at a time, on any folder that several machines share.

Whoever owns the highest numbered file of the lease's folder holds it. Numbers only rise: a contender takes over by
creating the next one, which a file system lets exactly one of several do (`O_EXCL`, on NFS too), so that nobody can
remove a lock that another has just taken. A holder that was suspended and comes back finds a higher number and knows
that it lost.

No clock is compared. A holder changes its file every `BEAT_S`, and counts as dead when a contender saw no change for
`STALE_S` of its own monotonic time; clocks may be wrong, and may jump. On the holder's own machine its process is
looked up instead, which tells at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from genopt.errors import StorageError
from genopt.plan import Record
from genopt.store.files import storage_error

BEAT_S = 2.0
"""A holder shows that it lives this often."""
STALE_S = 20.0
"""A holder without a sign of life for this long is dead; network file systems show changes within seconds."""
POLL_S = 0.1
_BYTES = 512
"""A beat overwrites the whole file, which therefore never changes its size and needs no space on a full disk."""


class Holder(Record):
    """Who holds a lease.

    Attributes:
        owner: Unlike that of any other holder.
        host: Name of its machine, for people.
        machine: Which kernel and which process numbers `pid` is about.
        pid: Its process.
        started: When the process began, in ticks since the machine did: process numbers are used again.
        beat: Rises with every sign of life.
        time: Unix time of the last one, for people; nothing is decided by it.
        released: The holder let go.
    """

    owner: str
    host: str
    machine: str
    pid: int
    started: int
    beat: int = 0
    time: float = 0.0
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_machine() -> str:
    """Two processes with the same answer see each other's process numbers; containers of one host do not."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"


def process_started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where it does not run; field 22 of proc_pid_stat(5)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


class Lease:
    """One lease; use each object for one holder.

    Args:
        folder: Where its files are; created when first taken.
        machine: What `this_machine` says; for tests.
        beat_s: Time between signs of life.
        stale_s: See `STALE_S`; the same for all that share the folder.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self, folder: Path, *, machine: str | None = None, beat_s: float = BEAT_S, stale_s: float = STALE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._beat_s, self._stale_s, self._clock = beat_s, stale_s, clock
        self._me = Holder(
            owner=uuid.uuid4().hex, host=socket.gethostname()[:100], machine=machine or this_machine(), pid=os.getpid(),
            started=process_started(os.getpid()) or 0,
        )  # fmt: skip
        self._number = 0
        self._descriptor = -1
        self._released = threading.Event()
        self._beating: threading.Thread | None = None

    def holder(self) -> Holder | None:
        """The one that holds it and lives; on another machine it takes up to `STALE_S` to tell.

        Raises:
            StorageError: The folder cannot be read.
        """
        return self._watch()[1]

    def take(self) -> Holder | None:
        """Takes the lease and returns None, unless another holds it and lives: that one is returned.

        Raises:
            StorageError: The folder cannot be written.
        """
        while True:
            number, other = self._watch()
            if other is not None:
                return other
            if self._create(number + 1):
                self._beating = threading.Thread(target=self._beat, daemon=True, name=f"lease {self._folder.name}")
                self._beating.start()
                return None

    @property
    def lost(self) -> bool:
        """Whether another took over, because this process gave no sign of life for too long."""
        return (self._folder / str(self._number + 1)).exists() or not (self._folder / str(self._number)).exists()

    def release(self) -> None:
        """Lets go; the next contender has it at once."""
        self._released.set()
        if self._beating is not None:
            self._beating.join()
            with contextlib.suppress(OSError):
                self._write(self._me.model_copy(update={"released": True}))
            os.close(self._descriptor)
            self._beating = None

    def _watch(self) -> tuple[int, Holder | None]:
        """The highest number, and its holder if that lives."""
        number, before, since = -1, b"", 0.0
        while True:
            now, content = self._highest()
            if not now:
                return 0, None
            found = _parse(content)
            if found is not None and found.released:
                return now, None
            if found is not None and found.machine == self._me.machine:
                return now, found if process_started(found.pid) == found.started else None
            if now != number:
                number, before, since = now, content, self._clock()
            elif content != before and found is not None:
                return now, found
            elif self._clock() - since > self._stale_s:
                return now, None
            time.sleep(min(POLL_S, self._stale_s / 4))

    def _highest(self) -> tuple[int, bytes]:
        """The highest number and its file's content; 0 where nobody took the lease yet."""
        while True:
            try:
                number = max((int(name) for name in os.listdir(self._folder) if name.isdigit()), default=0)
                return number, (self._folder / str(number)).read_bytes() if number else b""
            except FileNotFoundError:
                if not self._folder.exists():
                    return 0, b""
            except OSError as error:
                raise storage_error(self._folder, error) from None

    def _create(self, number: int) -> bool:
        """Whether this one got the number, and it is the highest."""
        path = self._folder / str(number)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if self._folder.is_dir():
                return False
            raise StorageError(f"{self._folder} is not a folder; remove it, or choose another folder with --store or --out.") from None
        except OSError as error:
            raise storage_error(self._folder, error) from None
        self._number = number
        try:
            self._write(self._me)
        except OSError as error:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise storage_error(self._folder, error) from None
        numbers = [int(name) for name in os.listdir(self._folder) if name.isdigit()]
        if max(numbers) > number:  # it was free only because the next holder had swept it up
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            return False
        for old in (one for one in numbers if one < number):
            (self._folder / str(old)).unlink(missing_ok=True)
        return True

    def _write(self, content: Holder) -> None:
        """Into the file that this one opened, and no other: a holder that lost cannot disturb the next one's."""
        os.pwrite(self._descriptor, content.model_copy(update={"time": time.time()}).model_dump_json().encode().ljust(_BYTES), 0)
        os.fsync(self._descriptor)

    def _beat(self) -> None:
        while not self._released.wait(self._beat_s):
            self._me = self._me.model_copy(update={"beat": self._me.beat + 1})
            with contextlib.suppress(OSError):  # the disk may answer again before the lease is stale
                self._write(self._me)


def _parse(content: bytes) -> Holder | None:
    """None for a file that is being written."""
    try:
        return Holder.model_validate_json(content)
    except ValidationError:
        return None
