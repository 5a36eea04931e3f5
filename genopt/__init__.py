"""genopt optimizes, verifies and serves generative models on Ray.

`genopt.optimize` and `genopt.load_run` are the whole Python interface; importing the package loads
neither ray nor torch.
"""

from __future__ import annotations

from genopt.api import Run, load_run, optimize

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run", "optimize"]
