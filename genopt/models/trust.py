"""Whether Python code that comes with a model may run in this process.

It is said in the environment of processes that load models, since engines, techniques and profiles all do, and none of them decides.
"""

from __future__ import annotations

import os

VARIABLE = "GENOPT_TRUST_REMOTE_CODE"


def variables(trusted: bool) -> dict[str, str]:
    """Environment variables for a process that may run such code, or may not whatever the environment here says."""
    return {VARIABLE: "1" if trusted else "0"}


def trusted() -> bool:
    """What was said to this process."""
    return os.environ.get(VARIABLE) == "1"
