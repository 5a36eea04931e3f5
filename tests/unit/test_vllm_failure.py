"""Why vLLM did not start, as its processes log it."""

from __future__ import annotations

import json
import logging
import logging.config
import os
from collections.abc import Iterator

import pytest

from genopt.engines.vllm_failure import LOGGING, VARIABLE, Cause, logged_causes


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
