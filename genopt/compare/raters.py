"""Who votes: each rater has a link that cannot be guessed, and an order and sides of that rater's own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from genopt.errors import StorageError
from genopt.plan import Record
from genopt.quality.votes import Side
from genopt.store.files import storage_error, write_atomically

OWNER_ONLY = 0o600
TOKEN_BYTES = 16


class Rater(Record):
    """One rater.

    Attributes:
        name: As votes and results name the rater.
        token: The secret part of the link.
        seed: Of the order and the sides. Not derived from the token, so that nobody can work the sides out.
    """

    name: str
    token: str
    seed: str


class Shown(Record):
    """A place in a rater's order: which question stands there, and which variant is shown first."""

    question: str
    left: Side


class _Raters(Record):
    raters: tuple[Rater, ...] = ()


def require_raters(path: Path, count: int) -> tuple[Rater, ...]:
    """The raters of a comparison; adds new ones up to a number, and never takes a link away.

    Args:
        path: File that keeps them; readable by its owner alone, since a link is all it takes to vote.
        count: Least number of raters.

    Raises:
        StorageError: The file is damaged or cannot be written.
    """
    known = _read(path)
    missing = range(len(known) + 1, count + 1)
    found = (*known, *(Rater(name=f"rater {number}", token=secrets.token_urlsafe(TOKEN_BYTES), seed=secrets.token_hex(16)) for number in missing))
    if missing:
        write_atomically(path, _Raters(raters=found).model_dump_json(indent=1) + "\n", mode=OWNER_ONLY)
    return found


def _read(path: Path) -> tuple[Rater, ...]:
    try:
        return _Raters.model_validate_json(path.read_bytes()).raters if path.exists() else ()
    except OSError as error:
        raise storage_error(path, error) from None
    except ValidationError as error:
        raise StorageError(f"{path} is damaged ({error.errors()[0]['msg']}); delete it, and new links are made.") from None


def order_for(seed: str, questions: Sequence[str]) -> tuple[Shown, ...]:
    """A rater's order of the questions, with each variant shown first on half of them.

    It rests on hashes, so that it stays the same for ever: a rater who comes back next year goes on where they stopped.

    Args:
        seed: The rater's.
        questions: Ids of all questions.
    """
    by_side = sorted(questions, key=lambda question: _place(seed, "side", question))
    # With an odd number, a coin says which variant is shown first once more.
    extra = _place(seed, "coin", "")[0] % 2
    first = frozenset(by_side[: (len(by_side) + extra) // 2])
    return tuple(
        Shown(question=question, left="a" if question in first else "b")
        for question in sorted(questions, key=lambda question: _place(seed, "order", question))
    )


def _place(seed: str, what: str, question: str) -> bytes:
    return hashlib.sha256(f"{seed}:{what}:{question}".encode()).digest()
