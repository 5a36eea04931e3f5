"""Opens a comparison for votes: the page, its server, and a link for each rater."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from genopt.compare.answers import AnswerProgress
from genopt.compare.app import create_app
from genopt.compare.ballot_box import BallotBox
from genopt.compare.preparation import MAX_TOKENS, prepare_comparison
from genopt.compare.server import RunningServer, serving
from genopt.plan import Record
from genopt.quality.comparison import ComparisonFolder, hold
from genopt.report.assemble import assemble
from genopt.report.human import evaluate
from genopt.report.write import write_reports
from genopt.store.run_folder import RunFolder


class Link(Record):
    """A rater's link; whoever has it votes as that rater."""

    rater: str
    url: str


class OpenPage(Record):
    """A page that takes votes.

    Attributes:
        comparison: Name of the comparison, as the report has it.
        folder: Where its votes are kept.
        questions: How many there are.
        links: One per rater.
    """

    comparison: str
    folder: str
    questions: int
    links: tuple[Link, ...]


@contextlib.contextmanager
def comparing(
    run: RunFolder,
    *,
    a: str | None = None,
    b: str | None = None,
    prompts: Path | None = None,
    max_tokens: int = MAX_TOKENS,
    host: str = "127.0.0.1",
    port: int = 0,
    raters: int = 1,
    progress: AnswerProgress,
) -> Iterator[tuple[RunningServer, OpenPage]]:
    """Generates the answers that are missing, serves the page while the block runs, and writes the run's reports at its end.

    Args:
        run: The run's folder.
        a: Name of the first variant; the original unless given.
        b: Name of the second; the winner unless given.
        prompts: File of prompts, or None for the built-in ones.
        max_tokens: Most new tokens of an answer.
        host: Address to listen on.
        port: Port to listen on; 0 takes one that is free.
        raters: Least number of raters; links that were made earlier stay valid.
        progress: Told how far the answers are.

    Raises:
        SpecError: The variants or the address cannot be used.
        DataError: The prompts cannot be used.
        RunFolderError: Another process takes votes for this run.
        GenoptError: An engine failed, or the folder cannot be written.
    """
    with hold(run.path):
        comparison = prepare_comparison(run, a=a, b=b, prompts=prompts, max_tokens=max_tokens, progress=progress)
        try:
            with taking_votes(run, comparison, host=host, port=port, raters=raters) as found:
                yield found
        finally:
            write_reports(run)


@contextlib.contextmanager
def taking_votes(run: RunFolder, comparison: ComparisonFolder, *, host: str, port: int, raters: int) -> Iterator[tuple[RunningServer, OpenPage]]:
    """Serves the page while the block runs. The caller holds the run's comparisons (`genopt.quality.comparison.hold`).

    Args:
        run: The run's folder; its report knows the gate's verdicts.
        comparison: Complete, of texts or of pictures.
        host: Address to listen on.
        port: Port to listen on; 0 takes one that is free.
        raters: Least number of raters; links that were made earlier stay valid.

    Raises:
        SpecError: The address cannot be used or the port is taken.
        StorageError: The comparison is damaged or cannot be written.
    """
    box = BallotBox(comparison, raters)
    candidates = assemble(run).candidates
    with serving(create_app(box, lambda: evaluate(comparison, candidates)), host, port) as server:
        links = tuple(Link(rater=rater.name, url=server.address(rater.token)) for rater in box.raters)
        yield server, OpenPage(comparison=comparison.path.name, folder=str(comparison.path), questions=len(box.comparison.questions), links=links)
