"""The Python interface: `optimize` makes a run, `load_run` opens one. Importing it loads neither ray nor torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genopt.progress import Listener, Silent
from genopt.spec import build
from genopt.store.run_folder import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

    from genopt.compare.voting import OpenPage
    from genopt.plan import Candidate
    from genopt.report.export import Exported
    from genopt.report.model import Report
    from genopt.serving.deployment import Endpoint


class Run:
    """A run on disk, finished or not.

    Args:
        path: Its folder.

    Raises:
        RunFolderError: It is not a run folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._folder = RunFolder.existing(Path(path).expanduser())

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @property
    def report(self) -> Report:
        """What the run found, as report.json has it."""
        from genopt.report.assemble import assemble

        return assemble(self._folder)

    @property
    def winner(self) -> Candidate | None:
        """The candidate to deploy; None where the baseline is kept."""
        return self.report.winning

    def records(self, name: str = "candidates") -> pa.Table:
        """A table of records: `candidates` (one row each) or `samples` (the raw timings).

        Raises:
            RunFolderError: The run has no such table.
        """
        return self._folder.read_records(name)

    def plot_pareto(self) -> Figure:
        """Speed against quality of all candidates."""
        from genopt.report.plots import pareto_figure

        return pareto_figure(self.report)

    @contextmanager
    def compare(
        self, a: str | None = None, b: str | None = None, *, raters: int = 1, prompts: str | os.PathLike[str] | None = None, port: int = 0
    ) -> Iterator[OpenPage]:
        """Lets people choose blindly between two candidates' answers while the block runs; `report.human` has what they said.

        Args:
            a: First candidate; the original unless given.
            b: Second candidate; the winner unless given.
            raters: How many people vote, each with a link of their own.
            prompts: A `.txt` with one prompt a line, or a `.jsonl` with `prompt`; built-in ones unless given.
            port: Port of the page on this machine; 0 takes one that is free.

        Yields:
            The page with its links.

        Raises:
            GenoptError: The candidates, the prompts or the port cannot be used, or an engine failed.
        """
        from genopt.compare.voting import comparing

        file = Path(prompts).expanduser() if prompts is not None else None
        with comparing(self._folder, a=a, b=b, raters=raters, prompts=file, port=port, progress=_unheard) as (_, page):
            yield page

    def export(self, out: str | os.PathLike[str], *, to: str | None = None, variant: str | None = None) -> Exported:
        """Copies a variant out of the store, for other programs.

        Args:
            out: Folder to write; must not exist.
            to: Program that must take it, as `genopt export --help` lists them; None takes any.
            variant: Name of an accepted candidate; None takes the winner.

        Raises:
            GenoptError: See `genopt.report.export.export`.
        """
        from genopt.report.export import export

        return export(self._folder, Path(out), to=to, variant=variant)

    def deploy(self, *, wait_s: float = 600.0, address: str | None = None) -> Endpoint:
        """Serves the winner on Ray Serve and returns where it answers.

        Args:
            wait_s: Longest wait until it answers.
            address: Ray cluster to join; None joins a local one or starts an embedded one.

        Raises:
            DeploymentError: There is no winner, or it did not become ready.
            ClusterError: The cluster does not answer.
        """
        from genopt.distributed.rollout import deploy_run

        return deploy_run(self._folder, address=address, wait_s=wait_s)


def _unheard(variant: str, *, done: int, of: int) -> None:
    """Stands in where nobody wants to know how far the answers are."""


def load_run(path: str | os.PathLike[str]) -> Run:
    """Opens a run folder.

    Raises:
        RunFolderError: It is not a run folder.
    """
    return Run(path)


def optimize(model: str, *, listener: Listener | None = None, **settings: Any) -> Run:
    """Optimizes a model within a wall-clock budget; see `genopt.spec.RunSpec` for the settings.

    Args:
        model: Hugging Face id, local folder, `.gguf` file or built-in name.
        listener: Told what happens; silent unless given.
        settings: Keys of the run spec, such as `budget="60m"` and `quality=0.99`.

    Returns:
        The run; its `winner` is None where no candidate passed.

    Raises:
        GenoptError: The run could not produce a report, with the cause and the remedy.
    """
    from genopt.distributed.run import start_run

    return Run(start_run(build({"model": model, **settings}), listener or Silent()).path)
