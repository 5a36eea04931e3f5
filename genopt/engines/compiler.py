"""The C++ compiler that `torch.compile` needs on CPUs."""

from __future__ import annotations

import os
import shutil

from genopt.errors import InfeasibleError
from genopt.models.capability import capability

COMPILERS = ("g++", "clang++", "c++")
"""What TorchInductor compiles its kernels for CPUs with, unless `CXX` names another."""


def lack() -> str:
    """Says that there is none, as a clause that begins a sentence; empty where there is one."""
    chosen = os.environ.get("CXX")
    if any(map(shutil.which, [chosen] if chosen else COMPILERS)):
        return ""
    return f"CXX names {chosen}, which is not there" if chosen else "There is no C++ compiler"


def require_compiler() -> None:
    """Refuses where nothing could be compiled.

    Raises:
        InfeasibleError: There is neither a GPU nor a C++ compiler.
    """
    if capability() is None and (found := lack()):
        raise InfeasibleError(f"{found}, which torch.compile needs on CPUs; install one, for example with: apt install g++, or set CXX to yours.")
