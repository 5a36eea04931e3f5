"""Why vLLM did not start, as its processes log it."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from genopt.engines.vllm_failure import LOGGING, VARIABLE, Cause, logged_causes, refusal
from genopt.errors import InfeasibleError, OutOfMemoryError, StageError


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("vllm.test")
    yield found
    for handler in list(logging.getLogger("vllm").handlers):
        logging.getLogger("vllm").removeHandler(handler)


class NoRoomError(ValueError):
    """As libraries derive their own."""


def test_the_first_exception_that_is_logged_is_the_cause(logger: logging.Logger) -> None:
    with logged_causes() as causes:
        logging.config.dictConfig(json.loads(LOGGING.read_text()))
        logger.error("no exception")
        assert causes.first() is None
        for error in (NoRoomError("No memory left.\nThe rest."), RuntimeError("Engine core initialization failed.")):
            try:
                raise error
            except Exception:
                logger.exception("EngineCore failed to start.")
        found = causes.first()
    assert found is not None
    assert (found.kinds[:2], found.message) == (("NoRoomError", "ValueError"), "No memory left")
    assert VARIABLE not in os.environ
    logger.error("after the start, where the file is gone", exc_info=NoRoomError("late"))


def test_an_exception_without_words_is_named_by_its_kind() -> None:
    assert Cause.of(NotImplementedError()) == Cause(("NotImplementedError", "RuntimeError", "Exception", "BaseException", "object"), "")


@pytest.mark.parametrize("logged", [None, Cause(("ValueError",), "The first request was odd")])
def test_a_process_that_was_killed_while_it_started_lacked_memory_whatever_it_said_before(logged: Cause | None) -> None:
    """The text is that of vLLM 0.22 and 0.32."""
    words = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': %d}"
    assert isinstance(refusal(logged, RuntimeError(words % -9)), OutOfMemoryError)
    assert type(refusal(None, RuntimeError(words % 1))) is StageError
    assert isinstance(refusal(Cause(("ValueError",), "No such architecture"), RuntimeError(words % 1)), InfeasibleError)


LOOP = """
import asyncio, multiprocessing, os, signal, sys, time
from genopt.engines.vllm_loop import EngineLoop

async def call():
    os.kill(model.pid, signal.Signals[sys.argv[1]])
    raise RuntimeError("EngineCore died unexpectedly")

model = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
model.start()
try:
    EngineLoop(None).run(call())
except RuntimeError:
    print("told as an error")
"""


@pytest.mark.parametrize(("how", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 1)])
def test_a_process_ends_with_that_of_its_model_and_as_it_did_where_that_was_killed(how: str, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
