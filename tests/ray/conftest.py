"""What the tests on a real Ray have in common."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Ray Serve 2.60 declares its own options with a deprecated form of pydantic's Field; importing it must not fail here.
    config.addinivalue_line("filterwarnings", "ignore:Using extra keyword arguments on `Field` is deprecated:DeprecationWarning")
