"""Files of `serving/` that are deployed rather than imported: they are valid, ask for keys where others reach them, and mount what they need."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from genopt.manifests.render import render, values_of
from genopt.serving.app import CanaryArguments
from genopt.serving.binding import is_loopback
from genopt.serving.canary_app import CANARY
from genopt.serving.manifest import DRAIN_S, LONGEST_STREAM_S, ServeArguments

SERVING = Path(__file__).parents[2] / "serving"


def service() -> dict[str, Any]:
    content: dict[str, Any] = next(yaml.safe_load_all((SERVING / "rayservice.yaml").read_text(encoding="utf-8")))["spec"]
    return content


def test_the_services_config_is_one_that_genopt_reads_and_asks_for_keys() -> None:
    content = yaml.safe_load(service()["serveConfigV2"])
    arguments = ServeArguments.model_validate(content["applications"][0]["args"])
    assert not is_loopback(content["http_options"]["host"])
    assert arguments.keys is not None
    assert content["http_options"]["request_timeout_s"] > LONGEST_STREAM_S


def test_the_service_waits_for_what_it_has_begun_and_mounts_what_it_needs() -> None:
    spec = service()
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterDeletionDelaySeconds"] > DRAIN_S
    for group in [spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert "/keys" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["terminationGracePeriodSeconds"] > DRAIN_S


@pytest.mark.parametrize(("gpus", "cpus", "reserved", "threads"), [(0, 12, 11, 11), (1, 8, 7, 7), (4, 1, 0.5, 1)])
def test_a_replica_gets_what_its_pod_has(gpus: int, cpus: int, reserved: float, threads: int) -> None:
    values = values_of("kuberay", {"gpus": str(gpus), "cpus": str(cpus), "memory": "96Gi"})
    spec = next(yaml.safe_load_all(render(values)["rayservice.yaml"]))["spec"]
    arguments = ServeArguments.model_validate(yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"])
    assert (arguments.num_gpus, arguments.num_cpus, arguments.threads) == (gpus, reserved, threads)
    resources = spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": str(cpus), "memory": "96Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    assert resources["limits"] == resources["requests"]


@pytest.mark.parametrize("name", ["serve-cpu.yaml", "serve-gpu.yaml", "serve-canary.yaml"])
def test_a_template_is_a_serve_config_that_stays_on_this_machine(name: str) -> None:
    content = yaml.safe_load((SERVING / name).read_text(encoding="utf-8"))
    ServeDeploySchema.model_validate(content)
    assert is_loopback(content["http_options"]["host"])
    assert content["http_options"]["request_timeout_s"] > LONGEST_STREAM_S
    arguments = ServeArguments.model_validate(content["applications"][0]["args"])
    engine = content["applications"][0]["deployments"][0]
    assert arguments.max_batch < engine["max_ongoing_requests"] < engine["max_queued_requests"]
    assert bool(arguments.num_gpus) == ("gpu" in name)


def test_the_canarys_template_serves_one_model_twice() -> None:
    content = yaml.safe_load((SERVING / "serve-canary.yaml").read_text(encoding="utf-8"))
    stable, canary = content["applications"]
    arguments = CanaryArguments.model_validate(canary["args"])
    assert (canary["name"], canary["route_prefix"]) == (CANARY, None)
    assert arguments.serve.model_id == stable["args"]["model_id"]
    assert (arguments.rollout.variant, arguments.rollout.stable) == (arguments.serve.variant.name, stable["args"]["variant"]["name"])


def test_the_curl_client_explains_itself() -> None:
    done = subprocess.run(["bash", str(SERVING / "client_example.sh")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: client_example.sh URL QUESTION" in done.stderr
