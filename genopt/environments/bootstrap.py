"""Runs `genopt.worker` in an interpreter that has no genopt of its own: `python -P bootstrap.py stage|session ...`.

Only this package is lent to it. With our whole site-packages on its path, it would import our libraries instead of those
that its environment is there for.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path


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
    lend(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    runpy.run_module("genopt.worker", run_name="__main__")  # without `alter_sys`: what is spawned looks for this file
