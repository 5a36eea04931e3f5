"""Serves the page until the block ends."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from genopt.errors import SpecError
from genopt.serving.binding import is_everywhere

STOP_S = 2
"""How long answers under way may take at the end."""


class RunningServer:
    """A server in a thread of its own.

    Attributes:
        host: Where it listens.
        port: Where it listens.

    Args:
        server: Not started yet.
        listener: Bound and listening.
    """

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._server = server
        self.host, self.port = listener.getsockname()[:2]
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it ends by itself, which it does not; Ctrl-C interrupts this."""
        self._thread.join()

    def stop(self) -> None:
        """Ends it once requests under way are answered."""
        self._server.should_exit = True
        self._thread.join()

    def address(self, token: str) -> str:
        """The link of a rater."""
        host = reachable_name() if is_everywhere(self.host) else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/r/{token}"


@contextlib.contextmanager
def serving(app: FastAPI, host: str, port: int) -> Iterator[RunningServer]:
    """Serves an app while the block runs; requests are accepted from its start on.

    Args:
        app: What is served.
        host: Address to listen on.
        port: Port to listen on; 0 takes one that is free.

    Raises:
        SpecError: The address cannot be used or the port is taken.
    """
    listener = _listen(host, port)
    # No access log: the addresses hold the raters' secrets.
    config = uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off", server_header=False, timeout_graceful_shutdown=STOP_S)
    running = RunningServer(uvicorn.Server(config), listener)
    try:
        yield running
    finally:
        running.stop()
        listener.close()


def reachable_name() -> str:
    """This machine's address as others in its network see it, or its name where that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a datagram socket sends nothing here; the address is reserved for documentation
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SpecError(f"{host} is not an address of this machine ({error.strerror}); choose another with --host.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SpecError(f"Port {port} on {host} cannot be used ({error.strerror}); choose another with --port.") from None
    return listener
