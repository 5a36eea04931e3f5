"""Transforms that copy their source and otherwise do what a test asks: work, hang, die, find no room, or take all GPUs of a node."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse, Progress, Transform, TransformContext

LOG = "GENOPT_FAKE_LOG"
"""Environment variable: file that gets the label of each transform that was applied, a line each."""
DISK = "GENOPT_FAKE_DISK"
"""Environment variable: what the disk of a node answers to whoever writes, such as ENOSPC."""


class FakeParams(Record):
    """Parameters.

    Attributes:
        label: Makes one step differ from another.
        time_s: Time that it takes.
        how: How it ends: `hang` never does, and leaves a process in a session of its own behind that ignores SIGTERM; `kill_once` is killed
            unless it finds a checkpoint, which it writes before.
        given: Digest of a given model that is copied into the result; empty for none.
    """

    label: str = "a"
    time_s: float = Field(default=0.0, ge=0)
    how: Literal["ok", "hang", "segfault", "kill", "kill_once", "full"] = "ok"
    given: str = ""


class FakeTransform(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "fake_transform"
    version = 1
    phase = 10
    requires: frozenset[str] = frozenset()
    tunables: tuple[Tunable, ...] = (Tunable(name="label", choices=("a", "b"), words=("a", "b")),)

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(FakeParams, params, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: nothing changes."""
        return before

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        asked = parse_settings(FakeParams, params, cls.name)
        progress(f"{asked.label}: {asked.how}")
        if DISK in os.environ:
            number = getattr(errno, os.environ[DISK])
            raise OSError(number, os.strerror(number))
        if LOG in os.environ:
            with Path(os.environ[LOG]).open("a", encoding="utf-8") as log:
                log.write(f"{asked.label}\n")
        time.sleep(asked.time_s)
        if asked.how == "segfault":
            ctypes.string_at(0)
        elif asked.how == "kill" or (asked.how == "kill_once" and _begins(context)):
            os.kill(os.getpid(), signal.SIGKILL)
        elif asked.how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif asked.how == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
            time.sleep(600)
        shutil.copytree(source, destination, dirs_exist_ok=True)
        if asked.given:
            shutil.copytree(context.given[asked.given], destination / "given")
        (destination / "label.txt").write_text(asked.label, encoding="utf-8")


def _begins(context: TransformContext) -> bool:
    """Whether there was no checkpoint; now there is one."""
    folder = context.checkpoint_folder
    if folder is None or (folder / "begun").exists():
        return False
    folder.mkdir(parents=True)
    (folder / "begun").touch()
    return True


class FakeSpread(FakeTransform):
    """Likewise, and gains from all GPUs; says in the result which ones it saw."""

    name = "fake_spread"
    gpu: GpuUse = "spread"
    tunables = ()

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        super().apply(source, destination, params, context, progress)
        (destination / "gpus.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""), encoding="utf-8")
