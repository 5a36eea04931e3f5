"""Where the API may listen."""

from __future__ import annotations

import ipaddress
import socket

from genopt.errors import DeploymentError


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name that could mean anything is taken for a public one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_everywhere(host: str) -> bool:
    """Whether an address stands for all of this machine's: 0.0.0.0 or ::."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def require_private(host: str, keys: str | None) -> None:
    """Refuses to listen where others reach the API while it asks nobody for a key.

    Raises:
        DeploymentError: It would.
    """
    if keys is None and not is_loopback(host):
        raise DeploymentError(
            f"Serving on {host} needs API keys; make one with `genopt key add NAME` and deploy with --keys FILE, or listen on 127.0.0.1."
        )


def local_address(host: str) -> str:
    """How this machine reaches what listens on an address, in the form that URLs have."""
    reached = ("::1" if ":" in host else "127.0.0.1") if is_everywhere(host) else host  # what listens everywhere listens here
    return f"[{reached}]" if ":" in reached else reached
