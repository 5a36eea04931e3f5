"""API keys: a file of hashes, and the gate that checks callers against it.

A key is 256 random bits, so that one round of SHA-256 protects it as well as a slow hash would. The key itself is shown
once, when it is made, and stored nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from genopt.errors import SpecError
from genopt.plan import Record
from genopt.serving.exchange import Refusal
from genopt.serving.guard import Lease
from genopt.store.files import exclusive, write_atomically

PREFIX = "gk-"
RELOAD_S = 1.0
BURST_S = 10.0
"""A caller may send at once what its rate allows in this time."""
_LOGGER = logging.getLogger("ray.serve")


class ApiKey(Record):
    """A key as it is stored.

    Attributes:
        id: Names it in logs and metrics; not secret.
        name: Whom it was given to.
        sha256: Hash of the key.
        created: Time, ISO 8601 in UTC.
        requests_per_minute: Most requests, on average; None does not limit them.
        concurrent: Most requests under way; None does not limit them.
        revoked: When it stopped to be valid.
    """

    id: str
    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: str
    requests_per_minute: float | None = Field(default=None, gt=0)
    concurrent: int | None = Field(default=None, gt=0)
    revoked: str | None = None


class _KeyFile(Record):
    schema_version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file, revoked ones included.

    Raises:
        SpecError: It is missing or not a file of keys.
    """
    try:
        return _KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise SpecError(f"The keys in {path} cannot be read ({error.strerror}); make one with `genopt key add NAME --file {path}`.") from None
    except ValidationError as error:
        cause = error.errors()[0]["msg"]
        raise SpecError(f"{path} is not a file of keys ({cause}); restore it, or make a new one with `genopt key add`.") from None


def add_key(path: Path, name: str, *, requests_per_minute: float | None = None, concurrent: int | None = None) -> tuple[ApiKey, str]:
    """Makes a key and stores its hash; the file is made where it is missing, readable by its owner only.

    Returns:
        What was stored, and the key itself.

    Raises:
        SpecError: There is a valid key of that name, or a limit or the file cannot be used.
        StorageError: The file cannot be written.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    digest = _sha256(secret)
    try:
        made = ApiKey(
            id=digest[:12], name=name, sha256=digest, created=_now(), requests_per_minute=requests_per_minute, concurrent=concurrent
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(f"Bad value for {first['loc'][0]!r} ({first['msg']}); mend it.") from None
    with exclusive(_lock(path)):
        known = read_keys(path) if path.exists() else ()
        if any(key.name == name and key.revoked is None for key in known):
            raise SpecError(f"{path} already has a key named {name!r}; choose another name or revoke that one first.")
        _write(path, (*known, made))
    return made, secret


def revoke_key(path: Path, name: str) -> ApiKey:
    """Makes a key invalid; running servers notice within seconds.

    Args:
        path: The file.
        name: Its name or id.

    Raises:
        SpecError: There is no such valid key.
        StorageError: The file cannot be written.
    """
    with exclusive(_lock(path)):
        known = read_keys(path)
        found = next((key for key in known if name in (key.name, key.id) and key.revoked is None), None)
        if found is None:
            valid = ", ".join(key.name for key in known if key.revoked is None) or "none"
            raise SpecError(f"{path} has no valid key {name!r}; it has {valid}.")
        revoked = found.model_copy(update={"revoked": _now()})
        _write(path, tuple(revoked if key is found else key for key in known))
    return revoked


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, _KeyFile(keys=tuple(keys)).model_dump_json(indent=2) + "\n")
    path.chmod(0o600)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class OpenGate:
    """A gate without keys, for servers that only this machine reaches."""

    def admit(self, secret: str | None) -> Lease | Refusal:
        """See `Gate.admit`."""
        return _Anyone()


class _Anyone:
    key: str | None = None

    def end(self) -> None:
        pass


class KeyGate:
    """Lets in who has a valid key and is within its limits. The file is read again when it changes.

    Args:
        path: File of keys.
        shares: Over how many gates like this one a key's requests are spread; each grants its part of the limits.
        clock: Monotonic clock in seconds.

    Raises:
        SpecError: The file cannot be used.
    """

    def __init__(self, path: Path, *, shares: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._shares = shares
        self._clock = clock
        self._keys = read_keys(path)
        self._stamp = _stamp(path)
        self._checked_at = clock()
        self._usage: dict[str, _Usage] = {}

    def admit(self, secret: str | None) -> Lease | Refusal:
        """See `Gate.admit`."""
        self._refresh()
        key = self._find(secret or "")
        if key is None:
            message = "Send an API key in the header 'Authorization: Bearer KEY'." if secret is None else "The API key is not valid."
            return Refusal(status=401, message=message, code="invalid_api_key")
        usage = self._usage.setdefault(key.id, _Usage(self._clock()))
        return usage.lease(key, self._shares, self._clock())

    def _find(self, secret: str) -> ApiKey | None:
        """Compares with every key whatever was found before, so that the time tells nothing."""
        digest, found = _sha256(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest) and key.revoked is None:
                found = key
        return found

    def _refresh(self) -> None:
        if self._clock() - self._checked_at < RELOAD_S:
            return
        self._checked_at = self._clock()
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._keys, self._stamp = read_keys(self._path), stamp
        except (OSError, SpecError) as error:
            _LOGGER.error("keys not read again, the former ones stay valid: %s", error)


class _Usage:
    """What one key has used: a bucket of requests that fills at its rate, and those under way."""

    def __init__(self, now: float) -> None:
        self._left = math.inf
        self._filled_at = now
        self._running = 0

    def lease(self, key: ApiKey, shares: int, now: float) -> Lease | Refusal:
        if key.concurrent is not None and self._running >= math.ceil(key.concurrent / shares):
            message = f"This key may have {key.concurrent} requests under way; wait for one to end."
            return Refusal(status=429, message=message, code="too_many_concurrent_requests", retry_after_s=1)
        if key.requests_per_minute is not None:
            rate = key.requests_per_minute / 60 / shares
            self._left = min(self._left + rate * (now - self._filled_at), max(rate * BURST_S, 1.0))
            self._filled_at = now
            if self._left < 1:
                message = f"This key may send {key.requests_per_minute:g} requests a minute; slow down."
                return Refusal(status=429, message=message, code="rate_limit_exceeded", retry_after_s=math.ceil((1 - self._left) / rate))
            self._left -= 1
        self._running += 1
        return _Place(self, key.id)

    def leave(self) -> None:
        self._running -= 1


class _Place:
    def __init__(self, usage: _Usage, key: str) -> None:
        self._usage = usage
        self.key: str | None = key

    def end(self) -> None:
        self._usage.leave()


def _stamp(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ino, found.st_size
