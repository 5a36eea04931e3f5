"""genopt optimizes, verifies and serves generative models on Ray.

`genopt.optimize` and `genopt.load_run` are the whole Python interface. Importing the package loads neither ray nor
torch; the interface itself is loaded when it is first used, so that `genopt --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genopt.version import __version__

if TYPE_CHECKING:
    from genopt.api import Run, load_run, optimize

__all__ = ["Run", "__version__", "load_run", "optimize"]


def __getattr__(name: str) -> Any:
    """Loads the interface (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from genopt import api

    return vars(api)[name]
