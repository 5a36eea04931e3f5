"""genopt optimizes, verifies and serves generative models on Ray.

`genopt.optimize` and `genopt.load_run` are the whole Python interface; importing the package loads
neither ray nor torch.
"""

from __future__ import annotations

from genopt.api import Run, load_run, optimize
from genopt.version import __version__

__all__ = ["Run", "__version__", "load_run", "optimize"]
