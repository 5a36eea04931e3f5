"""What a run writes into serve.yaml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genopt.plan import Plan
from genopt.serving.manifest import LONGEST_STREAM_S, Scaling, ServeArguments, autoscaling, serve_config


@pytest.mark.parametrize(
    ("knee", "target"),
    [
        ({}, 1),
        ({4: 100.0}, 4),
        ({1: 10.0, 4: 30.0, 8: 50.0}, 8),
        ({1: 10.0, 4: 30.0, 8: 32.0, 16: 60.0}, 4),
        ({8: 32.0, 1: 10.0, 4: 30.0}, 4),
        ({1: 10.0, 4: 11.0}, 1),
        ({1: 10.0, 4: 5.0}, 1),
    ],
)
def test_the_target_is_where_throughput_stops_growing(knee: dict[int, float], target: int) -> None:
    assert autoscaling(knee).target_ongoing_requests == target


@given(st.dictionaries(st.integers(1, 256), st.floats(0.1, 1e5), max_size=6), st.integers(1, 8))
def test_limits_are_in_order(knee: dict[int, float], replicas: int) -> None:
    scaling = autoscaling(knee, max_replicas=replicas)
    assert not knee or scaling.target_ongoing_requests in knee
    assert scaling.target_ongoing_requests < scaling.max_ongoing_requests < scaling.max_queued_requests
    assert scaling.min_replicas <= scaling.max_replicas == replicas


def _config(**changes: Any) -> dict[str, Any]:
    return serve_config(**{
        "application": "genopt", "model_id": "m", "variant": Plan(name="int8", engine="torch"), "artifact": Path("store/a"),
        "model_folder": Path("models/m"), "host": "127.0.0.1", "port": 8000, "scaling": autoscaling({1: 10.0, 4: 30.0}), "threads": 2,
        "num_cpus": 2.0, "num_gpus": 0.0, **changes,
    })  # fmt: skip


def test_the_config_survives_yaml_and_its_arguments_validate() -> None:
    config = yaml.safe_load(yaml.safe_dump(_config()))
    assert config == _config()
    entry = config["applications"][0]
    arguments = ServeArguments.model_validate(entry["args"])
    assert arguments.variant == Plan(name="int8", engine="torch")
    assert Path(arguments.artifact).is_absolute()
    assert Path(arguments.model_folder).is_absolute()
    assert arguments.max_batch == 4
    assert (config["http_options"]["host"], config["http_options"]["port"], entry["route_prefix"]) == ("127.0.0.1", 8000, "/")
    assert "runtime_env" not in entry


def test_an_engine_has_time_to_notice_that_the_longest_answer_was_given_up() -> None:
    arguments = ServeArguments.model_validate(_config()["applications"][0]["args"])
    assert arguments.call_limit_s >= LONGEST_STREAM_S + arguments.stall_s


def test_what_answers_is_known_by_its_bytes_engine_and_options_and_not_by_names() -> None:
    def identity(**changes: Any) -> str:
        return ServeArguments.model_validate(_config(**changes)["applications"][0]["args"]).identity()

    assert identity() == identity(variant=Plan(name="other", engine="torch"), port=1, threads=9)
    assert identity(digest="d1") == identity(digest="d1", artifact=Path("elsewhere"))
    different = [{}, {"digest": "d1"}, {"digest": "d2"}, {"artifact": Path("elsewhere")}, {"model_folder": Path("elsewhere")},
                 {"variant": Plan(name="int8", engine="vllm")}, {"variant": Plan(name="int8", engine="torch", options={"a": 1})}]  # fmt: skip
    assert len({identity(**changes) for changes in different}) == len(different)


def test_limits_can_change_without_changing_the_arguments_beyond_the_batch() -> None:
    more = Scaling(target_ongoing_requests=4, max_ongoing_requests=9, max_queued_requests=90, min_replicas=2, max_replicas=5)
    one, other = _config()["applications"][0], _config(scaling=more)["applications"][0]
    assert one["args"] == other["args"]
    assert other["deployments"][0]["autoscaling_config"] == {"target_ongoing_requests": 4, "min_replicas": 2, "max_replicas": 5}


def test_an_engine_takes_over_what_the_run_compiled_where_that_is_at_hand(tmp_path: Path) -> None:
    config = _config(compiled_folder=tmp_path / "inductor")
    arguments = ServeArguments.model_validate(config["applications"][0]["args"])
    assert "TORCHINDUCTOR_CACHE_DIR" not in arguments.variables()
    (tmp_path / "inductor").mkdir()
    assert arguments.variables()["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert "TORCHINDUCTOR_CACHE_DIR" not in ServeArguments.model_validate(_config()["applications"][0]["args"]).variables()


def test_a_checkout_is_made_importable() -> None:
    assert _config(pythonpath="/src")["applications"][0]["runtime_env"] == {"env_vars": {"PYTHONPATH": "/src"}}


def test_arguments_are_strict() -> None:
    good = _config()["applications"][0]["args"]
    for change in ({"extra": 1}, {"max_batch": 0}, {"model_id": ""}, {"threads": 0}):
        with pytest.raises(ValidationError):
            ServeArguments.model_validate({**good, **change})


def test_writing_and_asking_need_no_ray() -> None:
    modules = "genopt.serving.manifest, genopt.serving.client, genopt.serving.ingress"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": str(Path(__file__).parents[2])}).returncode == 0
