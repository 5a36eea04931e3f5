"""Ports for servers that tests and benchmarks start."""

from __future__ import annotations

import random

from genopt.errors import DeploymentError
from genopt.serving.binding import port_is_free

PORTS = range(20000, 32768)
"""Above what Ray gives its workers and below what Linux hands out by itself: a port from there may be taken by anything that is started
between the search and its use, Ray among it."""


def unused_port() -> int:
    """A port of this machine that nothing listens on, and that only who asks for it by number will take.

    Raises:
        DeploymentError: All are taken.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # others search too, and should find others
        if port_is_free("127.0.0.1", port):
            return port
    raise DeploymentError(f"No port between {PORTS.start} and {PORTS.stop - 1} is free; end some of the servers of this machine.")
