"""Files of `serving/` that are deployed rather than imported: they are valid, ask for keys where others reach them, and mount what they need."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from genopt.serving.binding import is_loopback
from genopt.serving.manifest import DRAIN_S, LONGEST_STREAM_S, ServeArguments

SERVING = Path(__file__).parents[2] / "serving"


def service() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SERVING / "rayservice.yaml").read_text(encoding="utf-8"))["spec"]
    return content


def test_the_services_config_is_one_that_genopt_reads_and_asks_for_keys() -> None:
    content = yaml.safe_load(service()["serveConfigV2"])
    arguments = ServeArguments.model_validate(content["applications"][0]["args"])
    assert not is_loopback(content["http_options"]["host"])
    assert arguments.keys is not None
    assert content["http_options"]["request_timeout_s"] > LONGEST_STREAM_S


def test_the_service_waits_for_what_it_has_begun_and_mounts_what_it_needs() -> None:
    spec = service()
    assert spec["rayClusterDeletionDelaySeconds"] > DRAIN_S
    for group in [spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert "/keys" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["terminationGracePeriodSeconds"] > DRAIN_S


def test_the_curl_client_explains_itself() -> None:
    done = subprocess.run(["bash", str(SERVING / "client_example.sh")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: client_example.sh URL QUESTION" in done.stderr
