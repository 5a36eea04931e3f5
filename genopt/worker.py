"""The process that does the heavy work: `genopt.worker stage|session`, started by `genopt.bootstrap`.

`stage REQUEST RESULT` runs one stage of `STAGES` and writes its result or error as JSON. A stage is told when it will be killed, on `clock.now`,
so that what importing takes is not counted as time that it has.
`session [CPUS]` opens an engine and answers calls as JSON lines on standard input and output, on these processors; everything
that libraries print goes to standard error instead. Needs pydantic and the standard library, plus whatever the stage or engine
imports (a session numpy, and pyarrow where it is compared): an engine's environment may hold nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genopt.errors import to_wire
from genopt.guardian import guard

STAGES: Mapping[str, str] = {
    "transform": "genopt.techniques.run:run_transform",
    "prepare_text": "genopt.tasks.text_data:prepare",
    "profile_text": "genopt.tasks.text_data:profile",
    "prepare_images": "genopt.tasks.image_data:prepare",
    "profile_images": "genopt.tasks.image_data:profile",
    "text_sensitivity": "genopt.quality.sensitivity:measure",
    "score_text_tasks": "genopt.tasks.text_finalists:score_tasks",
    "tiny_original": "genopt.testing.tiny_originals:write_original",
}


def run_stage_file(request: Path, result: Path) -> None:
    """Runs the stage that a request file describes and writes the result file atomically."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    try:
        module, _, function = STAGES[asked["kind"]].partition(":")
        value = vars(importlib.import_module(module))[function](asked["payload"], asked["ends"])
        answer: dict[str, Any] = {"result": value}
    except Exception as error:  # noqa: BLE001 - every failure of a stage crosses the boundary as data
        traceback.print_exc()
        answer = {"error": to_wire(error)}
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.rename(result)


def main(arguments: list[str]) -> int:
    """Entry point of the process."""
    guard()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what hangs is ended by a signal that leaves its memory on disk otherwise
    if arguments[0] == "stage":
        run_stage_file(Path(arguments[1]), Path(arguments[2]))
        return 0
    if len(arguments) > 1:  # before any library starts threads, which inherit it
        os.sched_setaffinity(0, map(int, arguments[1].split(",")))
    from genopt.session_server import SessionServer

    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not land in the protocol
    SessionServer(sys.stdin, protocol).serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
