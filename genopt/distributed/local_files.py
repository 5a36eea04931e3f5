"""Files of the user's that a spec names, by paths that hold whatever the current folder is."""

from __future__ import annotations

import os
from pathlib import Path

from genopt.distributed.submitted import in_job
from genopt.models.builtin import BUILT_IN
from genopt.quality.lm_eval_tasks import is_file
from genopt.spec import RunSpec


def with_absolute_paths(spec: RunSpec) -> RunSpec:
    """The spec with absolute paths of what it names on this machine, so that a run goes on, and is repeated, from any folder.

    Ids of models, names of tasks and whatever does not exist here stay as they are. So do relative paths in a job: they name what
    came along with it, which the next job finds in another folder.
    """
    files = {name: _absolute(path) for name in ("eval_data", "calib_data", "prompts", "scorer") if (path := getattr(spec, name)) is not None}
    return spec.model_copy(
        update={
            **files,
            "model": spec.model if spec.model in BUILT_IN else _absolute(spec.model),
            "eval_tasks": tuple(_absolute(name) if is_file(name) else name for name in spec.eval_tasks),
            "given": {kind: _absolute(folder) for kind, folder in spec.given.items()},
        }
    )


def _absolute(text: str) -> str:
    path = os.path.expanduser(text)  # leaves the name of an unknown user alone, where Path.expanduser raises
    stays = not os.path.exists(path) or (in_job() and not os.path.isabs(path))
    return text if stays else str(Path(path).absolute())
