"""Who builds a step, among machines that share nothing but an object store, where no operation lets exactly one of several win.

A claim is a file that its holder changes every so often. Whoever finds none, or one that does not change any more, writes its own,
waits a moment and looks whose it is: the last one to write holds it. Where two write more than that moment apart both build, which costs
time and harms nothing, for equal steps have equal bytes.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from genopt.errors import StageTimeoutError, StorageError
from genopt.store.lease import BEAT_S, STALE_S
from genopt.store.remote import Remote

SETTLE_S = 0.3
"""Time in which other claims that were being written arrive."""
POLL_S = 0.5
"""How often one who waits looks."""


class Claim:
    """A claim on one name; use each object for one holder.

    Args:
        remote: The object store.
        name: What is claimed.
        settle_s: See `SETTLE_S`.
        beat_s: Time between signs of life.
        stale_s: A claim that did not change for so long belongs to one who died.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self, remote: Remote, name: str, *, settle_s: float = SETTLE_S, beat_s: float = BEAT_S, stale_s: float = STALE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._remote, self._file = remote, f"claims/{name}"
        self._settle_s, self._beat_s, self._stale_s, self._clock = settle_s, beat_s, stale_s, clock
        self._me = uuid.uuid4().hex
        self._released = threading.Event()

    @contextlib.contextmanager
    def held(self, until: float | None) -> Iterator[None]:
        """Holds the claim while the block runs.

        Args:
            until: When to give up, on the clock; None waits as long as another holds it and lives.

        Raises:
            StageTimeoutError: Another holds it for longer than that.
            StorageError: The object store cannot be used.
        """
        self._take(until)
        beating = threading.Thread(target=self._beat, daemon=True, name=f"claim {self._file}")
        beating.start()
        try:
            yield
        finally:
            self._released.set()
            beating.join()
            with contextlib.suppress(StorageError):  # it is stale soon
                if self._is_mine(self._remote.read(self._file)):
                    self._remote.remove(self._file)

    def _take(self, until: float | None) -> None:
        seen, since = b"", self._clock()
        while True:
            now = self._remote.read(self._file)
            if now is not None and now != seen:
                seen, since = now, self._clock()
            if now is None or self._clock() - since > self._stale_s:
                self._write(0)
                time.sleep(self._settle_s)
                if self._is_mine(self._remote.read(self._file)):
                    return
                continue
            if until is not None and self._clock() > until:
                raise StageTimeoutError("Another machine still builds the same step; give a larger --budget.")
            time.sleep(POLL_S)

    def _is_mine(self, content: bytes | None) -> bool:
        return content is not None and content.startswith(self._me.encode())

    def _write(self, beat: int) -> None:
        self._remote.write(self._file, f"{self._me} {beat}".encode())

    def _beat(self) -> None:
        beat = 0
        while not self._released.wait(self._beat_s):
            beat += 1
            with contextlib.suppress(StorageError):  # the store may answer again before the claim is stale
                self._write(beat)
