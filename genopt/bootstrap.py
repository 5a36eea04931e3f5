"""Runs a module of genopt in an interpreter of any environment: `python -P bootstrap.py genopt.worker stage|session ...`.

An engine's environment has no genopt of its own, and only this package is lent to it. With our whole site-packages on its path, it would import
our libraries instead of those that its environment is there for.

In our own environment it stands in for `python -m`, which looks for modules in the current directory first: that may be a model that was just
downloaded, whose files must not be run, or a project with a `types.py`. The package is that of whoever asks, however it was found there.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path


def command(interpreter: str | Path, module: str) -> list[str]:
    """Starts a module of genopt as a program; its arguments follow.

    Args:
        interpreter: Python of the environment that it needs.
        module: Its full name.
    """
    return [str(interpreter), "-P", __file__, module]


def lend(package: Path) -> None:
    """Makes a package importable by name, and nothing beside it.

    Args:
        package: Its folder.
    """
    spec = importlib.util.spec_from_file_location(package.name, package / "__init__.py", submodule_search_locations=[str(package)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{package} is no package.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.name] = module
    spec.loader.exec_module(module)


if __name__ in ("__main__", "__mp_main__"):  # the latter in processes that `multiprocessing` spawns, such as vLLM's
    lend(Path(__file__).resolve().parent)
if __name__ == "__main__":
    runpy.run_module(sys.argv.pop(1), run_name="__main__")  # without `alter_sys`: what is spawned looks for this file
