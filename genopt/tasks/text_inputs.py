"""What of a text run's spec can be refused before anything runs."""

from __future__ import annotations

from pathlib import Path

from genopt.errors import SpecError
from genopt.measure.prompts import read_prompts
from genopt.quality.lm_eval_tasks import require_harness
from genopt.quality.task_items import holds_items, read_items
from genopt.quality.text_data import load_documents
from genopt.spec import RunSpec


def require_text_inputs(spec: RunSpec) -> None:
    """Refuses at once what would fail late; see `Task.require_inputs`."""
    if spec.scorer is not None:
        raise SpecError("--scorer scores images, and this model writes text; give questions with --eval-data instead.")
    for data in (spec.eval_data, spec.calib_data):
        if data is not None:
            load_documents(Path(data).expanduser())
    if spec.eval_data is not None and holds_items(Path(spec.eval_data).expanduser()):
        read_items(Path(spec.eval_data).expanduser())
    if spec.eval_tasks:
        require_harness()
    if spec.prompts is not None:
        read_prompts(Path(spec.prompts).expanduser())
