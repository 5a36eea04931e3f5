"""Takes votes: what a rater is shown, what was said, and when the names may be known."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from genopt.compare.raters import Rater, Shown, order_for, require_raters
from genopt.errors import NotOpenError
from genopt.plan import Record
from genopt.quality.comparison import ComparisonFolder, ImageAnswer, TextAnswer
from genopt.quality.votes import Choice, Finish, Side, Vote
from genopt.store.append_log import AppendLog

Place = Literal["left", "right"]
Said = Literal["left", "right", "tie", "bad"]
"""A vote as a rater gives it, who knows only places."""


class Exhibit(Record):
    """A question as a rater sees it: nothing here says which variant is which."""

    position: int
    prompt: str
    left: TextAnswer | ImageAnswer
    right: TextAnswer | ImageAnswer


class Sheet(Record):
    """How far a rater is.

    Attributes:
        said: What the rater said, by position; None where nothing yet.
        finished: The rater has seen the names.
    """

    said: tuple[Said | None, ...]
    finished: bool


class BallotBox:
    """One comparison that is open for votes; threads may share it.

    A rater's last vote on a question counts until the rater asks for the names; afterwards that rater's votes are closed.

    Args:
        folder: The comparison, complete. This process must be its only writer.
        raters: Least number of raters.

    Raises:
        StorageError: The folder is damaged or cannot be written.
    """

    def __init__(self, folder: ComparisonFolder, raters: int = 1) -> None:
        self.folder = folder
        self.comparison = folder.read()
        self.raters = require_raters(folder.path / "raters.json", raters)
        self._questions = {question.id: question for question in self.comparison.questions}
        self._orders = {rater.token: order_for(rater.seed, tuple(self._questions)) for rater in self.raters}
        self._by_token = {rater.token: rater for rater in self.raters}
        self._lock = threading.Lock()
        self._log = AppendLog(folder.votes)
        counted = folder.ballots()
        self._votes = {(vote.rater, vote.question): vote.choice for vote in counted.votes}
        self._finished = set(counted.finished)

    def rater(self, token: str) -> Rater | None:
        """Whose link it is."""
        return self._by_token.get(token)

    def exhibit(self, rater: Rater, position: int) -> Exhibit:
        """What a rater sees at a position.

        Raises:
            IndexError: There is no such position.
        """
        shown = self._shown(rater, position)
        question = self._questions[shown.question]
        return Exhibit(position=position, prompt=question.prompt, left=question.answer(shown.left), right=question.answer(_other(shown.left)))

    def image(self, rater: Rater, position: int, place: Place) -> Path | None:
        """The file of a picture that a rater sees; None where a text stands.

        Raises:
            IndexError: There is no such position.
        """
        exhibit = self.exhibit(rater, position)
        answer = exhibit.left if place == "left" else exhibit.right
        return self.folder.image(answer) if isinstance(answer, ImageAnswer) else None

    def sheet(self, rater: Rater) -> Sheet:
        """What a rater has said so far."""
        with self._lock:
            said = tuple(self._said(rater, position) for position in range(len(self._questions)))
            return Sheet(said=said, finished=rater.name in self._finished)

    def cast(self, rater: Rater, position: int, said: Said) -> None:
        """Takes a vote; it is on the disk when this returns. The same vote again changes nothing.

        Raises:
            IndexError: There is no such position.
            NotOpenError: The rater has seen the names.
            StorageError: It could not be written.
        """
        shown = self._shown(rater, position)
        choice = _choice(said, shown.left)
        with self._lock:
            if rater.name in self._finished:
                raise NotOpenError("Your votes are closed, because you have seen the names.")
            if self._votes.get((rater.name, shown.question)) != choice:
                vote = Vote(time=time.time(), rater=rater.name, question=shown.question, choice=choice, left=shown.left)
                self._log.append(vote.model_dump(mode="json"))
                self._votes[rater.name, shown.question] = choice

    def finish(self, rater: Rater) -> None:
        """Closes a rater's votes, so that the names may be shown to them.

        Raises:
            NotOpenError: A question has no vote yet.
            StorageError: It could not be written.
        """
        with self._lock:
            if rater.name in self._finished:
                return
            open_questions = sum((rater.name, question) not in self._votes for question in self._questions)
            if open_questions:
                raise NotOpenError(f"{open_questions} questions have no vote of yours yet; the names are shown after the last one.")
            self._log.append(Finish(time=time.time(), rater=rater.name).model_dump(mode="json"))
            self._finished.add(rater.name)

    def choices(self, rater: Rater) -> Mapping[str, Choice]:
        """What a rater who has seen the names said, by question.

        Raises:
            NotOpenError: The rater has not seen them.
        """
        with self._lock:
            if rater.name not in self._finished:
                raise NotOpenError("The names are shown after the last vote.")
            return {question: choice for (name, question), choice in self._votes.items() if name == rater.name}

    def _shown(self, rater: Rater, position: int) -> Shown:
        order = self._orders[rater.token]
        if not 0 <= position < len(order):
            raise IndexError(position)
        return order[position]

    def _said(self, rater: Rater, position: int) -> Said | None:
        shown = self._shown(rater, position)
        choice = self._votes.get((rater.name, shown.question))
        if choice is None or choice in ("tie", "bad"):
            return choice
        return "left" if choice == shown.left else "right"


def _other(side: Side) -> Side:
    return "b" if side == "a" else "a"


def _choice(said: Said, left: Side) -> Choice:
    if said == "left":
        return left
    return _other(left) if said == "right" else said
