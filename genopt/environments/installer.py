"""Installs a lock file into a virtual environment with uv or pip, and says in one sentence why that failed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from genopt.environments.place import interpreter, without_our_paths
from genopt.errors import GenoptError, InfeasibleError, StageError, StorageError

Progress = Callable[[str], None]
STEPS = ("Collecting", "Downloading", "Building", "Installing", "Using cached", "Resolved", "Prepared", "Installed", "Built")
"""How the lines of both installers begin that tell how far they are."""
KEPT_LINES = 400

CAUSES: Sequence[tuple[str, type[GenoptError], str]] = (
    (r"No space left on device|Disk quota exceeded", StorageError, "the disk is full; free some space or point GENOPT_ENVS to a larger disk"),
    (
        r"CMAKE_C(XX)?_COMPILER|No CMAKE_C|[Uu]nable to find (a )?compiler|command '(gcc|cc|g\+\+|c\+\+|clang)' failed: No such file"
        r"|(gcc|g\+\+|cc|c\+\+|clang): (command )?not found",
        InfeasibleError, "it has to be compiled and there is no C++ compiler; install one, for example with: apt install g++",
    ),
    (
        r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|Network is unreachable|ConnectTimeoutError|ReadTimeoutError"
        r"|Connection refused|ProxyError|dns error|error sending request",
        StageError, "the package index does not answer; connect to it, or give a folder that holds the wheels with --wheels",
    ),
    (
        r"No matching distribution found|Could not find a version|no versions? of|was not found in the (provided package locations|package reg)",
        StageError, "a package of the lock is missing where it was looked for; add its wheel to the folder of --wheels, or use an index that has it",
    ),
)  # fmt: skip
"""What the output of a failed installation contains, and what that means; the first that fits counts."""


def install(
    name: str, folder: Path, lock: Path, variables: Mapping[str, str], wheels: Path | None, progress: Progress, index: str | None = None,
    *, held: int | None = None,
) -> str:  # fmt: skip
    """Makes a virtual environment and installs every line of a lock into it; returns the installer's name.

    Args:
        name: The environment, for errors.
        folder: Where; must not exist.
        lock: The requirements.
        variables: Environment variables of builds.
        wheels: Folder that replaces every index; None uses the index.
        progress: Told what happens.
        index: Where local versions (https://packaging.python.org/specifications/version-specifiers) such as `2.13.0+cpu` are to be had
            if the configured indexes lack them, as the public one does.
        held: Descriptor of the lock on the folder, which an installer that outlives this process keeps.

    Raises:
        GenoptError: It failed, with the cause and the remedy.
    """
    uv = shutil.which("uv")
    if uv is None and not any(importlib.metadata.distributions(name="pip")):
        raise InfeasibleError("Building an environment needs uv or pip and there is neither; install one, for example with: python -m ensurepip.")
    progress("making a virtual environment")
    _run(name, [sys.executable, "-P", "-m", "venv", "--without-pip", str(folder)], {}, progress, held)
    target = ["--python", str(interpreter(folder))]
    pip = [sys.executable, "-P", "-m", "pip", *target, "install", "--progress-bar", "off", "--disable-pip-version-check", "--no-input"]
    tool = pip if uv is None else [uv, "pip", "install", *target]
    source = ["--no-index", "--find-links", str(wheels.absolute())] if wheels is not None else []
    local = [line for line in lock.read_text(encoding="utf-8").split() if "==" in line and "+" in line]
    if local and index is not None and wheels is None:
        try:
            _run(name, [*tool, "--no-deps", *local], variables, progress, held)
        except StageError:
            progress(f"looking for {', '.join(local)} in {index}")
            _run(name, [*tool, "--no-deps", "--extra-index-url", index, *local], variables, progress, held)
    _run(name, [*tool, "--no-deps", *source, "--requirement", str(lock)], variables, progress, held)
    return "pip" if uv is None else "uv"


def _run(name: str, command: Sequence[str], variables: Mapping[str, str], progress: Progress, held: int | None) -> None:
    """Runs a command in a process group of its own, which ends with us, and passes on the lines that tell how far it is."""
    environment = {**without_our_paths(os.environ), **variables, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, pass_fds=() if held is None else (held,),
    )  # fmt: skip
    said: list[str] = []
    try:
        if process.stdout is not None:
            with process.stdout as stream:
                for line in stream:
                    said.append(line.rstrip())
                    del said[:-KEPT_LINES]
                    if line.strip().startswith(STEPS):
                        progress(line.strip()[:160])
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code:
        raise failure(name, said)


def failure(name: str, said: Sequence[str]) -> GenoptError:
    """What the output of a failed installation means.

    Args:
        name: The environment.
        said: Its last lines.
    """
    text = "\n".join(said)
    for pattern, kind, meaning in CAUSES:
        if re.search(pattern, text):
            return kind(f"The environment {name!r} cannot be built: {meaning}.", {"output": text[-4000:]})
    last = next((line.strip() for line in reversed(said) if line.strip().lower().startswith("error")), said[-1].strip() if said else "no output")
    return StageError(
        f"The environment {name!r} cannot be built ({last[:200].rstrip('.')}); run with --debug for the installer's output.", {"output": text[-4000:]}
    )
