"""What an engine environment is: a name, a lock file, and what building it takes."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

from genopt import catalog
from genopt.plan import Record

CPU_FACTS = Path("/proc/cpuinfo")
INSTRUCTIONS = ("sse", "ssse", "avx", "amx", "fma", "f16c", "bmi", "asimd", "sve", "sme", "i8mm", "bf16", "fphp")
"""How the names of instruction sets begin that matrix kernels are built with."""


class Environment(Record):
    """An entry of the catalogue's environments.

    Attributes:
        name: Name in the catalogue, on the command line and of its folder.
        about: What it would likely bring, as the end of a sentence.
        package: Package that carries the lock file.
        lock: The file: every distribution with its version, dependencies too, as pip reads it.
        disk_bytes: Room that a build takes at its peak.
        device: What its engines compute on; reports do not suggest it to others.
        variables: Environment variables of the build, such as options of a compilation.
        index: Where local versions of the lock are to be had if the configured indexes lack them.
        native: The build is for the processor that it is made on, and others may lack its instructions.
    """

    name: str
    about: str
    package: str
    lock: str
    disk_bytes: int
    device: Literal["cpu", "gpu"] = "cpu"
    variables: dict[str, str] = {}
    index: str | None = None
    native: bool = False

    def requirements(self) -> str:
        """Content of the lock file."""
        return resources.files(self.package).joinpath(self.lock).read_text(encoding="utf-8")

    def digest(self) -> str:
        """Names what a build results in: another lock, another option or another Python is another environment."""
        python = [platform.python_implementation(), *sys.version_info[:2], platform.machine()]
        content = [_meaningful(self.requirements()), self.variables, python, *([instructions()] if self.native else [])]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def instructions() -> list[str]:
    """The instruction sets that compilers build for on this processor; none where the system does not tell."""
    try:
        lines = CPU_FACTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    told = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted({flag for flag in told.split() if flag.startswith(INSTRUCTIONS)})


def _meaningful(lock: str) -> list[str]:
    """Lines without comments, so that a reworded one changes nothing."""
    return [text for line in lock.splitlines() if (text := line.partition("#")[0].strip())]


def find(name: str) -> Environment:
    """The environment of this name.

    Raises:
        SpecError: None is registered.
    """
    found: Environment = catalog.load("environments", name)
    return found


def declared() -> Iterator[Environment]:
    """All registered environments."""
    return (find(name) for name in catalog.names("environments"))
