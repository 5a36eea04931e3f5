"""Opens a comparison for votes: the page, its server, and a link for each rater."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from genopt.compare.app import create_app
from genopt.compare.ballot_box import BallotBox
from genopt.compare.server import RunningServer, serving
from genopt.plan import Record
from genopt.quality.comparison import ComparisonFolder
from genopt.report.assemble import assemble
from genopt.report.human import evaluate
from genopt.store.run_folder import RunFolder


class Link(Record):
    """A rater's link; whoever has it votes as that rater."""

    rater: str
    url: str


class OpenPage(Record):
    """A page that takes votes.

    Attributes:
        comparison: Folder of the comparison.
        questions: How many there are.
        links: One per rater.
    """

    comparison: str
    questions: int
    links: tuple[Link, ...]


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
        yield server, OpenPage(comparison=str(comparison.path), questions=len(box.comparison.questions), links=links)
