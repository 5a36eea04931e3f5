"""What a load test is asked for, and the prompts that it makes."""

from __future__ import annotations

from typing import Any

import pytest

from genopt.errors import SpecError
from genopt.measure.load_spec import LoadSpec, build
from genopt.testing.virtual_server import (
    URL,
)


@pytest.mark.parametrize(("values", "words"), [
    ({"url": "server:8000"}, "not a web address"),
    ({"url": "ftp://server"}, "not a web address"),
    ({"url": "http://me:secret@server"}, "--api-key-env"),
    ({"slo": "ttft"}, "not a limit"),
    ({"slo": "ttft_p99=300ms"}, "use ttft, tpot and e2el"),
    ({"slo": "ttft=fast"}, "not a duration"),
    ({"slo": "ttft=0s"}, "--slo"),
    ({"concurrency": ["0"]}, "--concurrency"),
    ({"concurrency": ["a"]}, "--concurrency"),
    ({"concurrency": []}, "at least one number"),
    ({"concurrency": ["1"], "rate": ["2"]}, "give one of the two"),
    ({"rate": ["0"]}, "--rate"),
    ({"rate": ["inf"]}, "--rate"),
    ({"rate": ["fast"]}, "--rate"),
    ({"requests": 0}, "--requests"),
    ({"requests": 4, "concurrency": ["8"]}, "raise --requests"),
    ({"duration": "soon"}, "--duration"),
    ({"duration": "0s"}, "--duration"),
    ({"max_tokens": 0}, "--max-tokens"),
])  # fmt: skip
def test_a_bad_value_is_a_usage_error(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        build({"url": URL, **values})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("url", "base"), [
    ("http://a:8000", "http://a:8000"), ("http://a:8000/", "http://a:8000"), ("http://a/v1", "http://a"), ("https://a/v1/", "https://a"),
    ("http://a/proxy/v1", "http://a/proxy"), ("http://[::1]:8000/v1", "http://[::1]:8000"),
])  # fmt: skip
def test_the_base_url_comes_with_or_without_v1(url: str, base: str) -> None:
    assert build({"url": url}).url == base


def test_defaults_are_three_closed_levels_of_64_requests() -> None:
    spec = build({"url": URL})
    assert (spec.concurrency, spec.rate, spec.requests, spec.duration) == ((1, 8, 32), (), 64, None)
    assert build({"url": URL, "concurrency": ["128"]}).requests == 128
    assert build({"url": URL, "duration": "30s"}).requests is None
    assert build({"url": URL, "requests": 10}).concurrency == (1, 8)
    assert (build({"url": URL, "rate": ["2.5", "5"]}).concurrency, build({"url": URL, "rate": [2.5]}).requests) == ((), 64)
    assert LoadSpec.model_validate_json(spec.model_dump_json()) == spec
