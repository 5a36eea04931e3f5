"""The run spec: what is accepted, and how a bad value is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genopt import spec
from genopt.errors import SpecError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("60m", 3600.0),
        ("1.5h", 5400.0),
        ("300ms", 0.3),
        ("45", 45.0),
        (" 2 m ", 120.0),
        (30, 30.0),
        ("1h30m", 5400.0),
        ("8m 50s", 530.0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert spec.build({"model": "m", "budget": text}).budget == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "share"), [("99%", 0.99), ("0.95", 0.95), (0.5, 0.5), ("100 %", 1.0), ("off", 0.0)])
def test_shares(text: object, share: float) -> None:
    assert spec.build({"model": "m", "quality": text}).quality == pytest.approx(share)


def test_limits_of_latency() -> None:
    asked = spec.build({"model": "m", "slo": "ttft_p99=300ms, tpot_p50=0.03s"})
    assert asked.slo == {"ttft_p99": pytest.approx(0.3), "tpot_p50": pytest.approx(0.03)}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "model"), ({"model": ""}, "model"), ({"model": "m", "budget": "soon"}, "budget"), ({"model": "m", "budget": "30s1m"}, "1h30m"),
        ({"model": "m", "budget": 0}, "budget"),
        ({"model": "m", "budget": -1}, "budget"), ({"model": "m", "quality": "101%"}, "quality"), ({"model": "m", "quality": "high"}, "quality"),
        ({"model": "m", "slo": "ttft_p99"}, "ttft_p99=300ms"), ({"model": "m", "slo": "p99=1s"}, "slo"),
        ({"model": "m", "objective": "speed"}, "objective"), ({"model": "m", "concurrency": []}, "concurrency"),
        ({"model": "m", "concurrency": [0]}, "concurrency"), ({"model": "m", "max_trials": -1}, "max_trials"),
        ({"model": "m", "schema_version": 2}, "schema_version"), ({"model": "m", "arrivals": "poisson"}, "poisson:2.5"),
        ({"model": "m", "arrivals": "poisson:0"}, "arrivals"), ({"model": "m", "arrivals": "fixed:nan"}, "arrivals"),
        ({"model": "m", "arrivals": "closed:1"}, "arrivals"), ({"model": "m", "arrivals": "burst:2"}, "arrivals"),
        ({"model": "m", "prompt_tokens": 1}, "prompt_tokens"), ({"model": "m", "output_tokens": 0}, "output_tokens"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_key(values: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        spec.build(values)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_key_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"Unknown key 'budgett'; known keys are .*budget"):
        spec.build({"model": "m", "budgett": 3})


@pytest.mark.parametrize(("text", "found"), [("closed", None), ("poisson:2.5", ("poisson", 2.5)), ("fixed:10", ("fixed", 10.0))])
def test_arrivals_stay_as_they_were_written(text: str, found: object) -> None:
    asked = spec.build({"model": "m", "arrivals": text})
    assert spec.build(yaml.safe_load(spec.dump(asked))).arrivals == text
    assert spec.parse_arrivals(asked.arrivals) == found


def test_one_stream_is_always_measured() -> None:
    assert spec.build({"model": "m", "concurrency": [8, 4, 8]}).concurrency == (1, 4, 8)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        spec.build({"model": "m"}).seed = 3  # type: ignore[misc]


@given(
    budget=st.floats(0.1, 1e6), quality=st.floats(0.0, 1.0), seed=st.integers(0, 2**31), objective=st.sampled_from(spec.OBJECTIVES),
    include=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=8)),
)  # fmt: skip
def test_a_dumped_spec_builds_the_same_spec(budget: float, quality: float, seed: int, objective: str, include: list[str]) -> None:
    asked = spec.build({"model": "m", "budget": budget, "quality": quality, "seed": seed, "objective": objective, "include": tuple(include)})
    assert spec.build(yaml.safe_load(spec.dump(asked))) == asked


def test_a_spec_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("model: smollm2-135m\nbudget: 10m\n")
    assert spec.build(spec.load(path)).budget == 600.0


@pytest.mark.parametrize(
    ("content", "says"), [(b"- a\n", "mapping"), (b"a: [", "not valid YAML"), (b"\xff\xfe\xff", "not valid YAML"), (b"", "mapping")]
)
def test_a_bad_spec_file_is_explained(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=says):
        spec.load(path)


def test_a_missing_spec_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Cannot read the spec"):
        spec.load(tmp_path / "none.yaml")
