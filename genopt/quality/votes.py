"""What people said about two variants, as it is logged and as it counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from genopt.errors import StorageError
from genopt.plan import Record

Side = Literal["a", "b"]
"""One of the two variants of a comparison, in the order in which they were named."""
Choice = Literal["a", "b", "tie", "bad"]
"""Which variant was better, or that both are as good, or that both are bad."""


class Vote(Record):
    """One judgement of one rater.

    Attributes:
        time: Unix time at which the server took it.
        rater: Name of the rater.
        question: Id of the question.
        choice: Which variant was better.
        left: The variant that was shown first: on the left, on a phone above.
    """

    event: Literal["vote"] = "vote"
    time: float
    rater: str
    question: str
    choice: Choice
    left: Side


class Finish(Record):
    """A rater has seen the names, so that nothing that rater says afterwards counts."""

    event: Literal["finish"] = "finish"
    time: float
    rater: str


class Ballots(Record):
    """The votes that count.

    Attributes:
        votes: At most one per rater and question, in the order of first appearance.
        finished: Raters who have seen the names.
    """

    votes: tuple[Vote, ...] = ()
    finished: frozenset[str] = frozenset()


def count_ballots(records: Iterable[Mapping[str, Any]]) -> Ballots:
    """Reduces a log to the votes that count.

    A rater's last vote on a question counts, so that a slip can be corrected and a vote that was sent twice counts once.
    What comes after that rater has seen the names is left out.

    Raises:
        StorageError: A record is neither a vote nor the end of a rater's votes.
    """
    votes: dict[tuple[str, str], Vote] = {}
    finished: set[str] = set()
    for number, record in enumerate(records, start=1):
        entry = _parse(record, number)
        if entry.rater in finished:
            continue
        if isinstance(entry, Finish):
            finished.add(entry.rater)
        else:
            votes[entry.rater, entry.question] = entry
    return Ballots(votes=tuple(votes.values()), finished=frozenset(finished))


def _parse(record: Mapping[str, Any], number: int) -> Vote | Finish:
    kind = Finish if record.get("event") == "finish" else Vote
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise StorageError(f"Vote {number} cannot be read ({place}: {problem['msg']}); remove that line of votes.jsonl.") from None
